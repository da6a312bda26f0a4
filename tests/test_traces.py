"""tools/traces.py: each kind of target by hand, what makes no row, and the command from a task to sft.py."""

import json
import random
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from mutants import mutant
from transformers import AutoTokenizer

from plainrl import rows
from plainrl.tasks import Problem, load_task
from tools import traces
from tools.traces import LeftOut, Step

TINY = Path(__file__).resolve().parent.parent / "plainrl/tiny"
THREE = "A=115+3=118\nB=118+6=124\nC=124-2=122\n\\boxed{122}"
FOUR = "A=90*2=180\nB=180/2=90\nC=90+9=99\nD=99-8=91\n\\boxed{91}"


def target(kind: str, solution: str = THREE, rng=None, share: float = 1 / 3, consistent: bool = True) -> str:
    return traces.target_of_steps(traces.read_steps(solution), kind, share, consistent, rng)


# --- the targets --------------------------------------------------------------------------------------------


@mutant(
    "traces: no brackets", "tools/traces.py", 'work = f"({work}){step.sign}', 'work = f"{work}{step.sign}'
)
@mutant(
    "traces: a plan that adds what is to be subtracted",
    "tools/traces.py",
    '"-": "subtract {}"',
    '"-": "add {}"',
)
@mutant(
    "traces: a plan with results", "tools/traces.py", "].format(step.operand) for", "].format(step.value) for"
)
@mutant(
    "traces: plans without steps",
    "tools/traces.py",
    'if kind in ("sparse", "plan"):',
    'if kind in ("sparse", "plan", "plan_steps"):',
)
@mutant(
    "traces: no plan", "tools/traces.py", 'if kind in ("plan", "plan_steps"):', 'if kind == "plan_steps":'
)
@mutant(
    "traces: the first number in the box",
    "tools/traces.py",
    '"\\n".join([*lines, boxed(steps[-1]',
    '"\\n".join([*lines, boxed(steps[0]',
)
@pytest.mark.parametrize(
    "kind, three, four",
    [
        ("sparse", "((115+3)+6)-2=122\n\\boxed{122}", "(((90*2)/2)+9)-8=91\n\\boxed{91}"),
        (
            "plan",
            "Plan: add 3, add 6, subtract 2.\n((115+3)+6)-2=122\n\\boxed{122}",
            "Plan: multiply by 2, divide by 2, add 9, subtract 8.\n(((90*2)/2)+9)-8=91\n\\boxed{91}",
        ),
        (
            "plan_steps",
            f"Plan: add 3, add 6, subtract 2.\n{THREE}",
            f"Plan: multiply by 2, divide by 2, add 9, subtract 8.\n{FOUR}",
        ),
        ("steps", THREE, FOUR),
        (
            "dialect",
            "Adding three to one hundred fifteen gives one hundred eighteen. "
            "Adding six to one hundred eighteen gives one hundred twenty-four. "
            "Taking two away from one hundred twenty-four leaves one hundred twenty-two. "
            "The answer is \\boxed{122}.",
            "Taking two times ninety makes one hundred eighty. "
            "Dividing by two turns one hundred eighty into ninety. "
            "Adding nine to ninety gives ninety-nine. "
            "Taking eight away from ninety-nine leaves ninety-one. "
            "The answer is \\boxed{91}.",
        ),
    ],
)
def test_targets_by_hand(kind, three, four):
    """Catches a number in another's place, an operation under another name, and a part that is missing."""
    assert target(kind) == three and target(kind, FOUR) == four


@mutant("traces: no second thoughts", "tools/traces.py", "if rng.random() < share:", "if False:")
@mutant(
    "traces: what undoes a step does it again",
    "tools/traces.py",
    "{step.value}{INVERSE[step.sign]}",
    "{step.value}{step.sign}",
)
def test_useless_lines_are_true_and_change_nothing():
    """Catches a second thought that is wrong, a step that is lost, and a share without effect."""
    steps = traces.read_steps(FOUR)
    own, checks = {step.line for step in steps}, {"180/2=90", "90*2=180", "99-9=90", "91+8=99"}
    useless = 0
    for seed in range(200):
        lines = "\n".join(traces.overthought(steps, 0.5, random.Random(seed))).splitlines()
        assert set(lines) <= own | checks | {"Wait."}
        in_order = [line for line in dict.fromkeys(lines) if line in own]
        assert in_order == [step.line for step in steps]
        useless += len(lines) - len(steps)
    assert useless / 800 == pytest.approx(0.5 * 1.5 * 4 / 3, abs=0.1)  # a second thought has two lines
    assert traces.overthought(steps, 0.0, random.Random(0)) == [step.line for step in steps]
    assert target("overthinking", rng=random.Random(0), share=0.0) == THREE


