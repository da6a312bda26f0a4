"""Tests of plainrl/gym.py: any task of reasoning-gym, its splits, its scorer, and what is refused."""

import dataclasses
import json
import pickle
import random
import re
import sys
import time
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
from mutants import mutant
from test_grading import box, message

from benchmarks import gym_tasks
from plainrl import gym as gym_module, workers
from plainrl.chains import run_program
from plainrl.grading import is_error
from plainrl.gym import ANY_ANSWER, TooSlow, shown_answer, time_limit
from plainrl.rows import source_of
from plainrl.tasks import BOXED_INSTRUCTION, Grade, load_task
from plainrl.world import split_of


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine must not turn a verdict into a timeout; the tests of the limit set their own."""
    monkeypatch.setattr(workers, "GRADE_SECONDS", 60.0)


SUMS = "gym:basic_arithmetic?min_terms=2&max_terms=2&min_digits=1&max_digits=2&operators=['+','-']"
SUMS += "&allow_negation=False"


@pytest.fixture
def gym():
    return pytest.importorskip("reasoning_gym")


def test_gym_settings_reach_the_task(gym):
    """Catches a number, a truth value or a list (with a plus sign) that arrives as a text, and a box not
    asked for."""
    task = load_task(SUMS)
    config = task.dataset(0).config
    assert (config.min_terms, config.operators, config.allow_negation) == (2, ["+", "-"], False)
    assert task.name == "gym-basic_arithmetic" and task.problem("dev", 0, 0).prompt.endswith(
        "\n" + BOXED_INSTRUCTION
    )
    for index in range(20):
        problem = task.problem("train", index, 0)
        expression = re.match(r"Calculate ([-+() 0-9]+)\.\n", problem.prompt)[1]
        assert int(problem.answer) == eval(expression) and len(re.findall("[0-9]+", expression)) == 2


def test_gym_problem_is_pure(gym):
    """Catches a problem that depends on the instance or the order of asking, and an index or seed that does
    not matter."""
    for spec in (SUMS, "gym:leg_counting", "gym:countdown"):
        first, second = load_task(spec), load_task(spec)
        problems = [first.problem("train", index, 3) for index in range(12)]
        assert [second.problem("train", index, 3) for index in reversed(range(12))] == problems[::-1]
        assert len({problem.prompt for problem in problems}) >= 11
        assert first.problem("train", 0, 4) != problems[0]
    assert first.problem("train", 10**7, 3).prompt  # there is no end to training


def test_gym_splits_share_no_question(gym):
    """Catches splits by position: there are only some thousand sums of two numbers, so they would overlap."""
    task = load_task(SUMS)
    questions = {
        split: {task.problem(split, i, seed).prompt for i in range(count) for seed in range(2)}
        for split, count in (("train", 500), ("dev", 60), ("test", 60))
    }
    assert not questions["train"] & questions["dev"] and not questions["train"] & questions["test"]
    assert not questions["dev"] & questions["test"] and min(map(len, questions.values())) > 50


def test_gym_scorer_in_the_worker(gym):
    """Catches math-verify in place of the scorer: countdown takes any expression that uses the numbers and
    reaches the target."""
    task = load_task("gym:countdown?min_numbers=3&max_numbers=3")
    problem = task.problem("train", 2, 1)
    target = str(run_program(problem.answer, 0))
    assert task.grade(f"So {box(f'({problem.answer})')}", problem) == Grade(
        True, 1.0, f"({problem.answer})", "correct"
    )
    assert task.grade(box(problem.answer + "+1"), problem).why == "wrong"
    assert task.grade(box(target), problem).why == "wrong"  # the same value, but not from the numbers given
    assert task.grade("nothing", problem) == Grade(False, 0.0, None, "no_box")
    assert task.grade("\\boxed{}", problem) == Grade(False, 0.0, None, "empty_box")
    assert task.grade(box("1" * 1001), problem) == Grade(False, 0.0, None, "too_long")


def test_gym_problem_of_another_process_can_be_graded(gym):
    """Catches a problem that only the instance that made it can grade: after a resume it is another one."""
    problem = pickle.loads(pickle.dumps(load_task(SUMS).problem("train", 5, 8)))
    fresh = load_task(SUMS)
    assert (
        fresh.grade(box(problem.answer), problem).correct
        and not fresh.grade(box(problem.answer + "0"), problem).correct
    )


def test_gym_question_that_differs_in_the_worker_is_an_error(gym):
    """Catches a silently wrong reward: some tasks depend on Python's hash seed, and another question's answer
    would be scored."""
    task = load_task(SUMS)
    verdict = task.grade(
        box("1"), dataclasses.replace(task.problem("train", 0, 0), prompt="another question")
    )
    assert is_error(verdict) and not verdict.correct and "PYTHONHASHSEED=0" in verdict.why


@pytest.mark.parametrize(
    "spec, said",
    [
        ("gym:no_such_task", "'no_such_task' not registered"),
        ("gym:leg_counting?colour=3", "unexpected keyword argument 'colour'"),
        ("gym:leg_counting?min_animals=0", "min_animals must be positive"),
        ("gym:leg_counting?seed=3", "multiple values for keyword argument 'seed'"),
        ("gym:leg_counting?min_animals", "settings are written NAME?key=value&key=value"),
    ],
)
def test_gym_bad_task_or_setting(gym, spec, said):
    """Catches a refusal without the flag or without reasoning-gym's reason."""
    text = message(load_task, spec)
    assert text.startswith(f"--task {spec}: ") and said in text


