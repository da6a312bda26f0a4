"""tools/select_data.py and subset:FILE: the rules, what is sampled and written, and the chosen problems as a
task."""

import collections
import doctest
import itertools
import json
import math
import re
import statistics

import pytest
import toys
from mutants import mutant
from transformers import AutoTokenizer

import eval as evaluation
import grpo
from plainrl import files, rows
from plainrl.flags import EVAL_SEED
from plainrl.rollout import completion_seed, encode_prompt
from plainrl.tasks import Grade, load_task, scored
from tools import select_data
from tools.select_data import Args, cv, in_band, is_kept, is_spread, keep_probability, pass_rate

CHAIN = "chain?horizon=1-3"


def test_doctests():
    """Catches examples that are wrong."""
    assert doctest.testmod(select_data).failed == 0


# --- the mathematics ----------------------------------------------------------------------------------------


@mutant(
    "select: score at tau is right", "tools/select_data.py", "sum(score > tau for", "sum(score >= tau for"
)
@mutant("select: pass rate of mean scores", "tools/select_data.py", "sum(score > tau for", "sum(score for")
@pytest.mark.parametrize(
    "scores, expected",
    [([0.2, 0.6, 1, 1], 2 / 4), ([0.99, 1, 0.98, 0], 1 / 4), ([0, 0], 0), ([1, 1, 1], 1)],
)
def test_pass_rate_by_hand(scores, expected):
    """Catches a mean of scores in place of a share, and a threshold that counts itself: tau is 0.99."""
    assert pass_rate(scores) == expected


@mutant("select: cv without the root", "tools/select_data.py", "math.sqrt(variance) / mu", "variance / mu")
@mutant(
    "select: cv without the mean", "tools/select_data.py", "math.sqrt(variance) / mu", "math.sqrt(variance)"
)
@mutant("select: ddof added", "tools/select_data.py", "(len(scores) - ddof)", "(len(scores) + ddof)")
@mutant("select: sum around 0", "tools/select_data.py", "(score - mu) ** 2", "score**2")
@pytest.mark.parametrize(
    "scores, ddof, expected",
    [
        ([0.9, 0.1, 0.7, 0.3, 0.5], 0, 0.565685),  # mean .5, sigma^2 = .4/5
        ([0.9, 0.1, 0.7, 0.3, 0.5], 1, 0.632456),  # sigma^2 = .4/4
        ([1, 0, 0, 0], 0, 1.732051),
        ([1, 1, 0, 0], 0, 1.0),
        ([1, 1, 1, 0], 0, 0.577350),
        ([1, 1, 1, 1], 0, 0.0),
        ([1, 0, 0, 0], 1, 2.0),
        ([1, 1, 0, 0], 1, 1.154701),
        ([1, 1, 1, 0], 1, 0.666667),
        ([1, 1, 1, 1], 1, 0.0),
        ([0.2, 0.6, 1, 1], 0, 0.473804),
    ],
)
def test_cv_of_the_papers_example_and_of_four_samples(scores, ddof, expected):
    """Catches a variance, a wrong denominator, and a ddof that does nothing or the opposite."""
    assert cv(scores, ddof) == pytest.approx(expected, abs=1e-6)
    deviation = (statistics.stdev if ddof else statistics.pstdev)(scores)
    assert cv(scores, ddof) == pytest.approx(deviation / statistics.mean(scores), abs=1e-12)


@mutant(
    "select: rounding taken for spread", "tools/select_data.py", "if min(scores) == max(scores)", "if False"
)
def test_cv_at_its_ends():
    """Catches a division by 0, and equal scores that differ by the rounding of their mean."""
    assert cv([0.0, 0.0]) is None and cv([0.0], ddof=0) is None
    assert sum([0.1] * 3) / 3 != 0.1  # in binary
    assert cv([0.1] * 3) == 0.0 and not is_spread([0.995] * 3 + [0.995], 0.99, 0.0)


def test_cv_of_right_and_wrong_is_a_function_of_the_pass_rate():
    """Catches a page that promises more: sqrt((1-p)/p), so that cv > t is p < 1/(1+t^2)."""
    for n, t in itertools.product(range(1, 17), (0.05, 0.3, 0.577, 0.9, 1.3, 2.5)):
        for c in range(1, n + 1):
            scores, p = [1.0] * c + [0.0] * (n - c), c / n
            assert cv(scores) == pytest.approx(math.sqrt((1 - p) / p), abs=1e-12)
            assert is_spread(scores, 0.99, t) == (p < 1 / (1 + t * t))


@mutant(
    "select: band without its low end",
    "tools/select_data.py",
    "return low <= rate <= high",
    "return low < rate <= high",
)
@mutant(
    "select: band without its high end",
    "tools/select_data.py",
    "return low <= rate <= high",
    "return low <= rate < high",
)
def test_a_band_holds_both_its_ends():
    """Catches an end that is left out, also where 3/10 is compared with 0.3."""
    assert [c for c in range(11) if in_band(c / 10, 0.3, 0.7)] == [3, 4, 5, 6, 7]
    assert all(in_band(c / n, c / n, c / n) for n in range(1, 65) for c in range(n + 1))