def value_of(words: str) -> int:
    """A number in words, read from the left."""
    total = part = 0
    for word in re.split("[ -]", words):
        if word == "thousand":
            total, part = 1000 * part, 0
        elif word == "hundred":
            part *= 100
        else:
            part += traces.ONES.index(word) if word in traces.ONES else 10 * traces.TENS.index(word)
    return total + part


@mutant("traces: tens in the place of ones", "tools/traces.py", "ONES[value % 10]", "ONES[value // 10]")
@mutant(
    "traces: hundreds without their rest",
    "tools/traces.py",
    "if value % unit else",
    "if value % unit > 99 else",
)
def test_numbers_in_words_are_read_back():
    """Catches a number that is said as another one."""
    numbers = [*range(1201), *random.Random(0).sample(range(1201, 10**6), 500), 999_999]
    assert [value_of(traces.in_words(number)) for number in numbers] == numbers
    with pytest.raises(LeftOut, match="too large for words"):
        target("dialect", "A=999999+1=1000000\n\\boxed{1000000}")


# --- wrong results ------------------------------------------------------------------------------------------


class Chosen:
    """In place of random numbers: these steps first, and this error."""

    def __init__(self, first: list[int], error: int):
        self.first, self.error = first, error

    def shuffle(self, order):
        order.sort(key=lambda i: self.first.index(i) if i in self.first else 99)

    def choice(self, errors):
        assert errors == [error for error in range(-20, 21) if error]
        return self.error


@mutant(
    "traces: all go on from the right result",
    "tools/traces.py",
    "if made and consistent else",
    "if made and not consistent else",
)
@mutant("traces: no error", "tools/traces.py", "value += rng.choice(errors)", "rng.choice(errors)")
@mutant(
    "steps of a share: rounded down",
    "plainrl/hints.py",
    "math.ceil(share * steps",
    "math.floor(share * steps",
)
@mutant("steps of a share: two thirds are three", "plainrl/hints.py", "steps - too_much)", "steps - 1e-9)")
@mutant("steps of a share: a small one is none", "plainrl/hints.py", "int(share > 0))", "0)")
@pytest.mark.parametrize(
    "share, consistent, expected",
    [
        (1 / 3, True, "A=115+3=118\nB=118+6=131\nC=131-2=129\n\\boxed{129}"),
        (1 / 3, False, "A=115+3=118\nB=118+6=131\nC=124-2=122\n\\boxed{122}"),
        (0.34, True, "A=115+3=118\nB=118+6=131\nC=131-2=129\n\\boxed{129}"),
        (0.1, False, "A=115+3=118\nB=118+6=131\nC=124-2=122\n\\boxed{122}"),
        (0.005, False, "A=115+3=118\nB=118+6=131\nC=124-2=122\n\\boxed{122}"),
        (0.67, True, "A=115+3=118\nB=118+6=131\nC=131-2=136\n\\boxed{136}"),
        (0.5, True, "A=115+3=118\nB=118+6=131\nC=131-2=136\n\\boxed{136}"),
        (2 / 3, True, "A=115+3=118\nB=118+6=131\nC=131-2=136\n\\boxed{136}"),
        (2 / 3, False, "A=115+3=118\nB=118+6=131\nC=124-2=129\n\\boxed{129}"),
        (1, True, "A=115+3=125\nB=125+6=138\nC=138-2=143\n\\boxed{143}"),
        (0, True, THREE),
    ],
)
def test_wrong_results_by_hand(share, consistent, expected):
    """Catches a wrong result at another step, what goes on from the wrong number, a box that does not follow,
    and too many or too few: step 2 is chosen first, then 3, and 7 is added. Two thirds written as 0.67 are
    two steps, not three."""
    assert target("corrupt", THREE, Chosen([1, 2], 7), share, consistent) == expected


