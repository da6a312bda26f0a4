r"""Compares avg@n, pass@k and maj@k with lighteval's AvgAtN, PassAtK and MajAtN on the same answers.

    python3 -m venv lighteval-env && lighteval-env/bin/pip install torch==2.13.0 lighteval==0.13.0
    python benchmarks/against_lighteval.py --lighteval-python lighteval-env/bin/python \
        --out benchmarks/against_lighteval.md

The answers are in votes.jsonl, one problem a line: chains sampled from the embedded model, sums of fractions
sampled from SmolLM2-135M-Instruct, and groups written to have one answer in several spellings. These commands
sample again. The last one also grades the written groups again, which are edited in the file:

    python eval.py --model models/tiny --task "chain?horizon=1-3" --problems 100 -n 16 \
        --out-dir runs/eval/votes
    python benchmarks/smollm2.py
    python benchmarks/against_lighteval.py --record runs/eval/votes runs/eval/smollm2-fractions

lighteval votes on whole completions. Here it gets the answers that are already cut out of them, and the
recorded verdicts, so that only the metrics differ. Its maj@n is that of the first n samples; eval.py's maj@k
is the expectation over all subsets of size k.
"""

import functools
import itertools
import json
import random
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


def theirs() -> None:
    """Runs in lighteval's environment, with nothing of this project: groups on stdin, numbers on stdout."""
    try:
        from importlib.metadata import version

        from lighteval.metrics.metrics_sample import AvgAtN, MajAtN, PassAtK
        from lighteval.metrics.normalizations import math_normalizer
        from lighteval.models.model_output import ModelResponse
        from lighteval.tasks.requests import Doc
    except ImportError as error:
        sys.exit(
            f"error: lighteval cannot be imported ({error}); see the first lines of "
            "benchmarks/against_lighteval.py"
        )

    def numbers(group, texts, spelled, **options):
        """texts: what lighteval gets. spelled: what it makes of them and asks the verdict of, which is that
        of the first text spelled so."""
        verdicts, scored = {"": 0}, []
        for text, correct in zip(spelled, group["correct"]):
            verdicts.setdefault(text, correct)

        def score(doc, model_response):
            scored.append(model_response.final_text[0])
            return verdicts[scored[-1]]

        def compute(metric):
            return float(
                metric(sample_scoring_function=score, **options).compute(doc, ModelResponse(text=texts))
            )

        n, doc = len(texts), Doc(query="", choices=[f"\\boxed{{{group['gold']}}}"], gold_index=0)
        return {
            "avg": None if options else compute(functools.partial(AvgAtN, n=n)),  # AvgAtN does not normalize
            "pass": {k: compute(functools.partial(PassAtK, k=k, n=n)) for k in group["ks"]},
            "maj": {k: compute(functools.partial(MajAtN, n=k)) for k in group["ks"]},
            "ballots": spelled,
            "winner": scored[-1],
        }

    results = []
    for group in json.load(sys.stdin):
        answers = [answer or "" for answer in group["answers"]]
        boxed = [f"\\boxed{{{answer}}}" if answer else "" for answer in answers]
        normal = [math_normalizer(text) if text else "" for text in boxed]
        results.append(
            [numbers(group, answers, answers), numbers(group, boxed, normal, normalize=math_normalizer)]
        )
    print(json.dumps({"version": version("lighteval"), "results": results}))


if __name__ == "__main__" and sys.argv[1:] == ["--theirs"]:
    sys.exit(theirs())

import tyro  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from plainrl.grading import grade_boxed  # noqa: E402
from plainrl.metrics import count, ladder, maj_at_k, problem_values, votes  # noqa: E402
from plainrl.screen import fail  # noqa: E402
from plainrl.sources import ListTask  # noqa: E402
from plainrl.tasks import Grade, Problem  # noqa: E402
from plainrl.world import ChainTask  # noqa: E402

