"""plainrl/geo.py: the distance and the reward against known numbers, the traps of the paper's code, the task,
and eval.py --thresholds."""

import doctest
import json
import math

import pytest
from mutants import mutant

import eval as evaluation
from plainrl import geo
from plainrl.geo import CAPITALS, GeoTask, geo_reward, haversine_km, place_of, shares_within
from plainrl.tasks import Problem, load_task

REFERENCE, EXAMPLE = (40.756624, -73.960998), (40.749602, -73.992210)  # of the paper's code


@mutant(
    "cosine of one place",
    "plainrl/geo.py",
    "math.cos(lat) * math.cos(other_lat)",
    "math.cos(lat) * math.cos(lat)",
)
@mutant("half of the angle", "plainrl/geo.py", "return 2 * EARTH *", "return EARTH *")
@mutant("degrees as radians", "plainrl/geo.py", "map(math.radians, place)", "map(float, place)")
@mutant(
    "half of the longitude",
    "plainrl/geo.py",
    "math.sin((other_lon - lon) / 2) ** 2",
    "math.sin(other_lon - lon) ** 2",
)
def test_distances():
    """Catches degrees, halves and cosines that are mixed up: a known pair, a quarter and a half of the
    circumference, and the distance along a meridian and along a circle of latitude."""
    assert haversine_km((48.8566, 2.3522), (51.5074, -0.1278)) == pytest.approx(343.556535, abs=5e-7)
    assert haversine_km((0, 0), (0, 180)) == pytest.approx(20015.114442, abs=5e-7)
    assert haversine_km((30, 50), (-30, -130)) == pytest.approx(20015.114442, abs=1e-4)
    assert haversine_km(REFERENCE, EXAMPLE) == pytest.approx(2.742594, abs=5e-7)
    assert haversine_km((10, 7), (11, 7)) == pytest.approx(math.radians(1) * 6371.0088)
    assert haversine_km((60, 0), (60, 0.01)) == pytest.approx(math.radians(0.01) * 6371.0088 / 2, rel=1e-6)
    vectors = []
    for place in (CAPITALS["Lima"], CAPITALS["Tokyo"]):
        lat, lon = map(math.radians, place)
        vectors.append((math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)))
    angle = math.acos(sum(a * b for a, b in zip(*vectors)))
    assert haversine_km(CAPITALS["Lima"], CAPITALS["Tokyo"]) == pytest.approx(6371.0088 * angle)


@mutant(
    "a reward that grows", "plainrl/geo.py", "math.exp(-distance / tau)", "math.exp(-tau / (distance + 1))"
)
@mutant("at most a half", "plainrl/geo.py", "return 2 * less / (1 + less)", "return less / (1 + less)")
@mutant("an exponential", "plainrl/geo.py", "return 2 * less / (1 + less)", "return less")
@pytest.mark.parametrize(
    "distance, tau, reward",
    [(0, 25, 1), (25, 25, 0.537883), (50, 25, 0.238406), (100, 200, 0.755081), (1000, 200, 0.013386)],
)
def test_reward_of_its_code(distance, tau, reward):
    """Catches another shape. The numbers are those of the released function with tau filled in."""
    assert geo_reward(distance, tau) == pytest.approx(reward, abs=5e-7)


def test_rewards_far_away():
    """Catches exp(d / tau), which is too large for a float halfway round the earth."""
    with pytest.raises(OverflowError):
        math.exp(20_000 / 25)
    assert 0 < geo_reward(17_000, 25) < 1e-290 and geo_reward(20_015, 25) >= 0


@mutant(
    "longitude first",
    "plainrl/geo.py",
    "latitude, longitude = map(float, texts)",
    "longitude, latitude = map(float, texts)",
)
@mutant("names that nobody reads", "plainrl/geo.py", "if all(named) else", "if False else")
@mutant("latitudes up to 180", "plainrl/geo.py", "abs(latitude) <= 90", "abs(latitude) <= 180")
@mutant("longitudes of any size", "plainrl/geo.py", "abs(longitude) <= 180", "True")
@mutant("signs that are lost", "plainrl/geo.py", 'NUMBER = re.compile(r"-?', 'NUMBER = re.compile(r"')
@mutant("the first answer", "plainrl/geo.py", "NUMBER.findall(found[-1])[:2]", "NUMBER.findall(found[0])[:2]")
def test_places():
    """Catches the traps of the paper's code: named coordinates the wrong way round, a list that must begin
    with the longitude, quoted names that fall back to it, and places outside of the earth."""
    right = (40.749602, -73.99221)
    for text in (
        "40.749602, -73.992210",
        "[40.749602, -73.992210]",
        "Latitude: 40.749602, Longitude: -73.992210",
        '"Longitude" : -73.992210, "Latitude" : 40.749602',
        "longitude=-73.992210 latitude=40.749602",
    ):
        assert place_of(f"so <answer>1, 2</answer> no: <answer>{text}</answer>") == right, text
    wrong_way = haversine_km(REFERENCE, right[::-1])
    assert wrong_way == pytest.approx(15_081, abs=1)  # what its code makes of a latitude that comes first
    for text in (
        "",
        "40.7, -73.9",
        "<answer>40.7</answer>",
        "<answer>91, 0</answer>",
        "<answer>0, 181</answer>",
    ):
        assert place_of(text) is None, text
    assert place_of("<answer>-90, -180</answer>") == (-90, -180)


