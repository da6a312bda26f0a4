"""The real loop of the training scripts: output folder, resume, flags, guards, order of rows, learning,
diffs."""

import ast
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zlib
from dataclasses import fields
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
import tyro
from mutants import mutant
from toys import FakeSampler, FirstLetterTask, FunctionTask, HashTask, column, quick_flags, records
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import eval as evaluation
import grpo
import guide
import h1_curriculum
import plainrl.folder as folder_module
import plainrl.run as run_module
import siren
from benchmarks.checks.diffs import BASES
from papers import (
    adaptive_bonus,
    adarft,
    cispo,
    clip_cov,
    dapo,
    dr_grpo,
    e2h,
    entropy_advantage,
    gspo,
    guide_ablations,
    high_entropy_tokens,
    kl_cov,
    naive_bonus,
    passk,
    rloo,
    srpo,
)
from plainrl import curves, models, sampler
from plainrl.flags import parse, resolve_defaults
from plainrl.folder import LOGS
from plainrl.metrics import evaluate
from plainrl.rollout import completion_seed
from plainrl.scoring import score
from plainrl.sources import ListTask
from plainrl.tasks import Grade, Problem, load_task

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "models" / "tiny"
real_plot_run = curves.plot_run
FLAGSHIPS = [grpo, siren, guide, h1_curriculum]
ENTROPY = [naive_bonus, adaptive_bonus, entropy_advantage, high_entropy_tokens, clip_cov, kl_cov]
SCRIPTS = [*FLAGSHIPS, dr_grpo, dapo, rloo, cispo, gspo, adarft, e2h, guide_ablations, *ENTROPY]
SCRIPTS += [passk, srpo]
ALGORITHMS = [grpo, dr_grpo, dapo, siren]
NEEDED = {  # flags without which a quick run of a script cannot be
    h1_curriculum: dict(max_horizon=2, steps_per_stage=2),
    adarft: dict(max_horizon=2),
    e2h: dict(max_horizon=2),
}


def name_of(script) -> str:
    return script.__name__.split(".")[-1]


each_script = pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
each_flagship = pytest.mark.parametrize(
    "script", [*FLAGSHIPS, dapo, adaptive_bonus, adarft], ids=name_of
)  # with a state of their own
each_algorithm = pytest.mark.parametrize("script", ALGORITHMS, ids=name_of)
each_loop = pytest.mark.parametrize("script", [*FLAGSHIPS, dapo], ids=name_of)
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def run(toy_model, tmp_path):
    """run(script, name, task=..., sampler=..., **flags) -> the output folder of a quick run."""

    def function(script, name="run", task=None, sampler=None, **changes) -> Path:
        flags = quick_flags(toy_model, tmp_path / name, **(NEEDED.get(script, {}) | changes))
        script.main(script.Args(**flags), task=task or HashTask(), sampler=sampler)
        return tmp_path / name

    return function


@pytest.fixture
def words(toy_model):
    """The toy model's tokenizer, and a function that makes ids of text."""
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    return tokenizer, lambda text: tokenizer.encode(text)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())


def equal_weights(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def watch(monkeypatch, owner, name: str) -> list[tuple]:
    """Remember the positional arguments of every call of owner.name."""
    original, calls = getattr(owner, name), []

    def function(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, function)
    return calls


# --- stopped and resumed ------------------------------------------------------------------------------------


@mutant(
    "resume repeats a step",
    "plainrl/run.py",
    "self.state, self.saved = self.state | state, True\n",
    'self.state, self.saved = self.state | state, True\n        self.state["step"] -= 1\n',
    case="grpo",
)
@mutant(
    "resume skips a step",
    "plainrl/run.py",
    "self.state, self.saved = self.state | state, True\n",
    'self.state, self.saved = self.state | state, True\n        self.state["step"] += 1\n',
    case="grpo",
)
@mutant(
    "resume forgets the optimizer",
    "plainrl/folder.py",
    "        ranks.load_optimizer(model, optimizer, saved)\n",
    "        pass\n",
    case="grpo",
)
@each_flagship
def test_ctrl_c_finishes_the_step_and_resumes(run, script, capsys):
    """Catches a Ctrl-C that loses the step, leaves no checkpoint, or a resume from it that differs."""

    class Interrupting(HashTask):
        def problem(self, split, index, seed):
            scored = any(split == "dev" for split, _ in self.asked[6:])  # guide.py looks for hints before
            if (split, index) == ("train", 1) and scored:  # in the first step
                os.kill(os.getpid(), signal.SIGINT)
            return super().problem(split, index, seed)

    flags = dict(steps=3, save_every=100, eval_every=100)
    stopped = run(script, "stopped", Interrupting(), **flags)
    state = json.loads((stopped / "last" / "state.json").read_text())
    assert 1 <= state["step"] < 3 and records(stopped)[-1]["step"] == state["step"]
    assert "--resume" in capsys.readouterr().out
    assert not (stopped / "final").exists()
    run(script, "stopped", resume=True, **flags)
    whole = run(script, "whole", **flags)
    assert records(stopped) == records(whole) and equal_weights(stopped / "last", whole / "last")
    for name in LOGS[1:]:
        assert (stopped / name).read_text() == (whole / name).read_text(), name


@mutant(
    "resume logs a step twice",
    "plainrl/folder.py",
    'elif record["step"] > last_step:',
    'elif record["step"] > last_step + 1:',
)
@mutant("resume logs step 0 twice", "plainrl/run.py", "self.first_step or -1", "self.first_step")
def test_run_that_broke_before_its_first_checkpoint_starts_again(run):
    """Catches a resume without a checkpoint that refuses, or that logs the scores before the first step
    twice."""

    class Breaking(HashTask):
        def problem(self, split, index, seed):
            if (split, index) == ("train", 2):
                raise RuntimeError("the disk is full")
            return super().problem(split, index, seed)

    with pytest.raises(RuntimeError, match="disk is full"):
        run(grpo, "broken", Breaking(), steps=2)
    ours, whole = run(grpo, "broken", resume=True, steps=2), run(grpo, "whole", steps=2)
    assert records(ours) == records(whole) and equal_weights(ours / "last", whole / "last")


# --- the output folder --------------------------------------------------------------------------------------

STEP_KEYS = {
    "step",
    "reward/mean",
    "reward/frac_zero_std",
    "reward/frac_all_wrong",
    "reward/frac_all_right",
    "reward/errors",
    "rollout/len_mean",
    "rollout/len_right",
    "rollout/len_wrong",
    "rollout/frac_truncated",
    "rollout/frac_unparsed",
    "rollout/logprob_gap",
    "rollout/gap_max",
    "rollout/tokens_total",
    "policy/entropy",
    "policy/clip_frac",
    "policy/ratio_max",
    "loss/policy",
    "loss/total",
    "optim/grad_norm",
    "optim/lr",
    "optim/skipped",
    "time/rollout",
    "time/train",
    "time/sync",
    "time/eval",
    "time/total",
    "perf/tokens_per_s",
    "perf/peak_gb",
}
SCORES = {"score", "avg@2", "pass@2", "maj@2", "frac_unparsed", "frac_truncated", "len_mean"}
DAPO_KEYS = {"dapo/rounds", "dapo/frac_kept"}
SIREN_KEYS = {"siren/entropy", "siren/anchor", "siren/nucleus_entropy", "siren/frac_selected"}
GUIDE_KEYS = {
    f"guide/{name}"
    for name in (
        "frac_guided guided_success gamma ratio_q10 ratio_q50 ratio_q90 rounds without_hint first_solved"
    ).split()
}
H1_KEYS = {f"h1/{name}" for name in ("horizon", "stage", "stage_tokens", "reward_1", "reward_2")}
OWN_KEYS = {
    dapo: DAPO_KEYS,
    siren: SIREN_KEYS,
    guide: GUIDE_KEYS,
    guide_ablations: GUIDE_KEYS,
    h1_curriculum: H1_KEYS,
}
SHOWN = {  # entries of a script's own in samples.jsonl
    siren: {"selected"},
    guide: {"guided"},
    guide_ablations: {"guided"},
    clip_cov: {"dropped"},
    high_entropy_tokens: {"dropped"},
    kl_cov: {"penalised"},
    entropy_advantage: {"bonus"},
}
BY_HORIZON = (h1_curriculum, adarft, e2h)  # scripts that score every horizon


def own_prefix(script) -> str:
    """Where the metrics of a script's own begin: bonus/ for the two bonuses."""
    shared = {naive_bonus: "bonus/", adaptive_bonus: "bonus/", srpo: "passk/"}
    return shared.get(script, f"{name_of(script)}/")


@each_script
def test_output_folder(run, script, monkeypatch, capsys):
    """Catches a missing file, a renamed metric or flag, a sample without its grade, and a final folder that
    nothing can load."""
    if script is grpo:  # a picture takes its time
        monkeypatch.setattr(curves, "plot_run", real_plot_run)
    folder = run(script)
    files = {"config.json", "metrics.jsonl", "samples.jsonl", "dev_samples.jsonl", "groups.jsonl", ".lock"}
    files |= {"last", "last.old", "best", "final"} | ({"stage"} if script is h1_curriculum else set())
    assert {path.name for path in folder.iterdir()} == files | ({"curves.png"} if script is grpo else set())
    assert script is not grpo or (folder / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    config = json.loads((folder / "config.json").read_text())
    assert config.keys() == {
        "script",
        "flags",
        "parameters",
        "model_hash",
        "git_commit",
        "device",
        "versions",
        "saved",
    }
    assert config["flags"].keys() == {field.name for field in fields(script.Args)}
    may_be_none = {
        "task",
        "system_prompt",
        "token_budget",
        "importance_cap",
        "train_size",
        "vllm_server",
        "lora_rank",
        "enable_thinking",
        "init",
    }
    may_be_none |= {"hints", "advance_at"} & {field.name for field in fields(script.Args)}
    assert {
        name for name, value in config["flags"].items() if value is None
    } == may_be_none  # all others are resolved
    assert config["script"] == name_of(script) and config["versions"]["torch"] == torch.__version__

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    dev, test = ({f"{prefix}/hash/{score}" for score in SCORES} for prefix in ("eval", "test"))
    if script in BY_HORIZON:
        dev, test = (
            keys | {f"{prefix}/hash-h{h}/avg@2" for h in (1, 2)}
            for prefix, keys in (("eval", dev), ("test", test))
        )
    own = OWN_KEYS.get(script) or {key for key in lines[1] if key.startswith(own_prefix(script))}
    expected = [STEP_KEYS | own | (dev if step in (2, 4, 5) else set()) for step in range(1, 6)]
    assert [line.keys() for line in lines] == [{"step"} | dev | test, *expected, {"step"} | test]
    assert column(folder, "rollout/tokens_total") == sorted(set(column(folder, "rollout/tokens_total")))
    second = 0.0005 if script is h1_curriculum else 0.001  # a new stage warms up anew
    assert column(folder, "optim/lr") == [0.0005, 0.001, second, 0.001, 0.001]  # two steps of warm-up

    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples] == [step for step in range(1, 6) for _ in range(4)]
    expected = {"step", "prompt", "completion", "gold", "parsed", "reward", "why", "advantage"}
    expected |= {"index", "truncated", "tokens", "logprob", "entropy", "ratio", "clipped", "weight", "gap"}
    of_a_hint = {"sampled_prompt", "hint", "also_sampled"}
    assert all(row.keys() - of_a_hint == expected | SHOWN.get(script, set()) for row in samples)
    assert script in (guide, guide_ablations, dapo) or not any(row.keys() & of_a_hint for row in samples)

    for name in ("final", "best", "last"):
        model, tokenizer = (
            AutoModelForCausalLM.from_pretrained(folder / name),
            AutoTokenizer.from_pretrained(folder / name),
        )
        assert model.dtype == torch.float32 and tokenizer.chat_template
    assert equal_weights(folder / "final", folder / "best")
    assert {"optimizer.pt", "state.json"} <= {path.name for path in (folder / "last").iterdir()}
    out = capsys.readouterr().out
    assert f"model: {folder / 'final'}" in out and "gold 0" in out and "reward zero-std" in out


@mutant(
    "warm-up off by one",
    "grpo.py",
    "step / max(1, args.warmup_steps)",
    "(step - 1) / max(1, args.warmup_steps)",
)
def test_learning_rate_warms_up_and_stays():
    """Catches a warm-up that starts at zero, ends early or late, or divides by zero."""
    args = grpo.Args(lr=0.6, warmup_steps=3)
    assert [grpo.learning_rate(args, step) for step in range(1, 6)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.6, 0.6]
    )
    assert grpo.learning_rate(grpo.Args(lr=0.6, warmup_steps=0), 1) == 0.6