def test_gym_with_too_few_questions(gym):
    """Catches an endless search in a pool that has no question for some split."""
    task = load_task(f"{SUMS}&size=1")
    empty = {"dev", "test"} - {split_of(task.dataset(0)[0]["question"])}
    assert f"has too few different questions for 1 in {min(empty)}" in message(task.problem, min(empty), 0, 0)


def test_gym_never_asks_twice_in_dev_and_test(gym):
    """Catches a score over 200 problems of which half are the same question: seventeen sums of one digit
    would be met again and again. What is asked does not depend on the order of asking, and a pool that is
    used up says so."""
    spec = "gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1"
    task, other = load_task(spec), load_task(spec)
    asked = []
    with pytest.raises(ValueError, match=r"has too few different questions for \d+ in test; ask for fewer"):
        for index in range(1000):
            asked.append(task.problem("test", index, 5).prompt)
    assert len(set(asked)) == len(asked) > 3
    assert [other.problem("test", index, 5).prompt for index in reversed(range(len(asked)))] == asked[::-1]


def test_gym_package_missing(monkeypatch):
    """Catches a missing package without the line that installs it."""
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    assert message(load_task, "gym:leg_counting").endswith("not installed; run: pip install reasoning-gym")


# --- every task loads, or is refused with a way out -------------------------------------------------------


class Toy:
    """What reasoning-gym makes of a task, as far as GymTask looks at it. It counts the questions made."""

    def __init__(self, question, score, size=1000):
        self.question, self.score, self.size, self.made = question, score, size, 0

    def __len__(self):
        return self.size

    def __getitem__(self, position):
        self.made += 1
        return self.question(self, position)

    def score_answer(self, answer, entry):
        return self.score(answer, entry)


def exact(answer, entry):
    return float(answer == entry["answer"])


def sums(toy, position):
    return {"question": f"1+{position}?", "answer": str(1 + position), "metadata": {}}


@pytest.fixture
def toy(gym, monkeypatch):
    """Makes the task gym:toy of functions for its questions and scores."""

    def make(question=sums, score=exact, **settings):
        package = SimpleNamespace(create_dataset=lambda name, seed, size: Toy(question, score, **settings))
        monkeypatch.setitem(sys.modules, "reasoning_gym", package)
        monkeypatch.setattr(gym_module, "_said", set())
        return load_task("gym:toy")

    return make


@mutant(
    "gym makes a question again",
    "plainrl/gym.py",
    "        if (seed, position) not in self.entries:",
    "        if True:",
)
def test_gym_makes_a_question_once(toy):
    """Catches a question that is made again for its problem, its place in dev, or each scored completion:
    some take a second."""
    task = toy()
    problem = task.problem("train", 0, 0)
    position, made = int(problem.source.split("#")[-1]), task.dataset(0).made
    assert made <= gym_module.PROBED_QUESTIONS + 3  # those of the check, and some that are not for training
    for answer in (problem.answer, "no"):
        assert task.score(0, position, problem.prompt, answer) == float(answer == problem.answer)
    assert task.dataset(0).made == made
    dev = [task.problem("dev", index, 0) for index in range(5)]
    made = task.dataset(0).made
    assert [task.problem("dev", index, 0) for index in range(5)] == dev and task.dataset(0).made == made


def test_gym_gives_a_fitting_size_by_itself(gym, monkeypatch):
    """Catches a task that loads with a setting alone: word_ladder refuses a million questions."""
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    task = load_task("gym:word_ladder")
    assert len(task.dataset(0)) == 20_000 and task.problem("train", 0, 0).answer
    assert len(load_task("gym:word_ladder?size=300").dataset(0)) == 300


