"""plainrl/countdown.py: what is possible, the splits, and the grader. And the start model of this world."""

import itertools
import json
import random
from pathlib import Path

import pytest
from mutants import mutant

from plainrl import countdown
from plainrl.countdown import SPLITS, CountdownTask, all_problems, next_lines, reachable, ways
from plainrl.flags import RunFlags, resolve_defaults, resolve_model
from plainrl.hints import reveals
from plainrl.tasks import load_task

ROOT = Path(__file__).resolve().parent.parent


def draws(count: int) -> list[tuple[int, ...]]:
    rng = random.Random(count)
    return [tuple(rng.randint(1, 15) for _ in range(count)) for _ in range(40)]


# --- what is possible ---------------------------------------------------------------------------------------


@mutant(
    "results from 0",
    "plainrl/countdown.py",
    "if 1 <= result <= LARGEST_RESULT and line",
    "if 0 <= result <= LARGEST_RESULT and line",
)
@mutant(
    "results to 100",
    "plainrl/countdown.py",
    "result <= LARGEST_RESULT and line",
    "result <= LARGEST_RESULT + 1 and line",
)
@mutant("used numbers stay", "plainrl/countdown.py", "if k not in (i, j))", "if k != i)")
def test_next_lines_are_all_that_is_possible():
    """Catches a line that is not allowed, one that is missing, one that comes twice, numbers that are used up
    and stay."""
    for numbers in [*draws(3), *draws(2), (5, 5, 5), (1, 1, 99)]:
        found = dict(next_lines(numbers))
        expected = {}
        for a, b in itertools.permutations(numbers, 2):
            others = list(numbers)
            others.remove(a)
            others.remove(b)
            for sign, result in (("+", a + b), ("-", a - b), ("*", a * b)):
                if result in range(1, 100):
                    expected[f"{a}{sign}{b}={result}"] = sorted([*others, result])
        assert {line: sorted(left) for line, left in found.items()} == expected
        assert len(list(next_lines(numbers))) == len(found)


@mutant(
    "sets without one sign",
    "plainrl/countdown.py",
    "values |= {a + b, a - b, b - a, a * b}",
    "values |= {a + b, a - b, a * b}",
)
@mutant(
    "parts of one number",
    "plainrl/countdown.py",
    "range(1, len(numbers) // 2 + 1)",
    "range(1, len(numbers) // 2)",
)
def test_what_is_reachable_is_what_the_ways_end_in():
    """Catches targets that no way reaches, and ways to a value that is no target."""
    for numbers in [*draws(2), *draws(3), *draws(4)[:5]]:
        assert reachable(tuple(sorted(numbers))) == {value for _, value in ways(numbers)}


def test_every_way_is_possible_and_comes_once():
    """Catches a grader and a list of ways that do not agree."""
    task = CountdownTask(numbers=3)
    problem = task.problem("dev", 0, 0)
    found = ways(tuple(map(int, problem.options)))
    assert len({text for text, _ in found}) == len(found) > 20
    for text, value in found:
        grade = task.grade(text, problem)
        assert grade.parsed == str(value) and grade.correct == (str(value) == problem.answer), text


# --- the problems -------------------------------------------------------------------------------------------


@mutant(
    "splits of the order",
    "plainrl/countdown.py",
    "numbers, target = problems[",
    "numbers, target = all_problems(3, 15)['train'][",
)
def test_no_problem_is_in_two_splits():
    """Catches a test problem that is trained on, whatever the order of its numbers, the seed or the index,
    and fewer than a thousand test problems."""
    task, seen = CountdownTask(), {}
    for split in SPLITS:
        for index in range(300):
            problem = task.problem(split, index, seed=index % 3)
            key = tuple(sorted(map(int, problem.options))), problem.answer
            assert seen.setdefault(key, split) == split
    assert task.size("test") >= 1000 and task.size("dev") >= 500 and task.size("train") >= 3200


