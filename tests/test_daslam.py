"""papers/daslam.py and plainrl/subquestions.py: the five rewards against the official functions' numbers, the
words in which is asked, episodes with a solver that can do one step, the loop around them."""

import json
import random
import re
from collections import Counter

import kit
import numpy as np
import pytest
import toys
from mutants import mutant
from safetensors.torch import load_file
from test_general_reasoner import loss
from test_sft import kill_after, on_one_and_two_ranks

import grpo
from papers import daslam
from papers.daslam import (
    Episode,
    Solver,
    answer_rewards,
    capitalised,
    cosine,
    line_reward,
    noun_reward,
    operator_reward,
    play,
    rewards_of,
    with_box,
    word_counts,
)
from plainrl import curves
from plainrl.grading import grade_all
from plainrl.models import load_tokenizer
from plainrl.subquestions import (
    context_of,
    decomposer_prompt,
    in_context,
    read_subquestions,
    with_answers,
)
from plainrl.tasks import Grade, Problem, load_task

# --- the seven checks of a loss -----------------------------------------------------------------------------


def test_by_hand():
    """Catches a formula that is wrong where one can still count: mean 1/4, std 1/2."""
    by_hand = [[1.5 / (1 + 2e-6), *[-0.5 / (1 + 2e-6)] * 3]]
    kit.check_by_hand(daslam.group_advantages, [[1.0, 0.0, 0.0, 0.0]], by_hand)


@mutant("daslam: sign of the loss", "papers/daslam.py", "return -torch.min(ratio", "return torch.min(ratio")
@mutant(
    "daslam: masked completions in the loss",
    "papers/daslam.py",
    'sequence_mean(batch["loss_mask"])',
    'sequence_mean(batch["completion_mask"])',
)
def test_loops():
    """Catches a wrong sign, mask, denominator or clip, in the first update of a batch and in later ones."""
    kit.check_loops(daslam, loss, kit.make_args(daslam))
    kit.check_loops(daslam, loss, kit.make_args(daslam), old=True)


def test_finite_difference():
    """Catches a term that has no gradient and should, or has one and should not."""
    kit.check_finite_difference(daslam, loss, kit.make_args(daslam, clip_low=0.6, clip_high=2.0), old=True)


def test_micro_batches_padding_and_order():
    """Catches a denominator of the micro-batch, padding that is counted, and rows that are mixed up."""
    for check in (kit.check_micro_batches, kit.check_padding, kit.check_order):
        check(daslam, kit.make_args(daslam))


def test_against_its_base():
    """Catches another difference to GRPO than what is sampled and rewarded, to the bit."""
    flags = {"kl_coef": 0.3, "kl_bias_correction": True, "importance_cap": 2.0}
    kit.check_against_base(
        daslam, kit.make_args(daslam, **flags), grpo, kit.make_args(grpo, **flags), old=True
    )


# --- the rewards --------------------------------------------------------------------------------------------

QUESTION = "Ann has Apples and Bob eats"


@mutant("daslam: nouns left out", "papers/daslam.py", "len(given ^ asked)", "len(asked - given)")
@mutant("daslam: nouns invented", "papers/daslam.py", "len(given ^ asked)", "len(given - asked)")
@mutant("daslam: per noun asked", "papers/daslam.py", "/ len(given) if", "/ max(1, len(asked)) if")
@mutant(
    "daslam: no sub-questions, no nouns",
    "papers/daslam.py",
    "if not subquestions:",
    "if not nouns(question):",
)
@mutant("daslam: a question without nouns", "papers/daslam.py", "if given else 1.0", "if given else 0.0")
@mutant(
    "daslam: nouns of one case",
    "papers/daslam.py",
    '(r"\\b[A-Z]\\w*", text)',
    '(r"\\b[A-Z]\\w*", text.title())',
)
def test_nouns_of_the_reference():
    """Catches a union, a difference of one side, another denominator, and a reward that cannot fall below 0.
    The numbers are the official function's."""
    for subquestions, expected in (
        (["How many Apples?", "What of Ann and Bob?"], 1 - 2 / 3),  # How and What are none of the question's
        (["How many Apples", "has Ann? Has Bob?"], 1 - 2 / 3),
        (["how many Apples has Ann", "and Bob? How?"], 0.666667),
        ([], 0.0),
        (["Ann Apples Cat Dog", "Eve Fox Gus"], -1.0),
    ):
        assert noun_reward(QUESTION, subquestions) == pytest.approx(expected, abs=1e-6)
    assert noun_reward("nothing with a name", ["What?"]) == 1.0
    assert noun_reward("nothing with a name", []) == 0.0
    of_spacy = {"q": {"x", "y"}, "a b": {"x"}}.get
    assert noun_reward("q", ["a", "b"], of_spacy) == 0.5