@mutant(
    "gym lets hash dependent tasks pass",
    "plainrl/gym.py",
    'os.environ.get("PYTHONHASHSEED", "random") == "random"',
    "False",
)
def test_gym_task_that_depends_on_the_hash_seed(gym, monkeypatch):
    """Catches a run in which every answer is a grader error, since its workers ask other questions."""
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    text = message(load_task("gym:ransom_note").problem, "train", 0, 0)
    assert "PYTHONHASHSEED=0 before the command" in text
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert load_task("gym:ransom_note").problem("train", 0, 0).answer in ("True", "False")


def test_gym_composite_says_what_to_do(gym):
    """Catches reasoning-gym's own words, which ask for something that a flag cannot say."""
    assert "write the tasks themselves, e.g. gym:leg_counting*2,chain_sum" in message(
        load_task, "gym:composite"
    )


@mutant(
    "gym draws by chance",
    "plainrl/gym.py",
    "    random.seed(seed)\n",
    "",
)
def test_gym_chance_is_fixed_and_leaves_the_run_alone(toy):
    """Catches codeio's questions, which draw from Python's and NumPy's own chance: others every time. And a
    run whose own random numbers depend on how many questions were made."""

    def drawn(toy, position):
        number = random.random() + np.random.random()
        return {"question": f"{number}?", "answer": "1", "metadata": {}}

    found = []
    for seed in (5, 6):
        random.seed(seed)
        np.random.seed(seed)
        states = random.getstate(), np.random.get_state()[1].tolist()
        found.append([toy(drawn).problem("train", index, 1) for index in (3, 4)])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    assert found[0] == found[1] and found[0][0].prompt != found[0][1].prompt


@mutant(
    "gym takes what cannot be repeated",
    "plainrl/gym.py",
    "if fixed_part(self.new_entry(again, seed, position)) != fixed_part(entries[position]):",
    "if False:",
)
def test_gym_task_that_cannot_be_repeated(toy):
    """Catches questions that depend on how many were made before, or on which dataset object makes them."""

    def counted(toy, position):
        return {"question": f"{toy.made}+{position}?", "answer": "1", "metadata": {}}

    def of_the_object(toy, position):
        return {"question": f"{id(toy)}+{position}?", "answer": "1", "metadata": {}}

    for question in (counted, of_the_object):
        text = message(toy(question).problem, "train", 0, 0)
        assert text.startswith("--task gym:toy: ") and "take another task" in text


def test_gym_task_that_hangs(toy, monkeypatch):
    """Catches a run that stands still: at load, or at a question, even where reasoning-gym catches
    everything that is raised. The alarm is gone afterwards."""

    def endless(toy, position):
        while True:
            try:
                time.sleep(10)
            except Exception:
                pass

    task = toy(endless)
    monkeypatch.setattr(gym_module, "QUESTION_SECONDS", 0.02)
    text = message(task.problem, "train", 0, 0)
    assert "is not made after 0 s; give settings with easier questions" in text

    monkeypatch.setattr(gym_module, "LOAD_SECONDS", 0.02)
    sys.modules["reasoning_gym"].create_dataset = lambda name, **settings: time.sleep(10)
    assert "is not ready after 0 s; it may prepare all 1,000,000 questions at once" in message(
        load_task, "gym:toy"
    )
    with pytest.raises(TooSlow), time_limit(0.01):
        time.sleep(10)
    time.sleep(0.03)  # a second alarm would end the test


@mutant(
    "gym lets a dataset shrink",
    "plainrl/gym.py",
    "            dataset.size = size",
    "            pass",
)
def test_gym_question_that_cannot_be_made(toy):
    """Catches a run that ends, or goes on otherwise, at a puzzle without a solution or an answer without a
    box, and one in which nothing can be made without the reason."""

    def some(toy, position):
        if position % 3 == 0:
            toy.size = position  # as word_ladder does
            raise IndexError("no solution")
        return sums(toy, position) | ({"answer": ""} if position % 3 == 1 else {})

    task = toy(some)
    problems = [task.problem("train", index, 0) for index in range(10)]
    assert all((int(problem.answer) - 1) % 3 == 2 for problem in problems)
    assert len(task.dataset(0)) == 1000

    def never(toy, position):
        raise RuntimeError("no puzzle")

    assert "at some it fails: RuntimeError: no puzzle" in message(toy(never).problem, "train", 0, 0)