@mutant(
    "the same order in every pass", "plainrl/countdown.py", 'f"{seed}/{split}/{times}"', 'f"{seed}/{split}"'
)
@mutant(
    "numbers in order",
    "plainrl/countdown.py",
    "numbers = rng.sample(numbers, len(numbers))",
    "numbers = list(numbers)",
)
def test_a_split_comes_once_before_it_comes_again():
    """Catches test problems that come twice, a second pass in the same order, numbers that always stand in
    order, and a problem that is not a function of its arguments."""
    task = CountdownTask(numbers=2)
    size = task.size("test")
    passes = [[task.problem("test", index, 7) for index in range(n * size, (n + 1) * size)] for n in (0, 1)]
    keys = [[(tuple(sorted(p.options)), p.answer) for p in problems] for problems in passes]
    assert sorted(keys[0]) == sorted(keys[1]) and keys[0] != keys[1] and len(set(keys[0])) == size
    assert any(list(p.options) != sorted(p.options, key=int) for p in passes[0])
    assert CountdownTask(numbers=2).problem("test", 3, 7) == passes[0][3] != task.problem("test", 3, 8)
    assert passes[0][3].index == 3


@mutant(
    "a hint with the last line",
    "plainrl/countdown.py",
    "*first_lines, _ = solution",
    "first_lines = solution",
)
@mutant(
    "a hint that gives the target",
    "plainrl/countdown.py",
    "None if gives_target or not first_lines else",
    "None if not first_lines else",
)
def test_solutions_are_right_and_hints_begin_them():
    """Catches a worked solution that is wrong, and a hint that leaves nothing to do or names the target."""
    for count in (2, 3, 4):
        task, hinted = CountdownTask(numbers=count), 0
        for index in range(150):
            problem = task.problem("train", index, 0)
            assert task.grade(problem.solution, problem).correct and problem.horizon == count - 1
            assert problem.prompt.startswith(f"Make {problem.answer} from ")
            if problem.hint is not None:
                begin = problem.hint.removeprefix("it can begin with ").removesuffix(".").split(", ")
                assert problem.solution.split("\n")[:-1] == begin
                assert not any(reveals(line.rpartition("=")[2], problem.answer) for line in begin)
                hinted += 1
        assert hinted == 0 if count == 2 else hinted > 100


def test_horizons():
    """Catches a curriculum over other numbers of steps than it says."""
    task = load_task("countdown")
    assert [task.at_horizon(h).problem("train", 0, 0).horizon for h in (1, 2, 3)] == [1, 2, 3]
    with pytest.raises(ValueError, match="numbers=5 is not one of 2 to 4"):
        task.at_horizon(4)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("countdown?numbers=5", "--task countdown: numbers=5 is not one of 2 to 4"),
        ("countdown?numbers=three", "--task countdown: numbers=three is not one of 2 to 4"),
        ("countdown?largest=1", "--task countdown: largest=1 is not one of 2 to 20"),
        ("countdown?horizon=2", "unknown setting 'horizon'; known are numbers, largest"),
    ],
)
def test_wrong_settings_are_refused(spec, message):
    """Catches a setting that is taken for another."""
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        load_task(spec)


def test_the_smallest_world_has_every_split():
    """Catches settings that leave a split without problems, and a split that there is not."""
    task = CountdownTask(numbers=2, largest=2)
    assert all(task.problem(split, 100, 0).answer for split in SPLITS)
    with pytest.raises(ValueError, match="split 'valid' is not one of sft, train, dev, test"):
        CountdownTask().problem("valid", 0, 0)


# --- the grader ---------------------------------------------------------------------------------------------


@pytest.fixture
def fourteen():
    """Make 14 from 8, 5 and 1."""
    numbers = ("8", "5", "1")
    return countdown.Problem(prompt="Make 14 from 8, 5 and 1.", answer="14", options=numbers)