@mutant(
    "last checkpoint for the best",
    "plainrl/run.py",
    "if best is None or sign * dev >= sign * best:",
    "if True:",
)
@mutant("first of equal ones", "plainrl/run.py", "sign * dev >= sign * best:", "sign * dev > sign * best:")
@mutant("best that the start cannot be", "plainrl/run.py", "        self.keep_if_best(scores, 0)\n", "")
@mutant(
    "best that is a step off",
    "plainrl/run.py",
    '(scores, self.state["step"] + 1)',
    '(scores, self.state["step"])',
)
@mutant(
    "last weights for the final model",
    "plainrl/run.py",
    '        load_weights(self.dir / "best", self.model)\n',
    "",
)
@mutant(
    "best by what is right alone", "plainrl/run.py", '/{self.task.name}/score"', '/{self.task.name}/avg@2"'
)
@pytest.mark.parametrize(
    "dev, chosen",
    [([0.1, 0.2, 0.5, 0.5, 0.3], 3), ([0.9, 0.2, 0.5, 0.5, 0.3], 0), ([0.5] * 5, 4)],
    ids=["later of equal ones", "start", "all alike"],
)
def test_best_checkpoint_is_the_last_of_the_highest_mean_score(run, monkeypatch, capsys, dev, chosen):
    """Catches best/ taken from the last score, the lowest one, from test or from what is right alone, a
    final model that is not it, and one that is worse than the starting model."""
    scores, test, saved, original = iter(dev), iter([0.0, 1.0]), {}, models.save_model

    def save_model(folder, model, tokenizer, extra=None, keep_previous=False):
        step = extra["state.json"]["step"] if folder.name == "last" else folder.name
        saved[step] = model.get_output_embeddings().weight.detach().clone()
        if extra and extra.get("chosen.json", {}).get("step") == 0:
            saved[0] = saved["best"]
        original(folder, model, tokenizer, extra, keep_previous)

    for module in (run_module, folder_module):
        monkeypatch.setattr(module, "save_model", save_model)

    def evaluate(*args):
        score = next(scores if args[3] == "dev" else test)
        return {"score": score, "avg@2": 0.0 if args[3] == "dev" else score}, []

    monkeypatch.setattr(run_module, "evaluate", evaluate)
    folder = run(grpo, eval_every=1, save_every=1, steps=4)
    assert [step for step in range(5) if torch.equal(saved["final"], saved[step])] == [chosen]
    assert records(folder)[-1] == {"step": 4, "test/hash/score": 1.0, "test/hash/avg@2": 1.0}
    out = capsys.readouterr().out
    assert f"final = step {chosen}, " in out and ("no step scored as well" in out) == (chosen == 0)
    assert f"eval/hash/score {max(dev):.3f}" in out