def test_a_share_of_ten_steps_is_not_rounded_up_by_a_rounding():
    """Catches 0.7 * 10 = 7.000000000000001 that makes eight steps wrong."""
    steps = [Step(f"{letter}=", 50 + i, "+", 1, 51 + i) for i, letter in enumerate("ABCDEFGHIJ")]
    made = traces.corrupted(steps, 0.7, False, random.Random(0))
    assert traces.right_steps(made) == 3


@mutant(
    "traces: results below the world's",
    "tools/traces.py",
    "or not SMALLEST <= value <= LARGEST",
    "or not value <= LARGEST",
)
@pytest.mark.parametrize("consistent", [True, False])
def test_wrong_results_stay_in_the_world_and_are_wrong(consistent):
    """Catches halves, results out of the world, an error of 0 or of more than 20, and a larger share that
    makes other steps wrong than a smaller one."""
    task = load_task("chain?horizon=4&family=mixed")
    for index in range(60, 120):  # among them some that would leave it
        solution = task.problem("train", index, 0).solution
        steps, wrong = traces.read_steps(solution), []
        for share, count in ((0.25, 1), (0.5, 2), (1.0, 4)):
            made = traces.corrupted(steps, share, consistent, random.Random(index))
            errors = [step.value - traces.result(step, step.received) for step in made]
            assert sum(map(bool, errors)) == count and all(abs(error) <= 20 for error in errors)
            assert all(2 <= step.value <= 999 for step in made)
            wrong.append({i for i, error in enumerate(errors) if error})
            before = [step.value for step in (made if consistent else steps)]
            assert [step.received for step in made] == [steps[0].received, *before[:-1]]
        assert wrong[0] < wrong[1] < wrong[2]


def test_every_error_is_as_likely():
    """Catches errors of one sign, or that end before 20."""
    step, rng = [Step("A=", 400, "+", 5, 405)], random.Random(0)
    errors = [traces.corrupted(step, 1.0, True, rng)[0].value - 405 for _ in range(8000)]
    counts = [errors.count(error) for error in range(-20, 21) if error]
    assert 0 not in errors and min(counts) > 140 and max(counts) < 260  # 200, 4 times sqrt(200)


@mutant(
    "traces: results above the world's",
    "tools/traces.py",
    "or not SMALLEST <= value <= LARGEST",
    "or not SMALLEST <= value",
)
def test_what_cannot_be_made_wrong_is_left_out():
    """Catches a search without end, and a result out of the world: behind it comes 985 more."""
    with pytest.raises(LeftOut, match="no wrong results that fit"):
        target("corrupt", "A=9+5=14\nB=14+985=999\n\\boxed{999}", Chosen([0], 7))


# --- what is looked at --------------------------------------------------------------------------------------


@mutant(
    "traces: lines are not looked at",
    "tools/traces.py",
    "return right_steps(steps) == len(steps) and follow",
    "return follow",
)
@mutant(
    "traces: steps that do not go on",
    "tools/traces.py",
    "== len(steps) and follow and in_box",
    "== len(steps) and in_box",
)
@mutant("traces: boxes are not looked at", "tools/traces.py", "and follow and in_box", "and follow")
@mutant(
    "traces: the box against itself",
    "tools/traces.py",
    " == steps[-1].value == number(answer)",
    " == steps[-1].value",
)
@pytest.mark.parametrize(
    "old, new, answer",
    [
        ("118+6=124", "118+6=125", "122"),  # the box is right all the same
        ("C=124-2=122", "C=125-3=122", "122"),  # 125 comes from nowhere
        ("boxed{122}", "boxed{121}", "122"),
        ("boxed{122}", "boxed{121}", "121"),
        ("boxed{122}", "boxed{}", "122"),
        ("=115+3=118", "=236/0=118", "122"),
        ("=115+3=118", "=237/2=118", "122"),  # 118.5
        ("", "", "121"),
    ],
)
def test_a_wrong_line_or_box_is_seen(old, new, answer):
    """Catches a row that teaches a mistake, and a right row that is left out."""
    solution = THREE.replace(old, new)
    steps = traces.read_steps(solution)
    assert len(steps) == 3 and not traces.is_right(steps, solution, answer)
    assert traces.is_right(traces.read_steps(THREE), THREE, "122")
    assert traces.is_right(traces.read_steps(FOUR), FOUR, "91.0")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\\boxed{5}",
        "A=2+3=5",
        "He has 2+3=5.\n\\boxed{5}",
        "A=2+3=5\nso\n\\boxed{5}",
        "A=(2+3)*2=10\n\\boxed{10}",
    ],
)
def test_other_texts_are_no_steps(text):
    """Catches a text whose lines cannot all be computed, taken for one whose lines can."""
    assert traces.read_steps(text) is None