@mutant(
    "tau that does not arrive",
    "plainrl/geo.py",
    "geo_reward(distance, self.tau)",
    "geo_reward(distance, 200)",
)
@mutant("right within 10 km", "plainrl/geo.py", "RIGHT_WITHIN = 1.0", "RIGHT_WITHIN = 10.0")
def test_grades():
    """Catches a tau that is not used, one that is right from far, and no answer that earns something."""
    problem = Problem("", json.dumps((0, 0)))
    degree = math.radians(1) * 6371.0088
    for tau in (25, 200):
        grade = load_task(f"geo?tau={tau}").grade("<answer>1, 0</answer>", problem)
        assert (grade.correct, grade.parsed, grade.why) == (False, "1.00, 0.00", "wrong")
        assert grade.score == pytest.approx(geo_reward(degree, tau))
    task = GeoTask()
    near, farther = (task.grade(f"<answer>{km / degree}, 0</answer>", problem) for km in (0.9, 2))
    assert (near.correct, near.score) == (True, 1.0) and not farther.correct and 0.99 < farther.score < 1
    nothing = task.grade("somewhere", problem)
    assert (nothing.score, nothing.parsed, nothing.why) == (0.0, None, "no_place")


@mutant("a split of all", "plainrl/geo.py", '"dev": names[36:48]', '"dev": names[30:48]')
@mutant("the order of every pass", "plainrl/geo.py", 'f"{seed}/{split}/{times}"', 'f"{seed}/{split}"')
def test_problems():
    """Catches a capital in two splits, one that comes twice before all came once, and a table with a slip:
    places that are no places, or two capitals at one place."""
    task, seen = GeoTask(), {}
    for split, size in (("train", 36), ("dev", 12), ("test", 12)):
        assert task.size(split) == size
        passes = [[task.problem(split, n * size + i, 4).prompt for i in range(size)] for n in range(2)]
        assert len({*passes[0]}) == size and sorted(passes[0]) == sorted(passes[1]) and passes[0] != passes[1]
        for prompt in passes[0]:
            assert seen.setdefault(prompt, split) == split
        for index in range(size):
            problem = task.problem(split, index, 4)
            assert task.grade(problem.solution, problem).correct
    places = list(CAPITALS.values())
    assert len(seen) == len({*places}) == 60
    assert all(abs(lat) <= 65 and abs(lon) <= 180 for lat, lon in places)
    nearest = min(haversine_km(a, b) for i, a in enumerate(places) for b in places[:i])
    assert 50 < nearest < 200  # Vienna and Budapest are 214 km apart, Brussels and Amsterdam 173
    with pytest.raises(ValueError, match="split 'sft' is not one of train, dev, test"):
        task.problem("sft", 0, 0)


@pytest.mark.parametrize("tau", ["0", "0.5", "10001", "x", "nan", "inf", "-3", ""])
def test_settings_that_are_refused(tau):
    """Catches a tau that divides by 0, or is no number."""
    with pytest.raises(ValueError, match=f"--task geo: tau={tau} is not within 1 to 10000 km"):
        load_task(f"geo?tau={tau}")


# --- eval.py ------------------------------------------------------------------------------------------------


@mutant("at the limit", "plainrl/geo.py", "each <= limit", "each < limit")
@mutant(
    "answers alone",
    "plainrl/geo.py",
    "near(limit) / len(distances)",
    "near(limit) / max(1, sum(d is not None for d in distances))",
)
def test_shares_by_hand():
    """Catches shares of the answers alone, and a limit that is not within itself."""
    assert shares_within([1.0, 24.0, None, 3000.0], [1, 25, 2500]) == {1: 0.25, 25: 0.5, 2500: 0.5}
    assert shares_within([None], [1]) == {1: 0.0}


@mutant(
    "distances of the next problem",
    "eval.py",
    'task.problem(args.split, row["index"], EVAL_SEED)',
    'task.problem(args.split, row["index"] + 1, EVAL_SEED)',
)
@mutant(
    "thresholds without distances",
    "eval.py",
    'if args.thresholds and not hasattr(tasks_of(args)[0], "distance_km"):',
    "if False:",
)
def test_thresholds(toy_model, tmp_path, capsys):
    """Catches distances to another problem's place, a task without distances that ends in a long error, and
    an evaluation that is sampled again to show them."""
    flags = dict(
        model=toy_model, task="geo", problems=4, samples=4, max_new_tokens=4, out_dir=tmp_path / "out"
    )
    evaluation.main(evaluation.Args(**flags))
    rows = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and "within" not in capsys.readouterr().out
    for row in rows:  # answers that know one problem only
        problem = GeoTask().problem("test", row["index"], evaluation.EVAL_SEED)
        row["completion"] = problem.solution if row["sample"] < 2 else "<answer>0, 0</answer>"
        row["completion"] = "" if row["sample"] == 3 else row["completion"]
    (tmp_path / "out/samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation.main(evaluation.Args(**flags, thresholds=(1, 20016.0)))
    said = capsys.readouterr().out
    assert "measured before" in said and "within 1 km 0.500   within 20016 km 0.750" in said
    with pytest.raises(SystemExit, match="--thresholds: --task chain has no distances; take geo"):
        evaluation.main(evaluation.Args(model=toy_model, task="chain", thresholds=(1,)))


def test_examples():
    """Catches an example of a docstring that is not true."""
    assert doctest.testmod(geo).failed == 0
