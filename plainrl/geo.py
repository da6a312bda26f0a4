"""The geo world: where on earth is a capital? A reward that falls smoothly with the distance.

    Where is Paris? ...        <answer>48.86, 2.35</answer>

GRE (arXiv 2505.18700) rewards a vision-language model so for the place where a picture was taken. The
pictures are left out. Of a text model the task asks for memory, not for reasoning.

[D1] tau is left blank in the paper's code: 200 km is ours.
[D2] A pair of numbers is latitude, then longitude, as the question asks for it. Its code reads a list as
     longitude first, and named coordinates the wrong way round: its own example, in that order, is then
     15,081 km away instead of 3. The last answer counts (its code: the first).
[D3] exp(-d/tau) in place of exp(d/tau), which is too large for a float from 709 tau on.
[D4] The earth is a ball (its code: an ellipsoid). Within 1 km an answer is right, and its score is 1.
"""

import json
import math
import random
import re
from dataclasses import dataclass, field

from plainrl.tasks import Grade, Problem, check_split, hash_number

EARTH = 6371.0088  # km, its mean radius
RIGHT_WITHIN = 1.0  # km
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
NAMED = {name: re.compile(rf"{name}\W*?(-?[0-9]+(?:\.[0-9]+)?)", re.I) for name in ("latitude", "longitude")}

# Latitude and longitude of the middle of the city, in degrees, to two places.
CAPITALS = {
    "Abuja": (9.06, 7.49),
    "Accra": (5.56, -0.20),
    "Addis Ababa": (9.03, 38.74),
    "Algiers": (36.75, 3.06),
    "Amman": (31.95, 35.93),
    "Amsterdam": (52.37, 4.90),
    "Ankara": (39.93, 32.86),
    "Athens": (37.98, 23.73),
    "Baghdad": (33.31, 44.37),
    "Bangkok": (13.76, 100.50),
    "Beijing": (39.90, 116.41),
    "Berlin": (52.52, 13.40),
    "Bern": (46.95, 7.45),
    "Bogota": (4.71, -74.07),
    "Brasilia": (-15.79, -47.88),
    "Brussels": (50.85, 4.35),
    "Bucharest": (44.43, 26.10),
    "Budapest": (47.50, 19.04),
    "Buenos Aires": (-34.60, -58.38),
    "Cairo": (30.04, 31.24),
    "Canberra": (-35.28, 149.13),
    "Caracas": (10.48, -66.90),
    "Copenhagen": (55.68, 12.57),
    "Dakar": (14.69, -17.45),
    "Dhaka": (23.81, 90.41),
    "Dublin": (53.35, -6.26),
    "Hanoi": (21.03, 105.85),
    "Havana": (23.11, -82.37),
    "Helsinki": (60.17, 24.94),
    "Jakarta": (-6.21, 106.85),
    "Kampala": (0.35, 32.58),
    "Kathmandu": (27.72, 85.32),
    "Kyiv": (50.45, 30.52),
    "Lima": (-12.05, -77.04),
    "Lisbon": (38.72, -9.14),
    "London": (51.51, -0.13),
    "Luanda": (-8.84, 13.29),
    "Madrid": (40.42, -3.70),
    "Manila": (14.60, 120.98),
    "Mexico City": (19.43, -99.13),
    "Nairobi": (-1.29, 36.82),
    "New Delhi": (28.61, 77.21),
    "Oslo": (59.91, 10.75),
    "Ottawa": (45.42, -75.70),
    "Paris": (48.86, 2.35),
    "Prague": (50.08, 14.44),
    "Quito": (-0.18, -78.47),
    "Rabat": (34.02, -6.84),
    "Reykjavik": (64.15, -21.94),
    "Riyadh": (24.71, 46.68),
    "Rome": (41.90, 12.50),
    "Santiago": (-33.45, -70.67),
    "Seoul": (37.57, 126.98),
    "Stockholm": (59.33, 18.07),
    "Tokyo": (35.68, 139.69),
    "Tunis": (36.81, 10.18),
    "Vienna": (48.21, 16.37),
    "Warsaw": (52.23, 21.01),
    "Washington": (38.91, -77.04),
    "Wellington": (-41.29, 174.78),
}


# --- the mathematics ----------------------------------------------------------------------------------------