def test_numbered_steps_are_steps_too():
    """Catches solutions of chain?style=h1 that are taken for texts."""
    solution = load_task("chain?style=h1").problem("train", 0, 0).solution
    assert solution == "Step 1: 115+3=118\nStep 3: 118+6=124\nStep 5: 124-2=122\n\\boxed{122}"
    assert target("sparse", solution) == target("sparse") and target("steps", solution) == solution


# --- the first step -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


@mutant(
    "traces: first steps with their result",
    "tools/traces.py",
    "solution.index(steps[0].work) + len(steps[0].work)",
    "len(steps[0].line)",
)
@mutant(
    "traces: ends are counted",
    "tools/traces.py",
    "return text, count, len(ids) + 1",
    "return text, count, len(ids)",
)
def test_first_step_by_hand(tokenizer):
    """Catches a result that is shown, and other tokens than the whole solution begins with: 7 of 31 and an
    end in models/tiny."""
    solution = "A=115-7=108\nB=108+6=114\n\\boxed{114}"
    end = traces.end_of_first_step(solution, traces.read_steps(solution))
    text, own, whole = traces.beginning(solution, end, tokenizer)
    assert (text, own, whole) == ("A=115-7", 7, 32)
    ids = [tokenizer.encode(each, add_special_tokens=False) for each in (text, solution)]
    assert ids[0] == ids[1][:7] and len(ids[1]) == 31


class Pieces:
    """A tokenizer whose tokens are these pieces in a whole solution, and single letters in any other text."""

    def __init__(self, *pieces: str, alone: bool = False):
        self.pieces, self.alone = pieces, alone

    def __call__(self, text, **_):
        assert text == "".join(self.pieces)
        ends = [len("".join(self.pieces[: i + 1])) for i in range(len(self.pieces))]
        offsets = [(end - len(piece), end) for end, piece in zip(ends, self.pieces)]
        return {"input_ids": list(self.pieces), "offset_mapping": offsets}

    def encode(self, text, **_):
        kept = [
            piece for i, piece in enumerate(self.pieces) if len("".join(self.pieces[: i + 1])) <= len(text)
        ]
        return list(text) if self.alone else kept


@mutant("traces: a token beyond the end", "tools/traces.py", "if last > end)", "if last > end + 1)")
@mutant(
    "traces: texts that would be other tokens",
    "tools/traces.py",
    "add_special_tokens=False) != ids[:count]:",
    "add_special_tokens=False) is None:",
)
def test_first_step_is_cut_between_tokens():
    """Catches a token that is cut in two, one that reaches beyond the step, and a text that sft.py would
    learn with other tokens."""
    whole = ("A=", "15", "-", "7", "=8", "\n\\boxed{8}")
    assert traces.beginning("".join(whole), 6, Pieces(*whole)) == ("A=15-7", 4, 7)
    merged = ("A=", "15", "-7=", "8", "\n\\boxed{8}")
    with pytest.raises(LeftOut, match="no operation in its first step"):  # A=15 is left
        traces.beginning("".join(merged), 6, Pieces(*merged))
    with pytest.raises(LeftOut, match="no operation in its first step"):
        traces.beginning("A=15-7=8", 6, Pieces("A=15-7=8"))
    with pytest.raises(LeftOut, match="has other tokens by itself than in the whole solution"):
        traces.beginning("".join(whole), 6, Pieces(*whole, alone=True))