@mutant(
    "gym runs a data set's programs itself",
    "plainrl/gym.py",
    "if self.dataset_name in RUNS_PROGRAMS and not self.is_locked_away:",
    "if False:",
)
def test_gym_questions_that_programs_make_come_from_a_worker(toy, monkeypatch, capsys):
    """Catches programs of a data set that run in the training process, one that ends a run with itself, and
    questions about nothing, where a program could not run."""

    def program(toy, position):
        if position % 3 == 0:
            sys.exit()
        output = {} if position % 3 == 1 else {"sum": position}
        return sums(toy, position) | {"metadata": {"input_data": {}, "output_data": output}}

    def worker(request):
        try:
            reply = workers._gym(json.loads(json.dumps(request)), locked, False, print)
        except SystemExit:
            return 0.0, "crash"
        return json.loads(json.dumps(reply))[:2]

    monkeypatch.setattr(gym_module, "RUNS_PROGRAMS", ("toy",))
    monkeypatch.setattr(gym_module, "ask_worker", worker)
    task, locked = toy(program), toy(program)
    locked.is_locked_away = True
    problems = [task.problem("train", index, 0) for index in range(10)]
    assert task.dataset(0).made == 0 and all(int(problem.answer) % 3 == 0 for problem in problems)
    assert capsys.readouterr().out.count("programs of its data set") == 1


def test_gym_program_that_writes_a_file(gym, tmp_path, monkeypatch):
    """Catches a file in the folder that a run is started in: codeio has a program that writes one."""
    monkeypatch.chdir(tmp_path)
    task = load_task("gym:codeio")
    rows = type(task.dataset(0))._jsonl_data
    drawn = [random.Random(position).choice(rows) for position in range(20_000)]
    writes = ["sailor_performance.csv" in row["input_generator"] for row in drawn]
    assert task.entry(0, writes.index(False))["answer"]
    assert task.entry(0, writes.index(True)) is None and not list(tmp_path.iterdir())


# --- mixtures ---------------------------------------------------------------------------------------------

MIXED = "gym:leg_counting*3,chain_sum,basic_arithmetic*2?chain_sum.max_terms=2"
MIXED += "&basic_arithmetic.operators=['+','-']"
MEMBERS = ["gym:leg_counting", "gym:chain_sum?max_terms=2", "gym:basic_arithmetic?operators=['+','-']"]


def members_of(problems) -> list[str]:
    return [problem.source.rsplit("#", 2)[0] for problem in problems]


@mutant(
    "weights of a mixture count for nothing",
    "plainrl/gym.py",
    "weights[name] = int(weight) if star else 1",
    "weights[name] = 1",
)
def test_gym_mixture_has_its_shares(gym):
    """Catches weights that hold on average only, and an order in which each step begins with the same
    member."""
    task = load_task(MIXED)
    for split in ("train", "dev"):
        turns = [members_of(task.problem(split, 6 * i + j, 0) for j in range(6)) for i in range(8)]
        assert all([turn.count(spec) for spec in MEMBERS] == [3, 1, 2] for turn in turns)
        assert len({tuple(turn) for turn in turns}) > 4 and len({turn[0] for turn in turns}) > 1


@mutant(
    "mixtures of other weights in one folder",
    "plainrl/gym.py",
    'f"-x{weight}" * (weight > 1)',
    '"" * (weight > 1)',
)
@mutant("long mixtures in one folder", "plainrl/gym.py", "crc32(name.encode())", "len(name)")
def test_gym_mixtures_have_names_of_their_own(gym):
    """Catches a mixture of other weights, or one whose long name is cut, that gets the default folder and the
    metric keys of another."""
    assert load_task("gym:leg_counting*2,chain_sum").name == "gym-leg_counting-x2-chain_sum"
    assert load_task("gym:leg_counting,chain_sum").name == "gym-leg_counting-chain_sum"
    twenty = {f"task_number_{i}": 2 for i in range(20)}
    names = [gym_module.name_of_mixture(weights) for weights in (twenty, twenty | {"task_number_9": 3})]
    assert len(set(names)) == 2 and {len(name) for name in names} == {60} and names[0][:51] == names[1][:51]


