"""The experiment of benchmarks/off_policy.py: same terms for all losses, and tables that say what the logs
say."""

import functools
import json
import shlex

import pytest
from committed_runs import flags_of

import grpo
from benchmarks import off_policy
from papers import cispo, dapo, dr_grpo, gspo

SCRIPTS = {"grpo.py": grpo} | {
    f"papers/{name}.py": script
    for name, script in dict(dr_grpo=dr_grpo, dapo=dapo, cispo=cispo, gspo=gspo).items()
}
OWN = {"lr", "clip_low", "clip_high"}  # what a setting may set


@functools.cache
def flags(arm: str, setting: str) -> dict:
    script, *words = shlex.split(off_policy.command(arm, setting, 7))
    return flags_of(SCRIPTS[script], words)


def test_all_losses_run_on_the_same_terms():
    """Catches a loss with another task, seed, batch, number of completions or of trials than the others of
    its regime, and a regime with another number of completions."""
    for regime in off_policy.REGIMES:
        arms = [arm for arm in off_policy.SETTINGS if arm.startswith(f"{regime}/")]
        assert len({len(off_policy.SETTINGS[arm]) for arm in arms}) == 1
        common = flags("reuse/grpo", "--lr 1").keys() & flags("reuse/cispo", "--lr 1").keys() - OWN
        terms = [
            {name: flags(arm, setting)[name] for name in common}
            for arm in arms
            for setting in off_policy.SETTINGS[arm]
        ]
        assert all(each == terms[0] for each in terms)
        assert terms[0]["steps"] * terms[0]["prompts_per_step"] == 1280
        rates = [{flags(arm, s)["lr"] for s in off_policy.SETTINGS[arm]} for arm in arms]
        assert all(each == rates[0] and len(each) == 3 for each in rates)
    token_clip = flags("reuse/token_clip", off_policy.SETTINGS["reuse/token_clip"][0])
    assert not token_clip["dynamic_sampling"] and token_clip["overlong_buffer"] == 0


def write_run(folder, right: list[int], dev: list[float], clipped: float) -> None:
    """The logs of a finished run: 16 samples of each test problem, dev scores after steps 0, 16, ..."""
    folder.mkdir(parents=True)
    (folder / "test.json").write_text(json.dumps({"correct": right, "parsed": [16] * len(right)}))
    records = [{"step": 16 * i, "eval/chain/avg@16": value} for i, value in enumerate(dev)]
    records.append(
        {"step": 80, "policy/clip_frac": clipped, "policy/ratio_max": 3.0, "rollout/tokens_total": 9}
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_table_by_hand(tmp_path):
    """Catches a difference of other seeds, a mean with the score before the first step, and a loss that is
    counted from the first score. Two problems; token_clip has 8 of 32 right, CISPO 16 and 20."""
    for seed, right in ((1, [16, 0]), (2, [16, 4])):
        write_run(tmp_path / f"reuse/token_clip/seed{seed}", [8, 0], [0.1, 0.2, 0.4], 0.25)
        write_run(tmp_path / f"reuse/cispo/seed{seed}", right, [0.1, 0.5, 0.3], 0.125)
    header, _, clip, ours = [
        line.strip("| ").split(" | ") for line in off_policy.report(tmp_path)["reuse"].split("\n")
    ]
    ours, clip = dict(zip(header, ours)), dict(zip(header, clip))
    assert clip["reuse"] == "token mean, PPO's clip" and ours["reuse"] == "CISPO"
    # 12.706 is the t of two seeds: (0.5, 0.625) have mean 0.5625 and half width 12.706 * 0.0625
    assert ours["avg@16"] == "0.562 ± 0.794" and clip["avg@16"] == "0.250 ± 0.000"
    assert ours["avg@16 minus its pair"] == "+0.312 ± 0.794"
    assert ours["mean dev avg@16 minus its pair"] == "+0.100 ± 0.000"  # 0.4 - 0.3
    assert ours["lost since its best"] == "0.200 ± 0.000" and clip["lost since its best"] == "0.000 ± 0.000"
    assert ours["pass@16"] == "0.750 ± 3.176" and ours["clipped tokens"] == "0.125 ± 0.000"


def test_best_setting_is_chosen_when_all_were_tried(tmp_path, monkeypatch):
    """Catches a choice before the trials are over, and one by another number than the last two dev scores."""
    arm = "on_policy/grpo"
    settings = off_policy.SETTINGS[arm]
    trial = lambda *values: {"avg@16": [0.9, *values], "pass@16": [0.9, *values]}  # noqa: E731
    trials = {arm: {settings[0]: trial(0.2, 0.3), settings[1]: trial(0.4, 0.5)}}
    assert off_policy.chosen(trials) == {}
    trials[arm][settings[2]] = trial(0.8, 0.0)
    assert off_policy.chosen(trials) == {arm: settings[1]}
    args = off_policy.Args(only=("reuse/gspo",), out=tmp_path / "none")
    with pytest.raises(SystemExit, match="no setting is chosen for reuse/gspo; --trials"):
        off_policy.main(args)
