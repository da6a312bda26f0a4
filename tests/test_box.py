"""plainrl/box.py: Seg-Zero's reward against the numbers of its code, its traps one by one, and the grid."""

import doctest
import json
import shlex
from pathlib import Path

import pytest
import tyro
from mutants import mutant

import grpo
import sft
from benchmarks import box as experiment
from plainrl import box
from plainrl.box import (
    SPLITS,
    BoxTask,
    accuracy_of_many,
    first_object,
    inside,
    iou,
    mean_difference,
    mean_distance,
    terms,
)
from plainrl.tasks import Problem, load_task, split_size

BOX, POINTS = [10, 20, 110, 220], [[50, 60], [80, 100]]
OTHER = [200, 200, 300, 300]


def answer(box=BOX, points=POINTS, keys=("bbox", "points_1", "points_2"), thought="left") -> str:
    content = json.dumps(dict(zip(keys, [box, *points])))
    return f"<think>{thought}</think>\n<answer>{content}</answer>"


def moved(values: list, by: float) -> list:
    return [moved(value, by) if isinstance(value, list) else value + by for value in values]


# --- the mathematics ----------------------------------------------------------------------------------------


@mutant("a width without its last pixel", "plainrl/box.py", "(box[2] - box[0] + 1) *", "(box[2] - box[0]) *")
@mutant("a height without its last pixel", "plainrl/box.py", "* (box[3] - box[1] + 1)", "* (box[3] - box[1])")
@mutant(
    "edges that overlap",
    "plainrl/box.py",
    "else (left < right and top < bottom)",
    "else (left <= right and top <= bottom)",
)
@mutant(
    "both counted twice", "plainrl/box.py", "area(first) + area(second) - both", "area(first) + area(second)"
)
@mutant(
    "the outer corner",
    "plainrl/box.py",
    "min(first[2], second[2]), min(first[3]",
    "max(first[2], second[2]), min(first[3]",
)
def test_iou_of_its_code():
    """Catches pixels that are not counted at both ends, a shared edge as an overlap, and a union that counts
    twice. The numbers are those of the released function."""
    assert iou(BOX, moved(BOX, 40)) == pytest.approx(0.319060, abs=5e-7)
    assert iou(BOX, [19, 30, 120, 230]) == pytest.approx(0.756403, abs=5e-7)
    assert iou([0, 0, 9, 9], [0, 0, 9, 4]) == 0.5
    assert iou([0, 0, 9, 9], [9, 0, 18, 9]) == iou([0, 0, 9, 9], [0, 9, 9, 18]) == 0
    assert iou([3, 0, 3, 9], [3, 0, 3, 9]) == 0 and iou([3, 0, 3, 9], [3, 0, 3, 9], edges=True) == 1
    assert iou(BOX, OTHER) == 0 and iou(BOX, BOX) == 1
    assert iou([5, 5, 0, 0], [5, 5, 0, 0]) >= 0  # corners exchanged: no division by 0, nothing below 0


@mutant("differences that cancel", "plainrl/box.py", "sum(abs(a - b)", "abs(sum(a - b)")
@mutant("a sum of differences", "plainrl/box.py", "strict=True)) / 4", "strict=True)) / 1")
@mutant(
    "points in their order",
    "plainrl/box.py",
    "orders = itertools.permutations(references)",
    "orders = [references]",
)
@mutant("a sum of distances", "plainrl/box.py", "for order in orders) / len(points)", "for order in orders)")
@mutant("a border that is outside", "plainrl/box.py", "<= point[1] <= box[3]", "<= point[1] < box[3]")
def test_distances_by_hand():
    """Catches differences that cancel, sums in place of means, and points in a fixed order."""
    assert mean_difference([0, 0, 4, 4], [2, 1, 3, 8]) == (2 + 1 + 1 + 4) / 4
    assert mean_distance([[0, 0], [3, 4]], [[3, 4], [0, 0]]) == 0
    assert mean_distance([[0, 0], [10, 0]], [[10, 1], [3, 4]]) == (5 + 1) / 2
    assert mean_distance([[0, 0]], [[3, 4]]) == 5
    assert inside([10, 220], BOX) and inside([110, 20], BOX) and not inside([9, 30], BOX)