@mutant(
    "select: unsolved problems that vary", "tools/select_data.py", "return max(scores) > tau and", "return"
)
@mutant(
    "select: spread at the threshold", "tools/select_data.py", "variation > min_cv", "variation >= min_cv"
)
@mutant("select: stable ones that no sample solves", "tools/select_data.py", "return is_solved and", "return")
def test_the_spread_rule_by_hand():
    """Catches problems without a right sample, ones at the threshold, and a random share of the unsolved."""
    assert is_spread([1, 0.2], 0.99, 0.6) and not is_spread([0.9, 0.1], 0.99, 0.6)
    assert is_spread([1, 1, 0, 0], 0.99, 0.99) and not is_spread([1, 1, 0, 0], 0.99, 1.0)
    assert not is_spread([0, 0], 0.99, 0.0)
    every = Args(task="t", out=None, keep="spread", min_cv=1.0, keep_stable=1.0)
    assert is_kept([1, 1], "easy", every) and is_kept([1, 0.9], "easy", every)
    assert not is_kept([0, 0], "hard", every) and not is_kept([0.9, 0], "hard", every)


@mutant(
    "select: the others' share",
    "tools/select_data.py",
    "/ 2**64 < args.keep_stable",
    "/ 2**64 >= args.keep_stable",
)
@mutant(
    "select: chance without the seed",
    "tools/select_data.py",
    'f"{args.seed}/stable/{prompt}"',
    'f"stable/{prompt}"',
)
def test_a_random_share_of_the_stable_ones_is_kept():
    """Catches another share, chance that does not depend on the seed, and chance that is not repeated."""

    def chosen(seed: int, share: float) -> list[bool]:
        args = Args(task="t", out=None, keep="spread", min_cv=0.5, keep_stable=share, seed=seed)
        return [is_kept([1.0, 1.0], f"problem {i}", args) for i in range(1000)]

    assert 160 < sum(chosen(0, 0.2)) < 240  # 4 standard deviations are 51
    assert chosen(0, 0.2) == chosen(0, 0.2) != chosen(1, 0.2)
    assert sum(chosen(0, 0.0)) == 0 and sum(chosen(0, 1.0)) == 1000


@mutant("select: binomial without its misses", "tools/select_data.py", " * (1 - p) ** (n - c)", "")
@mutant(
    "select: band without its last count",
    "tools/select_data.py",
    "range(first, last + 1)",
    "range(first, last)",
)
@pytest.mark.parametrize(
    "p, expected",
    [
        (0.01, (0.039404, 0.077255, 0.148542)),
        (0.05, (0.185488, 0.336580, 0.559873)),
        (0.2, (0.588800, 0.832225, 0.971853)),
        (0.5, (0.875000, 0.992188, 0.999969)),
        (0.9, (0.343800, 0.569533, 0.814698)),
    ],
)
def test_how_likely_a_problem_is_kept(p, expected):
    """Catches a wrong binomial: against numbers of 4, 8 and 16 samples, and all outcomes of 4, one by one."""
    for n, value in zip((4, 8, 16), expected):
        assert keep_probability(p, n, 1, n - 1) == pytest.approx(value, abs=1e-6)
    total = 0.0
    for outcome in itertools.product([True, False], repeat=4):
        chance = math.prod(p if right else 1 - p for right in outcome)
        total += chance * (0.25 <= sum(outcome) / 4 <= 0.5)
    assert keep_probability(p, 4, 1, 2) == pytest.approx(total, abs=1e-12)


# --- traces -------------------------------------------------------------------------------------------------


def sampled(text: str, score: float, parsed="7", reason: str = "stop", why: str = "wrong") -> dict:
    return {"completion": text, "score": score, "parsed": parsed, "finish_reason": reason, "why": why}


@mutant(
    "select: wrong traces without an answer",
    "tools/select_data.py",
    'not right and row["parsed"] is not None and',
    "not right and",
)
@mutant(
    "select: traces that were cut",
    "tools/select_data.py",
    'row["finish_reason"] == "stop" and row["c',
    'row["c',
)
@mutant(
    "select: wrong traces for right ones",
    "tools/select_data.py",
    'right if kind == "correct" else wrong',
    'wrong if kind == "correct" else right',
)
@mutant(
    "select: a trace twice",
    "tools/select_data.py",
    'found.setdefault(row["completion"], row)',
    "found[len(found)] = row",
)
@mutant(
    "select: traces that no grader judged",
    "tools/select_data.py",
    "is not None and was_judged(row)",
    "is not None",
)
def test_traces_that_may_be_learned_from():
    """Catches what was cut, has no answer or crashed the grader, taken for wrong reasoning; a text twice."""
    samples = [
        sampled("a", 1.0),
        sampled("b", 0.0),
        sampled("a", 1.0),
        sampled("cut", 1.0, reason="length"),
        sampled("cut too", 0.0, reason="length"),
        sampled("no box", 0.0, parsed=None),
        sampled("  ", 0.0),
        sampled("crash", 0.0, why="crash of the worker"),
        sampled("slow", 0.0, why="timeout"),
        sampled("half", 0.5),
    ]
    texts = lambda kind: [row["completion"] for row in select_data.traces_of(samples, kind, 0.99)]  # noqa: E731
    assert texts("correct") == ["a"] and texts("wrong") == ["b", "half"]
    assert [row["completion"] for row in select_data.traces_of(samples, "correct", 0.4)] == ["a", "half"]


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(toy_model):
    return AutoTokenizer.from_pretrained(toy_model)