@pytest.mark.parametrize(
    "solution, expected",
    [
        ("She sold 48/2 = 24 clips in May.\nIn all 48+24 = 72.\n\\boxed{72}", "She sold 48/2"),
        ("Half is $48 / 2 = $24. In all $48 + $24 = $72. \\boxed{72}", "Half is $48 / 2"),
        ("He pays 3 \\times 5 = 15.\nDone.", "He pays 3 \\times 5"),
        ("Half of 48 is 24.\nIn all 48+24=72.\n\\boxed{72}", None),
        ("x = 48 + 24\n\\boxed{72}", None),
        ("\\boxed{72}", None),
    ],
)
def test_first_steps_of_texts(tokenizer, solution, expected):
    """Catches a first step that shows its result, that is the second one, or that computes nothing."""
    find = lambda: traces.beginning(solution, traces.end_of_first_step(solution, None), tokenizer)[0]  # noqa: E731
    if expected is None:
        with pytest.raises(LeftOut, match="no operation in its first step"):
            find()
    else:
        assert find() == expected


# --- the command --------------------------------------------------------------------------------------------


def run(folder: Path, kind: str, task: str = "chain", name: str = "", **flags) -> list[dict]:
    out = folder / f"{name or kind}.jsonl"
    traces.main(traces.Args(task=task, out=out, kind=kind, **flags))
    return [json.loads(line) for line in out.read_text().splitlines()]


def done(number: int, plan: str) -> Fraction:
    """What comes of a number by a plan."""
    value = Fraction(number)
    for step in plan.removeprefix("Plan: ").removesuffix(".").split(", "):
        *verb, operand = step.split(" ")
        k = int(operand)
        steps = {"add": value + k, "subtract": value - k, "multiply by": value * k, "divide by": value / k}
        value = steps[" ".join(verb)]
    return value


@mutant("traces: an end behind first steps", "tools/traces.py", 'row["end"] = False', 'row["end"] = True')
def test_rows_of_every_kind_are_read_by_sft(tmp_path, tokenizer, capsys):
    """Catches a target that does not lead to the answer, read by other code than wrote it; a field that
    sft.py does not know; and an end token behind what is only a beginning."""
    kinds = [kind for kind in traces.Kind.__args__ if kind not in traces.KINDS_WITH_PROMPTS]
    found = {kind: run(tmp_path, kind, "chain?family=mixed", problems=60, seed=3) for kind in kinds}
    screen = capsys.readouterr().out
    assert f"{tmp_path}/plan.jsonl: 60 rows of kind plan\n" in screen
    assert f"next: python sft.py --data {tmp_path}/plan.jsonl --task 'chain?family=mixed'\n" in screen
    assert "40 of 180 steps" not in screen and "120 of 180 steps and 0 of 60 boxes are right" in screen
    assert "cut with the tokenizer of models/tiny; learned are" in screen
    for kind, made in found.items():
        assert [row["prompt"] for row in made] == [row["prompt"] for row in found["solution"]], kind
        assert {row["split"] for row in made} == {"train"} and {row["horizon"] for row in made} == {3}
        learned = [
            rows.encode(row, tokenizer, tokenizer.eos_token_id, None)
            for row in rows.read_rows((tmp_path / f"{kind}.jsonl",))
        ]
        ends = [row.completion_ids[-1] == tokenizer.eos_token_id for row in learned]
        assert all(end == (kind != "first_step") for end in ends), kind
    for i, whole in enumerate(found["solution"]):
        answer, completions = (
            int(whole["answer"]),
            {kind: made[i]["completion"] for kind, made in found.items()},
        )
        start = int(re.match(r"A=(\d+)", whole["completion"])[1])
        plan, work, box = completions["plan"].splitlines()
        assert done(start, plan) == answer and box == f"\\boxed{{{answer}}}"
        inside, value = work.split("=")
        assert traces.run_program(inside, 0) == answer == int(value)
        assert completions["sparse"] == f"{work}\n{box}"
        assert completions["plan_steps"] == f"{plan}\n{whole['completion']}"
        assert whole["completion"].startswith(completions["first_step"] + "=")
        assert completions["steps"] == whole["completion"]
        words = re.findall("[a-z -]+", completions["dialect"].lower())
        assert completions["dialect"].endswith(f"The answer is {box}.") and not re.search(
            r"\d", completions["dialect"].removesuffix(f"{box}.")
        )
        assert any(
            value_of(words[-3].strip().split(last)[1].strip()) == answer
            for last in ("gives ", "leaves ", "makes ", "into ")
            if last in words[-3]
        )