@mutant(
    "a mixture asks its members for the same problems again",
    "plainrl/gym.py",
    "turn * self.weights[which] + order[:place].count(which)",
    "turn",
)
def test_gym_mixture_is_pure(gym):
    """Catches a problem that depends on the instance or the order of asking, which a resumed run would show,
    one that is asked twice, and members that are not the tasks of the same names."""
    first, second = load_task(MIXED), load_task(MIXED)
    for split in ("train", "dev"):
        problems = [first.problem(split, index, 3) for index in range(24)]
        assert [second.problem(split, index, 3) for index in reversed(range(24))] == problems[::-1]
        assert len({problem.prompt for problem in problems}) == 24
        assert [problem.index for problem in problems] == list(range(24))
    alone = load_task(MEMBERS[1])
    mine = [problem for problem in problems if problem.source.startswith(MEMBERS[1])]
    assert mine == [alone.problem("dev", index, 3) for index in range(len(mine))]
    assert first.problem("train", 0, 4) != first.problem("train", 0, 3)


def test_gym_mixture_is_graded_by_its_members(gym):
    """Catches a completion that goes to another member's scorer: countdown takes an expression, leg_counting
    the number alone."""
    task = load_task("gym:countdown,leg_counting?countdown.min_numbers=3&countdown.max_numbers=3")
    problems = {problem.source[4:8]: problem for problem in (task.problem("train", i, 1) for i in range(2))}
    expression, number = problems["coun"], problems["leg_"]
    target = str(run_program(expression.answer, 0))
    fresh = load_task(task.spec)
    for completion, problem, right in (
        (expression.answer, expression, True),
        (target, expression, False),
        (number.answer, number, True),
        (number.answer + "+0", number, False),
    ):
        assert fresh.grade(box(completion), pickle.loads(pickle.dumps(problem))).correct == right
    assert fresh.same_answer("1/2", "0.5") and not fresh.same_answer("a3", "b3")


def test_gym_mixture_keeps_a_worker_for_each_member(gym, monkeypatch):
    """Catches workers that are ended and started again at every problem, a second each."""
    monkeypatch.setattr(workers, "KEPT", 4)
    load_task("gym:leg_counting,chain_sum")
    assert workers.KEPT == 4
    load_task("gym:leg_counting,chain_sum,gcd,lcm,maze,products")
    assert workers.KEPT == 7


def test_gym_mixture_of_chains(gym):
    """Catches chains of a mixture whose steps have no number to chain by, and a horizon that is lost."""
    task = load_task("gym:leg_counting,chain_sum?horizon=2&chain_sum.max_terms=2")
    problem = task.problem("train", 0, 0)
    assert problem.horizon == 2 and task.grade(box(problem.answer), problem).correct


def test_gym_mixture_checks_every_member_at_once(gym, monkeypatch):
    """Catches a member that ends the run when its first problem comes, hours after the start."""
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    task = load_task("gym:leg_counting*100,ransom_note")
    assert "gym:ransom_note: asks other questions in every process" in message(task.problem, "train", 0, 0)


@mutant(
    "a mixture cuts settings at their signs",
    "plainrl/gym.py",
    """value.replace('%', '%25').replace('&', '%26')""",
    "value",
)
def test_gym_mixture_passes_on_what_a_setting_says(gym, monkeypatch):
    """Catches a sign of a setting's text that is read as the end of the setting, or as a code for another."""
    package = SimpleNamespace(create_dataset=lambda name, **settings: Toy(sums, exact))
    monkeypatch.setitem(sys.modules, "reasoning_gym", package)
    task = load_task("gym:a,b?b.text=1%2B1%2525%26c=2&a.n=3")
    assert [member.settings for member in task.members] == [{"n": 3}, {"text": "1+1%25&c=2"}]
    assert load_task(task.members[1].spec).settings == {"text": "1+1%25&c=2"}


@pytest.mark.parametrize(
    "spec, said",
    [
        ("gym:leg_counting,,chain_sum", "a name is missing"),
        ("gym:leg_counting,leg_counting", "leg_counting is there twice"),
        ("gym:leg_counting*0,chain_sum", "the weight of leg_counting is '0'; it must be a whole number"),
        ("gym:leg_counting*1.5,chain_sum", "the weight of leg_counting is '1.5'"),
        ("gym:leg_counting*101,chain_sum", "from 1 to 100"),
        ("gym:leg_counting*2", "needs a second task"),
        ("gym:leg_counting,chain_sum?max_terms=3", "write whose it is, e.g. chain_sum.max_terms=3"),
        ("gym:leg_counting,chain_sum?maze.size=3", "of a task that is not in it, maze"),
        ("gym:leg_counting,chain_sum?chain_sum.horizon=3", "write horizon=3: all tasks are chained"),
    ],
)
def test_gym_mixture_that_cannot_be(gym, spec, said):
    """Catches a refusal without the flag or the way out, and a setting that nobody gets."""
    text = message(load_task, spec)
    assert text.startswith(f"--task {spec}: ") and said in text
    assert message(load_task, "gym:leg_counting,no_such").startswith("--task gym:no_such: reasoning-gym")