@mutant("a run that overwrites another", "plainrl/folder.py", "    if not resume:\n", "    if False:\n")
def test_existing_folder_is_refused(run, tmp_path):
    """Catches a second run that overwrites the first, and a message without the way out."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("precious")
    with pytest.raises(SystemExit, match=r"error: --out-dir .*run exists; .*--resume.*--out-dir"):
        run(grpo)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "precious"


def test_resume_without_a_run_is_refused(run, tmp_path):
    """Catches a --resume with a mistyped folder that silently starts afresh."""
    with pytest.raises(SystemExit, match="error: --resume: there is no run in --out-dir .*run"):
        run(grpo, resume=True)
    assert not (tmp_path / "run").exists()


@mutant(
    "learning rate that may change on resume",
    "plainrl/run.py",
    "if (name in self.keep or name not in may_change) and old != value:",
    "if name in self.keep and old != value:",
)
@mutant(
    "another base model on resume",
    "plainrl/run.py",
    'if before["model_hash"] != self.config["model_hash"]:',
    "if False:",
)
def test_resume_with_other_flags(run, tmp_path):
    """Catches a resume that mixes two settings or two base models, or that refuses more steps or keeps
    outdated test scores."""
    folder = run(grpo, steps=3)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match="error: --resume: --lr was 0.001 and is now 0.002; .*--out-dir"):
        run(grpo, steps=3, resume=True, lr=2e-3)
    with pytest.raises(SystemExit, match="error: --resume: the weights of --model .* have changed"):
        other = tmp_path / "other model"
        models.save_model(other, *models.load_model(str(folder / "last")))
        config = json.loads((folder / "config.json").read_text())
        config["flags"]["model"] = str(other)
        (folder / "config.json").write_text(json.dumps(config))
        run(grpo, steps=3, resume=True, model=str(other))
    (folder / "config.json").write_bytes(before[folder / "config.json"])
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    run(grpo, steps=5, resume=True)
    whole = run(grpo, "whole", steps=5)
    assert equal_weights(folder / "last", whole / "last")
    tests = [record["step"] for record in records(folder) if "test/hash/avg@2" in record]
    assert tests == [0, 5] and [record["step"] for record in records(folder)] == [0, 1, 2, 3, 4, 5, 5]
    assert json.loads((folder / "config.json").read_text())["flags"]["steps"] == 5


def test_two_processes_never_write_into_one_folder(run):
    """Catches two runs whose lines end up in one log: the second is refused while the first lives, and goes
    on after its death."""
    folder = run(grpo, steps=2)
    hold = (
        "import filelock, sys; held = filelock.FileLock(sys.argv[1]); held.acquire(); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        before = (folder / "metrics.jsonl").read_bytes()
        with pytest.raises(SystemExit, match="--out-dir .*: another process is writing there"):
            run(grpo, steps=3, resume=True)
        assert (folder / "metrics.jsonl").read_bytes() == before
        other.kill()
    run(grpo, steps=3, resume=True)
    assert [record["step"] for record in records(folder)] == [0, 1, 2, 3, 3]


@pytest.mark.parametrize("limit", [{}, {"token_budget": 100}], ids=["steps", "token budget"])
def test_resuming_a_finished_run_changes_nothing(run, limit):
    """Catches a resume that trains a step too many, writes test scores twice or loses the final model."""
    folder = run(grpo, **limit)
    before, files = records(folder), {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    run(grpo, resume=True, **limit)
    assert records(folder) == before
    assert files == {path: path.read_bytes() for path in folder.rglob("*.safetensors")}


@mutant(
    "a step too many for the budget",
    "plainrl/run.py",
    'state["tokens"] < self.budget and',
    'state["tokens"] <= self.budget and',
)
def test_token_budget_stops_the_run(run):
    """Catches a budget that is ignored, checked a step late, or that skips the last score and the final
    model."""
    tokens = column(run(grpo, "whole"), "rollout/tokens_total")
    folder = run(grpo, token_budget=tokens[2], eval_every=100, save_every=100)
    assert column(folder, "rollout/tokens_total") == tokens[:3]
    assert "eval/hash/avg@2" in records(folder)[3] and "test/hash/avg@2" in records(folder)[4]
    assert (folder / "final").exists() and json.loads((folder / "last" / "state.json").read_text())[
        "step"
    ] == 3


@each_algorithm
def test_train_size_cycles(run, script):
    """Catches a finite training set that is left, skipped in part, or also cuts dev and test."""
    task = HashTask()
    flags = {"max_refills": 0} if script is dapo else {}
    run(script, task=task, train_size=3, eval_problems=4, **flags)
    tried, *trained = [index for split, index in task.asked if split == "train"]
    assert tried == 0  # has its prompt room in the context?
    assert trained == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert {index for split, index in task.asked if split == "dev"} == {0, 1, 2, 3}


# --- flags --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(group_size=1), "--group-size 1"),
        (dict(prompts_per_step=4, minibatches=3), "--minibatches 3: does not divide --prompts-per-step 4"),
        (dict(temperature=0.0), "--temperature 0"),
        (dict(temperature=-1.0), "--temperature -1"),
        (dict(seed=-1), "--seed -1"),
        (dict(seed=2**31), "--seed 2147483648"),
        (dict(steps=-1), "--steps -1"),
        (dict(steps=0), "--steps 0"),
        (dict(prompts_per_step=0), "--prompts-per-step 0"),
        (dict(max_new_tokens=0), "--max-new-tokens 0"),
        (dict(minibatches=0), "--minibatches 0"),
        (dict(eval_every=0), "--eval-every 0"),
        (dict(save_every=0), "--save-every 0"),
        (dict(train_size=0), "--train-size 0"),
        (dict(model="/nowhere/model"), "--model /nowhere/model: no such folder or file"),
        (dict(model="nobody/nothing"), "--model nobody/nothing: cannot be loaded"),
        (dict(engine="vllm"), "--engine vllm"),
        (dict(lr=-1e-3), "--lr -0.001: must be at least 0"),
        (dict(weight_decay=-1.0), "--weight-decay -1.0"),
        (dict(clip_low=-0.1), "--clip-low -0.1"),
        (dict(warmup_steps=-1), "--warmup-steps -1"),
        (dict(max_grad_norm=0.0), "--max-grad-norm 0.0: must be above 0"),
        (dict(importance_cap=0.0), "--importance-cap 0"),
        (dict(lr=math.nan), "--lr nan: must be at least 0"),
    ],
)
def test_bad_flag(run, tmp_path, changes, said):
    """Catches a flag that cannot work and is taken, a traceback for one line, and a folder left by a run
    that never was."""
    for script in (grpo, siren):
        with pytest.raises(SystemExit) as stop:
            run(script, **changes)
        assert stop.value.code.startswith(f"error: {said}") and "\n" not in stop.value.code
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [dict(max_refills=-1), dict(overlong_buffer=-1)])
def test_bad_flag_of_dapo(run, tmp_path, changes):
    """Catches a refill that never happens, or a punishment turned round."""
    with pytest.raises(SystemExit, match="must be at least 0"):
        run(dapo, **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "script, changes, said",
    [
        (siren, dict(beta=-1.0), "--beta -1.0: must be at least 0"),
        (siren, dict(nucleus_p=0.0), "--nucleus-p 0.0: must be above 0 and at most 1"),
        (siren, dict(nucleus_p=1.5), "--nucleus-p 1.5"),
        (siren, dict(tau=1.0), "--tau 1.0: must be at least 0 and below 1"),
        (siren, dict(tau=-0.1), "--tau -0.1"),
        (guide, dict(gamma_quantile=1.5), "--gamma-quantile 1.5: must be at least 0 and at most 1"),
        (
            guide_ablations,
            dict(trigger_accuracy=-0.5),
            "--trigger-accuracy -0.5: must be at least 0 and at most 1",
        ),
        (guide, dict(max_refills=-1), "--max-refills -1: must be at least 0"),
        (naive_bonus, dict(bonus=-0.1), "--bonus -0.1"),
        (entropy_advantage, dict(shape_kappa=0.0), "--shape-kappa 0.0: must be above 0"),
        (high_entropy_tokens, dict(token_fraction=0.0), "--token-fraction 0"),
        (adaptive_bonus, dict(bonus_rate=-0.1), "--bonus-rate -0.1"),
        (adaptive_bonus, dict(target_share=-0.1), "--target-share -0.1"),
        (entropy_advantage, dict(shape_alpha=-0.1), "--shape-alpha -0.1"),
        (clip_cov, dict(cov_fraction=1.1), "--cov-fraction 1.1"),
        (
            kl_cov,
            dict(minibatches=1, epochs=1),
            "--minibatches 1: with one update per batch KL-Cov does nothing",
        ),
        (clip_cov, dict(cov_low=5.0), "--cov-low 5"),
        (siren, dict(beta=math.inf), "--beta inf: must be at least 0"),
    ],
)
def test_bad_flag_of_the_entropy_methods(run, tmp_path, script, changes, said):
    """Catches a mask that selects nothing, a bonus that is a punishment, and a method that would silently do
    nothing."""
    with pytest.raises(SystemExit) as stop:
        run(script, **changes)
    assert stop.value.code.startswith(f"error: {said}") and not (tmp_path / "run").exists()


def test_resume_with_another_architecture_is_one_line(run, toy_model, tmp_path):
    """Catches a pile of missing keys where the flag could be named."""
    run(grpo, steps=1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=288, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
        )
    )
    models.save_model(tmp_path / "other", model, AutoTokenizer.from_pretrained(toy_model))
    with pytest.raises(SystemExit, match="^error: --resume: --model was "):
        run(grpo, steps=2, resume=True, model=str(tmp_path / "other"))


def test_task_without_enough_problems_is_found_before_anything_is_written(run, tmp_path, monkeypatch):
    """Catches a run that stops at its first score and leaves a folder that bars the next try, or that loads
    a model before it looks."""
    monkeypatch.setattr(run_module, "load_model", None)
    task = HashTask()

    def problem(split, index, seed):
        if split == "test" and index >= 3:
            raise ValueError("--task hash: has only 3")
        return HashTask.problem(task, split, index, seed)

    task.problem = problem
    with pytest.raises(SystemExit, match="^error: --task hash: has only 3"):
        run(grpo, task=task, test_problems=4)
    assert not (tmp_path / "run").exists()


def test_reward_may_be_a_whole_number(run):
    """Catches a mean of integers, which torch refuses: the first thing a reward function of one's own
    returns is 1."""
    task = HashTask()
    task.grade = lambda completion, problem: Grade(
        len(completion) % 2 == 0, 1 - len(completion) % 2, completion, ""
    )
    run(grpo, task=task, steps=1)


def test_command_at_the_end_measures_what_was_measured(run, capsys, toy_model, monkeypatch, tmp_path):
    """Catches a command without the system prompt, the temperature or the length of the run, and one for a
    task it cannot load."""
    run(grpo, "a", steps=1, task=load_task("chain?horizon=1"), system_prompt="Be brief.", temperature=0.7)
    assert "evaluate it" not in capsys.readouterr().out  # a task object was passed in
    flags = quick_flags(
        toy_model, tmp_path / "b", steps=1, task="chain?horizon=1", system_prompt="Be brief.", temperature=0.7
    )
    grpo.main(grpo.Args(**flags))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("evaluate it: "))
    script, *words = shlex.split(line.removeprefix("evaluate it: "))[1:]
    args = tyro.cli(evaluation.Args, args=words)
    assert (script, args.task, args.system_prompt, args.temperature) == (
        "eval.py",
        "chain?horizon=1",
        "Be brief.",
        0.7,
    )
    assert args.max_new_tokens == flags["max_new_tokens"] and Path(args.model) == tmp_path / "b/final"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_nothing_is_dropped_out(toy_model, tmp_path, kind):
    """Catches dropout while training: the trained policy would not be the one that was sampled."""
    _, tokenizer = models.load_model(toy_model)
    vocab = dict(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    if kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64, **vocab)
        )  # dropout 0.1 by default
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                attention_dropout=0.5,
                **vocab,
            )
        )
    models.save_model(tmp_path / "model", model, tokenizer)
    model, _ = models.load_model(str(tmp_path / "model"))
    assert model.training
    row = [[3, 4, 5]], [[6, 7, 8, 9]], 1.0
    first, again = (score(model, *row)[0] for _ in range(2))
    assert torch.equal(first, again) and torch.allclose(first, score(model.eval(), *row)[0])


@pytest.mark.skipif(os.name == "nt", reason="Windows has other rights")
def test_all_files_of_a_model_have_the_same_rights(toy_model, tmp_path):
    """Catches weights that nobody but their owner can read, beside a config.json that everybody can."""
    models.save_model(tmp_path / "model", *models.load_model(toy_model))
    assert len({path.stat().st_mode for path in (tmp_path / "model").iterdir()}) == 1


def test_unknown_task_names_the_flag(toy_model, tmp_path):
    """Catches a mistyped task that ends in a traceback."""
    with pytest.raises(SystemExit, match="^error: --task nope: unknown"):
        grpo.main(grpo.Args(**quick_flags(toy_model, tmp_path / "run", task="nope")))
    assert not (tmp_path / "run").exists()


def test_gguf_without_packages_or_file(run, monkeypatch, tmp_path):
    """Catches a .gguf flag that fails deep inside transformers."""
    with pytest.raises(SystemExit, match=r"^error: --model some\.gguf: no such folder or file"):
        run(grpo, model="some.gguf")

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(models, "version", missing)
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    with pytest.raises(SystemExit, match=r"^error: --model .*some\.gguf: .* pip install gguf accelerate$"):
        run(grpo, model=str(tmp_path / "some.gguf"))


COMMON_FLAGS = """
    model task steps token_budget prompts_per_step group_size minibatches epochs micro_batch_tokens
    max_new_tokens temperature lr seed train_size engine eval_every eval_samples save_every out_dir resume
    track system_prompt