def answering(tokenizer, spec: str, rights: list[int], seed: int = 0) -> toys.FakeSampler:
    """Of problem i the first `rights[i]` samples are right, the others say 1, which never is."""
    task, known = load_task(spec), {}
    for index, right in enumerate(rights):
        problem = task.problem("train", index, seed)
        known[tuple(encode_prompt(tokenizer, problem.prompt))] = problem, right
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731

    def answer(prompt_ids, sample, seed):
        problem, right = known[tuple(prompt_ids)]
        said = f"so {sample}\n\\boxed{{{problem.answer if sample < right else 1}}}"
        return [*encode(said), tokenizer.eos_token_id], "stop"

    return toys.FakeSampler(answer)


RIGHTS = [0, 1, 2, 3, 4, 4]  # of four samples


@pytest.fixture
def select(toy_model, tokenizer, tmp_path):
    """Runs the command on six problems and returns the lines it wrote."""

    def run(name: str = "kept.jsonl", sampler=None, own_task=None, **flags) -> list[dict]:
        flags = {"task": CHAIN, "problems": 6, "samples": 4, "rows_at_once": 8} | flags
        args = Args(model=toy_model, out=tmp_path / name, **flags)
        sampler = sampler or answering(tokenizer, CHAIN, RIGHTS)
        select_data.main(args, own_task, sampler)
        return [json.loads(line) for line in args.out.read_text().splitlines()]

    return run


def refused(run, *arguments, **flags) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(*arguments, **flags)
    return str(stopped.value)


@mutant(
    "select: the default band holds the solved",
    "tools/select_data.py",
    "args.high = (n - 1) / n",
    "args.high = 1.0",
)
@mutant(
    "select: the default band holds the unsolved",
    "tools/select_data.py",
    "args.low = 1 / n",
    "args.low = 0.0",
)
@mutant(
    "select: problems in the order of their length",
    "tools/select_data.py",
    "    chosen.sort(key=lambda pair: pair[0].index)",
    "    chosen.sort(key=lambda pair: -pair[0].index)",
)
@mutant(
    "select: kept and dropped exchanged",
    "tools/select_data.py",
    "zip(rights, kept) if is_in)",
    "zip(rights, kept) if not is_in)",
)
@mutant(
    "select: tokens of all samples",
    "tools/select_data.py",
    '"mean_tokens": sum(row["tokens"] for row in rows) / n',
    '"mean_tokens": sum(row["tokens"] for row in rows)',
)
def test_problems_that_are_neither_always_nor_never_right(select, capsys, tokenizer):
    """Catches another band by default, numbers of another problem, and a field that is missing."""
    lines = select()
    task = load_task(CHAIN)
    assert [line["index"] for line in lines] == [1, 2, 3]
    assert [line["pass_rate"] for line in lines] == [0.25, 0.5, 0.75]
    assert [line["cv"] for line in lines] == pytest.approx([1.732051, 1.0, 0.577350], abs=1e-6)
    for line in lines:
        problem = task.problem("train", line["index"], 0)
        for name in ("prompt", "answer", "hint", "solution", "horizon"):
            assert line[name] == getattr(problem, name)
        assert (line["task"], line["task_split"], line["seed"], line["n"]) == (CHAIN, "train", 0, 4)
        texts = [f"so {i}\n\\boxed{{{problem.answer if i < 4 * line['pass_rate'] else 1}}}" for i in range(4)]
        tokens = [len(tokenizer.encode(text, add_special_tokens=False)) + 1 for text in texts]
        assert line["mean_tokens"] == sum(tokens) / 4 and line["frac_truncated"] == 0
    screen = capsys.readouterr().out
    assert "kept 3 of 6 problems" in screen and "1%: 0.04, 5%: 0.19, 20%: 0.59" in screen
    table = [line.split("|") for line in screen.splitlines() if line.count("|") == 3]
    assert [[int(cell) for cell in row[:3]] for row in table[1:]] == [
        [0, 0, 1],
        [1, 1, 0],
        [2, 1, 0],
        [3, 1, 0],
        [4, 0, 2],
    ]
    assert "warning" not in screen


def test_rules_of_other_flags(select):
    """Catches flags that are not read."""
    assert [line["index"] for line in select("a.jsonl", low=0.5, high=1.0)] == [2, 3, 4, 5]
    assert [line["index"] for line in select("b.jsonl", low=0.0)] == [0, 1, 2, 3]
    spread = dict(keep="spread", ddof=1)
    assert [line["index"] for line in select("c.jsonl", **spread, min_cv=1.0)] == [1, 2]  # 2, 1.154701, .667
    assert [line["index"] for line in select("d.jsonl", **spread, min_cv=1.0, keep_stable=1.0)] == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert [line["cv"] for line in select("e.jsonl", low=0.0, high=0.0)] == [None]