def haversine_km(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Distance on the ball between two places, (latitude, longitude) in degrees.

    >>> round(haversine_km((48.8566, 2.3522), (51.5074, -0.1278)), 6)  # Paris, London
    343.556535
    """
    (lat, lon), (other_lat, other_lon) = (map(math.radians, place) for place in (first, second))
    of_latitude = math.sin((other_lat - lat) / 2) ** 2
    of_longitude = math.sin((other_lon - lon) / 2) ** 2
    share = of_latitude + math.cos(lat) * math.cos(other_lat) * of_longitude
    return 2 * EARTH * math.asin(math.sqrt(min(1.0, share)))  # rounding may bring it above 1


def geo_reward(distance: float, tau: float) -> float:
    """2 / (1 + exp(d / tau)): 1 at the place itself, about a half at tau, then about 2 exp(-d / tau).

    >>> round(geo_reward(25, 25), 6), geo_reward(20_000, 25)  # the last one is too small for a float
    (0.537883, 0.0)
    """
    less = math.exp(-distance / tau)  # [D3]
    return 2 * less / (1 + less)


def place_of(completion: str) -> tuple[float, float] | None:
    """Latitude and longitude in the last <answer>; None without two numbers, or outside of the earth.

    They are named, or two numbers are there, latitude first. [D2]

    >>> place_of("<answer>Longitude: 2.35, latitude: 48.86</answer>"), place_of("<answer>91, 0</answer>")
    ((48.86, 2.35), None)
    """
    found = ANSWER.findall(completion)
    if not found:
        return None
    named = [NAMED[name].search(found[-1]) for name in ("latitude", "longitude")]
    texts = [match[1] for match in named] if all(named) else NUMBER.findall(found[-1])[:2]
    if len(texts) < 2:
        return None
    latitude, longitude = map(float, texts)
    return (latitude, longitude) if abs(latitude) <= 90 and abs(longitude) <= 180 else None


def shares_within(distances: list[float | None], thresholds: list[float]) -> dict[float, float]:
    """The share of answers within each of the distances; no answer (None) is within none.

    >>> shares_within([0.5, 30.0, None, 800.0], [1, 25, 750])
    {1: 0.25, 25: 0.25, 750: 0.5}
    """
    near = lambda limit: sum(each is not None and each <= limit for each in distances)  # noqa: E731
    return {limit: near(limit) / len(distances) for limit in thresholds}


# --- the task -----------------------------------------------------------------------------------------------


@dataclass
class GeoTask:
    """Sixty capitals. The score is `geo_reward` of the distance.

    tau: km, from 1 to 10,000.

    There are 36 capitals in train, 12 in dev and 12 in test; no two splits share one.
    """

    tau: str | float = 200
    name: str = field(default="geo", init=False)
    grader = "geo"

    def __post_init__(self):
        text = str(self.tau)
        if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]+)?", text) or not 1 <= float(text) <= 10_000:
            raise ValueError(f"--task geo: tau={text} is not within 1 to 10000 km")
        self.tau = float(text)
        names = sorted(CAPITALS, key=lambda name: hash_number(f"capital {name}"))
        self.splits = {"train": names[:36], "dev": names[36:48], "test": names[48:]}

    def size(self, split: str) -> int:
        check_split(self.splits, split)
        return len(self.splits[split])

    def problem(self, split: str, index: int, seed: int) -> Problem:
        """A pure function of its arguments. All capitals of a split come once before one comes again."""
        times, place = divmod(index, self.size(split))
        names = self.splits[split]
        name = random.Random(f"{seed}/{split}/{times}").sample(names, len(names))[place]
        latitude, longitude = CAPITALS[name]
        return Problem(
            prompt=f"Where is {name}? Give latitude and longitude in degrees, north and east above 0, like "
            "<answer>12.34, -56.78</answer>.",
            answer=json.dumps(CAPITALS[name]),
            solution=f"<answer>{latitude}, {longitude}</answer>",
            source="geo",
            index=index,
        )

    def distance_km(self, completion: str, problem: Problem) -> float | None:
        """How far an answer is from the place; None where there is no answer. eval.py --thresholds asks."""
        place = place_of(completion)
        return None if place is None else haversine_km(place, tuple(json.loads(problem.answer)))

    def grade(self, completion: str, problem: Problem) -> Grade:
        distance = self.distance_km(completion, problem)
        if distance is None:
            return Grade(False, 0.0, None, "no_place")
        parsed = "{:.2f}, {:.2f}".format(*place_of(completion))
        if distance <= RIGHT_WITHIN:
            return Grade(True, 1.0, parsed, "correct")
        return Grade(False, geo_reward(distance, self.tau), parsed, "wrong")  # [D4]