VOTES = Path(__file__).with_name("votes.jsonl")
TASKS = {"chains": ChainTask(), "fractions": ListTask("fractions", {}), "written": ListTask("written", {})}
# MajAtN as it is, and with lighteval's own normalizer of mathematical answers
VARIANTS = ("strings", "math_normalizer")
TIE, UNPARSED, SPELLING, ELSE = (
    "the first of a tie wins",
    "no answer wins",
    "spellings are counted apart",
    "anything else",
)
SHUFFLES = 20


@dataclass
class Args:
    lighteval_python: str | None = None
    """Python of an environment with lighteval"""
    record: tuple[Path, Path] | None = None
    """write votes.jsonl instead: the samples of these evaluations (folders; chains, fractions), and the
    written groups graded again"""
    out: Path | None = None
    """also write the tables here"""


def record(folders: tuple[Path, Path]) -> None:
    """One line a problem: gold, answers (null where there was none) and verdicts."""
    groups = []
    for source, folder in zip(TASKS, folders):
        problems = {}
        try:
            rows = [json.loads(line) for line in (folder / "samples.jsonl").open()]
        except (OSError, ValueError) as error:
            fail(f"--record {folder}: cannot be read ({error}); give the folder of an evaluation")
        for row in rows:
            empty = {"source": source, "gold": row["gold"], "answers": [], "correct": []}
            group = problems.setdefault((row["horizon"], row["index"]), empty)
            group["answers"].append(row["parsed"])
            group["correct"].append(int(row["correct"]))
        groups += [problems[key] for key in sorted(problems)]
    for group in (json.loads(line) for line in VOTES.open() if '"written"' in line):
        boxes = ["" if answer is None else f"\\boxed{{{answer}}}" for answer in group["answers"]]
        group["correct"] = [int(grade_boxed(box, Problem("", group["gold"])).correct) for box in boxes]
        groups.append(group)
    VOTES.write_text("".join(json.dumps(group, separators=(",", ":")) + "\n" for group in groups))


def ask_lighteval(python: str, groups: list[dict]) -> dict:
    try:
        done = subprocess.run(
            [python, __file__, "--theirs"], input=json.dumps(groups), capture_output=True, text=True
        )
    except OSError as error:
        fail(f"--lighteval-python {python}: does not start ({error})")
    if done.returncode:
        last_line = (done.stderr.strip() or "no message").splitlines()[-1]
        fail(f"--lighteval-python {python}: {last_line.removeprefix('error: ')}")
    return json.loads(done.stdout.splitlines()[-1])


def most_frequent(ballots: list[str]) -> list[str]:
    """All that tie, in the order of their first vote."""
    counts = Counter(ballots)
    return [ballot for ballot, number in counts.items() if number == max(counts.values())]


def winners_by_string(group: dict) -> list[str]:
    """The most frequent answers, every spelling for itself and no answer left out."""
    return most_frequent([answer for answer in group["answers"] if answer])


def reasons(group: dict, row: dict, ours: float, their: dict) -> list[str]:
    """Goes from lighteval's rule to ours in three steps and names those that change maj@n.

    ELSE if its rule was not what is said here, or if ours is not where the steps end.
    """
    n, ballots = row["n"], their["ballots"]
    worth = {"": 0.0}
    for ballot, correct in zip(ballots, group["correct"]):
        worth.setdefault(ballot, float(correct))
    right = Counter(vote for vote, correct in zip(row["votes"], group["correct"]) if correct)
    first = most_frequent(ballots)[0]
    parsed = [worth[ballot] for ballot in most_frequent([ballot for ballot in ballots if ballot])] or [0.0]
    merged = [
        right[vote] / row["votes"].count(vote)
        for vote in most_frequent([vote for vote in row["votes"] if vote])
    ] or [0.0]
    values = [worth[first], parsed[0], sum(parsed) / len(parsed), sum(merged) / len(merged)]
    if first != their["winner"] or values[0] != their["maj"][str(n)] or abs(values[-1] - ours) > 1e-9:
        return [ELSE]
    if abs(values[0] - ours) < 1e-9:
        return []
    return [
        name
        for name, before, after in zip((UNPARSED, TIE, SPELLING), values, values[1:])
        if abs(before - after) > 1e-9
    ]