@mutant("daslam: half of the cosines", "papers/daslam.py", "return 0.25 * sum(", "return 0.5 * sum(")
@mutant(
    "daslam: a mean of cosines", "papers/daslam.py", "return 0.25 * sum(", "return 0.25 / len(pairs) * sum("
)
@mutant("daslam: no cosine", "papers/daslam.py", "first @ second / size", "first @ second")
def test_answers_of_the_reference():
    """Catches another factor, a mean, and a product that is no cosine. Vectors of numbers do as well."""
    pairs = [("a b", "a b c"), ("c d", "x y")]
    assert answer_rewards(pairs) == pytest.approx(0.204124, abs=1e-6)
    assert answer_rewards([]) == 0.0
    vector = {"p": np.array([1.0, 2.0]), "q": np.array([2.0, 1.0])}.get
    assert answer_rewards([("p", "q")], vector) == pytest.approx(0.25 * 4 / 5)
    assert cosine(Counter(), Counter("a")) == cosine(np.zeros(2), np.ones(2)) == 0.0
    assert word_counts("B=25*2=50, B") == Counter({"B": 2, "=": 2, "25": 1, "*": 1, "2": 1, "50": 1, ",": 1})


@mutant("daslam: the first answer", "papers/daslam.py", "found[-1].partition", "found[0].partition")
@mutant(
    "daslam: brackets alone", "papers/daslam.py", '"Answer:")\n', '"[[")\n    answer = answer or found[-1]\n'
)
@mutant("daslam: the rest of the text", "papers/daslam.py", 'r"\\[\\[(.*?)\\]\\]"', 'r"\\[\\[(.*)\\]\\]"')
def test_answers_in_brackets():
    """Catches another answer than the official code's: the last one, none without the word, all of a text
    without brackets."""
    for text, expected in (
        ("So [[Answer: 33]].", "\\boxed{33}"),
        ("So [[33]].", "\\boxed{}"),
        ("[[Answer: 1]], no, [[Answer: 2]]", "\\boxed{2}"),
        ("[[Answer: 1]], no, [[2]]", "\\boxed{}"),
        ("It is \\boxed{7}", "It is \\boxed{7}"),
        ("thirty-three", "thirty-three"),
    ):
        assert with_box(text) == expected


@mutant("daslam: equal is better", "papers/daslam.py", "if c3 > c1 else", "if c3 >= c1 else")
@mutant("daslam: worse costs little", "papers/daslam.py", "c1 else -1 - c1 / 2", "c1 else -c1 / 2")
@mutant("daslam: better by the final line", "papers/daslam.py", "reward += c1 / 2 if", "reward += c3 / 2 if")
@mutant(
    "daslam: lines of the attempt alone",
    "papers/daslam.py",
    "for text in (gold, attempt, final))",
    "for text in (gold, attempt, gold))",
)
def test_lines_of_the_reference():
    """Catches another sign or size, and an equal line that is rewarded: it costs 1 and more."""
    for texts, expected in (
        (("a b", "a x", "a b"), 0.25),
        (("a b", "a x", "q r"), -1.25),
        (("a b\nc d", "a x\nc y", "a b\nc y"), -1.0),
        (("a b", "a x", "a x"), -1.25),
        (("a b", "q r", "a b"), 0.0),  # a line that was far off earns nothing
        (("a b\nc d", "a x", "a b\nc d"), 0.25),  # lines that one of the three lacks do not count
        (("a b", "a x", ""), 0.0),
    ):
        assert line_reward(*texts) == pytest.approx(expected, abs=1e-6)


@mutant(
    "daslam: other operators cost nothing",
    "papers/daslam.py",
    "ours == theirs else -0.5",
    "ours == theirs else 0.0",
)
@mutant(
    "daslam: operators in the order of the text",
    "papers/daslam.py",
    "([operator for operator in OPERATORS if operator in text] for",
    "(sorted((each for each in OPERATORS if each in text), key=text.find) for",
)
def test_operators_of_the_reference():
    """Catches the order of the text, and numbers of operators that count."""
    for gold, final, expected in (
        ("3 + 4 * 2", "3 + 4", 0.5),
        ("1 - 2", "1 + 2", -0.5),
        ("log x", "sin x - cos y", -0.5),
        ("3 * 2 + 1", "1 + 2 * 3 * 4", 1.0),
        ("C++", "4 + 5", 0.5),  # the trap: a word's + is one
        ("", "4 + 5", 0.0),
    ):
        assert operator_reward(gold, final) == expected