def test_graded_scores_are_chosen_by_spread_and_not_by_pass_rate(select, tokenizer):
    """Catches right and wrong in place of scores: two problems of one pass rate differ in cv."""
    table = [[0.2, 0.6, 1, 1], [0.9, 0.9, 1, 1], [0.0, 0.5, 0.5, 0.9]]
    task = toys.FunctionTask(lambda text, problem: table[int(problem.prompt.split()[1])][int(text)])
    digits = [[*tokenizer.encode(str(i), add_special_tokens=False), tokenizer.eos_token_id] for i in range(4)]
    sampler = toys.FakeSampler(lambda prompt, sample, seed: (digits[sample], "stop"))
    flags = dict(sampler=sampler, own_task=task, problems=3)
    (line,) = select("spread.jsonl", **flags, keep="spread", min_cv=0.4)
    assert line["index"] == 0 and line["cv"] == pytest.approx(0.473804, abs=1e-6)
    assert line["pass_rate"] == 0.5 and line["mean_score"] == pytest.approx(0.7)
    assert [each["index"] for each in select("band.jsonl", **flags)] == [0, 1]


def test_the_same_samples_under_another_rule(select, tokenizer, tmp_path):
    """Catches samples that are drawn anew, or taken over from other settings."""
    select()
    silent = answering(tokenizer, CHAIN, RIGHTS)
    lines = select("hard.jsonl", silent, high=0.25, low=0.0, samples_dir=tmp_path / "kept.samples")
    assert [line["index"] for line in lines] == [0, 1] and silent.calls == []
    for name, value in (("samples", 2), ("temperature", 0.5), ("seed", 1), ("top_p", 0.9), ("problems", 5)):
        sampler = answering(tokenizer, CHAIN, RIGHTS, seed=1 if name == "seed" else 0)
        flags = {name: value, "samples_dir": tmp_path / "kept.samples"}
        said = refused(select, "other.jsonl", sampler, **flags)
        assert re.match(rf"error: --samples-dir {tmp_path}/kept.samples: \w+ was .* and is now .*;", said)
        assert sampler.calls == [] and not (tmp_path / "other.jsonl").exists()
    (tmp_path / "kept.samples" / "config.json").write_text("[1]")
    said = refused(select, "other.jsonl", silent, samples_dir=tmp_path / "kept.samples")
    assert "its config.json is damaged" in said


@mutant("select: a trace of each", "tools/select_data.py", "][: args.per_problem]", "]")
@mutant(
    "select: pairs of one kind",
    "tools/select_data.py",
    'if args.paired and not (traces["correct"] and traces["wrong"])',
    'if args.paired and not (traces["correct"] or traces["wrong"])',
)
def test_traces_are_rows_that_sft_learns(select, tokenizer, tmp_path):
    """Catches rows that sft.py refuses, more of a problem than was asked for, and arms of other problems."""
    where = dict(samples_dir=tmp_path / "s", low=0.0, high=1.0)
    right = select("right.jsonl", traces="correct", **where)
    assert collections.Counter(line["index"] for line in right) == {1: 1, 2: 2, 3: 3, 4: 4, 5: 4}
    wrong = select("wrong.jsonl", traces="wrong", per_problem=2, **where)
    assert collections.Counter(line["index"] for line in wrong) == {0: 2, 1: 2, 2: 2, 3: 1}
    pair = [select(f"{kind}2.jsonl", traces=kind, per_problem=1, paired=True, **where) for kind in KINDS]
    assert [[line["index"] for line in lines] for lines in pair] == [[1, 2, 3], [1, 2, 3]]
    task = load_task(CHAIN)
    for line, row in zip(right, rows.read_rows((tmp_path / "right.jsonl",)), strict=True):
        assert task.grade(row.completion, task.problem("train", line["index"], 0)).correct
        assert (row.first_prompt, row.source, row.end) == (line["prompt"], "chain", True)
        assert len(rows.encode(row, tokenizer, tokenizer.eos_token_id, None).completion_ids) == line["tokens"]
    for line, row in zip(wrong, rows.read_rows((tmp_path / "wrong.jsonl",)), strict=True):
        grade = task.grade(row.completion, task.problem("train", line["index"], 0))
        assert not grade.correct and grade.parsed == line["parsed"] == "1"


KINDS = ("correct", "wrong")


@mutant(
    "select: half a line kept",
    "plainrl/folder.py",
    'return lines[:-1] if lines and not lines[-1].endswith(b"\\n") else lines',
    "return lines",
)
def test_interrupted_and_continued_equals_the_undisturbed(select, tokenizer, tmp_path, toy_model):
    """Catches samples that are lost, come twice, or depend on where the command stopped."""
    whole = select("whole.jsonl")
    text = (tmp_path / "whole.samples" / "samples.jsonl").read_text()
    assert len(text.splitlines()) == 24
    stopped, lines = answering(tokenizer, CHAIN, RIGHTS), text.splitlines(keepends=True)
    generate = stopped.generate

    def twice(*arguments):
        if len(stopped.calls) == 2:
            raise KeyboardInterrupt
        return generate(*arguments)

    stopped.generate = twice
    assert refused(select, sampler=stopped).startswith("\nstopped; the same command goes on")
    kept = tmp_path / "kept.samples" / "samples.jsonl"
    assert kept.read_text() == "".join(lines[:16]) and not (tmp_path / "kept.jsonl").exists()
    for left, batches in (
        ("".join(lines[:16]), 1),
        ("".join(lines[:16])[:-1], 2),
        ("".join(lines[:13]) + lines[13][:9], 2),
        ("", 3),
    ):
        kept.write_text(left)
        going_on = answering(tokenizer, CHAIN, RIGHTS)
        assert select(sampler=going_on) == whole
        assert kept.read_text() == text and [len(call) for call in going_on.calls] == [8] * batches
        (tmp_path / "kept.jsonl").unlink()
    for damaged in (text + lines[0], "".join([lines[4], *lines[1:]]), text.replace('"index"', '"number"')):
        kept.write_text(damaged)
        assert "is damaged, or not of these problems; delete it" in refused(select)
        assert kept.read_text() == damaged


