"""The box world: where is the rectangle in a grid of characters? A lesson in rewards that are made of parts.

    .....   The corners of the rectangle are (1, 1) and (3, 2), two points in it are marked with o. x grows to
    .#o#.   the right, y downwards, both from 0. The answer, after some thinking:
    .o##.
    .....   <think>...</think><answer>{"bbox": [1, 1, 3, 2], "points_1": [2, 1], "points_2": [1, 2]}</answer>

Seg-Zero (arXiv 2503.06520) rewards a vision-language model so, whose boxes and points a segmenter turns into
a mask. The pictures and the segmenter are left out: what is here is the reward, of a text.

[D1] Thresholds are in pixels of a picture of 840 x 840. On a grid they shrink with it.
[D2] The score is the sum divided by its largest value, 5, so that 1 is right.
[D3] Numbers must be finite and no booleans: JSON has NaN for Python, and true is 1 there.
"""

import itertools
import json
import math
import random
import re
from dataclasses import dataclass, field

from plainrl.tasks import Grade, Problem, problem_rng, split_by_hash, whole_number

PICTURE = 840  # pixels, the side of the pictures that the paper's thresholds are for
FORM = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
BRACES = re.compile(r"\{[^}]+\}")
SPLITS = {"sft": range(0, 20), "train": range(20, 80), "dev": range(80, 90), "test": range(90, 100)}
TERMS = ("form", "keys", "iou", "box", "points")  # of the reward, in this order

Box = list[float]  # x and y of the upper left corner, then of the lower right one; both are in it
Point = list[float]


# --- the mathematics ----------------------------------------------------------------------------------------


def area(box: Box) -> float:
    """Of pixels, both ends counted. [0, 0, 9, 4] has 10 x 5."""
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


def iou(first: Box, second: Box, edges: bool = False) -> float:
    """Pixels that both have, over pixels that one of them has.

    Boxes that share no more than an edge count as apart, unless `edges` is said. So a box that is one pixel
    wide is apart from itself.

    >>> iou([0, 0, 9, 9], [0, 0, 9, 4]), iou([0, 0, 9, 9], [9, 0, 18, 9])
    (0.5, 0.0)
    """
    left, top = max(first[0], second[0]), max(first[1], second[1])
    right, bottom = min(first[2], second[2]), min(first[3], second[3])
    meet = (left <= right and top <= bottom) if edges else (left < right and top < bottom)
    both = area([left, top, right, bottom]) if meet else 0
    union = area(first) + area(second) - both
    return both / union if union > 0 else 0.0


