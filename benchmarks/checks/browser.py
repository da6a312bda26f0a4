"""Opens report.html in a real browser (headless Chromium), uses it as a reader would, and takes its picture.

    pip install playwright==1.65.2 && apt-get install chromium
    python benchmarks/checks/browser.py
    python benchmarks/checks/browser.py --pictures runs/grpo/chain-seed0 --out docs/img
    python benchmarks/checks/browser.py --problem runs/grpo/chain-seed0 --out docs/img

The first is the check and takes half a minute. The second takes the pictures of docs/report.md, the
third that of the README.

The check makes up small runs and evaluations whose completions try everything that a stranger's text can try.
It asserts that the page shows them as text, loads nothing, and that its slider, filters, colours, search,
tables and themes work with the mouse, the keyboard and on a phone. Screenshots of it are kept in --out.
"""

import json
import random
import re
import shutil
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # where plainrl/ lies

from plainrl import report
from plainrl.flags import parse
from plainrl.metrics import count
from plainrl.report import write_report
from plainrl.results import result_rows
from plainrl.screen import fail, say

SWITCHES = ["no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update"]
SWITCHES += ["disable-sync", "no-first-run", "disable-quic"]
COLOURS = {"grpo": "advantage × weight", "siren": "selected", "guide": "ratio"}  # of tokens, in the pictures
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1><!--"
STEERING = "\x1b[2J\x1b]0;title\x07 \x00 \u202eright to left\u202c \u200b \ud800"


@dataclass
class Args:
    pictures: tuple[Path, ...] = ()
    """take pictures of the reports of these runs or evaluations (light, dark, phone), and check nothing"""
    problem: Path | None = None
    """take the picture of one problem from the first score to the last of this run, and check nothing"""
    out: Path = Path("runs/browser")
    """where the pictures go"""


# --- a run that is made up ----------------------------------------------------------------------------------