@mutant(
    "select: seeds of evaluations",
    "tools/select_data.py",
    "SELECT_SEED = EVAL_SEED + 1",
    "SELECT_SEED = EVAL_SEED",
)
@mutant(
    "select: one stream for all models",
    "tools/select_data.py",
    "job.index, stream, sample)",
    "job.index, 0, sample)",
)
@mutant(
    "select: --seed without effect",
    "tools/select_data.py",
    "completion_seed(SELECT_SEED, args.seed,",
    "completion_seed(SELECT_SEED, 0,",
)
def test_seeds_are_no_training_runs_and_no_evaluations(tokenizer):
    """Catches problems that are chosen by the very samples that training or a score will draw again."""
    sampler, task = answering(tokenizer, CHAIN, RIGHTS), load_task(CHAIN)
    problems = [task.problem("train", index, 0) for index in range(6)]
    ids = [encode_prompt(tokenizer, problem.prompt) for problem in problems]
    jobs = [select_data.Job(*job) for job in zip(range(6), problems, ids)]
    for seed, stream in ((0, 5), (0, 6), (1, 5)):
        args = Args(task=CHAIN, out=None, samples=4, seed=seed, max_new_tokens=9)
        select_data.sample_batch(sampler, tokenizer, task, jobs, args, stream)
    drawn = [seed for call in sampler.calls for seed in call]
    assert len(set(drawn)) == len(drawn) == 3 * 24
    others = set()  # of a training run, of its scores, and of eval.py at a horizon
    for index, i in itertools.product(range(9), range(4)):
        others |= {completion_seed(0, step, index, 0, i) for step in range(9)}
        others.add(completion_seed(EVAL_SEED, 0, index, 0, i))
        for first, stream in itertools.product((0, 1, 2, 3), (0, 5, 6)):
            others.add(completion_seed(EVAL_SEED, first, index, stream, i))
            others.add(completion_seed(EVAL_SEED, 0, first, index, stream, i))
    assert not set(drawn) & others


@mutant(
    "select: prompts without room for an answer",
    "tools/select_data.py",
    "len(job.prompt_ids) + args.max_new_tokens <= room",
    "len(job.prompt_ids) <= room",
)
def test_long_prompts_and_copies_are_left_out(select, tokenizer, tmp_path, capsys):
    """Catches one long prompt that ends the command, and a prompt that is sampled twice."""
    lines = [{"prompt": f"{i}+1?", "answer": str(i + 1), "split": "train"} for i in (1, 2, 2, 3)]
    lines.append({"prompt": "1+1? " * 40, "answer": "2", "split": "train"})
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ids = [*tokenizer.encode("\\boxed{4}", add_special_tokens=False), tokenizer.eos_token_id]
    sampler = toys.FakeSampler(lambda prompt, sample, seed: (ids, "stop"))
    task = files.load_file(str(tmp_path / "sums.jsonl"))
    longest = max((task.problem("train", i, 0).prompt for i in range(5)), key=len)
    sampler.room = len(encode_prompt(tokenizer, longest)) + 19  # one token less than there should be
    flags = dict(task=f"jsonl:{tmp_path / 'sums.jsonl'}", problems=None, max_new_tokens=20, low=0.0, high=1.0)
    written = select("a.jsonl", sampler, **flags)
    assert sorted(line["prompt"][:2] for line in written) == ["1+", "2+", "3+"]
    screen = capsys.readouterr().out
    assert "1 of 5 problems have the prompt of another" in screen
    assert "1 of 4 problems are left out: with --max-new-tokens 20" in screen
    sampler.room = 30
    assert refused(select, "b.jsonl", sampler, **flags).startswith(
        "error: --max-new-tokens 20: train problem"
    )


def test_samples_that_say_nothing_of_difficulty(select, tokenizer, capsys):
    """Catches problems called hard where the answers cannot be read or were cut, and nothing kept without
    the table that says why."""
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    mute = toys.FakeSampler(lambda prompt, sample, seed: (encode("so"), "stop"))
    said = refused(select, "a.jsonl", mute, low=0.0)
    assert "none of its 24 samples has an answer that can be read (most often: no_box)" in said
    assert "that is format, not difficulty" in said
    cut = toys.FakeSampler(
        lambda prompt, sample, seed: (encode("\\boxed{1}"), ("stop", "length")[sample % 2])
    )
    said = refused(select, "b.jsonl", cut)
    assert said.startswith("error: --keep band: no problem is kept, see the table; take a wider rule")
    screen = capsys.readouterr().out
    assert "             0 |       0 |       6 | ......" in screen
    assert "warning: 50% of the samples were cut at --max-new-tokens 160" in screen
    assert "ended without an answer" not in screen.split("right of 4")[-1]
    said = refused(select, "c.jsonl", cut, low=0.0, traces="correct", samples_dir=None)
    assert said.startswith(
        "error: --traces correct: no problem that is kept has such a trace, ended by itself"
    )


