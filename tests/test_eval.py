"""eval.py: what it compares, its files, its flags, and what it shows."""

import itertools
import json
import math
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from mutants import mutant
from random_model import Float64
from toys import FakeSampler, FunctionTask

import eval as evaluation
from plainrl import curves, rollout
from plainrl.flags import EVAL_SEED
from plainrl.metrics import count, decompose, evaluate, pass_at_k, problem_values
from plainrl.models import load_model, save_model
from plainrl.tasks import Grade, load_task
from plainrl.world import ChainTask

ROOT = Path(__file__).resolve().parent.parent


# --- the comparison of two models ---------------------------------------------------------------------------


def samples_of(right: list[bool]) -> list[dict]:
    """Verdicts on a problem's samples, as eval.py keeps them."""
    return [
        {
            "parsed": str(int(ok)),
            "vote": str(int(ok)),
            "correct": ok,
            "why": "",
            "tokens": 5,
            "finish_reason": "stop",
        }
        for ok in right
    ]


def problem_row(index: int, right: list[bool], horizon: int = 1) -> dict:
    return count(samples_of(right), index, horizon, "here")


@mutant(
    "forgetting for gain",
    "plainrl/metrics.py",
    "(1 - solvable) * t, s * (1 - t)",
    "(1 - solvable) * t, t * (1 - s)",
)
def test_decomposition_equals_its_definition():
    """Catches a wrong part: the mean of Guide's indicators over every ordered choice of k old samples and
    every new one."""
    for old, new in itertools.product(
        itertools.product([True, False], repeat=4), [(True, False, False), (True,) * 3, (False,) * 3]
    ):
        for k in (1, 2, 4):
            counts = np.zeros(3)
            choices = list(itertools.product(itertools.permutations(old, k), new))
            for drawn, t in choices:
                s, solvable = drawn[0], any(drawn)
                counts += np.array([not s and solvable and t, not s and not solvable and t, s and not t])
            parts = decompose([problem_row(0, list(old))], [problem_row(0, list(new))], k)
            np.testing.assert_allclose(parts[0], counts / len(choices), atol=1e-12)


def results_of(name: str, problems: list[dict], **settings) -> dict:
    common = {
        "model": name,
        "problems_hash": "p",
        "split": "test",
        "samples": problems[0]["n"],
        "hint": False,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_new_tokens": 8,
        "grader": "g",
        "sampler": "HFSampler",
        "task": "t",
        "problems": len(problems),
    }
    settings = common | settings
    return {"settings": settings, "rows": evaluation.result_rows(problems, settings), "problems": problems}