def made_up_run(
    folder: Path, steps: int = 6, seed: int = 0, hostile: bool = False, script: str = "grpo"
) -> Path:
    """A folder like that of a run of `steps` steps, with 4 completions a group and a score on dev every three
    steps. A hostile one has texts that would break a careless page."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    bad = HOSTILE + STEERING if hostile else ""
    flags = {"model": "models/tiny", "task": "chain", "steps": steps, "seed": seed, "out_dir": str(folder)}
    (folder / "config.json").write_text(
        json.dumps({"script": script, "flags": flags, "model_hash": "0" + bad})
    )
    files = {name: [] for name in ("metrics", "samples", "dev_samples", "groups")}
    for step in range(steps + 1):
        share = step / steps
        record = {"step": step, f"own/number{bad}": share}
        if step % 3 == 0 or step == steps:
            right = [[rng.random() < 0.8 * share for _ in range(4)] for _ in range(8)]
            record |= {"eval/chain/score": share, "eval/chain/avg@4": share, "eval/chain/pass@4": share}
            files["dev_samples"] += [dev_line(rng, step, i, each, bad) for i, each in enumerate(right)]
            sums = [sum(each) for each in right]
            files["groups"].append(
                {"step": step, "split": "dev", "index": [*range(8)], "right": sums, "of": [4] * 8}
            )
        if step == 0 or step == steps:
            record |= {"test/chain/avg@4": share}
        if step:
            record |= {"reward/mean": share, "policy/entropy": 1 - share, "rollout/tokens_total": 400 * step}
            group = [row_of(rng, step, i, rng.random() < share, bad) for i in range(4)]
            if script == "guide":
                group[0] |= {
                    "hint": "A=1+2" + bad,
                    "sampled_prompt": "the prompt with its hint",
                    "guided": True,
                }
                group[0]["also_sampled"] = [
                    {"completion": "B=9", "parsed": "9", "reward": 0.0, "why": "wrong"}
                ]
            files["samples"] += group
            gap = {"gap": 1e-6 * step, "token": "7" + bad, "index": step, "sample": 0, "position": 1}
            counts = {"": sum(row["reward"] == 1 for row in group), "wrong": 1}
            files["groups"].append(
                {
                    "step": step,
                    "split": "train",
                    "index": [step],
                    "right": [counts[""]],
                    "of": [4],
                    "why": counts,
                }
                | {"largest_gap": gap, "largest_ratio": gap | {"ratio": 1.5}}
            )
        files["metrics"].append(record)
    if hostile:  # one completion of a megabyte, and one that is written from right to left
        files["samples"][1] |= {"completion": "x" * 1_000_000, "tokens": None}
        files["samples"][2] |= {
            "completion": "\u05e9\u05dc\u05d5\u05dd 12 \u05e2\u05d5\u05dc\u05dd",
            "tokens": None,
        }
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def made_up_tokens(rng, right: bool, bad: str) -> tuple[str, dict]:
    """A completion of a chain of two steps, and the numbers of its tokens."""
    answer = "6" if right else str(rng.randrange(10, 100))
    tokens = ["A", "=", "1", "+", "2", "=", "3", "\n", "B", "=", "3", "*", "2", "=", *answer]
    tokens += [bad] * bool(bad) + ["\n", "\\boxed{", *answer, "}", "<|end|>"]
    numbers = {"entropy": [round(rng.random() ** 4, 3) for _ in tokens]}
    numbers["logprob"] = [-entropy for entropy in numbers["entropy"]]
    return "".join(tokens[:-1]), {"tokens": tokens} | numbers


def row_of(rng, step: int, number: int, right: bool, bad: str) -> dict:
    """A line of samples.jsonl."""
    completion, numbers = made_up_tokens(rng, right, bad)
    length = len(numbers["tokens"])
    return {
        "step": step,
        "prompt": f"A is 1 + 2. B is A times 2.{bad}",
        "completion": completion,
        "gold": "6" + bad,
        "parsed": "6" if right else None,
        "reward": float(right),
        "why": "correct" if right else "wrong" + bad,
        "advantage": 0.75 if right else -0.25,
        "index": step,
        "truncated": number == 3,
        "guided": False,
        **numbers,
        "weight": 0.01,
        "ratio": [1.2] + [1] * (length - 1),
        "clipped": 0,
        "gap": [1e-7] * length,
        "selected" + bad: [int(entropy > 0.5) for entropy in numbers["entropy"]],
    }


def dev_line(rng, step: int, index: int, right: list[bool], bad: str) -> dict:
    """A line of dev_samples.jsonl."""
    samples = []
    for each in right:
        completion, numbers = made_up_tokens(rng, each, bad)
        verdict = {"reward": float(each), "why": "correct" if each else "wrong", "truncated": False}
        samples.append({"completion": completion, "parsed": "6", **verdict, **numbers})
    problem = {"step": step, "index": index, "prompt": f"dev {index}: A is 1 + 2. B is A times 2.{bad}"}
    return problem | {"gold": "6", "solution": "A=1+2=3\nB=3*2=6\n\\boxed{6}", "samples": samples}


def made_up_evaluation(
    folder: Path, right: list[list[int]], model: str = "models/tiny", bad: str = "", **settings
) -> Path:
    """A folder like that of eval.py: a list of problems for each horizon, how many of the 4 samples of each
    are right. `bad` stands in every text, `settings` are of its config.json."""
    rows, problems = [], []
    for horizon, counts in enumerate(right, start=1):
        for index, count_right in enumerate(counts):
            samples = [sample_line(horizon, index, i, i < count_right, bad) for i in range(4)]
            problems.append(count(samples, index, horizon, "chain"))
            rows += samples
    settings = {
        "model": model + bad,
        "model_hash": f"{len(model):016x}",
        "task": "chain",
        "split": "test",
        "problems": len(problems),
        "problems_hash": "0123456789abcdef",
        "samples": 4,
        "prompt_template": "<|user|>{problem}<|assistant|>",
        "temperature": 1.0,
        "top_p": 1.0,
        "max_new_tokens": 160,
    } | settings
    results = {"settings": settings, "rows": result_rows(problems, settings), "problems": problems}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def sample_line(horizon: int, index: int, sample: int, right: bool, bad: str) -> dict:
    """A line of an evaluation's samples.jsonl."""
    answer = str(10 * horizon + index) if right else str(90 + sample)
    return {
        "index": index,
        "horizon": horizon,
        "sample": sample,
        "prompt": f"<|user|>problem {index} of {horizon} steps{bad}<|assistant|>",  # as older files have it
        "completion": f"A={answer}{bad}\n\\boxed{{{answer}}}",
        "gold": str(10 * horizon + index),
        "parsed": answer,
        "vote": answer,
        "correct": right,
        "score": float(right),
        "why": "correct" if right else "wrong",
        "tokens": 12,
        "finish_reason": "stop",
    }