""".split()


@each_script
def test_flags_are_common_and_documented(script, monkeypatch, capsys):
    """Catches a flag that one script lacks or that nobody explains, and a default that --help hides."""
    one_update = {"minibatches", "epochs"} if script is rloo else set()  # REINFORCE has no old policy
    assert set(COMMON_FLAGS) - one_update <= {field.name for field in fields(script.Args)}
    monkeypatch.setattr(sys, "argv", ["script.py", "--help"])
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as stop:
        parse(script.Args)
    assert stop.value.code in (0, None)
    lines = re.split(r"\n\W*(?=--)", capsys.readouterr().out)[1:]
    assert len(lines) >= len(fields(script.Args)) - 1  # -h stands on the line of --help
    unexplained = [line for line in lines if not re.search(r"[a-z]{2,} [a-z]", line.partition(" ")[2])]
    assert not unexplained
    lr = next(line for line in lines if line.startswith("--lr "))
    assert all(f"{value:g} {size}" in lr for size, value in sizes_of(script, "lr").items())


def sizes_of(script, flag: str) -> dict:
    return next(field.metadata["by_size"] for field in fields(script.Args) if field.name == flag)


@mutant(
    "typing error without a suggestion",
    "plainrl/flags.py",
    'hint = f"did you mean {close[0]}?" if close else',
    "hint =",
)
@pytest.mark.parametrize(
    "word, said",
    [
        ("--beat", "--beat: there is no such flag; did you mean --beta?"),
        ("--qqqqq", "--qqqqq: there is no such flag; --help lists all flags"),
    ],
)
def test_mistyped_flag_gets_a_suggestion(monkeypatch, word, said):
    """Catches a page of usage where one line helps."""
    monkeypatch.setattr(sys, "argv", ["siren.py", word, "1"])
    with pytest.raises(SystemExit, match=re.escape(f"error: {said}")):
        parse(siren.Args)


@mutant(
    "flag that has moved without a word",
    "plainrl/flags.py",
    'if gone.startswith("--") and gone[2:] in (moved or {}):',
    "if False:",
    case="grpo---advantage",
)
@pytest.mark.parametrize(
    "script, flag", [(grpo, "--advantage"), (grpo, "--aggregation"), (guide, "--correction")]
)
def test_flag_that_has_moved_names_the_file(monkeypatch, script, flag):
    """Catches a command of an earlier version that ends without a way out."""
    monkeypatch.setattr(sys, "argv", ["x.py", flag, "any"])
    with pytest.raises(SystemExit, match=f"error: {flag}.*: is not in this script any more; .*papers/"):
        parse(script.Args, moved=script.MOVED)


def test_a_real_model_says_how_long_a_step_takes_and_changes_nothing(
    toy_model, tmp_path, capsys, monkeypatch
):
    """Catches a user who waits an hour to learn what a step costs, and a timing that leaves gradients or
    random numbers behind."""
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    shape = dict(hidden_size=448, intermediate_size=1600, num_hidden_layers=4, num_attention_heads=4)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **shape)
    )
    assert model.num_parameters() > 10_000_000
    models.save_model(tmp_path / "real", model, tokenizer)
    flags = dict(
        model=str(tmp_path / "real"),
        task="chain?horizon=1",
        steps=1,
        prompts_per_step=2,
        group_size=2,
        max_new_tokens=4,
        eval_problems=1,
        test_problems=1,
        eval_samples=1,
    )
    grpo.main(grpo.Args(**flags, out_dir=tmp_path / "said"))
    said = capsys.readouterr().out
    assert re.search(r"a step takes \d:\d\d:\d\d \(sampling \d:\d\d:\d\d, training \d:\d\d:\d\d\)", said)
    assert all(
        flag in said for flag in ("--max-new-tokens", "--group-size", "--prompts-per-step", "--eval-problems")
    )
    monkeypatch.setattr(run_module.Run, "say_how_long", lambda self: None)
    grpo.main(grpo.Args(**flags, out_dir=tmp_path / "silent"))
    assert "a step takes" not in capsys.readouterr().out
    assert records(tmp_path / "said") == records(tmp_path / "silent")
    assert equal_weights(tmp_path / "said" / "last", tmp_path / "silent" / "last")


def test_defaults_follow_the_size_of_the_model():
    """Catches a row of defaults that is never reached, or one for models that it was not measured on."""
    for parameters, lr in (
        (1_100_000, 3e-4),
        (135_000_000, 1e-5),
        (1_000_000_000, 1e-5),
        (7_600_000_000, 1e-6),
    ):
        args = grpo.Args()
        resolve_defaults(args, parameters)
        assert args.lr == lr and None not in (
            args.steps,
            args.prompts_per_step,
            args.max_new_tokens,
            args.eval_every,
        )
    kept = grpo.Args(lr=0.5)
    resolve_defaults(kept, 1_100_000)
    assert kept.lr == 0.5


# --- guards -------------------------------------------------------------------------------------------------


@pytest.fixture
def around_updates(monkeypatch):
    """[(weights before, weights after)] of every call of optimizer_step, in a list that fills while a run
    goes on."""
    pairs, original, seen = [], run_module.Run.optimizer_step, []

    def optimizer_step(self, optimizer, update):
        def copy():
            return [weight.detach().clone() for group in optimizer.param_groups for weight in group["params"]]

        seen.append(copy())
        stepped = original(self, optimizer, update)
        pairs.append((seen[-1], copy()))
        return stepped

    monkeypatch.setattr(run_module.Run, "optimizer_step", optimizer_step)
    return pairs


def poison(monkeypatch, script, updates, where: str) -> None:
    """Make the gradient, or the logits and with them the loss, NaN in these updates (counted from 1)."""
    original_load, original_accumulate, now = models.load_model, script.accumulate_gradients, [0]

    def load_model(*args, **how):
        model, tokenizer = original_load(*args, **how)

        def nan_if_due(value):
            return value * math.nan if now[0] in updates and torch.is_grad_enabled() else value

        if where == "gradient":
            model.model.norm.weight.register_hook(
                lambda gradient: gradient * math.nan if now[0] in updates else gradient
            )
        else:
            model.get_output_embeddings().register_forward_hook(
                lambda module, inputs, logits: nan_if_due(logits)
            )
        return model, tokenizer

    def accumulate_gradients(*args):
        now[0] += 1
        return original_accumulate(*args)

    monkeypatch.setattr(run_module, "load_model", load_model)
    monkeypatch.setattr(script, "accumulate_gradients", accumulate_gradients)


@mutant("NaN into the weights", case="grpo-gradient")
@pytest.mark.parametrize("where", ["gradient", "loss"])
@each_flagship
def test_non_finite_update_is_skipped_and_the_next_made(run, monkeypatch, around_updates, script, where):
    """Catches NaN written into the weights, a skip that is not counted, and one that takes its neighbours
    along."""
    poison(monkeypatch, script, {3}, where)
    flags = {"max_refills": 0, "dynamic_sampling": False} if script is dapo else {}
    flags |= {"max_refills": 0} if script is guide else {}
    flags |= {"steps_per_stage": 5} if script is h1_curriculum else {}  # one optimizer to the end
    folder = run(
        script, minibatches=2, steps=4, task=FunctionTask(lambda text, problem: len(text) % 2), **flags
    )
    changed = [any(not torch.equal(before, after) for before, after in zip(*pair)) for pair in around_updates]
    assert changed == [True, True, False, True, True, True, True, True]
    assert column(folder, "optim/skipped") == [0, 1, 0, 0]
    assert not {"NaN", "Infinity"} & set(
        re.findall(r"\w+", (folder / "metrics.jsonl").read_text())
    )  # neither is JSON
    assert all(weight.isfinite().all() for weight in weights(folder / "last").values())
    state = torch.load(folder / "last" / "optimizer.pt")["state"]
    assert {int(entry["step"]) for entry in state.values()} == {7}
    assert json.loads((folder / "last" / "state.json").read_text())["skips_in_a_row"] == 0


@mutant(
    "broken step that nobody sees",
    "plainrl/run.py",
    "            self.log_samples(self.sampled.select([0]), None)\n",
    "            pass\n",
    case="loss",
)
@mutant(
    "broken run without a page",
    "plainrl/run.py",
    'self.fail(f"{not_finite}; the batch',
    'fail(f"{not_finite}; the batch',
    case="loss",
)
@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_five_skips_in_a_row_stop_the_run(run, monkeypatch, around_updates, where, tmp_path):
    """Catches a broken run that goes on for ever, stops at the first NaN, or leaves nothing to look at."""
    poison(monkeypatch, grpo, {1, 2, 3, 4, 6, 7, 8, 9, 10}, where)
    with pytest.raises(
        SystemExit,
        match=r"^error: loss or gradient was not finite in 5 updates in a row; .*failed_batch\.json.*"
        r"; look at it, .*report\.html$",
    ):
        run(grpo, steps=20, micro_batch_tokens=10_000)
    assert (
        len(around_updates) == 9 and len(records(tmp_path / "run")) == 1 + 9
    )  # the fifth after the good one stops
    batch = json.loads((tmp_path / "run" / "failed_batch.json").read_text())
    assert batch.keys() == {"prompt_ids", "completion_ids", "logprobs", "scores"}
    assert {len(rows) for rows in batch.values()} == {8}
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples[-8:]] == [9] * 4 + [10] * 4  # the step that broke
    assert [row["completion"] for row in samples[-4:]] and samples[-1]["advantage"] is None
    groups = [json.loads(line) for line in (tmp_path / "run" / "groups.jsonl").read_text().splitlines()]
    assert groups[-1]["step"] == 10 and len(groups[-1]["right"]) == 2


class OwnWeights(sampler.HFSampler):
    """A sampler with weights of its own, as vLLM has: zero until the first push."""

    shares_weights = False

    def __init__(self, toy_model: str, temperature_factor: float = 1.0, pushes: float = math.inf):
        model, tokenizer = models.load_model(toy_model)
        super().__init__(model, models.eos_ids(model, tokenizer))
        self.temperature_factor, self.pushes = temperature_factor, pushes
        with torch.no_grad():
            for weight in model.parameters():
                weight.zero_()

    def load_weights(self, model):
        if self.pushes > 0:
            self.model.load_state_dict(model.state_dict())
        self.pushes -= 1

    def generate(self, prompt_ids, n, max_new_tokens, temperature, seeds, top_p=1.0):
        return super().generate(
            prompt_ids, n, max_new_tokens, temperature * self.temperature_factor, seeds, top_p
        )


@mutant(
    "weights pushed late",
    "plainrl/run.py",
    "        self.begin_step()\n        self.push_weights()\n",
    "        self.begin_step()\n",
    case="grpo",
)
@each_loop
def test_sampler_with_weights_of_its_own(run, toy_model, script):
    """Catches weights pushed too late (also for the scores before the first step), or not at all, or not at
    the end."""
    ours, theirs = run(script, "own", sampler=OwnWeights(toy_model)), run(script, "shared")
    assert records(ours) == records(theirs) and equal_weights(ours / "final", theirs / "final")


@mutant(
    "gap not compared",
    "plainrl/sampler.py",
    "if not gap <= args.max_logprob_gap:",
    "if gap < 0:",
    case="fault0-0",
)
@mutant(
    "a push that nobody probes",
    "plainrl/sampler.py",
    "        probe_gap(sampler, model, tokenizer, task, args, end)\n",
    "",
    case="fault4-6",
)
@pytest.mark.parametrize(
    "fault, steps_logged",
    [
        (dict(temperature_factor=1.1), 0),
        (dict(pushes=0), 0),
        (dict(pushes=1), 1),
        (dict(pushes=3), 3),
        (dict(pushes=6), 6),
    ],
)
def test_sampler_that_differs_from_the_trainer_is_stopped(run, toy_model, tmp_path, fault, steps_logged):
    """Catches training on samples of another temperature or of stale weights, at the start and after any
    push; the last is that of the best weights, before they are measured."""
    limit = r"--max-logprob-gap 0\.0001"
    message = rf"^error: sampler and trainer .* differ by .*{limit}.*stale weights.*--importance-cap.*"
    message += r"report\.html$" if steps_logged else "remains$"
    with pytest.raises(SystemExit, match=message):
        run(grpo, sampler=OwnWeights(toy_model, **fault), lr=1e-2, warmup_steps=1)
    log = tmp_path / "run" / "metrics.jsonl"
    assert len(records(tmp_path / "run")) == steps_logged if log.exists() else steps_logged == 0
    if steps_logged:
        samples = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
        assert [json.loads(row)["step"] for row in samples] == [s for s in range(1, 6) for _ in range(4)][
            : 4 * steps_logged
        ]


def test_logprob_gap_limit_can_be_raised(run, toy_model):
    """Catches a limit that cannot be lifted for a sampler that is known to differ, and a gap that is not
    logged."""
    gaps = column(
        run(grpo, sampler=OwnWeights(toy_model, 1.1), max_logprob_gap=1.0, importance_cap=2.0),
        "rollout/logprob_gap",
    )
    assert all(0.001 < gap < 0.5 for gap in gaps)
    assert all(gap < 1e-5 for gap in column(run(grpo, "right"), "rollout/logprob_gap"))


def test_grader_that_raises_is_counted(run):
    """Catches a user's reward function that kills the run, or whose failures nobody sees."""

    def score(completion, problem):
        if len(completion) % 2:
            raise KeyError("no such answer")
        return 1.0

    folder = run(grpo, task=FunctionTask(score))
    errors, rewards = column(folder, "reward/errors"), column(folder, "reward/mean")
    assert sum(errors) > 0 and all(count == round(8 * (1 - reward)) for count, reward in zip(errors, rewards))
    whys = [json.loads(line)["why"] for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {"correct", "error: KeyError: 'no such answer'"} == set(whys)


# --- what a step does ---------------------------------------------------------------------------------------


def numbered(words):
    """A sampler whose completions say which prompt and which sample they are: "12.3" for sample 3 of problem
    12."""
    tokenizer, encode = words

    def answer(prompt, sample, seed):
        index = re.search(r"\w+ (\d+) of", tokenizer.decode(prompt)).group(1)
        return [*encode(f"{index}.{sample}"), tokenizer.eos_token_id], "stop"

    return FakeSampler(answer)


@mutant(
    "denominator of the sampled batch",
    "grpo.py",
    "for minibatch in batch.split(args.minibatches) * args.epochs:",
    "for minibatch in [batch] * args.minibatches * args.epochs:",
    case="grpo",
)
@mutant("problems tiled", case="grpo")
@mutant(
    "H of the sampled batch",
    "siren.py",
    "for minibatch in batch.split(args.minibatches) * args.epochs:",
    "for minibatch in [batch] * args.minibatches * args.epochs:",
    case="siren",
)
@mutant(
    "advantages of SIREN reversed",
    "siren.py",
    "centred = rewards - rewards.mean(dim=1, keepdim=True)",
    "centred = rewards.mean(dim=1, keepdim=True) - rewards",
    case="siren",
)
@each_algorithm
def test_rows_are_prompt_major_from_sampler_to_loss(run, words, monkeypatch, script):
    """Catches completions graded against another prompt's problem, groups that mix prompts, and swapped
    advantages."""

    def score(completion, problem):
        index, sample = map(int, completion.split("."))
        assert problem.prompt.split()[1] == str(index)
        return (5 * index + 3 * sample * sample) % 7 / 8

    calls = watch(monkeypatch, script, "accumulate_gradients")
    flags = dict(dynamic_sampling=False, max_refills=0, overlong_buffer=0) if script is dapo else {}
    folder = run(
        script,
        task=FunctionTask(score),
        sampler=numbered(words),
        steps=2,
        prompts_per_step=3,
        minibatches=3,
        max_logprob_gap=1e9,
        **flags,
    )
    assert column(folder, "reward/errors") == [0, 0]
    tokenizer, _ = words
    assert len(calls) == 6
    for update, (_, batch, *_) in enumerate(calls):  # a step has three updates of one group each
        index = update
        assert len(batch) == 4
        for row in range(4):
            sample = row
            assert f"train {index} of" in tokenizer.decode(batch.prompt_ids[row])
            assert (
                tokenizer.decode(batch.completion_ids[row], skip_special_tokens=True) == f"{index}.{sample}"
            )
            assert batch.completion_ids[row].count(tokenizer.eos_token_id) == 1
            assert batch["completion_mask"][row].sum() == len(batch.completion_ids[row])  # the end token too
            rewards = [(5 * index + 3 * i * i) % 7 / 8 for i in range(4)]
            mean = sum(rewards) / 4
            std = (
                math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / 3) + 1e-6
                if script in (grpo, dapo)
                else 1.0
            )
            assert batch["advantages"][row].item() == pytest.approx((rewards[sample] - mean) / std, abs=1e-5)
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in rows] == ["0.0", "0.1", "0.2", "0.3", "3.0", "3.1", "3.2", "3.3"]
    assert [row["advantage"] for row in rows[4:]] == [
        round(value, 4) for value in calls[3][1]["advantages"][:4, 0].tolist()
    ]