@pytest.mark.parametrize(
    "flags, said",
    [
        (dict(samples=1), "--samples 1: one sample is right or wrong and says nothing"),
        (dict(samples=1, low=0.0, high=0.5), "--samples 1: one sample"),
        (dict(samples=1, keep="spread"), "--samples 1: one sample"),
        (dict(low=0.6, high=0.1), "--low 0.6: is above --high 0.1"),
        (dict(low=0.3, high=0.4), "--low 0.3 --high 0.4: no number of right samples out of 4 lies in this"),
        (dict(low=1.5), "--low 1.5: must be at least 0 and at most 1"),
        (dict(tau=1.0), "--tau 1.0: must be at least 0 and below 1"),
        (dict(min_cv=0.0), "--min-cv: belongs to --keep spread"),
        (dict(keep_stable=0.5), "--keep-stable: belongs to --keep spread"),
        (dict(keep="spread", high=0.5), "--high: belongs to --keep band"),
        (dict(per_problem=1), "--per-problem: belongs to --traces"),
        (dict(paired=True), "--paired: belongs to --traces"),
        (dict(temperature=0.0), "--temperature 0.0: must be above 0"),
        (dict(seed=EVAL_SEED), "--seed 2147483648: must be at least 0 and below"),
        (dict(task="subset:no.jsonl"), "--task subset:no.jsonl: cannot read the file"),
        (dict(name="kept.csv"), "--out .*kept.csv: JSON lines are written; give a name that ends in .jsonl"),
        (dict(name="there.jsonl"), "--out .*there.jsonl: exists and is never overwritten"),
        (dict(name="there.jsonl/a.jsonl"), "--out .*a.jsonl: cannot be written"),
        (dict(samples_dir="mine"), "--samples-dir mine: has files, and no config.json of this tool"),
        (dict(samples_dir="there.jsonl"), "--samples-dir there.jsonl: is a file; choose a folder"),
    ],
)
def test_what_cannot_work_is_one_line(select, tmp_path, monkeypatch, flags, said):
    """Catches a traceback, a file that is overwritten, and a folder of somebody else's that is filled."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jsonl").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    if "samples_dir" in flags:
        flags = flags | {"samples_dir": tmp_path.__class__(flags["samples_dir"])}
    with pytest.raises(SystemExit, match=f"^error: {said}"):
        select(**flags)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


# --- the chosen problems as a task --------------------------------------------------------------------------


def subset_of(tmp_path, spec: str, indices, at_seed: int = 0, **changes) -> str:
    """The --task of a file with these problems."""
    task, lines = load_task(spec), []
    for index in indices:
        problem = task.problem("train", index, at_seed)
        line = {"prompt": problem.prompt, "answer": problem.answer, "task": spec, "task_split": "train"}
        lines.append(line | {"index": index, "seed": at_seed})
    lines[-1] |= changes
    (tmp_path / "chosen.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"subset:{tmp_path / 'chosen.jsonl'}"


@mutant(
    "subset: training on all problems",
    "plainrl/subset.py",
    "(self.base if split in HELD_OUT else self.train).p",
    "self.base.p",
)
@mutant(
    "subset: measured on its own problems",
    "plainrl/subset.py",
    "(self.base if split in HELD_OUT else self.train).p",
    "self.train.p",
)
@mutant(
    "subset: size of the whole task",
    "plainrl/subset.py",
    "split_size(self.base if split in HELD_OUT else self.train, split)",
    "split_size(self.base, split)",
)
@pytest.mark.parametrize("spec", [CHAIN, "countdown"])
def test_a_subset_has_its_own_training_and_the_tasks_scores(tmp_path, spec):
    """Catches problems of others in training, chosen ones in dev or test, and a problem that lost a field."""
    task, base = load_task(subset_of(tmp_path, spec, [3, 8, 5, 11, 2], at_seed=4)), load_task(spec)
    wanted = [base.problem("train", index, 4) for index in (3, 8, 5, 11, 2)]
    assert task.size("train") == task.size("all") == 5 and task.folder_name == "chosen"
    assert {task.problem("all", i, 0).prompt for i in range(5)} == {problem.prompt for problem in wanted}
    assert task.name == base.name  # whose scores these are
    for epoch in range(3):
        found = [task.problem("train", 5 * epoch + i, 0) for i in range(5)]
        assert sorted(problem.index for problem in found) == [0, 1, 2, 3, 4]
        assert all(problem == wanted[problem.index] for problem in found)  # all fields but the index
    for split in ("dev", "test"):
        assert [task.problem(split, i, 7) for i in range(9)] == [base.problem(split, i, 7) for i in range(9)]
        assert task.size(split) == (base.size(split) if spec == "countdown" else None)
        assert scored(task, split, 700) == scored(base, split, 700)
    assert task.problem("train", 0, 0) == task.problem("train", 0, 0)
    orders = [[task.problem("train", i, seed).index for i in range(5)] for seed in range(4)]
    assert len(set(map(tuple, orders))) > 1


@mutant(
    "evaluation: a split without end",
    "plainrl/horizons.py",
    "last if size is None else min(last, size)",
    "last if not hasattr(task, 'size') else min(last, size or 0)",
)
def test_a_subset_is_measured_as_its_task_is(tmp_path, tokenizer):
    """Catches another number of test problems than the task itself has where none is asked for, and a file's
    own problems that are measured in part, or others in their place."""

    def asked(spec, **flags):
        args = evaluation.Args(task=spec, **flags)
        return sorted(job.prompt for job in evaluation.jobs_of([load_task(spec)], args, tokenizer))

    subset = subset_of(tmp_path, CHAIN, range(4))
    own = sorted(load_task(CHAIN).problem("train", index, 0).prompt for index in range(4))
    assert len(asked(subset)) == 200 and asked(subset) == asked(CHAIN)
    assert asked(subset, split="train") == asked(subset, split="all") == own
    assert len(asked(subset, problems=600)) == 600


@mutant(
    "subset: the folder of its task's runs",
    "plainrl/run.py",
    'getattr(self.task, "folder_name", None) or self.task.name',
    "self.task.name",
)
def test_a_run_on_a_subset_has_a_folder_of_its_own(tmp_path, toy_model, monkeypatch):
    """Catches runs on two selections, or on all problems, that bar each other since they have one name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/grpo").mkdir(parents=True)
    (tmp_path / "runs/grpo/chosen-seed0").write_text("")
    flags = toys.quick_flags(toy_model, tmp_path, task=subset_of(tmp_path, CHAIN, range(3)))
    with pytest.raises(SystemExit, match="^error: --out-dir runs/grpo/chosen-seed0: .* is a file; choose"):
        grpo.main(grpo.Args(**flags | {"out_dir": None}, plan=True))