# --- what is asked, and how ---------------------------------------------------------------------------------

CHAIN = "A: Ben has 9 fewer than 51 eggs. B: Sue has 3 times A nuts. Give B in \\boxed{}."


@mutant("sub-questions: too few are some", "plainrl/subquestions.py", "if len(found) >= fewest", "if found")
@mutant(
    "sub-questions: the last ones", "plainrl/subquestions.py", "return found[:most]", "return found[-most:]"
)
@mutant(
    "sub-questions: all sentences",
    "plainrl/subquestions.py",
    'if piece.endswith("?")]',
    "if piece]",
)
def test_which_pieces_are_sub_questions():
    """Catches sentences that ask nothing, a limit that is not kept, and a list that is too short."""
    text = "A?\nFirst add. Then what is B? C?\n\nD"
    assert read_subquestions(text, 3, 16) == ["A?", "Then what is B?", "C?"]
    assert read_subquestions(text, 3, 2) == ["A?", "Then what is B?"]
    assert read_subquestions(text, 4, 16) == read_subquestions("", 0, 16) == []
    assert read_subquestions("A? A? A?", 3, 16) == ["A?"] * 3  # copies count, as in the official code


@mutant(
    "sub-questions: a context that asks",
    "plainrl/subquestions.py",
    "*before, _ = SENTENCE",
    "*before, = SENTENCE",
)
@mutant(
    "sub-questions: a box's order is a sentence",
    "plainrl/subquestions.py",
    "SENTENCE_END.split(question.strip().removesuffix(BOXED_INSTRUCTION).strip())",
    "SENTENCE_END.split(question.strip())",
)
def test_context_and_wording():
    """Catches a sub-question without its context, or behind the question that it is a part of."""
    assert context_of(CHAIN) == "A: Ben has 9 fewer than 51 eggs. B: Sue has 3 times A nuts."
    assert in_context(CHAIN, "A?") == CHAIN.replace("Give B", "Give A")
    story = "Ann has 3 pens. How many are 2 more? Put the final answer in \\boxed{}."
    asked = "Ann has 3 pens. How many has she? Put the final answer in \\boxed{}."
    assert in_context(story, "How many has she?") == asked
    assert context_of("What is 2+2?") == ""
    assert in_context("What is 2+2?", "B?") == "Give B in \\boxed{}."


@mutant(
    "sub-questions: boxes in hints",
    "plainrl/subquestions.py",
    "if not BOX_ALONE.fullmatch(line))",
    "if line)",
)
def test_answers_become_hints():
    """Catches answers out of order, a box beside its line, and a box that is all there is and is lost."""
    lines = ["A=51-9=42\n\\boxed{42}", "B=42*3=126\n\\boxed{126}"]
    assert with_answers(CHAIN, lines) == f"{CHAIN}\nHint: A=51-9=42, B=42*3=126."
    assert with_answers(CHAIN, ["\\boxed{42}", "", "So it is 7."]) == f"{CHAIN}\nHint: 42, So it is 7."
    assert with_answers(CHAIN, []) == with_answers(CHAIN, [""]) == CHAIN


def test_what_the_decomposer_reads():
    """Catches reasoning that is lost, and an empty one that is shown."""
    assert decomposer_prompt("q", "a\nb\n") == "q\nReasoning: a, b\nSub-questions?"
    assert decomposer_prompt("q") == decomposer_prompt("q", " ") == "q\nSub-questions?"


# --- episodes -----------------------------------------------------------------------------------------------

STEP = re.compile(r"([A-Z]): \w+ has (?:(\d+) (more|fewer) than|(\d+) (times)|(half) of) (\w+) \w+\.")


