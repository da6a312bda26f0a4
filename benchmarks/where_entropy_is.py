r"""Where is a model's entropy: at choices between several good ways, or at errors?

    python benchmarks/where_entropy_is.py models/tiny --task chain
    python benchmarks/where_entropy_is.py models/countdown runs/dr_grpo/countdown-seed0/final --task countdown

For every token of sampled completions this asks which next tokens are possible: those with which the text can
still become correct work, whether or not it reaches the right answer. The entropy of the token is then split.
Its terms -p log p of impossible tokens are one part. The others go to the role of the position:

    choice          the text can go on in several ways
    result          in one way, and that is the result of a calculation that is written there
    format          in one way, and that is anything else: a sign, the end of a line, the end
    after an error  in none: the text is beyond repair until a new line, or to its end

Then come the positions with most entropy. Completions have to be written as the world's are, so a real model
is given worked examples (--system-prompt).
"""

import functools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from plainrl.countdown import OPERATIONS, ways  # noqa: E402
from plainrl.folder import write_text  # noqa: E402
from plainrl.metrics import evaluate  # noqa: E402
from plainrl.models import eos_ids, keep_freed_memory, load_model, model_hash  # noqa: E402
from plainrl.sampler import HFSampler  # noqa: E402
from plainrl.samples import TokenTexts  # noqa: E402
from plainrl.scoring import score  # noqa: E402
from plainrl.screen import shown  # noqa: E402
from plainrl.tasks import Problem, load_task  # noqa: E402

ROLES = ("choice", "result", "format", "after an error")
PARTS = ("choice", "result", "format", "impossible tokens", "after an error")


@dataclass
class Args:
    models: tyro.conf.Positional[tuple[str, ...]]
    """folders or hub names, shown beside each other"""
    task: str = "countdown"
    """countdown or chain, with their settings"""
    problems: int = 100
    """dev problems"""
    samples: int = 4
    """completions of each"""
    max_new_tokens: int = 64
    """longest completion"""
    system_prompt: str | None = None
    """system turn put before every prompt"""
    top: int = 20
    """positions with most entropy that are listed"""
    out: Path | None = None
    """also write everything here as JSON"""


# --- what may come next -------------------------------------------------------------------------------------


def countdown_continuations(problem: Problem) -> Callable[[str], list[str]]:
    """A function of the text so far that gives every possible rest; [""] where only the end can follow."""
    texts = [text for text, _ in ways(tuple(map(int, problem.options)))]

    @functools.cache
    def continuations(text: str) -> list[str]:
        return [whole[len(text) :] for whole in texts if whole.startswith(text)]

    return continuations


def chain_continuations(problem: Problem) -> Callable[[str], list[str]]:
    """The same for a chain. Only one text is possible: each step as the problem has it, worked on with the
    value that the lines before it ended in, right or wrong."""
    pattern = re.compile(r"([A-Z])=(\d+)([-+*/])(\d+)=(\d+)")
    steps = [pattern.fullmatch(line).groups() for line in problem.solution.split("\n")[:-1]]

    def continuations(text: str) -> list[str]:
        *lines, begun = text.split("\n")
        value = steps[0][1]
        for line in lines:
            value = line.rpartition("=")[2]
        if len(lines) > len(steps) or not value.isdecimal():
            return []
        if len(lines) == len(steps):
            expected = f"\\boxed{{{value}}}"
        else:
            letter, _, sign, number, _ = steps[len(lines)]
            expected = f"{letter}={value}{sign}{number}="
            if begun.count("=") == 2:  # the calculation is written, as it should be or not
                written = re.fullmatch(r"[A-Z]=(\d+)([-+*/])(\d+)=\d*", begun)
                if not written:
                    return []
                expected = begun[: begun.rindex("=") + 1] + calculated(*written.groups()) + "\n"
        return [expected[len(begun) :]] if expected.startswith(begun) else []

    return continuations