@mutant(
    "subset: another grader",
    "plainrl/subset.py",
    "return self.base.grade(completion, problem)",
    "return self.train.grade(completion, problem)",
)
def test_a_subset_is_graded_by_its_task(tmp_path):
    """Catches a grader for boxes where the way is the answer, and the start model of another world."""
    task = load_task(subset_of(tmp_path, "countdown", range(4)))
    problem = task.problem("train", 1, 0)
    assert task.grade(problem.solution, problem) == Grade(True, 1.0, problem.answer, "correct")
    assert not task.grade(f"\\boxed{{{problem.answer}}}", problem).correct
    assert (task.grader, task.world) == ("countdown", "countdown")
    assert load_task(subset_of(tmp_path, "chain", range(2))).grader == "plain integers"


@mutant("subset: all horizons in training", "plainrl/subset.py", "if problem.horizon == horizon]", "]")
def test_a_subset_at_a_horizon(tmp_path):
    """Catches a curriculum that trains on problems which were not chosen, or is scored on other horizons."""
    task, base = load_task(subset_of(tmp_path, CHAIN, range(12))), load_task(CHAIN)
    for horizon in (1, 2, 3):
        at_horizon = task.at_horizon(horizon)
        wanted = [problem for i in range(12) if (problem := base.problem("train", i, 0)).horizon == horizon]
        assert at_horizon.size("train") == len(wanted) == len(at_horizon.places) > 0
        assert [base.problem("train", place["index"], 0) for place in at_horizon.places] == wanted
        found = [at_horizon.problem("train", i, 0).prompt for i in range(len(wanted))]
        assert sorted(found) == sorted(problem.prompt for problem in wanted)
        assert at_horizon.problem("dev", 3, 0) == base.at_horizon(horizon).problem("dev", 3, 0)
    assert task.size("train") == 12
    with pytest.raises(ValueError, match="chosen.jsonl: has no problem of horizon 4, only of 1, 2, 3$"):
        task.at_horizon(4)
    task.base = toys.graded  # which has no horizons
    with pytest.raises(ValueError, match="the problems of its task chain.horizon=1-3 have no horizon"):
        task.at_horizon(1)


@mutant(
    "subset: another answer",
    "plainrl/subset.py",
    'for name in ("prompt", "answer"):',
    'for name in ("prompt",):',
)
@mutant(
    "subset: another prompt",
    "plainrl/subset.py",
    'for name in ("prompt", "answer"):',
    'for name in ("answer",):',
)
@mutant("subset: trained on test", "plainrl/subset.py", 'if row["task_split"] != "train":', "if False:")
@mutant("subset: of two tasks", "plainrl/subset.py", 'if row["task"] != first:', "if False:")
@pytest.mark.parametrize(
    "changes, said",
    [
        (
            dict(prompt="x"),
            r"line 3: chain.horizon=1-3 has another prompt at index 2 of seed 0; the task has",
        ),
        (
            dict(answer="1"),
            r"line 3: chain.horizon=1-3 has another answer at index 2 of seed 0; the task has",
        ),
        (dict(index=1), "line 3: chain.horizon=1-3 has another prompt at index 1 of seed 0"),
        (
            dict(task_split="test"),
            "line 3: field 'task_split' is 'test'; only problems of train may be trained",
        ),
        (
            dict(task="chain"),
            "line 3: is of chain, the lines before of chain.horizon=1-3; dev and test can be",
        ),
        (dict(task="subset:a"), "line 3: field 'task' is a subset; name the task that its problems are from"),
        (dict(index=-1), "line 3: field 'index' must be a whole number from 0"),
        (dict(seed=True), "line 3: field 'seed' must be a whole number from 0"),
        (dict(task=7), "line 3: field 'task' must be a text"),
    ],
)
def test_a_line_that_is_not_what_was_chosen_is_refused(tmp_path, changes, said):
    """Catches problems that were not selected, because the file, the task or the line has changed."""
    with pytest.raises(ValueError, match=f"^--task subset:.*chosen.jsonl, {said}"):
        load_task(subset_of(tmp_path, CHAIN, range(3), **changes))