@mutant(
    "step left out of the seed",
    "grpo.py",
    "completion_seed(args.seed, step, j, 0, i)",
    "completion_seed(args.seed, 0, j, 0, i)",
    case="grpo",
)
@mutant(
    "one seed for a group",
    "grpo.py",
    "completion_seed(args.seed, step, j, 0, i)",
    "completion_seed(args.seed, step, j, 0, 0)",
    case="grpo",
)
@mutant(
    "round left out of the seed",
    "papers/dapo.py",
    "completion_seed(args.seed, step, j, rounds, i)",
    "completion_seed(args.seed, step, j, 0, i)",
    case="dapo",
)
@each_algorithm
def test_seeds_and_problems_are_a_function_of_step_prompt_round_and_sample(run, monkeypatch, script):
    """Catches a seed shared by two completions, a refill that samples the same again, and a problem met
    twice."""
    calls, task = watch(monkeypatch, run_module, "sample_rollout"), HashTask()
    folder = run(script, task=task, seed=7)
    rounds = column(folder, "dapo/rounds") if script is dapo else [1] * 5
    if script is dapo:
        assert max(rounds) > 1 and sum(rounds) == len(calls)
    expected = [
        [completion_seed(7, step, j, round, i) for j in range(2) for i in range(4)]
        for step, count in enumerate(rounds, start=1)
        for round in range(count)
    ]
    assert [call[5] for call in calls] == expected
    flat = [seed for seeds in expected for seed in seeds]
    assert len(set(flat)) == len(flat) and all(0 <= seed < 2**63 for seed in flat)
    _, *indices = [index for split, index in task.asked if split == "train"]  # the first was tried before
    assert len(set(indices)) == len(indices) == 2 * len(calls)