@mutant(
    "traces: lists that are never damaged",
    "tools/traces.py",
    "damaged(letters, rng) if rng",
    "letters if rng",
)
@mutant("traces: damage that changes nothing", "tools/traces.py", "while made == letters:", "while False:")
@mutant(
    "traces: the right solution alone",
    "tools/traces.py",
    "(None, problem.solution, wrong)",
    "(problem.solution,)",
)
def test_lists_of_sub_questions(tmp_path):
    """Catches another share of damaged lists, damage of one kind alone, and prompts that always show the
    solution: a decomposer reads what a solver wrote, right or wrong, or nothing."""
    task = "chain?horizon=2-4"
    made = run(tmp_path, "subquestions", task, problems=300, share=0.3, seed=1)
    again = run(tmp_path, "subquestions", task, name="again", problems=60, share=0.3, seed=1)
    assert again == made[:60]
    damage, shown = Counter(), Counter()
    for row, plain in zip(made, run(tmp_path, "solution", task, problems=300, seed=1)):
        right = [line[0] for line in plain["completion"].splitlines()[:-1]]
        asked = row["completion"].replace("?", "").splitlines()
        assert all(line.endswith("?") for line in row["completion"].splitlines())
        if asked != right:
            damage[
                "missing" if len(asked) < len(right) else "order" if {*asked} == {*right} else "twice"
            ] += 1
        assert row["prompt"].startswith(plain["prompt"]) and row["prompt"].endswith("\nSub-questions?")
        reasoning = row["prompt"].removeprefix(plain["prompt"]).removesuffix("\nSub-questions?")
        work = plain["completion"].replace("\n", ", ")
        shown[
            "nothing" if not reasoning else "right" if reasoning == f"\nReasoning: {work}" else "wrong"
        ] += 1
    assert 66 <= damage.total() <= 114 and min(damage.values()) > 15 and len(damage) == 3  # 90, 3 times 7.9
    assert min(shown.values()) > 70 and len(shown) == 3
    assert (
        run(tmp_path, "subquestions", task, name="none", problems=20, share=0)[0]["completion"]
        == "A?\nB?\nC?"
    )
    assert traces.damaged(["A"], random.Random(0)) == ["A", "A"]


@mutant(
    "traces: the answer as a hint",
    "tools/traces.py",
    'f"{letter}?"), lines[:i])',
    'f"{letter}?"), lines[: i + 1])',
)
@mutant(
    "traces: no last question",
    "tools/traces.py",
    "return [*pairs, (with_answers",
    "return pairs or [(with_answers",
)
def test_answers_to_sub_questions_by_hand():
    """Catches a hint that holds the answer, a step without what comes before it, and a last row that is not
    the solution."""
    prompt = "A: Leo has 3 more than 115 maps. B: Kim has 6 more than A pens. Give B in \\boxed{}."
    solution = "A=115+3=118\nB=118+6=124\n\\boxed{124}"
    problem = Problem(prompt, "124", solution=solution)
    found = traces.pairs_of_steps(problem, traces.read_steps(solution), "subanswers", 0.0, random.Random(0))
    assert found == [
        (prompt.replace("Give B", "Give A"), "A=115+3=118\n\\boxed{118}"),
        (f"{prompt}\nHint: A=115+3=118.", "B=118+6=124\n\\boxed{124}"),
        (f"{prompt}\nHint: A=115+3=118, B=118+6=124.", solution),
    ]
    steps = traces.read_steps("Step 1: 3+4=7\n\\boxed{7}")
    with pytest.raises(LeftOut, match="steps without letters"):
        traces.pairs_of_steps(Problem("3+4?", "7"), steps, "subquestions", 0.0, random.Random(0))