def one_step(prompt: str) -> str:
    """What a solver says that can do one step, if it is told what comes before, and can copy."""
    known = dict(re.findall(r"([A-Z])=[^,=\n]+=(\d+)", prompt))
    wanted = "".join(re.findall(r"Give ([A-Z]) in", prompt))
    if wanted in known:
        lines = re.findall(r"[A-Z]=[^,=\n]+=\d+", prompt)
        return "\n".join([*lines, f"\\boxed{{{known[wanted]}}}"])
    for name, by, how, times, _, half, start in STEP.findall(prompt):
        value = known.get(start, start)
        if name == wanted and value.isdigit():
            x = int(value)
            sign, y = ("/", 2) if half else ("*", int(times)) if times else ("-+"[how == "more"], int(by))
            result = {"/": x // 2, "*": x * y, "+": x + y, "-": x - y}[sign]
            return f"{name}={x}{sign}{y}={result}\n\\boxed{{{result}}}"
    return "I do not know."


def by_steps(prompts: list[str]) -> list[str]:
    return [one_step(prompt) for prompt in prompts]


def chains(horizon: int = 3, count: int = 4) -> tuple:
    task = load_task(f"chain?horizon={horizon}")
    return task, [task.problem("train", index, 0) for index in range(count)]


@mutant(
    "daslam: each is asked by itself",
    "papers/daslam.py",
    "return with_answers(prompt, self.answers)",
    "return prompt",
)
@mutant(
    "daslam: the question comes too early",
    "papers/daslam.py",
    "if asked < len(self.subquestions):",
    "if asked + 1 < len(self.subquestions):",
)
def test_the_right_list_leads_to_the_answer():
    """Catches answers that the next question does not see, and a last question that is not asked again."""
    task, problems = chains()
    episodes = [Episode(problem, "", ["A?", "B?", "C?"]) for problem in problems]
    heard = []
    play(episodes, lambda prompts: heard.append(prompts) or by_steps(prompts))
    assert [len(prompts) for prompts in heard] == [4, 4, 4, 4]
    for i, (episode, problem) in enumerate(zip(episodes, problems)):
        assert task.grade(episode.final, problem).correct and episode.final == problem.solution
        assert [answer.splitlines()[0] for answer in episode.answers] == problem.solution.splitlines()[:3]
        assert heard[3][i].startswith(f"{problem.prompt}\nHint: A=")
    short = Episode(problems[0], "", ["A?", "B?"])
    play([short], by_steps)
    assert [answer[:2] for answer in short.answers] == ["A=", "B="]
    for order in (["C?", "B?", "A?"], ["B?", "A?", "C?"], []):
        other = [Episode(problem, "", order) for problem in problems]
        play(other, by_steps)
        assert not any(task.grade(each.final, problem).correct for each, problem in zip(other, problems))
        assert all(len(each.answers) == len(order) for each in other)


def test_lists_of_all_lengths_at_once():
    """Catches an answer that goes to another episode, where some have ended."""
    _, problems = chains()
    lists = [["A?"], ["A?", "B?", "C?"], [], ["A?", "B?"]]
    together = [Episode(problem, "", asked) for problem, asked in zip(problems, lists)]
    play(together, by_steps)
    for problem, asked, episode in zip(problems, lists, together):
        alone = Episode(problem, "", asked)
        play([alone], by_steps)
        assert alone == episode


@mutant("daslam: R3 twice", "papers/daslam.py", "        float(right),\n", "        2 * float(right),\n")
@mutant(
    "daslam: sub-questions without context",
    "papers/daslam.py",
    'f"{context} {subquestion}"',
    'f"{subquestion}"',
)
@mutant(
    "daslam: lines of the attempt",
    "papers/daslam.py",
    "line_reward(gold, episode.attempt, episode.final, vector)",
    "line_reward(gold, episode.final, episode.attempt, vector)",
)
def test_the_parts_of_an_episode_by_hand():
    """Catches a part that is made of another text, or left out of the sum."""
    question = Problem(CHAIN, "126", solution="A=51-9=42\nB=42*3=126\n\\boxed{126}")
    episode = Episode(question, "A=51-9=41\nB=1", ["A?", "B?"])
    play([episode], by_steps)
    r1, r2, r3, r4, r5 = rewards_of(episode, True, capitalised, word_counts)
    assert r1 == pytest.approx(1 - 3 / 5)  # of A, Ben, B, Sue, Give
    pairs = zip([f"{context_of(CHAIN)} A?", f"{context_of(CHAIN)} B?"], episode.answers)
    assert r2 == pytest.approx(answer_rewards(list(pairs)))
    assert r3 == 1.0
    c1 = cosine(word_counts("A=51-9=42"), word_counts("A=51-9=41"))
    second = cosine(word_counts("B=42*3=126"), word_counts("B=1"))
    assert r4 == pytest.approx(c1 / 2 + second / 2)
    assert r5 == 1.0  # - and *
    without = Episode(Problem(CHAIN, "126"), "", [], [], "B=126")
    assert rewards_of(without, False, capitalised, word_counts) == [0.0] * 5


# --- the solver ---------------------------------------------------------------------------------------------


@mutant(
    "daslam: equal prompts asked twice", "papers/daslam.py", "list(dict.fromkeys(prompts))", "list(prompts)"
)
def test_a_solver_answers_once_and_counts():
    """Catches prompts that are paid for twice, and counts that begin anew."""
    asked = []
    solver = Solver(lambda prompts: asked.append(prompts) or [(each.upper(), len(each)) for each in prompts])
    assert solver(["a", "bb", "a"]) == ["A", "BB", "A"] and asked == [["a", "bb"]]
    assert solver([]) == [] and solver(["a"]) == ["A"]
    assert solver.spent == {"calls": 3, "tokens": 4}


class Loaded:
    """As much of a run as a solver needs."""

    def __init__(self, tokenizer=None):
        self.tokenizer = tokenizer


def flags_of(toy_model, out_dir, **changes) -> dict:
    own = dict(max_logprob_gap=float("inf"), max_new_tokens=24, solver_tokens=12, task="chain?horizon=3")
    return toys.quick_flags(toy_model, out_dir, **own | changes)


@mutant(
    "daslam: answers that depend on the order",
    "papers/daslam.py",
    "completion_seed(SOLVER_SEED, hash_number(prompt)) for prompt in prompts",
    "completion_seed(SOLVER_SEED, i) for i, prompt in enumerate(prompts)",
)
@mutant("no look at the room")
def test_a_model_answers_a_prompt_in_one_way(toy_model, tmp_path):
    """Catches answers that depend on what is asked beside them, a solver that is trained, and a prompt
    longer than its context."""
    run = Loaded()
    args = daslam.Args(**flags_of(toy_model, tmp_path, solver_temperature=1.0, solver_top_p=1.0))
    solver = daslam.load_solver(args, run, None)
    assert args.solver == toy_model and not run.solver.training
    assert not any(weight.requires_grad for weight in run.solver.parameters())
    prompts = [f"What is {i}?" for i in range(8)]
    texts = solver(prompts)
    assert len(set(texts)) > 4 and solver(prompts[::-1]) == texts[::-1] and solver(prompts[3:4]) == texts[3:4]
    assert solver.spent["calls"] == 17
    before = solver.spent["tokens"]
    assert solver(["7 " * 900, prompts[0]]) == ["", texts[0]]
    assert 0 < solver.spent["tokens"] - before <= 12


# --- the loop -----------------------------------------------------------------------------------------------

# Right answers come of the first two and of the last: behind A, C and B the question itself asks C again.
LISTS = ["A?\nB?\nC?", "A?\nC?\nB?", "A?\nB?", "B?\nA?\nC?", "no question", "A?\nB?\nB?\nC?"]


def asks(tokenizer, lists=LISTS):
    """A decomposer whose seed chooses one of these lists."""

    def answer(prompt, sample, seed):
        return [*tokenizer.encode(random.Random(seed).choice(lists)), tokenizer.eos_token_id], "stop"

    return toys.FakeSampler(answer)


@pytest.fixture
def run(toy_model, tmp_path, monkeypatch):
    """run(name, **flags) -> the output folder of a quick run with the solver that can do one step."""
    monkeypatch.setattr(curves, "plot_run", lambda run: None)
    tokenizer = load_tokenizer(toy_model)

    def function(name="run", lists=LISTS, solver=by_steps, task=None, **changes):
        args = daslam.Args(**flags_of(toy_model, tmp_path / name, **changes))
        daslam.main(args, task=task, sampler=asks(tokenizer, lists), solver=solver)
        return tmp_path / name

    return function


def samples(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@mutant(
    "daslam: advantages of another reward",
    "papers/daslam.py",
    "run.sampled = rollout = replace(",
    "run.sampled = replace(",
)
@mutant(
    "daslam: always the sum",
    "papers/daslam.py",
    'if args.reward == "full" else each[2]',
    "if args.reward else each[2]",
)
@mutant("daslam: parts under other names", "papers/daslam.py", "tolist(), start=1)}", "tolist(), start=0)}")
@mutant(
    "daslam: one sub-question too many",
    "papers/daslam.py",
    "sum(len(episode.subquestions) for episode, _ in played) / len(played)",
    "sum(len(episode.answers) + 1 for episode, _ in played) / len(played)",
)
@pytest.mark.parametrize("reward", ["answer", "full"])
def test_a_run_learns_from_episodes(run, reward):
    """Catches rewards of another episode, advantages of other rewards than the log shows, and dev scores of
    the list instead of the answer."""
    folder = run(reward=reward, steps=3, eval_problems=4, test_problems=1)
    seen = 0
    for step in range(1, 4):
        own = [line for line in samples(folder) if line["step"] == step]
        right = [line["completion"] in (LISTS[0], LISTS[1], LISTS[5]) for line in own]
        assert [line["why"] == "correct" for line in own] == right
        rewards = [line["reward"] for line in own]
        assert (rewards == list(map(float, right))) == (reward == "answer")
        expected = grpo.group_advantages(daslam.torch.tensor([rewards]))[0].tolist()
        assert [line["advantage"] for line in own] == pytest.approx(expected, abs=1e-3)
        assert all(len(line["answers"]) in (0, 3, 4) and line["final"] for line in own)
        seen += any(expected)
    assert seen >= 2, "no group with differences: choose another seed"
    parts = [toys.column(folder, f"daslam/r{i}") for i in range(1, 6)]
    total = np.sum(parts, axis=0) if reward == "full" else parts[2]
    assert toys.column(folder, "reward/mean") == pytest.approx(list(total), abs=1e-5)
    assert set(toys.column(folder, "daslam/solved")) == {0.0}
    lengths = {"A?\nB?": 0, "no question": 0, LISTS[5]: 4}
    first = [line["completion"] for line in samples(folder)]
    assert {len(line["answers"]) for line in samples(folder)} == {lengths.get(each, 3) for each in first}
    assert all(0 < count < 4 for count in toys.column(folder, "daslam/subquestions"))
    dev = [record["eval/chain/avg@2"] for record in toys.records(folder) if "eval/chain/avg@2" in record]
    assert any(dev) and not all(score == 1 for score in dev)
    groups = [json.loads(line) for line in (folder / "groups.jsonl").read_text().splitlines()]
    assert {why for line in groups for why in line["why"]} <= {"correct", "wrong", "no_box", ""}


@mutant(
    "daslam: a solver for nothing",
    "papers/daslam.py",
    'run.state["tokens"] += spent["tokens"]',
    'run.state["tokens"] += 0 * spent["tokens"]',
)
@mutant("daslam: tokens of scores too", "papers/daslam.py", "        world.begin_step()\n", "")
def test_the_budget_counts_the_solver(run, toy_model):
    """Catches tokens of the solver that are not counted, are counted twice, or are those of dev scores."""
    folder = run(steps=3)
    spent, totals = (toys.column(folder, name) for name in ("solver/tokens", "rollout/tokens_total"))
    lengths = toys.column(folder, "rollout/len_mean")
    assert np.diff([0, *totals]) == pytest.approx([8 * length + s for length, s in zip(lengths, spent)])
    calls = toys.column(folder, "solver/calls")
    # A question is attempted; of six lists of 2 questions at most 18 different prompts come of each.
    assert all(2 + 2 < count <= 2 + 2 * 18 for count in calls)
    short = run("short", token_budget=totals[0] + 1)
    assert len(toys.column(short, "reward/mean")) == 2


def test_prompts_of_the_first_step(run):
    """Catches calls that are not counted, and answers to equal prompts that are paid for twice."""
    heard = []
    folder = run(
        steps=1,
        lists=LISTS[:1],
        solver=lambda prompts: heard.append(list(prompts)) or by_steps(prompts),
        eval_problems=1,
        test_problems=1,
        prompts_per_step=2,
    )
    assert toys.column(folder, "solver/calls") == [2 + 2 * 4]  # two attempts, three sub-questions, the end
    assert all(len(set(prompts)) == len(prompts) for prompts in heard)


@mutant(
    "daslam: trained on what is solved",
    "papers/daslam.py",
    "if not solved[j]] or [0]",
    "if True] or [0]",
)
def test_questions_that_the_solver_answers_alone_are_left_out(run):
    """Catches training on a question of one step, which the solver needs no help with."""
    flags = dict(steps=3, prompts_per_step=4, fewest_subquestions=1, test_problems=1, eval_problems=1)
    folder = run(task=load_task("chain?horizon=1-2"), **flags)
    horizons = [[problem.horizon for problem in some] for some in by_step("chain?horizon=1-2", 4)]
    assert toys.column(folder, "daslam/solved") == [each.count(1) / 4 for each in horizons]
    groups = [json.loads(line) for line in (folder / "groups.jsonl").read_text().splitlines()]
    counted = [len(line["of"]) for line in groups if line["split"] == "train"]
    assert counted == [max(1, each.count(2)) for each in horizons] and len(set(counted)) > 1


def by_step(spec: str, count: int) -> list[list]:
    task = load_task(spec)
    return [[task.problem("train", count * step + j, 0) for j in range(count)] for step in range(3)]


@mutant(
    "daslam: trained on what all is solved",
    "papers/daslam.py",
    "        if all(solved):  ",
    "        if False:  ",
)
def test_a_step_whose_questions_are_all_solved_learns_nothing(run, toy_model):
    """Catches an empty batch, and an update where the paper makes none."""
    folder = run(task=load_task("chain?horizon=1"), lists=["A? A? A?", "B?\nB?\nB?"], steps=2, reward="full")
    assert not all(toys.column(folder, "reward/frac_zero_std")), "no differences: choose another seed"
    assert set(toys.column(folder, "daslam/solved")) == {1.0}
    assert set(toys.column(folder, "optim/grad_norm")) == {0.0}
    groups = [json.loads(line) for line in (folder / "groups.jsonl").read_text().splitlines()]
    assert {len(line["of"]) for line in groups if line["split"] == "train"} == {1}
    ours, theirs = (load_file(f"{each}/model.safetensors") for each in (folder / "last", toy_model))
    assert all(daslam.torch.equal(ours[name], theirs[name]) for name in ours)


class Room:
    """Room for so many letters."""

    def __init__(self, letters: int):
        self.letters = letters

    def holds(self, prompt: str) -> bool:
        return len(prompt) <= self.letters


@mutant(
    "daslam: the gold solution is read",
    "papers/daslam.py",
    '{"solver": attempt, "gold"',
    '{"solver": question.solution, "gold"',
)
@mutant(
    "daslam: no look at the room",
    "papers/daslam.py",
    "filter(self.room.holds, longest_first)",
    "iter(longest_first)",
)
def test_what_the_decomposer_is_shown():
    """Catches the official code's trap: the gold solution in the prompt, where the paper has the attempt. And
    a prompt that is too long because a solver talks much."""
    task, problems = chains()
    solver = Solver(lambda prompts: [("I do not know.", 4) for _ in prompts])
    for condition, of in (("solver", None), ("gold", "solution"), ("none", None)):
        args = daslam.Args(condition=condition)
        shown, solved = daslam.InPieces(task, solver, args, Room(10**6)).shown(problems)
        assert solved == [False] * 4
        for each, problem in zip(shown, problems):
            reasoning = problem.solution if of else "I do not know." if condition == "solver" else None
            assert each.prompt == decomposer_prompt(problem.prompt, reasoning)
            assert ("\\boxed{" + problem.answer in each.prompt) == (condition == "gold")
            assert (each.question, each.attempt, each.answer) == (problem, "I do not know.", problem.answer)
    for more, expected in (
        (60, decomposer_prompt(problems[0].prompt, "I do not know.")),
        (20, None),
        (3, None),
    ):
        room = Room(len(problems[0].prompt) + more)
        expected = expected or (decomposer_prompt(problems[0].prompt) if more > 3 else problems[0].prompt)
        shown, _ = daslam.InPieces(task, solver, daslam.Args(), room).shown(problems[:1])
        assert shown[0].prompt == expected


def test_a_killed_run_goes_on_to_the_bit(run):
    """Catches rewards, counts or answers that depend on what a checkpoint does not keep."""
    flags = {"reward": "full", "steps": 4, "test_problems": 1, "report": False}
    whole = run("whole", **flags)
    kill_after(3, lambda: run("broken", **flags))
    broken = run("broken", **flags, resume=True)
    assert toys.records(broken) == toys.records(whole)
    assert (broken / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    names = [path / "last/model.safetensors" for path in (broken, whole)]
    assert names[0].read_bytes() == names[1].read_bytes()
    assert any(toys.column(whole, "optim/grad_norm")[2:])


def test_another_solver_is_refused_on_resume(toy_model, tmp_path, monkeypatch):
    """Catches a run that goes on with other weights under the same name."""
    monkeypatch.setattr(curves, "plot_run", lambda run: None)
    other = toys.with_other_weights(toy_model, tmp_path / "solver")
    flags = flags_of(toy_model, tmp_path / "run", steps=1, solver=other, test_problems=1, eval_problems=1)
    daslam.main(daslam.Args(**flags))
    weights = load_file(f"{other}/model.safetensors")
    moved = {name: 2 * weight for name, weight in weights.items()}
    file = tmp_path / "solver/model.safetensors"
    toys.save_file(moved, file, {"format": "pt"})
    with pytest.raises(SystemExit, match="--resume: the weights of --solver have changed since"):
        daslam.main(daslam.Args(**flags | {"steps": 2, "resume": True}))


def in_two(text: str, fewest: int, most: int) -> list[str]:
    """Every text of a random model asks something."""
    return [f"{text[:2]}?", f"{text[-2:]}?"]


def test_two_ranks_equal_one(toy_model, tmp_path, monkeypatch):
    """Catches episodes of one rank that another does not count, and solvers that answer differently."""
    monkeypatch.setattr(curves, "plot_run", lambda run: None)
    monkeypatch.setattr(daslam, "read_subquestions", in_two)
    monkeypatch.setattr(daslam, "with_box", lambda text: text)

    def train(folder):
        flags = flags_of(toy_model, folder, task="toy", steps=1, solver_temperature=1.0, solver_top_p=1.0)
        daslam.main(daslam.Args(**flags | {"max_new_tokens": 8}), task=toys.HashTask())

    one, two = map(toys.records, on_one_and_two_ranks(train, tmp_path / "x"))
    assert [record.keys() for record in one] == [record.keys() for record in two]
    for left, right in zip(one, two):
        for name in left:
            same = left[name] if left[name] is None else pytest.approx(left[name], rel=1e-6, abs=1e-9)
            assert right[name] == same, name
    assert any(record.get("optim/grad_norm") for record in one)


# --- what is refused ----------------------------------------------------------------------------------------


def test_what_cannot_be(run, tmp_path, monkeypatch, toy_model):
    """Catches a traceback, or a folder that is left behind."""
    monkeypatch.chdir(tmp_path)
    plain = toys.HashTask()
    for flags, said in (
        (dict(model=daslam.START), f"error: --model {daslam.START}: is not there yet; docs/daslam.md has"),
        (dict(solver=None, **{"solver_top_p": 1.5}), "error: --solver-top-p 1.5: must be above 0"),
        (dict(condition="gold", task=plain), "error: --condition gold: the question 'dev 0 of"),
        (dict(solver=lambda prompts: ["one"]), "error: solver: returned 1 things for 2 prompts"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(**flags)
        assert stop.value.code.startswith(said) and "\n" not in stop.value.code
        assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit, match="--solver-tokens 4000: the context of --solver has .* give fewer"):
        daslam.main(daslam.Args(**flags_of(toy_model, tmp_path / "long", solver_tokens=4000)))
    assert not (tmp_path / "long").exists()
    args = daslam.Args(**flags_of(toy_model, tmp_path / "run", solver="./nowhere"))
    with pytest.raises(SystemExit, match="error: --solver ./nowhere: no such folder"):
        daslam.main(args)


class Many:
    """Grades all at once."""

    name = "many"

    def grade_many(self, completions, problems):
        return [Grade(True, 1.0, text, "correct") for text in completions]

    def grade(self, completion, problem):
        raise AssertionError("one by one")


@mutant(
    "grading: one by one all the same", "plainrl/grading.py", 'if hasattr(task, "grade_many"):', "if False:"
)
def test_a_task_may_grade_many_at_once():
    """Catches a task that is asked for each completion by itself, and grades that are not looked at."""
    problems = [Problem("q", "a")] * 5
    assert [grade.parsed for grade in grade_all(Many(), list("vwxyz"), problems)] == list("vwxyz")
    bad = Many()
    bad.grade_many = lambda completions, problems: [None for _ in completions]
    with pytest.raises(ValueError, match="returned NoneType instead of Grade"):
        grade_all(bad, list("vw"), problems[:2])


@mutant(
    "daslam: plan without the first attempts",
    "papers/daslam.py",
    "self.prompts_per_step * (1 + self.group_size",
    "self.prompts_per_step * (self.group_size",
)
@mutant(
    "daslam: plan without the questions after the sub-questions",
    "papers/daslam.py",
    "(self.most_subquestions + 1))",
    "self.most_subquestions)",
)
def test_plan_counts_what_the_solver_writes():
    """Catches a plan that leaves out the first attempts, or the question that follows the sub-questions."""
    args = daslam.Args(prompts_per_step=2, group_size=4, most_subquestions=3, solver_tokens=10)
    assert args.tokens_of_others == {"solver": (2 + 2 * 4 * 4) * 10}