# --- a browser ----------------------------------------------------------------------------------------------


@contextmanager
def chromium():
    """The browser, closed at the end."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        fail("playwright is missing: pip install playwright==1.65.2")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        fail("no Chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=[f"--{switch}" for switch in SWITCHES]
        )
        yield browser
        browser.close()


def open_page(browser, path: Path, viewport: dict = DESKTOP, scheme: str = "light", scale: float = 1):
    """The page, and the list into which its errors and requests go while it is used."""
    page = browser.new_page(viewport=viewport, color_scheme=scheme, device_scale_factor=scale)
    trouble = []
    page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    page.on(
        "console", lambda line: line.type in ("error", "warning") and trouble.append(f"console: {line.text}")
    )
    own = path.resolve().as_uri()
    page.on("request", lambda request: request.url != own and trouble.append(f"request: {request.url}"))
    page.goto(own)
    page.wait_for_selector("#config-table table", state="attached")
    return page, trouble


def save_picture(page, path: Path, element: str | None = None) -> None:
    """A PNG of what is in view, or of one element."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(600)  # charts draw themselves a moment after the page
    (page.locator(element) if element else page).screenshot(path=path)
    Image.open(path).convert("RGB").save(path, optimize=True)  # half as large
    say(f"{path} ({path.stat().st_size / 1000:.0f} kB)")


# --- the check ----------------------------------------------------------------------------------------------

failed = []


def check(holds: bool, what: str) -> None:
    say(f"{'ok    ' if holds else 'FAILED'} {what}")
    if not holds:
        failed.append(what)


def check_use(page) -> None:
    """Slider, keys, filter, colours, search and theme."""
    label = lambda: page.inner_text("#slider-label")  # noqa: E731
    cards = lambda: page.locator("#cards .card").count()  # noqa: E731
    first, before = label(), page.inner_text("#cards")
    page.locator("#slider").press("End")
    check(label() != first and page.inner_text("#cards") != before, f"the slider moves the group: {label()}")
    page.click("#before")
    after_click = label()
    page.keyboard.press("ArrowLeft")
    check(first != label() != after_click, f"button and arrow key move it too: {label()}")

    step = label()
    page.locator("#cards .completion").first.focus()
    page.keyboard.press("ArrowRight")
    check(
        "token 2 of" in page.inner_text("#readout"),
        f"the keys step through tokens: {page.inner_text('#readout')!r}",
    )
    check(label() == step, "and leave the step alone")
    page.locator("#cards .token").nth(4).hover()
    check("token 5 of" in page.inner_text("#readout"), "the pointer picks a token")

    everything = cards()
    page.select_option("[name=show]", "wrong")
    check(cards() < everything, f"a filter hides rows: {cards()} of {everything} are left")
    check(cards() == page.locator("#cards .wrong").count(), "and shows no other")
    page.select_option("[name=show]", "")
    page.select_option("[name=truncated]", "yes")
    check(cards() == 1, "so does another filter")
    page.select_option("[name=truncated]", "")

    classes = lambda: page.evaluate("[...document.querySelectorAll('.token')].map(t => t.className).join()")  # noqa: E731
    shades, seen = set(), []
    for name in page.locator("#colour option").evaluate_all("options => options.map(option => option.value)"):
        page.select_option("#colour", name)
        shades.add(classes())
        seen.append(name)
    check(len(shades) >= 5, f"the colour choice recolours: {len(shades)} pictures of {len(seen)} choices")
    page.select_option("#colour", "entropy")
    check(
        page.locator("#legend .token").count() >= 5,
        f"the legend has numbers: {page.inner_text('#legend').split()}",
    )

    check_scales(page)
    check_pair(page)
    check_matches(page)
    check_search(page)

    page.locator("#extremes button").first.click()
    check("token 2 of" in page.inner_text("#readout"), "the largest gap leads to its token")
    told = "“Show it” leads to" in page.inner_text("#extremes")
    page.evaluate("window.kept = run().groups; run().groups = []; drawMap()")
    untold = "Show it" not in page.inner_text("#extremes") and page.locator("#extremes td").count() > 0
    page.evaluate("run().groups = window.kept; drawMap()")
    check(told and untold, "which is said only where a button leads to one")

    colour = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    light = colour()
    page.click("#theme")
    check(colour() != light, f"the switch makes it dark: {light} -> {colour()}")