@mutant(
    "old log-probs taken for epochs only",
    "grpo.py",
    "if args.minibatches * args.epochs > 1:",
    "if args.epochs > 1:",
    case="grpo-2-1",
)
@mutant(
    "old log-probs taken for minibatches only",
    "papers/dapo.py",
    "if args.minibatches * args.epochs > 1 and kept:",
    "if args.minibatches > 1 and kept:",
    case="dapo-1-2",
)
@pytest.mark.parametrize("minibatches, epochs", [(2, 1), (1, 2), (2, 2)])
@each_algorithm
def test_only_the_first_update_of_a_batch_has_ratio_one(run, monkeypatch, script, minibatches, epochs):
    """Catches old log-probabilities taken anew before each update: the ratio would be 1 for ever and
    clipping never act."""
    calls = watch(monkeypatch, script, "clipped_surrogate")
    task = FunctionTask(
        lambda text, problem: zlib.crc32(text.encode()) / 2**32
    )  # no group without differences
    flags = {"dynamic_sampling": False} if script is dapo else {}
    folder = run(
        script,
        task=task,
        steps=2,
        minibatches=minibatches,
        epochs=epochs,
        micro_batch_tokens=10_000,
        lr=2e-2,
        warmup_steps=1,
        **flags,
    )
    distances = [(logprobs - old_logprobs).abs().max().item() for logprobs, old_logprobs, *_ in calls]
    assert len(distances) == 2 * minibatches * epochs
    assert all(
        (distance < 1e-5) == (update % (minibatches * epochs) == 0)
        for update, distance in enumerate(distances)
    )
    assert all(gap < 1e-5 for gap in column(folder, "rollout/logprob_gap"))


@each_algorithm
def test_one_update_a_batch_is_on_policy(run, monkeypatch, script):
    """Catches a first ratio that is not 1, and a loss that is not its expected value there (the mean
    advantage: zero)."""
    calls = watch(monkeypatch, script, "clipped_surrogate")
    folder = run(script, temperature=1.3)
    assert all(torch.equal(logprobs.detach(), old_logprobs) for logprobs, old_logprobs, *_ in calls)
    assert column(folder, "policy/clip_frac") == [0] * 5
    assert all(gap < 1e-5 for gap in column(folder, "rollout/logprob_gap"))


@mutant("KL to the policy itself", "grpo.py", "run.score(batch, reference)", "run.score(batch)")
def test_kl_to_the_starting_model(run):
    """Catches a reference that moves with the policy, or is not the starting model, and a KL term that is
    not in the loss."""
    folder = run(grpo, kl_coef=0.5, lr=1e-2, warmup_steps=1)
    kl, total, policy = (column(folder, name) for name in ("policy/kl_ref", "loss/total", "loss/policy"))
    assert kl[0] == pytest.approx(0, abs=1e-9) and all(value > 1e-4 for value in kl[1:])
    assert total[0] == pytest.approx(policy[0], abs=1e-9) and all(
        t > p for t, p in zip(total[1:], policy[1:])
    )
    free = run(grpo, "free", lr=1e-2, warmup_steps=1)
    assert "policy/kl_ref" not in records(free)[1] and column(free, "loss/total") == column(
        free, "loss/policy"
    )
    assert not equal_weights(free / "last", folder / "last")


@each_loop
def test_mask_truncated_leaves_out_truncated_completions_only(run, toy_model, words, monkeypatch, script):
    """Catches a mask that is inverted, that counts masked tokens in the denominator, or that gives NaN with
    nothing left."""
    tokenizer, encode = words
    sampler = FakeSampler(
        lambda prompt, sample, seed: (encode("abcdef")[: 3 + sample], "length" if sample % 2 else "stop")
    )
    task = FunctionTask(lambda text, problem: float(len(text) % 2))
    calls = watch(monkeypatch, script, "accumulate_gradients")
    run(script, "some", task=task, sampler=sampler, mask_truncated=True, max_logprob_gap=1e9, steps=1)
    for row, mask in enumerate(calls[0][1]["loss_mask"]):
        assert torch.equal(mask, torch.zeros_like(mask) if row % 2 else calls[0][1]["completion_mask"][row])

    sampler = FakeSampler(lambda prompt, sample, seed: (encode("abcdef")[: 3 + sample], "length"))
    off = {"beta": 0.0} if script is siren else {}  # H is of all that was sampled
    folder = run(script, "all", task=task, sampler=sampler, mask_truncated=True, max_logprob_gap=1e9, **off)
    assert (
        column(folder, "loss/total")
        == column(folder, "optim/grad_norm")
        == column(folder, "optim/skipped")
        == [0] * 5
    )
    assert equal_weights(folder / "last", toy_model)


@mutant(
    "one seed for all samples of an evaluation",
    "plainrl/metrics.py",
    "completion_seed(EVAL_SEED, 0, index, 0, sample)",
    "completion_seed(EVAL_SEED, 0, index, 0, 0)",
)
def test_evaluation_meets_the_same_problems_and_seeds_each_time(words):
    """Catches one seed for several samples, groups cut at the wrong place, wrong averages, scores that
    depend on the batch."""
    tokenizer, _ = words
    task = FunctionTask(
        lambda text, problem: text == {"0": "0.0", "3": "3.1"}.get(problem.prompt.split()[1], text)
    )
    runs = []
    for at_once in (64, 2):
        sampler = numbered(words)
        runs.append(
            (evaluate(sampler, tokenizer, task, "dev", 5, 4, 8, at_once=at_once), sum(sampler.calls, []))
        )
    assert runs[0] == runs[1]
    (metrics, rows), seeds = runs[0]
    assert [row["correct"] for row in rows] == [1, 4, 4, 1, 4] and [row["index"] for row in rows] == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert (
        metrics["avg@4"] == 14 / 20 and metrics["pass@4"] == 1 and metrics["maj@4"] == (3 * 1 + 2 * 1 / 4) / 5
    )
    assert (
        metrics["frac_unparsed"] == metrics["frac_truncated"] == 0 and metrics["len_mean"] == 4
    )  # "0.0" and the end
    assert seeds == [completion_seed(2**31, 0, i, 0, sample) for i in range(5) for sample in range(4)]
    assert len(set(seeds)) == 20


def test_a_short_list_is_measured_once(words):
    """Catches a small test file whose problems are counted several times over."""
    task = ListTask("mine", {"test": [Problem(f"say {i} of 3", str(i)) for i in range(3)]})
    metrics, rows = evaluate(numbered(words), words[0], task, "test", 5, 2, 8)
    assert [row["index"] for row in rows] == [0, 1, 2] and metrics["len_mean"] == 4


# --- DAPO ---------------------------------------------------------------------------------------------------


def test_dapo_with_its_switches_off_is_grpo(run, monkeypatch):
    """Catches a difference between the two files that is not DAPO: parameters are equal bit by bit after
    five steps."""
    monkeypatch.setattr(grpo, "sequence_mean", dapo.token_mean)
    off = dict(dynamic_sampling=False, overlong_buffer=0, clip_high=0.2)
    common = dict(minibatches=2, epochs=2, lr=1e-2)
    ours, theirs = run(dapo, "dapo", **off, **common), run(grpo, "grpo", **common)
    assert equal_weights(ours / "last", theirs / "last")
    strip = [
        {name: value for name, value in record.items() if name not in DAPO_KEYS} for record in records(ours)
    ]
    assert strip == records(theirs)


@mutant("all wrong counts as mixed", "papers/dapo.py", "0 < count < G", "0 <= count < G")
@mutant(
    "dropped tokens not counted",
    "plainrl/run.py",
    'self.state["tokens"] += rollout.tokens',
    'self.state["tokens"] += rollout.tokens if self.sampled is None else 0',
)
@mutant(
    "no samples where all are wrong",
    "plainrl/run.py",
    "            rollout = self.sampled.select([0])\n",
    "            return\n",
)
@mutant(
    "samples of the last round alone in the log",
    "plainrl/run.py",
    "self.sampled = rollout if self.sampled is None else self.sampled + rollout",
    "self.sampled = rollout",
)
def test_dapo_step_without_a_mixed_group_changes_nothing(run, toy_model, monkeypatch):
    """Catches a step that trains on nothing, crashes, or samples tokens that nobody counts."""
    task = HashTask()
    task.grade = FunctionTask(lambda text, problem: 0.0).grade
    for name, flags in (("plain", {}), ("masked", {"mask_truncated": True, "minibatches": 2})):
        calls = watch(monkeypatch, run_module, "sample_rollout")
        folder = run(dapo, name, task=task, max_refills=2, steps=2, **flags)
        assert (
            column(folder, "dapo/rounds") == [3, 3]
            and column(folder, "dapo/frac_kept") == [0, 0]
            and len(calls) == 6
        )
        assert column(folder, "loss/total") == column(folder, "optim/grad_norm") == [None, None]
        steps = [record for record in records(folder) if "reward/mean" in record]
        tokens = [record["rollout/tokens_total"] for record in steps]
        assert tokens == [
            round(24 * steps[0]["rollout/len_mean"]),
            round(24 * sum(step["rollout/len_mean"] for step in steps)),
        ]
        assert equal_weights(folder / "last", toy_model) and (folder / "final").exists()
        rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        assert [(row["step"], row["index"]) for row in rows] == [
            (step, None) for step in (1, 2) for _ in "1234"
        ]
        assert [row["prompt"] for row in rows[::4]] == ["train 0 of 0?", "train 2 of 0?"]
        assert all(row["advantage"] is None and row["tokens"] and "logprob" not in row for row in rows)