def mean_difference(first: Box, second: Box) -> float:
    """Mean absolute difference of the four numbers of two boxes."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / 4


def inside(point: Point, box: Box) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def mean_distance(points: list[Point], references: list[Point]) -> float:
    """Mean distance of points to references, in the best assignment."""
    orders = itertools.permutations(references)
    return min(sum(map(math.dist, points, order)) for order in orders) / len(points)


def numbers(value: object, count: int) -> list[float] | None:
    """A list of so many finite numbers, or None."""
    if not isinstance(value, list) or len(value) != count:
        return None
    is_number = lambda each: isinstance(each, int | float) and not isinstance(each, bool)  # noqa: E731
    return value if all(is_number(each) and abs(each) < 1e6 for each in value) else None  # [D3]


def first_object(text: str) -> dict:
    """The first {...} of a text as JSON, wherever it stands, also in the thinking; {} if it is none."""
    found = BRACES.search(text)
    try:
        read = json.loads(found[0]) if found else {}
    except (ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def box_of(answer: dict, strict: bool = False) -> Box | None:
    """Four numbers under the first key that contains "bbox", in strict form under "bbox" itself."""
    keys = [key for key in answer if (key == "bbox" if strict else "bbox" in key.lower())]
    return numbers(answer[keys[0]], 4) if keys else None


def points_of(answer: dict, count: int, word: str, strict: bool = False) -> list[Point] | None:
    """Two numbers each under the first `count` keys that contain the word, but for that of the box; in strict
    form under points_1, points_2, ... None where one is missing."""
    wanted = [f"points_{number}" for number in range(1, count + 1)]
    box_key = next((key for key in answer if "bbox" in key.lower()), None)
    loose = [key for key in answer if word in key.lower() and key != box_key]
    keys = [key for key in wanted if key in answer] if strict else loose[:count]
    found = [numbers(answer[key], 2) for key in keys]
    return found if len(found) == count and None not in found else None


def terms(text: str, box: Box, points: list[Point], scale: float = 1.0, strict: bool = False) -> list[int]:
    """Seg-Zero's five terms of 0 or 1: form, keys, overlap, corners, points.

    form     the whole text is <think>...</think><answer>...</answer>
    keys     its first {...} is JSON with a box, and with as many keys that contain "point" as there are
             points
    iou      IoU of the boxes above .5
    box      mean difference of their corners below 10
    points   under keys that contain "points": all are in the predicted box, and their mean distance to the
             references is below 100

    `scale` shrinks the last two thresholds. [D1] `strict` asks for the keys bbox, points_1, points_2.
    """
    answer = first_object(text)
    found, count = box_of(answer, strict), len(points)
    named = points_of(answer, count, "point", strict)
    placed = points_of(answer, count, "points", strict)
    placed = placed and [[int(x), int(y)] for x, y in placed]
    return [
        int(FORM.fullmatch(text) is not None),
        int(found is not None and named is not None),
        int(found is not None and iou(found, box) > 0.5),
        int(found is not None and mean_difference(found, box) < 10 * scale),
        int(
            found is not None
            and placed is not None
            and all(inside(point, found) for point in placed)
            and mean_distance(placed, points) < 100 * scale
        ),
    ]


def accuracy_of_many(found: list[tuple[Box, Point]], right: list[tuple[Box, Point]]) -> float:
    """VisionReasoner's accuracy for several objects, 0 to 3: for each pair of the best assignment one point
    each for IoU above .5, corners closer than 10, and a point in its own box and closer than 30; all of it
    over the number of objects, of the found or of the right ones, whichever are more. All assignments are
    tried: for few objects."""

    def pair(one: tuple[Box, Point], other: tuple[Box, Point]) -> int:
        (box, point), (its_box, its_point) = one, other
        close = inside(point, box) and math.dist(point, its_point) < 30
        return (iou(box, its_box, edges=True) > 0.5) + (mean_difference(box, its_box) < 10) + close

    if not found or not right:
        return 0.0
    fewer, more = sorted((found, right), key=len)
    table = [[pair(*((a, b) if fewer is found else (b, a))) for b in more] for a in fewer]
    best = max(
        sum(row[place] for row, place in zip(table, order, strict=True))
        for order in itertools.permutations(range(len(more)), len(fewer))
    )
    return best / len(more)


# --- the task -----------------------------------------------------------------------------------------------


@dataclass
class BoxTask:
    """One rectangle in a grid of side x side characters, at least 3 wide and high, with marked points in it.

    side:   6 to 40; `size` in --task (the `size` of a task is how many problems a split has).
    points: 1 or 2.
    reward: sum, of the five terms; hit, the third alone (IoU above .5); iou, the IoU as a number.
    form:   loose, or strict: what keys are asked for.

    No two splits share a grid without its points.
    """

    side: str | int = 20
    points: str | int = 2
    reward: str = "sum"
    form: str = "loose"
    name: str = field(default="box", init=False)
    grader = "box"

    def __post_init__(self):
        for name, setting, least, most in (("side", "size", 6, 40), ("points", "points", 1, 2)):
            setattr(self, name, whole_number("box", setting, getattr(self, name), least, most))
        for setting, known in (("reward", ("sum", "hit", "iou")), ("form", ("loose", "strict"))):
            if getattr(self, setting) not in known:
                value = getattr(self, setting)
                raise ValueError(f"--task box: {setting}={value} is not one of {', '.join(known)}")
        self.name = "box" if self.reward == "sum" else f"box-{self.reward}"

    def problem(self, split: str, index: int, seed: int) -> Problem:
        """A pure function of its arguments."""
        rng = problem_rng(SPLITS, split, index, seed)
        while True:
            box = self.draw(rng)
            if split_by_hash(f"{self.side} {box}", SPLITS) == split:
                break
        cells = [[x, y] for x in range(box[0], box[2] + 1) for y in range(box[1], box[3] + 1)]
        points = rng.sample(cells, self.points)
        return Problem(
            prompt=self.prompt(box, points),
            answer=answer_text(box, points),
            solution=worked(box, points),
            source="box",
            index=index,
        )

    def draw(self, rng: random.Random) -> Box:
        """A random rectangle, 3 to 3/4 of the size wide and high."""
        most = 3 * self.side // 4
        width, height = rng.randint(3, most), rng.randint(3, most)
        x, y = rng.randint(0, self.side - width), rng.randint(0, self.side - height)
        return [x, y, x + width - 1, y + height - 1]

    def prompt(self, box: Box, points: list[Point]) -> str:
        rows = []
        for y in range(self.side):
            row = ["#" if inside([x, y], box) else "." for x in range(self.side)]
            rows.append("".join("o" if [x, y] in points else cell for x, cell in enumerate(row)))
        names = ", ".join(f'"points_{number}": [x, y]' for number in range(1, self.points + 1))
        asked = f'<think>...</think><answer>{{"bbox": [x1, y1, x2, y2], {names}}}</answer>'
        return "\n".join([*rows, f"Where are the rectangle and o? {asked}"])

    def grade(self, completion: str, problem: Problem) -> Grade:
        """`parsed` is the box as text; None where there is none."""
        right = json.loads(problem.answer)
        strict, points = self.form == "strict", points_of(right, self.points, "points")
        found = box_of(first_object(completion), strict)
        got = terms(completion, right["bbox"], points, self.side / PICTURE, strict)
        overlap = 0.0 if found is None else iou(found, right["bbox"])
        score = {"sum": sum(got) / len(got), "hit": float(got[2]), "iou": overlap}[self.reward]  # [D2]
        missed = "+".join(name for name, term in zip(TERMS, got) if not term)
        why = "correct" if score == 1 else f"without {missed}"
        return Grade(score == 1, score, None if found is None else json.dumps(found), why)


def answer_text(box: Box, points: list[Point]) -> str:
    named = {f"points_{number}": point for number, point in enumerate(points, start=1)}
    return json.dumps({"bbox": box, **named})


def worked(box: Box, points: list[Point]) -> str:
    """A right completion: how wide and high the box is, and the answer."""
    size = f"{box[2] - box[0] + 1} x {box[3] - box[1] + 1}"
    return f"<think>{size}</think><answer>{answer_text(box, points)}</answer>"