@mutant("a number used twice", "plainrl/countdown.py", "                left.remove(number)\n", "")
@mutant("any result", "plainrl/countdown.py", "!= result:\n", "!= result and result < 0:\n")
@mutant(
    "no result is kept",
    "plainrl/countdown.py",
    "            left.append(result)\n",
    "            left.append(int(problem.answer))\n",
)
@mutant("leftovers", "plainrl/countdown.py", "if len(left) > 1:", "if len(left) > 2:")
@mutant("part of a line", "plainrl/countdown.py", "LINE.fullmatch(line.strip())", "LINE.match(line.strip())")
@pytest.mark.parametrize(
    "completion, parsed, why",
    [
        ("8+5=13\n13+1=14", "14", "correct"),
        ("5 + 8 = 13\n\n 1 + 13 = 14 \n", "14", "correct"),
        ("8\u00d71=8\n8+5=13", "13", "wrong"),
        ("8\u22125=3\n3*1=3", "3", "wrong"),
        ("8+5=14\n14*1=14", None, "wrong_arithmetic"),
        ("8+5=13\n13+1=15", None, "wrong_arithmetic"),
        ("8+5=13\n8+5=13", None, "number_not_left"),
        ("9+5=14", None, "number_not_left"),
        ("8+8=16\n16-1=15", None, "number_not_left"),
        ("1+1=2\n2+8=10", None, "number_not_left"),
        ("8+5=13", None, "numbers_left_over"),
        ("8+5=13\n14+1=15", None, "number_not_left"),
        ("8-8=0", None, "number_not_left"),
        ("1-5=-4\n8+4=12", None, "not_a_step"),
        ("5*1=5\n8-5=3\n", "3", "wrong"),
        ("8*5=40\n40*1=40", "40", "wrong"),
        ("", None, "not_a_step"),
        ("\n \n", None, "not_a_step"),
        ("14", None, "not_a_step"),
        ("\\boxed{14}", None, "not_a_step"),
        ("8+5=13\n13+1=14\nso it is 14", None, "not_a_step"),
        ("8+5=13, 13+1=14", None, "not_a_step"),
        ("8+5=13.0\n13+1=14", None, "not_a_step"),
        ("\u0668+5=13\n13+1=14", None, "not_a_step"),
        ("8/1=8\n8+5=13", None, "not_a_step"),
        ("9" * 10_000 + "+1=2", None, "not_a_step"),
        ("__import__('os')", None, "not_a_step"),
    ],
)  # fmt: skip
def test_grades(fourteen, completion, parsed, why):
    """Catches a way that is not possible and counts, and one that is and does not."""
    grade = CountdownTask().grade(completion, fourteen)
    assert (grade.parsed, grade.why, grade.correct, grade.score) == (
        parsed,
        why,
        why == "correct",
        float(why == "correct"),
    )


@mutant(
    "out of range",
    "plainrl/countdown.py",
    "if not 1 <= result <= LARGEST_RESULT:",
    "if not 0 <= result <= 10**4:",
)
def test_results_stay_within_1_and_99():
    """Catches a way over 0 or over 100, which the prompt forbids."""
    five = countdown.Problem(prompt="", answer="5", options=("3", "3", "5"))
    many = countdown.Problem(prompt="", answer="5", options=("15", "10", "5"))
    task = CountdownTask()
    assert task.grade("3-3=0\n0+5=5", five).why == "result_out_of_range"
    assert task.grade("15*10=150\n150*5=750", many).why == "result_out_of_range"
    assert task.grade("15-10=5\n5*5=25", many).why == "wrong"


# --- the start model and its defaults -----------------------------------------------------------------------


@mutant(
    "one start model for all",
    "plainrl/flags.py",
    '"models/" + getattr(task, "world", "tiny")',
    '"models/tiny"',
)
@mutant(
    "defaults of the world for any model",
    "plainrl/flags.py",
    'if size == "tiny" and world in rows else size',
    "if world in rows else size",
)
def test_the_world_has_its_own_start_model_and_defaults():
    """Catches a run on countdown that starts from the model of the chain world, or with its lengths, and a
    real model that gets those of a small one."""
    task = load_task("countdown")
    args = RunFlags(task="countdown")
    resolve_model(args, task)
    resolve_defaults(args, 400_000, task)
    assert (args.model, args.steps, args.max_new_tokens) == ("models/countdown", 200, 32)
    args = RunFlags(task="countdown", model="some/model")
    resolve_model(args, task)
    resolve_defaults(args, 135_000_000, task)
    assert (args.model, args.steps, args.max_new_tokens) == ("some/model", 60, 256)
    args = RunFlags()
    resolve_model(args, load_task("chain"))
    resolve_defaults(args, 1_000_000, load_task("chain"))
    assert (args.model, args.steps, args.max_new_tokens) == ("models/tiny", 80, 160)


def test_the_four_number_problems_are_many():
    """Catches a setting for four numbers whose problems are those of three."""
    assert len(all_problems(4, 15)["test"]) > 10_000
    problem = load_task("countdown?numbers=4").problem("test", 0, 0)
    assert len(problem.options) == 4 and problem.solution.count("\n") == 2 and json.dumps(problem.options)