def check_scales(page) -> None:
    """The colours reach from nothing to about the largest number, so that no page is pale."""
    ends = page.evaluate(
        "namesOfNumbers().map(name => {"
        "const size = (row, i) => Math.abs(strength(name, numberAt(row, name, i)));"
        "const rows = everyRow().filter(row => namesIn(row).includes(name));"
        "const sizes = rows.flatMap(row => row.tokens.map((_, i) => size(row, i))).filter(each => each > 0);"
        "sizes.sort((a, b) => a - b);"
        "return [scaleOf(name).end, sizes[Math.floor(sizes.length * .98)] || 0]; })"
    )
    fits = all(0.99 * high <= end <= 1.51 * high for end, high in ends)
    check(fits and len(ends) > 5, f"each scale ends at or just above the 98th percentile: {ends}")


def not_cut(page) -> bool:
    """Whether the list of colours is as wide as its longest name."""
    return page.locator("#colour").evaluate(
        "list => { const now = list.offsetWidth; list.style.maxWidth = 'none';"
        "const whole = list.offsetWidth; list.style.maxWidth = ''; return now === whole; }"
    )


def check_pair(page) -> None:
    """Two runs side by side: the list counts, and opens where they differ most."""
    names = page.locator("[name=right] option").all_inner_texts()
    page.select_option("[name=right]", label=names[-1])
    page.select_option("[name=left]", label=names[-2])  # the first run's problems are others
    options = page.locator("[name='pair problem'] option")
    counts = [re.fullmatch(r"\d+: (\d+) and (\d+) right", each) for each in options.all_inner_texts()]
    check(len(counts) > 2 and all(counts), f"the list of two runs counts both: {options.first.inner_text()}")
    differences = [abs(int(each[1]) - int(each[2])) for each in counts]
    chosen = page.locator("[name='pair problem']").evaluate("list => list.selectedIndex")
    check(differences[chosen] == max(differences) > 0, f"it opens where they differ most: {differences}")
    check(page.locator("#pair-columns .completion").count() == 2, "and shows it under both")


def check_matches(page) -> None:
    """The buttons that lead to the next step with a completion that the filters show."""
    page.locator("#slider").press("Home")
    check(not page.locator("#matches").is_visible(), "without a filter no button leads to a match")
    page.select_option("[name=show]", "right")
    page.select_option("[name=truncated]", "yes")
    matching = page.evaluate("run().groups.flatMap((group, at) => group.rows.some(passes) ? [at] : [])")
    far = [(at, after) for at, after in zip(matching, matching[1:]) if after > at + 1]  # a step lies between
    check(bool(far), f"some steps have no match: only {matching} have")
    start, wanted = far[0]
    page.evaluate(f"goTo({start})")
    named = page.inner_text("#match-after")
    page.click("#match-after")
    there, label = page.evaluate("state.group"), page.inner_text("#slider-label")
    check(there == wanted and label.startswith(named[:-2]), f"a button leads to the next one: {named}")
    check(page.locator("#cards .card.right").count() > 0, "and it is there")
    page.locator("#slider").press("End")
    check(page.locator("#match-after").is_disabled(), "behind the last step is none")
    page.click("#match-before")
    check(page.evaluate("state.group") < page.evaluate("run().groups.length - 1"), "another leads back")
    page.select_option("[name=show]", "")
    page.select_option("[name=truncated]", "")


def check_search(page) -> None:
    """What is found is marked: in the list of what was found, and in its place."""
    page.fill("[type=search]", "<|end|>")
    check(page.locator("#hits button").count() > 1, "the search finds special tokens")
    page.fill("[type=search]", "boxed")
    hits = page.locator("#hits button")
    check(hits.count() > 1, f"the search finds: {page.inner_text('#hits p')}")
    marks = page.locator("#hits mark").all_inner_texts()
    check(marks == ["boxed"] * hits.count(), "each line of the list marks what it has found")
    hits.nth(1).click()
    check(page.locator(".found").count() == 1, "a click leads there")
    found = page.locator("#cards .token.match").all_inner_texts()
    check(found == ["\\boxed{"], f"where its token is marked: {found}")
    page.fill("[type=search]", "times 2")
    page.locator("#hits button").first.click()
    check(page.inner_text("#group-prompt mark") == "times 2", "what is found in a prompt is marked there")
    page.fill("[type=search]", "")
    check(page.locator("#hits button").count() == 0, "an empty search finds nothing")