@mutant(
    "overlong is rewarded",
    "papers/dapo.py",
    "rewards = rewards + overlong / 2",
    "rewards = rewards - overlong / 2",
)
@mutant(
    "groups judged with the punishment",
    "papers/dapo.py",
    "correct = run.sampled.correct()",
    "correct = [sum(grade.correct and len(ids) < args.max_new_tokens - args.overlong_buffer + "
    "4 for grade, ids in zip(run.sampled.grades[i : i + G], run.sampled.completion_ids[i : i + "
    "G])) for i in range(0, len(run.sampled.grades), G)]",
)
@mutant("all right counts as mixed", "papers/dapo.py", "0 < count < G", "0 < count <= G")
@mutant(
    "surplus groups trained on", "papers/dapo.py", "run.sampled.select(kept[:B])", "run.sampled.select(kept)"
)
@mutant(
    "prompts counted group by group",
    "plainrl/rollout.py",
    ".view(-1, self.group_size)\n",
    ".view(self.group_size, -1).T\n",
)
def test_dapo_filters_on_correctness_and_drops_surplus_groups(run, words, monkeypatch):
    """Catches groups judged by the punished reward, groups kept in the wrong order, and surplus carried to
    the next step."""
    refill = dapo.problem_indices(dapo.Args(prompts_per_step=2), 1, 1)  # what step 1 samples after 0 and 1
    mixed = {1, 2, *refill}  # of these problems sample 0 is right; of the others all samples are

    def score(completion, problem):
        index, sample = map(int, completion.split("."))
        return float(index not in mixed or sample == 0)

    sampler, (tokenizer, encode) = numbered(words), words
    original = sampler.answer

    def of_different_lengths(prompt, sample, seed):
        ids, reason = original(prompt, sample, seed)
        return ids[:-1] + encode(" ") * sample + ids[-1:], reason

    sampler.answer = of_different_lengths
    calls = watch(monkeypatch, dapo, "accumulate_gradients")
    folder = run(
        dapo,
        task=FunctionTask(lambda text, problem: score(text.strip(), problem)),
        sampler=sampler,
        steps=2,
        overlong_buffer=7,
        max_refills=10,
        max_logprob_gap=1e9,
    )
    assert column(folder, "dapo/rounds") == [2, 11] and column(folder, "dapo/frac_kept") == [3 / 4, 1 / 22]
    number = lambda ids: tokenizer.decode(ids, skip_special_tokens=True).split(".")[0]  # noqa: E731
    trained = [list(map(number, batch.completion_ids)) for _, batch, *_ in calls]
    assert trained == [["1"] * 4 + [str(refill[0])] * 4, ["2"] * 4]
    lengths = [len(ids) for ids in calls[0][1].completion_ids[:4]]
    shaped = [
        2 * (sample == 0) - 1 + max(-1, min(0, (1 - length) / 7)) for sample, length in enumerate(lengths)
    ]  # eq. 13
    assert len(set(shaped)) == 4
    mean = sum(shaped) / 4
    std = math.sqrt(sum((reward - mean) ** 2 for reward in shaped) / 3) + 1e-6
    assert calls[0][1]["advantages"][:4, 0].tolist() == pytest.approx(
        [(reward - mean) / std for reward in shaped], abs=1e-5
    )


# --- SIREN and what it is compared with ---------------------------------------------------------------------


@pytest.mark.parametrize("common", [{}, dict(minibatches=2, epochs=2)], ids=["one", "several"])
def test_siren_with_its_switch_off_is_dr_grpo(run, toy_model, common):
    """Catches a difference between the two files that is not SIREN: parameters are equal bit by bit after
    five steps."""
    ours = run(siren, "siren", beta=0.0, lr=1e-2, **common)
    theirs = run(dr_grpo, "dr_grpo", lr=1e-2, **common)
    assert equal_weights(ours / "last", theirs / "last") and not equal_weights(ours / "last", toy_model)
    assert [
        {name: value for name, value in record.items() if name not in SIREN_KEYS} for record in records(ours)
    ] == records(theirs)


def test_siren_holds_the_entropy_that_grpo_loses(run, toy_model):
    """Catches a regulariser that does nothing: a reward for one letter drives H down, and a strong anchor
    holds it."""
    flags = LEARNING | dict(task=FirstLetterTask(), steps=25)
    free, held = run(siren, "free", beta=0.0, **flags), run(siren, "held", beta=3.0, **flags)
    anchor = column(free, "siren/anchor")
    assert anchor == column(held, "siren/anchor") and len(set(anchor)) == 1
    lost, kept = (abs(column(folder, "siren/entropy")[-1] - anchor[0]) for folder in (free, held))
    assert lost > 0.5 and kept < 0.2


OFF = {  # each method with its switch off, in a run of several updates a batch
    naive_bonus: dict(bonus=0.0),
    adaptive_bonus: dict(bonus=0.0, bonus_rate=0.0),
    entropy_advantage: dict(shape_alpha=0.0),
    high_entropy_tokens: dict(token_fraction=1.0),
    clip_cov: dict(cov_low=4.9),
    kl_cov: dict(kl_coef=0.0),
}
ON = {  # and so strong that it must show
    naive_bonus: dict(bonus=0.1),
    adaptive_bonus: dict(bonus=0.1),
    entropy_advantage: {},
    high_entropy_tokens: {},
    clip_cov: dict(cov_fraction=0.5, cov_low=0.0),
    kl_cov: dict(cov_fraction=0.5, kl_coef=5.0),
}


@pytest.mark.parametrize("script", ENTROPY, ids=name_of)
def test_entropy_method_with_its_switch_off_is_dr_grpo(run, script):
    """Catches a difference to papers/dr_grpo.py that is not the method: parameters are equal bit by bit
    after two steps."""
    # row by row, so that log-probabilities before and during an update are the same to the last bit
    common = dict(minibatches=2, epochs=1, lr=1e-2, steps=2, micro_batch_tokens=1)
    unclipped = dict(clip_low=math.inf, clip_high=math.inf)
    theirs = run(dr_grpo, "theirs", **common, **unclipped)
    common |= {} if script is kl_cov else unclipped  # which never clips
    ours = run(script, "ours", **common | OFF[script])
    assert equal_weights(ours / "last", theirs / "last")
    own = own_prefix(script)
    stripped = [
        {name: value for name, value in record.items() if not name.startswith(own)}
        for record in records(ours)
    ]
    assert stripped == records(theirs)
    assert not equal_weights(run(script, "on", **common | ON[script]) / "last", theirs / "last")


def test_naive_bonus_stays_and_the_adaptive_one_moves(run):
    """Catches a weight that is adapted in the wrong file, or in none."""
    for script, count in ((naive_bonus, 1), (adaptive_bonus, 5)):
        assert len(set(column(run(script, name_of(script), bonus=0.1), "bonus/weight"))) == count


@mutant(
    "one draw for all updates",
    "papers/clip_cov.py",
    "completion_seed(args.seed, step, len(run.grad_norms))",
    "completion_seed(args.seed, step)",
)
def test_clip_cov_draws_anew_in_every_update(run, monkeypatch):
    """Catches one seed for all draws, and a share that is logged of the updates and not of the tokens."""
    calls = watch(monkeypatch, clip_cov, "accumulate_gradients")
    folder = run(clip_cov, cov_fraction=0.3, cov_low=0.0, minibatches=2, seed=3)
    seeds = [call[-1] for call in calls]
    assert len(set(seeds)) == len(seeds) == 10
    assert all(0 <= share < 0.35 for share in column(folder, "clip_cov/frac_dropped"))
    assert sum(column(folder, "clip_cov/frac_dropped")) > 0.3


def test_kl_cov_does_nothing_before_the_first_update(run, monkeypatch):
    """Catches a penalty on the rounding between two passes of one policy: its gradient does not shrink with
    it."""
    original = run_module.score_all
    monkeypatch.setattr(run_module, "score_all", lambda *args: [part + 1e-6 for part in original(*args)])
    gradients = {0.0: [], 100.0: []}
    for kl_coef, seen in gradients.items():

        def optimizer_step(self, optimizer, update, seen=seen):
            seen.append([weight.grad.clone() for weight in optimizer.param_groups[0]["params"]])
            self.sums.update(update)
            self.grad_norms.append(0.0)
            optimizer.step()
            optimizer.zero_grad()

        monkeypatch.setattr(run_module.Run, "optimizer_step", optimizer_step)
        run(kl_cov, f"{kl_coef}", kl_coef=kl_coef, cov_fraction=0.5, minibatches=2, epochs=1, steps=1)
    same = [all(map(torch.equal, one, other)) for one, other in zip(*gradients.values(), strict=True)]
    assert same == [True, False]