# --- what a scorer pays for nothing -----------------------------------------------------------------------


def test_gym_says_what_is_free(toy, capsys):
    """Catches a scorer that pays for anything, which looks as if the model were good already. A scorer that
    pays for right answers alone is not mentioned; nothing is said twice."""

    def halts(toy, position):
        return {"question": f"{position}?", "answer": "no" if position % 4 else "yes", "metadata": {}}

    for score, said in (
        (lambda answer, entry: float(bool(answer)), "\\boxed{0} alone earns 1.00 on average"),
        (lambda answer, entry: 1.0 if answer == entry["answer"] else 0.1, "\\boxed{no} alone earns 0."),
        (lambda answer, entry: 0.5 * exact(answer, entry), "its own answers earn 0.50 on average"),
    ):
        task = toy(halts, score)
        for index in range(2):
            task.problem("train", index, 0)
        assert capsys.readouterr().out.count(said) == 1
    task = toy(sums)
    task.problem("train", 0, 0)
    assert capsys.readouterr().out == ""


def test_gym_scorer_that_hangs_is_not_waited_for(toy, monkeypatch, capsys):
    """Catches a start that takes minutes, since a scorer simplifies an integral, and a verdict that counts
    although the limit cut it short."""

    def slow(answer, entry):
        try:
            time.sleep(5)
        except BaseException:
            return 1.0

    monkeypatch.setattr(gym_module, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(gym_module, "CONSTANTS", ("0",))
    task = toy(sums, slow)
    start = time.monotonic()
    task.problem("train", 0, 0)
    assert time.monotonic() - start < 4 and capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["graph_color", "propositional_logic", "rubiks_cube"])
def test_gym_answer_where_many_are_right(gym, name):
    """Catches the gold answer "None": the task gives an example along, and the scorer pays it in full."""
    task = load_task(f"gym:{name}")
    problem = task.problem("train", 0, 0)
    position = int(problem.source.split("#")[-1])
    assert problem.answer != "None" and task.score(0, position, problem.prompt, problem.answer) == 1.0


def test_gym_shown_answer():
    """Catches a gold answer of another type than text, and one made up where reasoning-gym gives none."""
    for answer, metadata, shown in (
        (5, {}, "5"),
        ("", {"example_answer": "x"}, ""),
        (None, {"possible_answer": {0: 1}}, '{"0": 1}'),
        (None, {"example_correct_answer": ""}, ANY_ANSWER),
        (None, {}, ANY_ANSWER),
    ):
        assert shown_answer({"answer": answer, "metadata": metadata}) == shown


# --- the table --------------------------------------------------------------------------------------------


def test_gym_table_has_every_task(gym):
    """Catches a table without a task of the package it names, and tasks that depend on the hash seed and are
    not known for it."""
    log = json.loads(gym_tasks.LOG.read_text())
    assert {row["task"] for row in log["rows"] if row["differs"]} == set(gym_module.HASH_DEPENDENT)
    rows = gym_tasks.page_table(log).splitlines()[2:]
    assert len(rows) == len(log["rows"]) and all(row.count(" | ") == rows[0].count(" | ") for row in rows)
    if log["version"] == version("reasoning-gym"):
        assert [row["task"] for row in log["rows"]] == gym_tasks.all_tasks()


@mutant("gym: a source for each question", "plainrl/rows.py", 'r"#\\d+#\\d+$"', 'r"#\\d+$"')
@mutant(
    "gym: a solution without its box",
    "plainrl/gym.py",
    """{work.rstrip()}\\n\\\\boxed{{{answer.strip()}}}""",
    """{work.rstrip()}""",
)
def test_worked_solutions_are_right():
    """Catches a solution that its own task does not accept, and one where a task knows none."""
    task = load_task("gym:gsm_symbolic")
    for index in range(20):
        problem = task.problem("train", index, 0)
        assert "####" not in problem.solution and len(problem.solution.splitlines()) > 1
        assert task.grade(problem.solution, problem).correct
        assert source_of(problem) == "gym:gsm_symbolic"  # one source of a --mixture, not one for each
    assert load_task("gym:chain_sum").problem("train", 0, 0).solution is None