def check_evaluations(page, shown: str) -> None:
    """Two evaluations side by side; `shown` is the name of the second one."""
    table = page.locator("#evaluation-tables table").first
    lines = [line.split("\t") for line in table.inner_text().split("\n")]
    cells = {line[0]: line[1:] for line in lines}
    check(len(lines[0]) == 5 and shown in lines[0][4], f"one table has both evaluations: {lines[0]}")
    check(cells["problems"][2:] == ["8", "8"] and cells["samples of each"][2:] == ["4", "4"], "their sizes")
    check(cells["avg@4"][0].startswith("+0.375 ["), f"and the difference first: {cells['avg@4']}")
    named = lambda: page.inner_text("#summary").split(",")[0]  # noqa: E731
    first = named()
    check(first.endswith("before"), f"it says whose the numbers at its head are: {first}")
    text = page.inner_text("#evaluation")
    check("Where the gain of" in text and "self-distillation" in text, "it says where the gain is from")
    check("fewer than 10 problems" in text and "of 20 comparisons" in text, "and warns")
    check(page.locator("#curves .keys li").count() >= 2, "pass@k has a line for each")
    before = page.inner_text("#evaluation-tables")
    page.click("#after")
    problem = page.inner_text("#slider-label").split(":")[0]
    page.select_option("#run", "1")
    check(named().endswith(shown) and named() != first, f"also when another is chosen: {named()}")
    after = page.inner_text("#evaluation-tables")
    own = "all\t8\t0.625 [" in after and "all\t8\t0.250 [" in before
    check(own and f"{shown} alone" in after, "the tables of the one that is chosen are shown")
    check(page.inner_text("#slider-label").startswith(problem), f"and its samples of the same {problem}")
    check("votes:" in page.inner_text("#group-more"), "a problem has its votes")
    check("<|user|>" not in page.inner_text("#groups"), "and its prompt is the problem alone")
    check(page.evaluate("window.hacked") is None, "what a model wrote stays text there too")


def check_hostile(page) -> None:
    """What a model wrote stays text."""
    charts = page.locator("#curves .chart")
    for number in range(charts.count()):  # the boxes of values have names of metrics, from a file as well
        charts.nth(number).hover()
    check(page.evaluate("window.hacked") is None, "a completion's script did not run")
    check(page.locator("img, iframe, object, embed").count() == 0, "and became no element")
    page.locator("#slider").press("Home")
    text = page.inner_text("#cards")
    check("</script><script>window.hacked=1</script>" in text, "it is shown as it was written")
    check("\\x1b[2J" in text and "\\u202e" in text and "\\x00" in text, "control characters are spelt out")
    check("\u202e" not in page.content(), "and none of them is in the page")


def check_phone(page) -> None:
    """A small screen, and a completion of a megabyte."""
    if page.locator(".chart > svg").count():
        page.locator(".chart > svg").first.press("ArrowRight")
        check(
            "step" in page.locator(".chart .keys").first.inner_text(),
            "the keys move through a chart's values",
        )
    width = page.evaluate("document.documentElement.scrollWidth")
    check(width <= PHONE["width"], f"a phone need not scroll sideways: {width} pixels")
    check(not page.locator("#sections").is_visible(), "a list takes the place of the links")
    places = page.locator("#section option").evaluate_all("options => options.map(option => option.value)")
    for place in filter(None, places):
        page.select_option("#section", place)
        page.wait_for_timeout(50)
        top = page.locator(f"#{place}").bounding_box()["y"]
        bar = page.locator("#bar").bounding_box()["height"]
        at_end = page.evaluate("innerHeight + scrollY >= document.documentElement.scrollHeight - 2")
        check(bar <= top < bar + 30 or at_end, f"it leads to {place}, below the bar: {top:.0f}, {bar:.0f}")
    box = page.locator("#cards .completion").nth(1)
    folded = box.inner_text().count("x")
    box.get_by_role("button").click()
    unfolded = box.inner_text().count("x")
    check(folded < 10_000 and unfolded == 1_000_000, f"a megabyte is folded: {folded} letters of {unfolded}")