def calculated(left: str, sign: str, right: str) -> str:
    if sign == "/":
        return str(int(left) // int(right)) if int(right) else "?"
    return str(OPERATIONS[sign](int(left), int(right)))


CONTINUATIONS = {"countdown": countdown_continuations, "chain": chain_continuations}


def possible_tokens(rests: list[str], ids: dict[str, int], ends: set[int]) -> set[int]:
    """The tokens that one of these rests can begin with; `ends` where the text may end.

    ids {text of a token: its id}.
    """
    longest = max(map(len, ids))
    found = {
        ids[rest[:n]] for rest in rests for n in range(1, min(longest, len(rest)) + 1) if rest[:n] in ids
    }
    return found | (ends if "" in rests else set())


def role(text: str, rests: list[str], longest: int) -> str:
    """What the position after the text is for; `longest` is the length of the longest token that is possible.

    What tokens cannot tell apart here is no choice: "15" and "12" are one way while only "1" can be written.
    """
    if not rests:
        return "after an error"
    if len({rest[:longest] for rest in rests}) > 1:
        return "choice"
    return "result" if re.search(r"\d[-+*/]\d+=\d*$", text) and rests[0][:1].isdecimal() else "format"


# --- measuring ----------------------------------------------------------------------------------------------


def positions(model, tokenizer, task, args: Args):
    """Every token of the sampled completions: its role, its entropy in nats, the part of it that lies on
    impossible tokens, the text before it, and the likeliest tokens there."""
    sampler, texts = HFSampler(model, ends := eos_ids(model, tokenizer)), TokenTexts(tokenizer)
    ids = {texts[id]: id for id in reversed(range(len(tokenizer)))}
    ends, found, rollouts = set(ends), [], []
    settings = ("dev", args.problems, args.samples, args.max_new_tokens, 1.0, args.system_prompt, rollouts)
    evaluate(sampler, tokenizer, task, *settings, at_once=1)
    for rollout in rollouts:
        (problem,) = rollout.problems
        logprobs = all_logprobs(model, rollout.prompt_ids, rollout.completion_ids)  # [M, V]
        continuations, row = CONTINUATIONS[task.name](problem), 0
        for completion in rollout.completion_ids:
            text = ""
            for id in completion:
                rests = continuations(text)
                possible = possible_tokens(rests, ids, ends)
                longest = max((len(texts[other]) for other in possible - ends), default=1)
                terms = -logprobs[row].exp() * logprobs[row].clamp(min=-1e4)  # [V]
                entropy = terms.sum().item()
                likeliest = logprobs[row].topk(5).indices.tolist()
                found.append(
                    {
                        "role": role(text, rests, longest),
                        "entropy": entropy,
                        "impossible": entropy - terms[list(possible)].sum().item() if possible else 0.0,
                        "mass": 1 - logprobs[row, list(possible)].exp().sum().item() if possible else 0.0,
                        "prompt": problem.prompt,
                        "text": text,
                        "likeliest": [
                            (texts[other], logprobs[row, other].exp().item(), other in possible)
                            for other in likeliest
                        ],
                    }
                )
                text, row = text + texts[id], row + 1
    return found


@torch.no_grad()
def all_logprobs(model, prompt_ids: list, completion_ids: list) -> torch.Tensor:
    """Log-probabilities of the whole vocabulary at every completion token, row by row: [M, V]."""
    blocks = []

    def keep(logits, targets):
        blocks.append(torch.log_softmax(logits, dim=-1))
        return logits.new_zeros(len(targets))

    score(model, prompt_ids, completion_ids, 1.0, keep)
    return torch.cat(blocks)


def shares(found: list[dict]) -> dict:
    """Mean entropy, the share of it in each part, and how much probability impossible tokens have."""
    total = sum(each["entropy"] for each in found)
    part = Counter()
    for each in found:
        part[each["role"]] += each["entropy"] - each["impossible"]
        part["impossible tokens"] += each["impossible"]
    on_track = [each for each in found if each["role"] != "after an error"]
    return {
        "tokens": len(found),
        "entropy": total / len(found),
        "shares": {name: part[name] / total for name in PARTS},
        "tokens of a role": {
            name: sum(each["role"] == name for each in found) / len(found) for name in ROLES
        },
        "mass on impossible tokens": sum(each["mass"] for each in on_track) / len(on_track),
    }


def table(measured: dict[str, dict]) -> str:
    """One row a model."""
    lines = [
        "| model | entropy, nats a token | at choices | at results | at format | on impossible tokens "
        "| after an error | tokens that are choices | probability of impossible tokens |",
        "|---" * 9 + "|",
    ]
    for name, result in measured.items():
        cells = [f"{result['shares'][part]:.3f}" for part in PARTS]
        cells = [f"{result['entropy']:.3f}", *cells, f"{result['tokens of a role']['choice']:.3f}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {result['mass on impossible tokens']:.4f} |")
    return "\n".join(lines)


def page_table(folder: Path) -> str:
    """What docs/world.md shows of the committed measurements: those of every world beside each other."""
    measured = {}
    for file in sorted(folder.glob("*.json")):
        for name, result in json.loads(file.read_text()).items():
            measured[f"`{name}` on `{result['task']}`"] = result
    return table(measured)


def main(args: Args) -> None:
    keep_freed_memory()
    task = load_task(args.task)
    if task.name not in CONTINUATIONS:
        sys.exit(
            f"error: --task {args.task}: what is possible is known of {' and '.join(CONTINUATIONS)} only"
        )
    measured = {}
    for name in args.models:
        model, tokenizer = load_model(name)
        found = positions(model.eval(), tokenizer, task, args)
        different = {(each["prompt"], each["text"]): each for each in found}.values()
        top = sorted(different, key=lambda each: -each["entropy"])[: args.top]
        measured[name] = {"model_hash": model_hash(model), "task": args.task} | shares(found) | {"top": top}
        print(f"\n{name}, {args.task}: positions with most entropy")
        for each in top:
            likely = "  ".join(
                f"{shown(text, one_line=True)!r} {p:.2f}{'' if ok else ' (impossible)'}"
                for text, p, ok in each["likeliest"]
            )
            before = shown(each["prompt"].split(".")[0] + ": " + each["text"], one_line=True)
            print(f"  {each['entropy']:.2f}  {each['role']:15s} {before}  ->  {likely}")
    print("\n" + table(measured))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(args.out, json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