def measure(groups: list[dict], python: str) -> tuple[str, list[dict]]:
    """lighteval's version, and the groups with everything that the tables show."""
    for group in groups:
        group["ks"] = ladder(len(group["answers"]))
    answer = ask_lighteval(python, groups)
    for group, their in zip(groups, answer["results"]):
        n, task = len(group["answers"]), TASKS[group["source"]]
        grades = [
            Grade(bool(correct), float(correct), parsed, "")
            for parsed, correct in zip(group["answers"], group["correct"])
        ]
        samples = [
            {
                "parsed": grade.parsed,
                "vote": vote,
                "correct": grade.correct,
                "why": "",
                "tokens": 0,
                "finish_reason": "stop",
            }
            for grade, vote in zip(grades, votes(task, grades))
        ]
        row = count(samples, 0, 1, group["source"])
        ours = problem_values(row)
        rng, orders = random.Random(0), []
        for _ in range(SHUFFLES):
            order = rng.sample(grades, n)
            orders.append(maj_at_k(votes(task, order), [grade.correct for grade in order], n))
        group |= {
            "theirs": their,
            "ours": ours,
            "votes": row["votes"],
            "avg difference": abs(their[0]["avg"] - ours[f"avg@{n}"]),
            "pass differences": {k: abs(their[0]["pass"][str(k)] - ours[f"pass@{k}"]) for k in group["ks"]},
            "reasons": [reasons(group, row, ours[f"maj@{n}"], variant) for variant in their],
            "orders": [min(orders), max(orders)],
        }
    return answer["version"], groups


def code(text: str | None) -> str:
    return f"`{text}`" if text else "(none)"


def counted(group: dict) -> str:
    return ", ".join(f"{number} {code(text)}" for text, number in Counter(group["answers"]).items())


def table(head: str, rows: list[list]) -> list[str]:
    return [
        f"| {head} |",
        "|---" * (head.count(" | ") + 1) + "|",
        *("| " + " | ".join(map(str, row)) + " |" for row in rows),
    ]


def gap(group: dict) -> str:
    """The first three answers of a group that show that equivalence is not transitive."""
    same = TASKS[group["source"]].same_answer
    for a, b, c in itertools.permutations(filter(None, dict.fromkeys(group["answers"])), 3):
        if same(a, b) and same(b, c) and not same(a, c):
            return (
                f"{code(a)} equals {code(b)}, that equals {code(c)}, but {code(a)} does not equal {code(c)}"
            )
    return "no three answers explain it"


def metrics_tables(groups: list[dict], sampled: list[dict]) -> list[str]:
    lines = ["\n## avg@n and pass@k: largest difference in one group\n"]
    rows = [["avg@n", len(groups), f"{max(group['avg difference'] for group in groups):.1e}"]]
    for k in (1, 2, 4, 8, 16):
        found = [group["pass differences"][k] for group in groups if k in group["pass differences"]]
        rows.append([f"pass@{k}", len(found), f"{max(found):.1e}"])
    lines += table("metric | groups | largest difference", rows)

    runs = [sum(run) / len(sampled) for run in zip(*(group["correct"] for group in sampled))]
    lines += [
        "\n## maj@k of the chains: mean\n",
        "lighteval's is the winner of the first k samples, eval.py's the expectation over all subsets of "
        "size k: for k below n two estimates, for k = n the same samples. The accuracy of one sample each "
        f"goes from {min(runs):.4f} to {max(runs):.4f}, "
        f"the first has {runs[0]:.4f}.\n",
    ]
    rows = []
    for k in sampled[0]["ks"]:
        pairs = [(group["theirs"][0]["maj"][str(k)], group["ours"][f"maj@{k}"]) for group in sampled]
        their, ours = (sum(column) / len(pairs) for column in zip(*pairs))
        rows.append([k, f"{their:.4f}", f"{ours:.4f}", sum(abs(a - b) > 1e-9 for a, b in pairs)])
    return lines + table("k | lighteval | eval.py | groups that differ", rows)