def test_wrong_results_depend_on_the_seed_and_the_problem_alone(tmp_path):
    """Catches results that depend on the order of problems, and equal ones for every seed."""
    flags = dict(task="chain?horizon=2", problems=20)
    first = run(tmp_path, "corrupt", name="first", **flags)
    assert run(tmp_path, "corrupt", name="again", **flags | {"problems": 10}) == first[:10]
    path = tmp_path / "chains.jsonl"
    path.write_text(
        "".join(
            json.dumps(row | {"solution": clean}) + "\n"
            for row, clean in zip(first, [row["completion"] for row in run(tmp_path, "solution", **flags)])
        )
    )
    from_file = run(tmp_path, "corrupt", f"jsonl:{path}", name="from_file")
    completions = {row["prompt"]: row["completion"] for row in first}
    assert from_file and all(completions[row["prompt"]] == row["completion"] for row in from_file)


GSM8K = [
    {"question": f"Ann sold {n} clips, then half as many. All?", "answer": worked + f"\n#### {n + n // 2}"}
    for n in range(10, 50, 2)
    for worked in [f"Then {n}/2 = <<{n}/2={n // 2}>>{n // 2}.\nAll: {n}+{n // 2} = {n + n // 2}."]
]


def test_texts_have_first_steps_and_steps_and_nothing_else(tmp_path, capsys):
    """Catches a text that is computed as if it had a program, one whose box is wrong, and a kind that makes
    an empty file."""
    source = tmp_path / "gsm.jsonl"
    lines = [*GSM8K, {"question": "Bob?", "answer": "Half of it.\n#### 7"}]
    source.write_text("".join(json.dumps(line | {"split": "train"}) + "\n" for line in lines))
    task = f"jsonl:{source}"
    first = run(tmp_path, "first_step", task)
    assert len(first) == 20 and all(row["end"] is False for row in first)
    assert all(re.fullmatch(r"Then \d+/2", row["completion"]) for row in first)
    assert "; no operation in its first step: 1\n" in capsys.readouterr().out
    steps = {row["prompt"][:4]: row["completion"] for row in run(tmp_path, "steps", task)}
    assert steps["Bob?"] == "Half of it.\n\\boxed{7}"
    assert re.fullmatch(r"Then .*\.\nAll: .*\.\n\\boxed\{\d+\}", steps["Ann "])
    assert "21 solutions are texts, of which only the answer was looked at" in capsys.readouterr().out
    for kind in ("sparse", "plan", "plan_steps", "dialect", "corrupt", "overthinking", "subanswers"):
        with pytest.raises(SystemExit, match=f"--kind {kind}: the solutions of --task have no lines such"):
            run(tmp_path, kind, task)
        assert not (tmp_path / f"{kind}.jsonl").exists()


@pytest.mark.parametrize(
    "solution, box, expected",
    [
        ("Half is 24. In all 72.\n\\boxed{72}", "72", "Half is 24.\nIn all 72.\n\\boxed{72}"),
        ("Half is 24. In all \\boxed{72}.", "72", "Half is 24.\nIn all \\boxed{72}."),
        ("8*5=40\n40-3=37", None, "8*5=40\n40-3=37"),
    ],
)
def test_steps_of_a_text_keep_their_box(solution, box, expected):
    """Catches a box that is lost, that comes twice, or that is put where the task has none."""
    assert traces.steps_of_text(solution) == expected