def two_models(seed=0):
    rng = np.random.default_rng(seed)
    p = rng.beta(1, 1, 120)

    def problems(q):
        return [problem_row(i % 60, (rng.random(8) < q[i]).tolist(), 1 + i // 60) for i in range(120)]

    return results_of("old", problems(p)), results_of("new", problems(np.clip(p + 0.15, 0, 1)))


@mutant(
    "difference turned round",
    "plainrl/results.py",
    "new[name][chosen] - old[name][chosen]",
    "old[name][chosen] - new[name][chosen]",
)
@mutant(
    "losses never exclude zero",
    "plainrl/results.py",
    'entry["low"] is not None and not entry["low"] <= 0 <= entry["high"]',
    'entry["low"] is not None and entry["low"] > 0',
)
def test_paired_differences_and_parts_add_up():
    """Catches unpaired intervals (wider than the paired one), a sign turned round, parts that do not sum to
    the gain."""
    old, new = two_models()
    comparison = evaluation.compare(old, new)
    assert [row["horizon"] for row in comparison["rows"]] == [1, 2, "all"]
    for row in comparison["rows"]:
        entry, gain = row["metrics"]["avg@8"], row["gain"]
        assert (
            entry["value"] == pytest.approx(entry["after"] - entry["before"])
            and entry["excludes_zero"]
            and entry["low"] > 0
        )
        parts = (
            gain["self-distillation"]["value"]
            + gain["capability gain"]["value"]
            - gain["forgetting"]["value"]
        )
        assert parts == pytest.approx(entry["value"], abs=1e-12)
    single = new["rows"][-1]["metrics"]["avg@8"]
    paired = comparison["rows"][-1]["metrics"]["avg@8"]
    assert paired["high"] - paired["low"] < 0.6 * math.sqrt(2) * (single["high"] - single["low"])
    back = evaluation.compare(new, old)["rows"][-1]["metrics"]["avg@8"]
    assert back["value"] == pytest.approx(-paired["value"]) and back["excludes_zero"] and back["high"] < 0
    assert not evaluation.compare(old, old)["rows"][-1]["metrics"]["avg@8"]["excludes_zero"]


@mutant("gain split at n", "plainrl/results.py", "k = min(16, n)", "k = n")
def test_gain_is_split_at_guides_k():
    """Catches a solvability of other than 16 samples: with 20, of which the old model had 2 right, pass@16 is
    not 1."""
    old, new = (
        results_of(name, [problem_row(i, [True] * c + [False] * (20 - c)) for i in range(30)])
        for name, c in (("a", 2), ("b", 15))
    )
    row = evaluation.compare(old, new)["rows"][-1]
    solvable = pass_at_k(20, 2, 16)
    assert row["gain_k"] == 16 and row["gain"]["capability gain"]["value"] == pytest.approx(
        (1 - solvable) * 0.75
    )
    assert row["gain"]["self-distillation"]["value"] == pytest.approx((solvable - 0.1) * 0.75)
    assert row["forgetting_by_chance"] == pytest.approx(
        2 * 18 / (20 * 19)
    )  # an ordered pair of different samples, right then wrong


@pytest.mark.parametrize("name", evaluation.MUST_BE_EQUAL)
def test_comparison_of_different_measurements_is_refused(name):
    """Catches numbers of different problems, temperatures, lengths, hints, graders or samplers put side by
    side."""
    old, new = two_models()
    other = {**old, "settings": old["settings"] | {name: "another"}}
    with pytest.raises(SystemExit, match=f"error: --baseline: was measured with {name} another"):
        evaluation.check_comparable(other["settings"], new["settings"])


def test_shown_comparison(capsys):
    """Catches a table without the verdict, or with the sides exchanged."""
    evaluation.show_comparison(evaluation.compare(*two_models()))
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.startswith("avg@8 ")).split()
    assert float(line[1]) < float(line[2]) and line[-1] == "yes" and line[3].startswith("+0.")
    assert "avg@8, horizon 2" in shown and re.search(r"\+capability gain +0\.\d+ \[", shown)


# --- by horizon and by run ----------------------------------------------------------------------------------


def test_a_range_of_horizons_is_measured_at_each(tmp_path):
    """Catches chains of a user's own problems that are measured as a mixture, or at another horizon."""
    rows = [
        json.dumps({"prompt": f"What is {n} and {n + 7}?", "answer": str(2 * n + 7)}) for n in range(10, 50)
    ]
    (tmp_path / "sums.jsonl").write_text("\n".join(rows))
    for task in ("chain?horizon=2-4&family=mixed", f"jsonl:{tmp_path / 'sums.jsonl'}?horizon=2-4"):
        found = evaluation.tasks_of(evaluation.Args(task=task))
        assert [each.problem("test", 0, 0).horizon for each in found] == [2, 3, 4]
        assert getattr(found[0], "family", "mixed") == "mixed"


@mutant(
    "independent errors multiplied",
    "plainrl/results.py",
    "np.mean(single) ** horizon",
    "np.mean(single) * horizon",
)
def test_rows_by_horizon_and_run():
    """Catches horizons mixed up, p^h of the wrong p, runs taken along the wrong axis."""
    problems = [
        problem_row(0, [True, True, False, True]),
        problem_row(1, [True, False, False, True]),
        problem_row(0, [True, False, False, False], 2),
        problem_row(1, [False] * 4, 2),
    ]
    rows = {row["horizon"]: row for row in results_of("m", problems)["rows"]}
    assert rows[1]["metrics"]["avg@4"]["value"] == 5 / 8 and rows[2]["metrics"]["avg@4"]["value"] == 1 / 8
    assert (
        rows[1]["independent_errors"] == 5 / 8
        and rows[2]["independent_errors"] == 25 / 64
        and rows["all"]["independent_errors"] is None
    )
    assert rows[1]["runs"] == {"count": 4, "min": 0, "max": 1, "spread": 1} and rows[2]["runs"]["max"] == 0.5
    assert rows["all"]["metrics"]["pass@4"]["value"] == 3 / 4 and rows["all"]["problems"] == 4


def test_every_row_says_how_it_was_measured(toy_model, tmp_path):
    """Catches a number that nobody can repeat: template, system text, temperature, top-p, seed and grader in
    every row."""
    flags = dict(
        problems=2, samples=3, max_new_tokens=6, system_prompt="Be brief.", top_p=0.9, temperature=0.7
    )
    args = evaluation.Args(model=toy_model, task="chain?horizon=1-2", out_dir=tmp_path / "out", **flags)
    results = evaluation.main(args)
    for row in results["rows"]:
        assert (row["system_prompt"], row["temperature"], row["top_p"], row["seed"]) == (
            "Be brief.",
            0.7,
            0.9,
            0,
        )
        assert row["grader"] == "plain integers"
        assert "{problem}" in row["prompt_template"] and "Be brief." in row["prompt_template"]
    samples = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert len(samples) == 12 and len({row["seed"] for row in samples}) == 12
    for row in samples:
        assert row["system_prompt"] == "Be brief." and row["temperature"] == 0.7 and row["model"] == toy_model
        assert row["correct"] == (row["parsed"] is not None and row["parsed"] == row["gold"])


# --- the training scripts' score ----------------------------------------------------------------------------


class Words:
    """A tokenizer: a token is a letter."""

    chat_template = None
    encode = staticmethod(lambda text: [ord(letter) for letter in text])
    decode = staticmethod(lambda ids, **_: "".join(map(chr, ids)))


def test_evaluate_agrees_with_the_tables_numbers():
    """Catches training scores that mean something else than eval.py's."""
    rng = random.Random(3)
    sampler = FakeSampler(lambda prompt, sample, seed: ([ord(rng.choice("00123"))], "stop"))
    metrics, rows = evaluate(sampler, Words, FunctionTask(lambda text, problem: text == "0"), "dev", 30, 8, 4)
    entries = results_of("m", rows)["rows"][0]["metrics"]
    assert {name: entries[name]["value"] for name in metrics} == pytest.approx(metrics)
    assert 0 < metrics["maj@8"] < 1 and metrics["pass@8"] > metrics["avg@8"] == metrics["score"]


@mutant(
    "score that counts right answers only",
    "plainrl/metrics.py",
    '"score": grade.score,',
    '"score": float(grade.correct),',
)
@mutant(
    "scores that stop at 0 and 1",
    "plainrl/metrics.py",
    'if name != "len_mean" and least <= values.min() and values.max() <= 1:',
    'if name != "len_mean":',
)
def test_score_of_a_grader_with_partial_scores(capsys):
    """Catches a mean score that sees right and wrong alone: a run on a graded reward that is never exactly 1
    would then keep its first model. And an interval cut off where scores may be larger."""
    task = FunctionTask(lambda text, problem: {"0": 1, "1": 0.25, "2": -3}[text])
    sampler = FakeSampler(lambda prompt, sample, seed: ([ord("0112"[sample])], "stop"))
    metrics, rows = evaluate(sampler, Words, task, "dev", 5, 4, 4)
    assert next(iter(metrics)) == "score" and metrics["score"] == (1 + 0.25 + 0.25 - 3) / 4
    assert metrics["avg@4"] == 0.25 and [row["score"] for row in rows] == [-1.5] * 5
    results = results_of("m", rows)
    entry = results["rows"][0]["metrics"]["score"]
    assert entry["value"] == -0.375 and entry["low"] < -0.375
    evaluation.show(results)
    assert re.search(r"^score +-0.375 ", capsys.readouterr().out, re.M)
    old = [{name: value for name, value in row.items() if name != "score"} for row in rows]
    assert results_of("m", old)["rows"][0]["metrics"]["score"]["value"] == 0.25  # files without scores


# --- the files ----------------------------------------------------------------------------------------------

QUICK = dict(
    task="chain?horizon=1-2", problems=6, samples=4, max_new_tokens=6, rows_at_once=8
)  # six batches of two problems


def test_results_do_not_depend_on_when_it_was_killed(toy_model, tmp_path):
    """Killed with SIGKILL ten times, at moments drawn from the length of an undisturbed run, and continued
    each time until it ends: samples and results are byte for byte those of the undisturbed run."""
    driver = str(Path(__file__).with_name("kill_driver.py"))
    done = subprocess.run(
        [sys.executable, driver, toy_model, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["killed"] == 10 and report["ended"]
    assert (
        len(set(report["samples_on_disk"])) >= 4 and max(report["samples_on_disk"]) > 0
    )  # kills at different depths
    for name in ("samples.jsonl", "results.json", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), (
            name
        )


def test_half_a_batch_is_sampled_again(toy_model, tmp_path, capsys):
    """Catches a half line that breaks the JSON, a batch counted twice, and samples that depend on where one
    stopped."""
    flags = QUICK | {"model": toy_model}
    whole = evaluation.main(evaluation.Args(**flags, out_dir=tmp_path / "whole"))
    text = (tmp_path / "whole/samples.jsonl").read_text()
    lines = text.splitlines(keepends=True)
    for i, kept in enumerate(
        ("", "".join(lines[:3]), "".join(lines[:8]), "".join(lines[:21]) + lines[21][:30], text[:-1])
    ):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "config.json").write_bytes((tmp_path / "whole/config.json").read_bytes())
        (folder / "samples.jsonl").write_text(kept)
        assert evaluation.main(evaluation.Args(**flags, out_dir=folder)) == whole
        assert (folder / "samples.jsonl").read_text() == text
    capsys.readouterr()
    (tmp_path / "whole/samples.jsonl").unlink()  # finished: nothing is sampled again
    assert evaluation.main(evaluation.Args(**flags, out_dir=tmp_path / "whole")) == whole
    assert "measured before" in capsys.readouterr().out


@mutant(
    "evaluation: a traceback of a full disk",
    "eval.py",
    "        append_or_fail(path, new)\n",
    '        with open(path, "a") as file:\n            file.writelines(map(str, new))\n',
)
def test_a_full_disk_is_one_line(toy_model, tmp_path, monkeypatch):
    """Catches a traceback where samples or results cannot be written, and samples that are lost by it."""
    flags = QUICK | {"model": toy_model}
    whole = evaluation.main(evaluation.Args(**flags, out_dir=tmp_path / "whole"))
    path, aside = tmp_path / "a/samples.jsonl", tmp_path / "before"
    sample_batch = evaluation.sample_batch

    def full_after_a_batch(*arguments):
        rows = sample_batch(*arguments)
        if path.exists():
            path.rename(aside)
            path.symlink_to("/dev/full")
        return rows

    monkeypatch.setattr(evaluation, "sample_batch", full_after_a_batch)
    said = "^error: .*samples.jsonl: cannot be written .No space left on device.; the same command goes on"
    with pytest.raises(SystemExit, match=said):
        evaluation.main(evaluation.Args(**flags, out_dir=tmp_path / "a"))
    monkeypatch.undo()
    aside.replace(path)
    assert len(path.read_text().splitlines()) == 8
    (tmp_path / "a/results.json.tmp").mkdir()
    said = "^error: --out-dir .*results.json: cannot be written .*; nothing is lost: the same command"
    with pytest.raises(SystemExit, match=said):
        evaluation.main(evaluation.Args(**flags, out_dir=tmp_path / "a"))
    (tmp_path / "a/results.json.tmp").rmdir()
    monkeypatch.setattr(evaluation, "sample_batch", None)  # nothing is sampled again
    assert evaluation.main(evaluation.Args(**flags, out_dir=tmp_path / "a")) == whole
    assert path.read_bytes() == (tmp_path / "whole/samples.jsonl").read_bytes()


def test_a_folder_belongs_to_one_measurement(toy_model, tmp_path, monkeypatch):
    """Catches samples of two temperatures in one file, a stranger's folder filled with results, two settings
    in one default folder, and a traceback where the settings of a folder are damaged."""
    flags = QUICK | {"model": toy_model, "problems": 1}
    evaluation.main(evaluation.Args(**flags, out_dir=tmp_path / "a"))
    with pytest.raises(
        SystemExit, match=f"error: --out-dir {tmp_path / 'a'}: temperature was 1.0 and is now 0.5; choose"
    ):
        evaluation.main(evaluation.Args(**flags, temperature=0.5, out_dir=tmp_path / "a"))
    (tmp_path / "a/config.json").write_text("{broken")
    with pytest.raises(SystemExit, match=f"error: --out-dir {tmp_path / 'a'}: its config.json is damaged; "):
        evaluation.main(evaluation.Args(**flags, out_dir=tmp_path / "a"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b/thesis.tex").write_text("")
    with pytest.raises(SystemExit, match="has files, and no config.json of this tool"):
        evaluation.main(evaluation.Args(**flags, out_dir=tmp_path / "b"))
    monkeypatch.chdir(tmp_path)
    for temperature in (1.0, 0.5):
        evaluation.main(evaluation.Args(**flags, temperature=temperature))
    assert len(list((tmp_path / "runs/eval").iterdir())) == 2


def test_two_processes_do_not_share_a_folder(toy_model, tmp_path):
    """Catches interleaved samples."""
    (tmp_path / "a").mkdir()
    code = (
        "import sys, pathlib; from plainrl import folder; lock = folder.lock(pathlib.Path(sys.argv[1])); "
        "print('locked', flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a")]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(SystemExit, match="another process is writing there"):
            evaluation.main(
                evaluation.Args(
                    model=toy_model, problems=1, samples=2, max_new_tokens=2, out_dir=tmp_path / "a"
                )
            )
        other.kill()


def test_samples_do_not_depend_on_the_batch(toy_model, tmp_path, monkeypatch):
    """Catches a seed that depends on the place in the batch."""
    monkeypatch.setattr("transformers.AutoModelForCausalLM", Float64)
    flags = QUICK | {"model": toy_model}
    texts = []
    for i, rows in enumerate((8, 1000, 1)):
        evaluation.main(evaluation.Args(**flags | {"rows_at_once": rows}, out_dir=tmp_path / str(i)))
        rows = [json.loads(line) for line in (tmp_path / str(i) / "samples.jsonl").read_text().splitlines()]
        texts.append(
            {(row["horizon"], row["index"], row["sample"]): (row["completion"], row["seed"]) for row in rows}
        )
    assert texts[0] == texts[1] == texts[2] and len({seed for _, seed in texts[0].values()}) == len(texts[0])


@mutant("one stream for all models", "eval.py", "job.index, stream, sample)", "job.index, 0, sample)")
def test_models_draw_numbers_of_their_own(toy_model, tmp_path):
    """Catches one stream of random numbers for both sides of a comparison, whose chance agreement would pass
    for forgetting and self-distillation; --seed draws again."""
    other, _ = load_model(toy_model)
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    save_model(tmp_path / "other", other, load_model(toy_model)[1])
    seeds = []
    for i, changes in enumerate(({}, {"model": str(tmp_path / "other")}, {"seed": 1})):
        evaluation.main(
            evaluation.Args(
                **QUICK | {"model": toy_model, "problems": 1} | changes, out_dir=tmp_path / str(i)
            )
        )
        seeds.append(
            [
                json.loads(line)["seed"]
                for line in (tmp_path / str(i) / "samples.jsonl").read_text().splitlines()
            ]
        )
    assert len(set(sum(seeds, []))) == 3 * len(seeds[0])


def test_baseline_in_one_command_and_from_a_folder(toy_model, tmp_path, capsys, monkeypatch):
    """Catches a baseline measured on other problems, measured twice, or not written down."""
    monkeypatch.chdir(tmp_path)
    other, tokenizer = load_model(toy_model)
    with torch.no_grad():
        other.lm_head.weight.mul_(1.5)
    save_model(tmp_path / "other", other, tokenizer)
    flags = QUICK | {"model": "other"}
    results = evaluation.main(evaluation.Args(**flags, baseline=toy_model, out_dir=Path("a")))
    assert (
        "Where the gain over the baseline in avg@4 comes from" in capsys.readouterr().out
        and (tmp_path / "a-baseline/results.json").exists()
    )
    (written,) = (tmp_path / "a").glob("against-*.json")
    assert json.loads(written.read_text()) == json.loads(json.dumps(results["comparison"]))
    again = evaluation.main(evaluation.Args(**flags, baseline="a-baseline", out_dir=Path("a")))
    assert (
        again["comparison"] == results["comparison"] and capsys.readouterr().out.count("measured before") == 1
    )
    with pytest.raises(
        SystemExit, match="error: --baseline: was measured with temperature 1.0, the model with 0.5"
    ):
        evaluation.main(evaluation.Args(**flags, temperature=0.5, baseline="a-baseline", out_dir=Path("b")))
    assert not (tmp_path / "b").exists()  # before anything is sampled
    (tmp_path / "a-baseline/results.json").unlink()
    with pytest.raises(SystemExit, match="error: --baseline a-baseline: is no finished evaluation"):
        evaluation.main(evaluation.Args(**flags, baseline="a-baseline", out_dir=Path("b")))


def test_plot_of_several_results(tmp_path, monkeypatch):
    """Catches curves without bands, of one horizon instead of all, one model under the other's name, and a
    folder without results."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder, results in zip(folders, two_models()):
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(results))
    evaluation.main(evaluation.Args(plot=tuple(folders), out_dir=tmp_path / "new"))
    assert (tmp_path / "new/pass_at_k.png").stat().st_size > 10_000
    drawn = {}
    monkeypatch.setattr(curves, "plot_bands", lambda curves, *rest: drawn.update(curves))
    evaluation.main(evaluation.Args(plot=tuple(folders)))
    for folder, (label, (ks, middle, low, high)) in zip(folders, drawn.items()):
        row = json.loads((folder / "results.json").read_text())["rows"][-1]
        assert row["horizon"] == "all" and folder.name in label and ks == [*range(1, 9)]
        assert middle == [row["metrics"][f"pass@{k}"]["value"] for k in ks] == sorted(middle)
        assert all(a < b < c for a, b, c in zip(low, middle, high))
    (folders[0] / "results.json").write_text('{"results": {}}')
    (folders[1] / "results.json").write_text("{broken")
    reasons = ("No such file or directory", "'settings' is missing", "it is no JSON")
    for folder, reason in zip((tmp_path, *folders), reasons):
        said = f"error: --plot {folder}: is no finished evaluation of eval.py \\(results.json: {reason}\\);"
        with pytest.raises(SystemExit, match=said):
            evaluation.main(evaluation.Args(plot=(folder,)))


# --- the flags ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(samples=0), "--samples 0: must be at least 1"),
        (dict(problems=0), "--problems 0: must be at least 1"),
        (dict(max_new_tokens=0), "--max-new-tokens 0: must be at least 1"),
        (dict(rows_at_once=0), "--rows-at-once 0: must be at least 1"),
        (dict(temperature=-1.0), "--temperature -1"),
        (dict(temperature=math.nan), "--temperature nan"),
        (dict(temperature=0.0, samples=2), "--temperature 0 --samples 2: greedy samples are all equal"),
        (dict(temperature=1e-30), "--temperature 1e-30: must be at least 0.01, or 0 for greedy sampling"),
        (dict(samples=10**9), "--samples 1000000000: must be at least 1 and at most 10,000"),
        (dict(max_new_tokens=506), "--max-new-tokens 506: test problem 0 has"),
        (dict(top_p=0.0), "--top-p 0.0: must be above 0"),
        (dict(seed=-1), "--seed -1"),
        (dict(task="chain?horizon=11"), "--task chain: horizon=11 is not within"),
        (dict(split="all"), "split 'all' is not one of"),
        (
            dict(task="gym:leg_counting", hint=True),
            "--hint: problem 0 of --task gym:leg_counting has no hint",
        ),
        (dict(baseline="nothing/here"), "--model nothing/here: cannot be loaded"),
        (dict(model="nothing/here", baseline="models/tiny"), "--model nothing/here: cannot be loaded"),
        (dict(out_dir=ROOT / "README.md"), f"--out-dir {ROOT / 'README.md'}: is a file"),
    ],
)
def test_bad_flags(toy_model, tmp_path, changes, said):
    """Catches a flag that cannot work and gives a number all the same, or a pile of traceback."""
    flags = {
        "model": toy_model,
        "problems": 1,
        "samples": 1,
        "max_new_tokens": 2,
        "out_dir": tmp_path / "out",
    }
    with pytest.raises(SystemExit) as stop:
        evaluation.main(evaluation.Args(**flags | changes))
    assert stop.value.code.startswith(f"error: {said}") and "\n" not in stop.value.code


@mutant(
    "evaluation without the flag for thinking",
    "eval.py",
    "    set_thinking(tokenizer, args.enable_thinking)\n",
    "",
)
def test_enable_thinking_is_in_the_prompt(toy_model, tmp_path):
    """Catches a flag that is recorded, and prompts that are made without it."""
    model = tmp_path / "model"
    shutil.copytree(toy_model, model)
    template = "{{ messages[0]['content'] }}{% if enable_thinking is false %} no{% endif %}"
    (model / "chat_template.jinja").write_text(template)
    flags = dict(model=str(model), problems=1, samples=1, max_new_tokens=2)
    for choice, end in ((None, "{problem}"), ("no", "{problem} no")):
        out = tmp_path / str(choice)
        results = evaluation.main(evaluation.Args(**flags, enable_thinking=choice, out_dir=out))
        assert results["settings"].get("enable_thinking") == choice
        assert results["settings"]["prompt_template"].endswith(end)


def test_presets_fill_what_is_left_open(toy_model, tmp_path):
    """Catches a protocol of a paper that is not the paper's, and a flag that a preset overrules."""

    def settled(**flags):
        args = evaluation.Args(**flags)
        evaluation.check_args(args)
        return args.temperature, args.samples

    assert settled(preset="siren-32") == (0.6, 32) and settled(preset="siren-8") == (0.6, 8)
    assert settled(preset="h1-greedy") == (0.0, 1) and settled(preset="h1-avg32")[1] == 32
    assert (
        settled(preset="siren-32", samples=4) == (0.6, 4)
        and settled() == (1.0, 16)
        and settled(temperature=0.0) == (0.0, 1)
    )
    assert all(
        tyro.cli(evaluation.Args, args=["--preset", name]).preset == name for name in evaluation.PRESETS
    )


def test_how_many_problems(toy_model, tmp_path):
    """Catches a small file measured in part or several times over; `all` is every problem of it, in all three
    splits."""
    path = tmp_path / "mine.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"What is {i} + 1?", "answer": i + 1}) + "\n" for i in range(30))
    )
    (tmp_path / "few.jsonl").write_text('{"prompt": "What is 6 x 7?", "answer": "42"}\n')
    few = evaluation.Args(
        model=toy_model, task=f"jsonl:{tmp_path / 'few.jsonl'}", split="all", samples=1, max_new_tokens=2
    )
    assert evaluation.main(replace(few, out_dir=tmp_path / "few"))["settings"]["problems"] == 1
    flags = dict(model=toy_model, task=f"jsonl:{path}", samples=1, max_new_tokens=2)
    for split, expected in (("test", 3), ("all", 30)):
        assert (
            evaluation.main(evaluation.Args(**flags, split=split, out_dir=tmp_path / split))["settings"][
                "problems"
            ]
            == expected
        )
    chain = evaluation.main(
        evaluation.Args(model=toy_model, samples=1, max_new_tokens=2, problems=3, out_dir=tmp_path / "chain")
    )
    assert [row["horizon"] for row in chain["rows"]] == [1, 2, 3, 4, 5, "all"] and chain["settings"][
        "problems"
    ] == 15


@mutant(
    "top-p ignored",
    "eval.py",
    "args.temperature, args.system_prompt, args.top_p)",
    "args.temperature, args.system_prompt)",
)
def test_another_sampler_can_take_its_place(toy_model, tmp_path, monkeypatch):
    """Catches a use of anything but the sampler's contract: one that only has `generate` is enough."""

    class Other:
        def generate(self, prompt_ids, n, max_new_tokens, temperature, seeds, top_p):
            assert len(seeds) == len(prompt_ids) * n and (n, max_new_tokens, temperature, top_p) == (
                4,
                6,
                0.7,
                0.9,
            )
            return [rollout.Completion([7, 8], [0.0, 0.0], "length") for _ in seeds]

    monkeypatch.setattr(evaluation, "make_sampler", lambda *arguments: Other())
    results = evaluation.main(
        evaluation.Args(**QUICK | {"model": toy_model}, temperature=0.7, top_p=0.9, out_dir=tmp_path / "out")
    )
    assert (
        results["settings"]["sampler"] == "Other"
        and results["rows"][-1]["metrics"]["frac_truncated"]["value"] == 1
    )


def test_timeouts_and_errors_are_rates_of_their_own():
    """Catches a grader's failure that looks like a wrong answer."""
    samples = [
        sample | {"why": why}
        for sample, why in zip(samples_of([False] * 4), ["timeout", "crash", "error: x", "wrong"])
    ]
    values = problem_values(count(samples, 0, 1, ""))
    assert (values["frac_timeout"], values["frac_errors"]) == (0.25, 0.5)


def test_partial_credit_is_not_correct(toy_model, tmp_path, monkeypatch):
    """Catches a score of a half counted as right: reasoning-gym's scorers give such scores."""
    monkeypatch.setattr(ChainTask, "grade", lambda self, completion, problem: Grade(False, 0.5, "1", "wrong"))
    results = evaluation.main(evaluation.Args(**QUICK | {"model": toy_model}, out_dir=tmp_path / "out"))
    assert (
        results["rows"][-1]["metrics"]["avg@4"]["value"] == 0
        and results["rows"][-1]["metrics"]["frac_unparsed"]["value"] == 0
    )
    assert {
        json.loads(line)["score"] for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()
    } == {0.5}


def test_prompts_are_sorted_by_length(toy_model):
    """Catches batches whose short prompts are padded to the longest of all."""
    _, tokenizer = load_model(toy_model)
    args = evaluation.Args(problems=5)
    jobs = evaluation.jobs_of([load_task("chain?horizon=4"), load_task("chain?horizon=1")], args, tokenizer)
    lengths = [len(job.prompt_ids) for job in jobs]
    assert (
        lengths == sorted(lengths)
        and len(set(lengths)) > 3
        and {job.problem.horizon for job in jobs[:5]} == {1}
    )


def test_ctrl_c_is_one_line(toy_model, tmp_path, monkeypatch):
    """Catches a traceback where one line says how to go on."""

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "sample_batch", stop)
    with pytest.raises(SystemExit, match="stopped; the same command goes on"):
        evaluation.main(evaluation.Args(**QUICK | {"model": toy_model}, out_dir=tmp_path / "out"))


@mutant(
    "prompts with their template",
    "eval.py",
    'plain = {"prompt": job.problem.prompt}',
    'plain = {"prompt": tokenizer.decode(job.prompt_ids)}',
)
@mutant("hints that are not logged", "eval.py", "if job.prompt == job.problem.prompt:", "if True:")
def test_the_prompt_is_logged_as_in_training(toy_model, tmp_path):
    """Catches a hint that is not in the prompt, a log in which a problem stands among the marks of a chat
    template, and one that does not say what the model read instead of the problem alone."""
    evaluation.main(evaluation.Args(**QUICK | {"model": toy_model}, hint=True, out_dir=tmp_path / "out"))
    rows = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    problem = load_task("chain?horizon=2").problem("test", 0, EVAL_SEED)
    row = next(row for row in rows if (row["horizon"], row["index"]) == (2, 0))
    assert (row["prompt"], row["hint"]) == (problem.prompt, problem.hint)
    assert f"Hint: {problem.hint}" in row["sampled_prompt"] and problem.prompt in row["sampled_prompt"]
    evaluation.main(evaluation.Args(**QUICK | {"model": toy_model}, out_dir=tmp_path / "plain"))
    rows = [json.loads(line) for line in (tmp_path / "plain/samples.jsonl").read_text().splitlines()]
    row = next(row for row in rows if (row["horizon"], row["index"]) == (2, 0))
    assert row["prompt"] == problem.prompt and not {"hint", "sampled_prompt"} & row.keys()