def test_files_that_are_no_subset_are_refused(tmp_path):
    """Catches a traceback, settings without effect, and a changed file below that nobody notices."""
    spec = subset_of(tmp_path, CHAIN, range(3))
    path = tmp_path / "chosen.jsonl"
    with pytest.raises(ValueError, match="a subset has no settings; its file says which task it is of"):
        load_task(f"{spec}?horizon=2")
    sums = tmp_path / "sums.jsonl"
    sums.write_text(
        "".join(json.dumps({"prompt": f"{i}+1?", "answer": str(i + 1)}) + "\n" for i in range(40))
    )
    load_task(subset_of(tmp_path, f"jsonl:{sums}", range(3)))
    sums.write_text(sums.read_text().replace("+1?", "+01?"))
    with pytest.raises(ValueError, match="line 1: jsonl:.* has another prompt at index 0 of seed 0"):
        load_task(spec)
    sums.unlink()
    with pytest.raises(
        ValueError, match="chosen.jsonl, line 1: its task cannot be used: --task jsonl:.*sums"
    ):
        load_task(spec)
    for content, said in (
        ("", "chosen.jsonl: holds no problem; give a file of tools/select_data.py"),
        (
            '{"prompt": "a", "completion": "b"}\n',
            "line 1: has no field 'task'; give a file that tools/select_",
        ),
        ('{"prompt"\n', "line 1: not valid JSON"),
        ("[1]\n", "entry 1: expected an object"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=said):
            load_task(spec)


@mutant(
    "subset: a subset of places in itself",
    "tools/select_data.py",
    "place = task.places[job.problem.index]",
    "place = dict(place)",
)
def test_a_subset_is_measured_again_and_needs_no_older_file(select, tokenizer, tmp_path):
    """Catches a second round whose file leads to the first, or to other problems."""
    select()
    first = tmp_path / "kept.jsonl"
    task = load_task(f"subset:{first}")
    sampler = answering(tokenizer, f"subset:{first}", [4, 1, 4], seed=1)
    (line,) = select("again.jsonl", sampler, task=f"subset:{first}", problems=None, seed=1)
    assert line["prompt"] == task.problem("train", 1, 1).prompt and line["task"] == CHAIN
    first.unlink()
    assert load_task(f"subset:{tmp_path / 'again.jsonl'}").problem("train", 0, 0).prompt == line["prompt"]


def test_the_written_files_run_in_every_script(select, toy_model, tmp_path, quick, monkeypatch, capsys):
    """Catches a task that a run cannot plan, train on, go on with, or measure; and problems of jsonl: that
    would be measured with nothing to measure by."""
    lines = select(low=0.0, high=1.0)
    spec = f"subset:{tmp_path / 'kept.jsonl'}"
    flags = toys.quick_flags(toy_model, tmp_path / "run", task=spec, steps=2)
    with pytest.raises(SystemExit) as planned:
        grpo.main(grpo.Args(**flags, plan=True))
    assert planned.value.code == 0 and not (tmp_path / "run").exists()
    grpo.main(grpo.Args(**flags))
    grpo.main(grpo.Args(**flags | {"steps": 4, "resume": True}))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["flags"]["task"] == spec
    logged = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {line["prompt"] for line in logged} <= {line["prompt"] for line in lines} and logged[-1][
        "step"
    ] == 4
    assert "eval/chain/avg@2" in toys.records(tmp_path / "run")[0]  # of any file: the problems are the same
    args = dict(model=str(tmp_path / "run" / "final"), samples=2, max_new_tokens=4, out_dir=tmp_path / "eval")
    results = evaluation.main(evaluation.Args(task=spec, problems=5, **args))
    base = load_task(CHAIN)
    rows_of_eval = (tmp_path / "eval" / "samples.jsonl").read_text().splitlines()
    prompts = {json.loads(line)["prompt"] for line in rows_of_eval}
    assert prompts == {base.problem("test", i, EVAL_SEED).prompt for i in range(5)}
    assert results["settings"]["grader"] == "plain integers"
    task = files.load_file(str(tmp_path / "kept.jsonl"))
    found = [task.problem("train", i, 0) for i in range(task.size("train"))]
    assert sorted(problem.prompt for problem in found) == sorted(line["prompt"] for line in lines)