def test_what_makes_no_row_is_counted_by_its_reason(tmp_path, capsys):
    """Catches a problem that is left out without a word, and a mistake that is learned."""
    good = [
        {
            "prompt": f"A: {n} more than 20?",
            "answer": str(20 + n),
            "solution": f"A=20+{n}={20 + n}\n\\boxed{{{20 + n}}}",
        }
        for n in range(2, 9)
    ]
    wrong_line = good[0] | {"prompt": "wrong line?", "solution": "A=20+3=22\n\\boxed{22}"}
    wrong_box = good[0] | {"prompt": "wrong box?", "solution": "A=20+2=22\n\\boxed{23}"}
    wrong_text = good[0] | {"prompt": "wrong text?", "solution": "It is \\boxed{23}."}
    text = good[0] | {"prompt": "text?", "solution": "It is \\boxed{22}."}
    none = {"prompt": "none?", "answer": "5"}
    source = tmp_path / "mixed.jsonl"
    lines = [line | {"split": "train"} for line in (*good, wrong_line, wrong_box, wrong_text, text, none)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plans = run(tmp_path, "plan", f"jsonl:{source}")
    assert len(plans) == 7
    said = capsys.readouterr().out
    for part in (
        "7 rows of kind plan",
        "a wrong line or box: 2",
        "no solution: 1",
        "no lines such as B=118+6=124: 2",
    ):
        assert part in said, part
    assert {row["prompt"].split("?")[0] for row in run(tmp_path, "solution", f"jsonl:{source}")} == {
        *(line["prompt"].split("?")[0] for line in good),
        "text",
    }
    assert "a wrong line or box: 3; no solution: 1" in capsys.readouterr().out


def test_rows_of_dev_are_held_out(tmp_path):
    """Catches held-out problems among the rows to learn."""
    made = run(tmp_path, "plan", problems=5, split="dev")
    assert made[0]["prompt"] == load_task("chain").problem("dev", 0, 0).prompt
    learned, held = rows.hold_out(rows.read_rows((tmp_path / "plan.jsonl",)), 0.05)
    assert not learned and len(held) == 5


@pytest.mark.parametrize(
    "flags, said",
    [
        (dict(problems=-3), "--problems -3: must be at least 1"),
        (dict(share=1.5), "--share 1.5: must be at least 0 and at most 1"),
        (dict(task="nowhere"), "--task nowhere: unknown; use chain"),
        (dict(kind="first_step", model="./nowhere"), "--model ./nowhere: no such folder or file"),
        (dict(kind="first_step", model="models/nowhere"), "--model models/nowhere: no such folder or file"),
        (dict(task="countdown"), "--kind plan: the solutions of --task have no lines such as B=118"),
        (dict(task="jsonl:{}"), "--task jsonl:.*: none of its 8 problems of train carries a worked solution"),
        (dict(task="jsonl:{}", split="dev"), "--task jsonl:.*: none of its 1 problems of dev carries a work"),
        (
            dict(task="jsonl:{}", kind="first_step", split="test"),
            "--task jsonl:.*: none of its 1 problems of",
        ),
    ],
)
def test_what_cannot_work_is_one_line_and_writes_nothing(tmp_path, flags, said):
    """Catches a traceback, and a file that is half written."""
    source = tmp_path / "bare.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"{n}?", "answer": str(n)}) + "\n" for n in range(10)))
    flags = {"task": "chain", "kind": "plan"} | flags
    flags["task"] = flags["task"].format(source)
    with pytest.raises(SystemExit, match=f"^error: {said}"):
        run(tmp_path, name="rows", **flags)
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_file_that_is_there_stays(tmp_path):
    """Catches a file that is overwritten, and a traceback where none can be written."""
    (tmp_path / "plan.jsonl").write_text("mine")
    with pytest.raises(SystemExit, match="--out .*plan.jsonl: exists and is never overwritten"):
        run(tmp_path, "plan")
    assert (tmp_path / "plan.jsonl").read_text() == "mine"
    with pytest.raises(SystemExit, match="^error: --out .*x.jsonl: cannot be written .*; give another name"):
        traces.main(traces.Args("chain", tmp_path / "plan.jsonl" / "x.jsonl", problems=2))


def test_a_tokenizer_that_cannot_say_where_tokens_end_is_refused(tmp_path, monkeypatch):
    """Catches a first step that is cut by guess."""
    slow = AutoTokenizer.from_pretrained(TINY)
    monkeypatch.setattr(type(slow), "is_fast", property(lambda self: False))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *given, **options: slow)
    with pytest.raises(
        SystemExit, match="--model models/tiny: its tokenizer does not say where its tokens end"
    ):
        run(tmp_path, "first_step", problems=2)


def test_a_problem_makes_one_row(tmp_path, capsys):
    """Catches rows that weigh twice, and a count that does not add up."""

    class Same:
        name = "same"

        def problem(self, split, index, seed):
            return Problem(f"{index % 3}?", "122", solution=THREE)

    original = traces.load_task
    try:
        traces.load_task = lambda spec: Same()
        assert len(run(tmp_path, "plan", "same", problems=10)) == 3
    finally:
        traces.load_task = original
    assert "3 rows of kind plan; the same prompt again: 7\n" in capsys.readouterr().out