@mutant("IoU of a half", "plainrl/box.py", "iou(found, box) > 0.5)", "iou(found, box) >= 0.5)")
@mutant(
    "corners at 10",
    "plainrl/box.py",
    "mean_difference(found, box) < 10 * scale",
    "mean_difference(found, box) <= 10 * scale",
)
@mutant(
    "corners within 20",
    "plainrl/box.py",
    "mean_difference(found, box) < 10 * scale",
    "mean_difference(found, box) < 20 * scale",
)
@mutant("points anywhere", "plainrl/box.py", "all(inside(point, found) for point in placed)", "True")
@mutant(
    "points in the right box",
    "plainrl/box.py",
    "all(inside(point, found) for point in placed)",
    "all(inside(point, box) for point in placed)",
)
@mutant(
    "points within 200",
    "plainrl/box.py",
    "mean_distance(placed, points) < 100 * scale",
    "mean_distance(placed, points) < 200 * scale",
)
@mutant("any text around", "plainrl/box.py", "FORM.fullmatch(text)", "FORM.search(text)")
@mutant(
    "points under any key",
    "plainrl/box.py",
    'points_of(answer, count, "points", strict)',
    'points_of(answer, count, "point", strict)',
)
@pytest.mark.parametrize(
    "text, expected",
    [
        (answer(), [1, 1, 1, 1, 1]),
        (answer(points=POINTS[::-1]), [1, 1, 1, 1, 1]),
        (answer(keys=("bbox", "point_1", "point_2")), [1, 1, 1, 1, 0]),
        (answer(moved(BOX, 40), moved(POINTS, 10)), [1, 1, 0, 0, 1]),
        (answer(moved(BOX, 10)), [1, 1, 1, 0, 1]),
        (answer([10, 20, 60, 220]), [1, 1, 1, 0, 0]),
        (answer().split("\n")[1], [0, 1, 1, 1, 1]),
        ("So: " + answer(), [0, 1, 1, 1, 1]),
        (answer([10, 20, 110, 120]), [1, 1, 1, 0, 1]),  # 101 rows of 201: .502, and corners 25 away
        (answer([10, 20, 110, 421]), [1, 1, 0, 0, 1]),  # 201 rows of 402: exactly .5
        (answer(points=[[50, 20], [50, 219]]), [1, 1, 1, 1, 1]),
        (answer(points=[[110, 220], [109, 220]]), [1, 1, 1, 1, 0]),  # 151 and 155 away
        ("", [0, 0, 0, 0, 0]),
        ("<think></think><answer></answer>", [1, 0, 0, 0, 0]),
    ],
)  # fmt: skip
def test_terms_of_its_code(text, expected):
    """Catches a term that is paid for another thing than it says: the released functions' numbers."""
    assert terms(text, BOX, POINTS) == expected


@mutant(
    "the last braces",
    "plainrl/box.py",
    "found = BRACES.search(text)",
    "found = [*BRACES.finditer(text)][-1:] or None\n    found = found and found[0]",
)
@mutant(
    "keys of any spelling",
    "plainrl/box.py",
    '(key == "bbox" if strict else "bbox" in key.lower())',
    '"bbox" in key.lower()',
)
@mutant(
    "points of any spelling",
    "plainrl/box.py",
    "[key for key in wanted if key in answer] if strict else loose[:count]",
    "loose[:count]",
)
@mutant(
    "one point is enough",
    "plainrl/box.py",
    "return found if len(found) == count and None not in found else None",
    "return found or None",
)
@mutant(
    "true is a number",
    "plainrl/box.py",
    "isinstance(each, int | float) and not isinstance(each, bool)",
    "isinstance(each, int | float)",
)
@mutant("numbers without an end", "plainrl/box.py", "is_number(each) and abs(each) < 1e6", "is_number(each)")
def test_traps():
    """Catches braces of the thinking that do not win, a strict form that is not, and JSON that only Python
    reads as a number."""
    thought = answer(thought='{"bbox": [0, 0, 1, 1]}')
    assert terms(thought, BOX, POINTS) == [1, 0, 0, 0, 0]
    assert terms(answer(thought="{}"), BOX, POINTS) == [1, 1, 1, 1, 1]  # empty braces are none
    odd_keys = answer(keys=("my_bbox", "points_a", "points_b"))
    assert terms(odd_keys, BOX, POINTS) == [1, 1, 1, 1, 1]
    assert terms(odd_keys, BOX, POINTS, strict=True) == [1, 0, 0, 0, 0]
    assert terms(answer(), BOX, POINTS, strict=True) == [1, 1, 1, 1, 1]
    half_odd = answer(keys=("bbox", "points_1", "points_b"))
    assert terms(half_odd, BOX, POINTS, strict=True) == [1, 0, 1, 1, 0]
    only_box = answer(points=[])
    assert terms(only_box, BOX, POINTS) == [1, 0, 1, 1, 0]
    assert terms(answer(points=POINTS[:1]), BOX, POINTS) == [1, 0, 1, 1, 0]
    for bad in (
        [True, 20, 110, 220],
        [10, 20, 110],
        "10 20 110 220",
        [10, 20, 110, float("inf")],
        [1e9] * 4,
        None,
    ):
        assert terms(answer(bad), BOX, POINTS) == [1, 0, 0, 0, 0], bad
    for text in ("{[1]}", "{1: 2}", "{" * 5000 + "}", '{"a": 1'):
        assert first_object(text) == {}