def reasons_table(of: dict[str, list[dict]]) -> list[str]:
    columns = {
        f"{source}, {name}": Counter(" + ".join(group["reasons"][i]) for group in of[source])
        for source in of
        for i, name in enumerate(VARIANTS)
    }
    single = [TIE, UNPARSED, SPELLING, ELSE]
    several = sorted({name for counts in columns.values() for name in counts if name} - {*single})
    rows = [[name, *(counts[name] for counts in columns.values())] for name in single + several]
    rows.append(["all that differ", *(counts.total() - counts[""] for counts in columns.values())])
    rows.append(["groups", *(counts.total() for counts in columns.values())])
    return [
        "\n## maj@n: groups that differ, by the reason\n",
        "The script repeats lighteval's vote (checked: the same winner and number) and changes it into "
        "eval.py's in three steps: no answer cannot win, a tie is split, equivalent answers are one "
        "(checked: the same number). A reason is a step that changes "
        'maj@n. "math_normalizer": `MajAtN(normalize=math_normalizer)`, '
        "lighteval's own way to unify spellings.\n",
        *table(" | ".join(["in lighteval", *columns]), rows),
    ]


def report(version: str, groups: list[dict]) -> str:
    of = {source: [group for group in groups if group["source"] == source] for source in TASKS}
    known = []
    for source, members in of.items():
        verdicts = [correct for group in members for correct in group["correct"]]
        known.append(f"{len(members)} {source} (accuracy {sum(verdicts) / len(verdicts):.3f})")
    lines = [
        f"# eval.py and lighteval {version} on the same answers\n",
        "`python benchmarks/against_lighteval.py --lighteval-python PYTHON --out "
        "benchmarks/against_lighteval.md` on votes.jsonl: "
        f"{', '.join(known)}. Chains and fractions were sampled, the others written to show spellings.",
    ]
    lines += metrics_tables(groups, of["chains"]) + reasons_table(of)

    for source in ("fractions", "written"):
        rows = []
        for group in of[source]:
            strings = winners_by_string(group)
            winners = most_frequent([vote for vote in group["votes"] if vote])
            of_strings = {vote for vote, answer in zip(group["votes"], group["answers"]) if answer in strings}
            if of_strings != set(winners):
                n = len(group["answers"])
                plain, normal = (f"{their['maj'][str(n)]:g}" for their in group["theirs"])
                rows.append(
                    [
                        code(group["gold"]),
                        counted(group),
                        " or ".join(map(code, strings)),
                        " or ".join(map(code, winners)),
                        plain,
                        normal,
                        f"{group['ours'][f'maj@{n}']:.3g}",
                    ]
                )
        lines.append(
            f"\n## {source}: {len(rows)} of {len(of[source])} groups have other winners by string than by "
            "equivalence\n"
        )
        lines += table(
            "gold | answers | winners by string | by equivalence | lighteval | with math_normalizer | "
            "eval.py",
            rows,
        )

    moved = [group for group in groups if group["orders"][1] - group["orders"][0] > 1e-9]
    lines.append(
        "\n## The order of the samples\n\n"
        f"eval.py's maj@n changes in {SHUFFLES} shuffles of the samples in {len(moved)} of "
        f"{len(groups)} groups.\n"
    )
    for group in moved:
        low, high = group["orders"]
        lines.append(
            f"- gold {code(group['gold'])}, answers {counted(group)}: maj@n from {low:.3g} to {high:.3g}; "
            f"{gap(group)}"
        )
    return "\n".join(lines).rstrip() + "\n"


def main(args: Args) -> None:
    if args.record:
        return record(args.record)
    if args.lighteval_python is None:
        fail(
            "--lighteval-python: is needed; the first lines of benchmarks/against_lighteval.py say how to "
            "make that environment"
        )
    text = report(*measure([json.loads(line) for line in VOTES.open()], args.lighteval_python))
    print(text, end="")
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