def main(args: Args) -> None:
    with chromium() as browser, tempfile.TemporaryDirectory() as folder:
        if args.problem or args.pictures:
            take_pictures(browser, args, Path(folder))
            return
        runs = [
            made_up_run(Path(folder) / "guide", hostile=True, script="guide"),
            made_up_run(Path(folder) / "plain-seed0"),
            made_up_run(Path(folder) / "plain-seed1", seed=1),
        ]
        path = write_report(runs, Path(folder) / "report.html")
        page, trouble = open_page(browser, path)
        save_picture(page, args.out / "hostile-light.png")
        check_use(page)
        save_picture(page, args.out / "hostile-dark.png")
        check_hostile(page)
        page.select_option("#run", "1")
        check("of 4 right" in page.inner_text("#slider-label"), "another run is shown")
        check(
            page.evaluate("window.hacked") is None and not trouble, f"no error and no request {trouble or ''}"
        )
        page.close()
        evaluations = [
            made_up_evaluation(Path(folder) / "before", [[0, 1, 2, 3], [0, 0, 1, 1]], bad=HOSTILE),
            made_up_evaluation(Path(folder) / "after", [[2, 3, 4, 4], [1, 2, 2, 2]], model="trained"),
        ]
        path = write_report(evaluations, Path(folder) / "evaluations.html")
        page, trouble = open_page(browser, path)
        save_picture(page, args.out / "evaluations.png")
        check_evaluations(page, "after")
        check(not trouble, f"no error and no request {trouble or ''}")
        page.close()
        page, trouble = open_page(browser, path, PHONE)
        column = page.locator("#evaluation-tables table").first.locator("tr").nth(3).locator("td").nth(1)
        box = column.bounding_box()
        there = box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
        check(there, f"a phone shows the difference without scrolling: {column.inner_text()}")
        save_picture(page, args.out / "evaluations-phone.png", "#evaluation")
        check(not trouble, f"no error and no request there {trouble or ''}")
        page.close()
        for view in (DESKTOP, PHONE):
            page, _ = open_page(browser, write_report(runs[1:2]), view)
            check(not_cut(page), f"no choice of colour is cut on {view['width']} pixels")
            page.close()
        for scheme in ("light", "dark"):
            if scheme == "dark":
                report.has_bokeh = lambda: False  # as where it is not installed: charts are plain SVG
            page, trouble = open_page(browser, write_report(runs[:1]), PHONE, scheme)
            save_picture(page, args.out / f"hostile-phone-{scheme}.png")
            check_phone(page)
            check(not trouble, f"no error and no request there {trouble or ''}")
            page.close()
    if failed:
        fail(f"{len(failed)} of the checks failed: {'; '.join(failed)}")
    say("the report holds in a browser")


def take_pictures(browser, args: Args, folder: Path) -> None:
    """For the pages: the head in light, and the group of a step in dark and on a phone."""
    if args.problem:
        path = write_report([args.problem], folder / "report.html")
        page, _ = open_page(browser, path, {"width": 1040, "height": 900}, scale=1.25)
        page.evaluate(
            "document.querySelectorAll('#problem > :is(h2, .about, .controls, details), #readout, #bar')"
            ".forEach(each => each.hidden = true); document.getElementById('problem').style.padding = '10px'"
        )
        save_picture(page, args.out / "problem.png", "#problem")
        page.close()
    for run in args.pictures:
        path = write_report([run], folder / "report.html")
        name = json.loads((run / "config.json").read_text()).get("script", "eval")
        page, _ = open_page(browser, path, {"width": 1280, "height": 1300}, scale=0.8)
        save_picture(page, args.out / f"{name}-light.png")
        page.close()
        for kind, view in (("dark", {"scheme": "dark", "scale": 0.8}), ("phone", {"viewport": PHONE})):
            page, _ = open_page(browser, path, **view)
            if name in COLOURS:
                page.select_option("#colour", COLOURS[name])
            page.evaluate(
                "const half = rows => rows.filter(row => row.right).length === rows.length / 2;"
                "const telling = run().groups.findIndex(group => group.hint || half(group.rows));"
                "goTo(telling >= 0 ? telling : 8);"
                "document.getElementById('groups').scrollIntoView()"
            )
            save_picture(page, args.out / f"{name}-{kind}.png")
            page.close()


if __name__ == "__main__":
    main(parse(Args, __doc__))