@mutant("thresholds of a picture", "plainrl/box.py", "self.side / PICTURE", "1.0")
def test_thresholds_shrink_with_the_grid():
    """Catches 10 and 100 pixels in a grid of 20 characters, where they forgive everything."""
    task = BoxTask()
    problem = Problem("", json.dumps({"bbox": [4, 4, 13, 13], "points_1": [6, 6], "points_2": [8, 8]}))
    one_off = answer([4, 4, 13, 14], [[6, 6], [8, 8]])  # a mean of .25; 10 / 840 of 20 is .24
    assert task.grade(one_off, problem).why == "without box"
    far = answer([4, 4, 13, 13], [[6, 6], [13, 4]])  # a mean of 3.2; 100 / 840 of 20 is 2.4
    assert task.grade(far, problem).why == "without points"
    near = answer([4, 4, 13, 13], [[8, 6], [8, 8]])
    assert task.grade(near, problem).correct


@mutant(
    "pairs in their order",
    "plainrl/box.py",
    "for order in itertools.permutations(range(len(more)), len(fewer))",
    "for order in [range(len(fewer))]",
)
@mutant("over the fewer", "plainrl/box.py", "return best / len(more)", "return best / len(fewer)")
@mutant(
    "points within 300",
    "plainrl/box.py",
    "math.dist(point, its_point) < 30",
    "math.dist(point, its_point) < 300",
)
@mutant(
    "a point in the other's box",
    "plainrl/box.py",
    "close = inside(point, box)",
    "close = inside(point, its_box)",
)
@mutant("edges apart for several", "plainrl/box.py", "edges=True) > 0.5", "edges=False) > 0.5")
def test_several_objects():
    """Catches objects that are compared in their order, and what was not found or too much that costs
    nothing. The numbers are those of VisionReasoner's function."""
    right = [(BOX, POINTS[0]), (OTHER, [250, 250])]
    assert accuracy_of_many(right[:1], right) == 1.5
    assert accuracy_of_many(right, right[:1]) == 1.5
    assert accuracy_of_many([(OTHER, [250, 290]), (BOX, POINTS[0])], right) == 2.5
    assert accuracy_of_many(right[::-1], right) == 3 and accuracy_of_many([], right) == 0
    outside = ([12, 22, 112, 222], [11, 60])  # the point is in the reference's box, not in its own
    assert accuracy_of_many([outside], [(BOX, [12, 61])]) == 2
    line = ([3, 0, 3, 9], [3, 5])
    assert accuracy_of_many([line], [line]) == 3


# --- the task -----------------------------------------------------------------------------------------------


@mutant(
    "boxes in two splits",
    "plainrl/box.py",
    'if split_by_hash(f"{self.side} {box}", SPLITS) == split:',
    "if box:",
)
@mutant("rows for columns", "plainrl/box.py", '"#" if inside([x, y], box)', '"#" if inside([y, x], box)')
def test_problems():
    """Catches a box in two splits, a grid that does not show its answer, and a problem that is no function of
    its arguments."""
    seen, task = {}, BoxTask(side=9, points=2)
    for split in SPLITS:
        for index in range(80):
            problem = task.problem(split, index, 2)
            right = json.loads(problem.answer)
            assert seen.setdefault(tuple(right["bbox"]), split) == split
            rows = problem.prompt.split("\n")[:9]
            cells = {(x, y): cell for y, row in enumerate(rows) for x, cell in enumerate(row)}
            filled = [place for place, cell in cells.items() if cell != "."]
            xs, ys = zip(*filled)
            assert right["bbox"] == [min(xs), min(ys), max(xs), max(ys)] and len(cells) == 81
            marked = sorted(place for place, cell in cells.items() if cell == "o")
            assert marked == sorted(map(tuple, (right["points_1"], right["points_2"])))
            assert task.grade(problem.solution, problem).correct
            assert problem == task.problem(split, index, 2)