@mutant("bonus lost in a skipped update", "papers/adaptive_bonus.py", "if stepped:  # [3]", "if True:  # [3]")
def test_adaptive_bonus_outlives_a_skipped_update(run, monkeypatch):
    """Catches an update that was not finite and takes the bonus along: max(0, nan) is 0."""
    poison(monkeypatch, adaptive_bonus, {3}, "loss")
    folder = run(adaptive_bonus, bonus=0.05, bonus_rate=0.001, minibatches=2, steps=3)
    bonus = column(folder, "bonus/weight")
    assert column(folder, "optim/skipped") == [0, 1, 0]
    assert all(abs(value - 0.05) < 0.01 for value in bonus) and len(set(bonus)) == 3


@mutant("every bonus adapts", "papers/adaptive_bonus.py", "if stepped:  # [3]", "if False:  # [3]")
@mutant(
    "adaptive bonus forgotten on resume",
    "papers/adaptive_bonus.py",
    'adapted(run.state["bonus"], ',
    "adapted(args.bonus, ",
)
def test_adaptive_bonus_follows_the_entropy(run):
    """Catches a weight that stays, that is forgotten between steps, or a target that is not that of the
    starting model."""
    for share, rises in ((3.0, True), (0.1, False)):
        folder = run(adaptive_bonus, f"target {share}", bonus=0.05, bonus_rate=0.001, target_share=share)
        bonus, state = column(folder, "bonus/weight"), json.loads((folder / "last/state.json").read_text())
        assert (
            bonus == sorted(bonus, reverse=not rises) and len(set(bonus)) == 5 and state["bonus"] == bonus[-1]
        )
        entropy, start = column(folder, "bonus/entropy"), state["entropy_at_start"]
        assert entropy[0] == pytest.approx(start, rel=1e-5)
        assert bonus[-1] == pytest.approx(
            0.05 + 0.001 * sum(share * start - value for value in entropy), rel=1e-5
        )


# --- learning -----------------------------------------------------------------------------------------------


def first_and_last(folder: Path) -> tuple[float, float]:
    """Mean reward of the first and of the last five steps."""
    rewards = column(folder, "reward/mean")
    return sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5


LEARNING = dict(
    task=None,
    steps=40,
    prompts_per_step=4,
    group_size=8,
    max_new_tokens=3,
    lr=1e-2,
    micro_batch_tokens=4096,
    eval_every=100,
    save_every=100,
)


@pytest.mark.parametrize(
    "script, flags",
    [
        (grpo, {}),
        (dr_grpo, {}),
        (dapo, dict(max_refills=2)),
        (siren, dict(beta=0.01)),
        (rloo, {}),
        (cispo, {}),
        (gspo, {}),
        (passk, dict(k=1)),  # a larger k leaves a group alone that is nearly all right
        (srpo, {}),
    ],
    ids=["GRPO", "Dr. GRPO", "DAPO", "SIREN", "RLOO", "CISPO", "GSPO", "Pass at 1", "SRPO"],
)
def test_learns_a_toy_task(run, script, flags):
    """Catches a loop whose gradient does not raise the reward: wrong sign, rows or mask anywhere on the
    way."""
    first, last = first_and_last(run(script, **LEARNING | {"task": FirstLetterTask()}, **flags))
    assert first < 0.3 and last > 0.9


def shuffle_advantages(monkeypatch) -> None:
    original, generator = grpo.group_advantages, torch.Generator().manual_seed(0)

    def group_advantages(*args):
        advantages = original(*args)
        return advantages.flatten()[torch.randperm(advantages.numel(), generator=generator)].view_as(
            advantages
        )

    monkeypatch.setattr(grpo, "group_advantages", group_advantages)


def test_does_not_learn_a_toy_task_from_shuffled_advantages(run, monkeypatch):
    """Catches a learning test that would pass without learning: the same run with advantages given to the
    wrong completions."""
    shuffle_advantages(monkeypatch)
    first, last = first_and_last(run(grpo, **LEARNING | {"task": FirstLetterTask()}))
    assert last < first + 0.25


@pytest.mark.skipif(
    not TINY.exists(),
    reason="models/tiny is not there; `python tools/make_tiny.py --out-dir models/tiny` makes it",
)
def test_embedded_model_learns_but_not_from_shuffled_advantages(run, monkeypatch):
    """Catches a loop that learns toys only, and one whose score rises whatever the advantages say (same
    problems and seeds)."""
    flags = dict(
        model=str(TINY),
        task=load_task("chain?horizon=1"),
        steps=7,
        prompts_per_step=8,
        group_size=12,
        lr=5e-4,
        max_new_tokens=32,
        micro_batch_tokens=32768,
        eval_every=100,
        eval_problems=32,
        eval_samples=8,
        test_problems=1,
    )
    learned = run(grpo, "learned", **flags)
    shuffle_advantages(monkeypatch)
    shuffled = run(grpo, "shuffled", **flags)
    score = "eval/chain/avg@8"
    dev = [[record[score] for record in records(folder) if score in record] for folder in (learned, shuffled)]
    assert dev[0][0] == dev[1][0]
    assert dev[0][1] > dev[0][0] + 0.08 and dev[1][1] < dev[0][0] + 0.03
    rewards = [sum(column(folder, "reward/mean")[-4:]) / 4 for folder in (learned, shuffled)]
    assert rewards[0] > rewards[1] + 0.1


# --- the files as diffs of one another ----------------------------------------------------------------------

# functions that are the same in all scripts but a few
REPEATED = {"clipped_surrogate", "truncated_importance", "learning_rate", "problem_indices"}
OWN_VERSION = {
    ("papers/dapo.py", "problem_indices"),
    ("guide.py", "problem_indices"),
    ("papers/entropy_advantage.py", "clipped_surrogate"),
}


def top_level(path: str) -> dict[str, str]:
    """Source text of every function and class of a script, in order."""
    source = (ROOT / path).read_text()
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {node.name: ast.get_source_segment(source, node) for node in nodes}


@pytest.mark.parametrize("script", BASES)
def test_script_says_what_it_is_a_diff_of(script):
    """Catches a file whose reader does not learn what to compare it with, and blocks in another order than
    its base's."""
    docstring = ast.get_docstring(ast.parse((ROOT / script).read_text()))
    assert f"diff {BASES[script]} {script}" in " ".join(docstring.split())
    ours, theirs = top_level(script), top_level(BASES[script])
    assert [name for name in ours if name in theirs] == [name for name in theirs if name in ours]


@pytest.mark.parametrize("script", BASES)
def test_repeated_blocks_are_identical(script):
    """Catches a fix made in one script only, and a difference that the diff should not show."""
    ours, theirs = top_level(script), top_level(BASES[script])
    for name in REPEATED & ours.keys() & theirs.keys():
        assert ours[name] == theirs[name] or (script, name) in OWN_VERSION, name


@pytest.mark.parametrize("script", ["grpo.py", *BASES])
def test_scripts_stay_readable(script):
    """Catches a function that no longer fits a screen, and a loop that nobody reads to its end."""
    tree = ast.parse((ROOT / script).read_text())
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }
    main = lengths.pop("main")
    assert max(lengths.values()) <= 50 and main <= (40 if script in ("grpo.py", "papers/dr_grpo.py") else 80)


def test_grpo_is_short_enough_to_teach():
    """Catches plumbing that comes back into the file which everybody reads first. What it needs (for uv)
    stands behind its end."""
    script, _, _ = (ROOT / "grpo.py").read_text().partition("\n\n\n# /// script\n")
    assert len(script.splitlines()) <= 200


# --- a fork -------------------------------------------------------------------------------------------------


SMALL = (
    "--prompts-per-step 2 --group-size 4 --eval-problems 2 --test-problems 2 --eval-samples 2 "
    "--max-new-tokens 40"
)


def test_a_copied_script_and_plainrl_are_the_whole_fork(tmp_path):
    """Catches a module that is forgotten in the copy, or that a folder called tasks, runtime or models of
    the fork replaces."""
    shutil.copytree(ROOT / "plainrl", tmp_path / "plainrl", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tasks", "runtime", "distributed", "models", "rollout"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('this is the package of the fork')\n")
    for script in ("siren.py", "papers/clip_cov.py"):
        shutil.copy(ROOT / script, tmp_path)
    flags = f"--steps 2 {SMALL} --task chain?horizon=1".split()
    both = (
        "import runpy, sys\n"
        f"for sys.argv in (['siren.py', *{flags}], ['clip_cov.py', *{flags}]):\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", both]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=bare_environment())
    assert done.returncode == 0, done.stderr[-2000:]
    assert "evaluate it" not in done.stdout  # eval.py was not copied
    for script in ("siren", "clip_cov"):
        assert (tmp_path / "runs" / script / "chain-seed0/final/model.safetensors").exists()


def test_a_paper_runs_from_another_folder(tmp_path):
    """Catches imports and the embedded model that are only found from the clone itself."""
    flags = f"--steps 1 {SMALL}"
    command = [sys.executable, str(ROOT / "papers/dr_grpo.py"), *flags.split(), "--task", "chain?horizon=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=bare_environment())
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "runs/dr_grpo/chain-seed0/curves.png").exists() and "eval.py" in done.stdout


def bare_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_help_imports_nothing_slow():
    """Catches a --help that waits for transformers, matplotlib or math-verify: only what flags and tensors
    need is imported."""
    slow = "transformers matplotlib math_verify sympy peft datasets reasoning_gym vllm tokenizers".split()
    modules = "sys, plainrl.run, eval, siren, papers.clip_cov"
    code = f"import {modules}; print(sorted(set({slow}) & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=bare_environment()
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr[-2000:]