@mutant("the sum itself", "plainrl/box.py", "sum(got) / len(got)", "sum(got)")
@mutant("IoU for the term", "plainrl/box.py", '"hit": float(got[2])', '"hit": overlap')
def test_rewards():
    """Catches a score that is not within 0 and 1, and one of the three rewards in the place of another."""
    problem = Problem("", json.dumps({"bbox": BOX, "points_1": POINTS[0], "points_2": POINTS[1]}))
    text = answer([19, 30, 120, 230])
    graded = {name: BoxTask(reward=name).grade(text, problem) for name in ("sum", "hit", "iou")}
    assert graded["sum"].score == pytest.approx(0.8) and graded["sum"].why == "without box"
    assert (graded["hit"].score, graded["hit"].correct) == (1.0, True)
    assert graded["iou"].score == pytest.approx(0.756403, abs=5e-7) and not graded["iou"].correct
    assert json.loads(graded["iou"].parsed) == [19, 30, 120, 230]
    nothing = BoxTask(reward="iou").grade("no", problem)
    assert (nothing.score, nothing.parsed) == (0.0, None)


@pytest.mark.parametrize(
    "spec, said",
    [
        ("box?size=5", "size=5 is not one of 6 to 40"),
        ("box?points=3", "points=3 is not one of 1 to 2"),
        ("box?reward=all", "reward=all is not one of sum, hit, iou"),
        ("box?form=odd", "form=odd is not one of loose, strict"),
        ("box?width=3", "unknown setting 'width'; known are size, points, reward, form"),
    ],
)
def test_settings_that_are_refused(spec, said):
    """Catches a setting that is not named, or without what it may be."""
    with pytest.raises(ValueError, match="--task box") as error:
        load_task(spec)
    assert said in str(error.value)
    task = load_task("box?size=8&points=1&reward=iou&form=strict")
    assert (task.name, task.side, task.points) == ("box-iou", 8, 1)
    assert split_size(task, "train") is None  # there are as many problems as are asked for


# --- the experiment -----------------------------------------------------------------------------------------


@mutant(
    "rows with the right boxes",
    "benchmarks/box.py",
    "box = task.draw(rng)",
    'box = json.loads(task.problem("sft", index, seed).answer)["bbox"]',
)
def test_rows_of_the_form(tmp_path):
    """Catches rows whose answers are right, which would teach what only the reward is to teach, and rows that
    have another form than is rewarded."""
    path = tmp_path / "rows.jsonl"
    experiment.main(experiment.EXPERIMENT, experiment.Args(rows=path, one=5))
    rows, task = [json.loads(line) for line in path.read_text().splitlines()][:300], BoxTask(side=8)
    assert len({row["prompt"] for row in rows}) > 250
    hits = 0
    for index, row in enumerate(rows):
        problem = task.problem("sft", index, 5)
        assert row["prompt"] == problem.prompt
        right = json.loads(problem.answer)
        got = terms(row["completion"], right["bbox"], [right["points_1"], right["points_2"]], strict=True)
        assert got[:2] == [1, 1]
        hits += got[2]
    assert hits < 100


def test_all_arms_on_equal_terms():
    """Catches an arm with another start, seed, length or number of steps than the others."""
    found = {}
    for arm, command in experiment.EXPERIMENT.arms.items():
        script, *words = shlex.split(command.format(here="HERE", seed=7, out="OUT"))
        found[arm] = tyro.cli(grpo.Args, args=words)
        assert script == "grpo.py" and found[arm].task == f"box?size=8&reward={arm}"
        found[arm].task = "box"
    assert found["hit"] == found["sum"] == found["iou"] and found["hit"].seed == 7
    assert found["hit"].model == "HERE/start/last" and found["hit"].out_dir == Path("OUT")
    rows, start = experiment.EXPERIMENT.materials.values()
    script, *words = shlex.split(rows.format(here="HERE", seed=7))
    args = tyro.cli(experiment.Args, args=words)
    assert (script, args.one, str(args.rows)) == ("benchmarks/box.py", 7, "HERE/rows.jsonl")
    script, *words = shlex.split(start.format(here="HERE", seed=7))
    assert script == "sft.py" and str(tyro.cli(sft.Args, args=words).data[0]) == "HERE/rows.jsonl"


def test_examples():
    """Catches an example of a docstring that is not true."""
    assert doctest.testmod(box).failed == 0
