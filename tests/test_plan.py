"""--plan and what it says: memory by formula, tokens by counting, time by a clock that is wound by hand."""

import dataclasses
import importlib.util
import json
import re
import signal
from pathlib import Path

import pytest
import torch
from mutants import mutant
from toys import FakeSampler, HashTask, column, quick_flags

import grpo
import guide
import h1_curriculum
import siren
from benchmarks import memory as table
from papers import dapo, guide_ablations, kl_cov
from plainrl import plan, run as run_module
from plainrl.models import load_model
from plainrl.plan import Seconds, Sizes, memory, tokens_of
from plainrl.rollout import encode_prompt
from plainrl.sampler import HFSampler
from plainrl.scoring import score

pytestmark = pytest.mark.usefixtures("quick")
ROOT = Path(__file__).resolve().parent.parent
FLAGS = dict(prompts_per_step=2, group_size=4, max_new_tokens=8, steps=5, eval_every=5)
FLAGS |= dict(eval_problems=1, eval_samples=1, test_problems=1)
SIZES = Sizes(
    parameters=1000, layers=2, hidden=8, inner=16, heads=2, key_heads=1, head=4, vocabulary=10
)  # q = 8, k = 4


# --- memory -------------------------------------------------------------------------------------------------


@mutant("plan with one moment", "plainrl/plan.py", '"moments": 8 * A', '"moments": 4 * A')
@mutant("plan without gradients", "plainrl/plan.py", '"gradients": 4 * A', '"gradients": 0 * A')
@mutant("plan of half the feed-forward", "plainrl/plan.py", "+ 4 * sizes.inner", "+ 2 * sizes.inner")
@mutant(
    "plan without the layer at work", "plainrl/plan.py", "4 * tokens * (kept + 3 * a)", "4 * tokens * kept"
)
@mutant("plan of all logits", "plainrl/plan.py", "20 * min(LOGITS_AT_ONCE, ", "20 * max(LOGITS_AT_ONCE, ")
@mutant("plan of buffers that do not double", "plainrl/plan.py", "        room *= 2\n", "        room += 1\n")
@mutant(
    "plan of keys for all heads",
    "plainrl/plan.py",
    "k = sizes.heads * sizes.head, sizes.key_heads * sizes.head",
    "k = sizes.heads * sizes.head, sizes.heads * sizes.head",
)
def test_memory_by_hand():
    """Catches any term of the formula that is not what its docstring says."""
    training, sampling = memory(SIZES, tokens=100, prompt=4, length=12, rows=3)
    # a = 6 x 8 + 2 x 8 + 2 x 4 x 16 / 12 + 4 x 16 + 16 for the mask of a row of 16, since 12 > 2 x 4
    a = 48 + 16 + 32 / 3 + 64 + 16
    assert training == {
        "weights": 4000,
        "moments": 8000,
        "reference": 0,
        "gradients": 4000,
        "activations": pytest.approx(4 * 100 * (2 * a + 3 * 8 + 3 * a)),
        "logits": 20 * 100 * 10,
    }
    # keys and values: 2 layers x 4 numbers x 8 bytes, of 3 rows with room for 32 tokens and of 3 x 4 prompts
    assert sampling == {
        "weights": 4000,
        "moments": 8000,
        "reference": 0,
        "keys and values": 64 * (3 * 32 + 12),
        "draws": 16 * 10 * 3,
    }
    _, longer = memory(SIZES, tokens=100, prompt=4, length=33, rows=3)  # the buffers double: 64
    assert longer["keys and values"] == 64 * (3 * 64 + 12)


@mutant("plan of long rows for short ones", "plainrl/plan.py", "length > LONG_ROW * sizes.head", "length > 0")
@mutant("plan that forgets checkpointing", "plainrl/plan.py", "(d if checkpointing else a)", "a")
@mutant("plan of a part of the weights", "plainrl/plan.py", "4 * P / gpus + 4 * P", "4 * P / gpus")
@mutant("plan with moments on each GPU", "plainrl/plan.py", '"moments": 8 * A / gpus', '"moments": 8 * A')
@mutant("plan that trains all weights", "plainrl/plan.py", "if trained is None else trained", "")
@mutant("plan without a reference", "plainrl/plan.py", "4 * P if reference else 0", "0 if reference else 0")
@mutant("plan without vLLM's weights", "plainrl/plan.py", '"vLLM": 2 * P + ', '"vLLM": ')
def test_memory_of_other_layouts_by_hand():
    """Catches a switch that changes nothing, or another term than its own."""
    plain = {"tokens": 100, "prompt": 4, "length": 8, "rows": 3}
    # a = 6 x 8 + 2 x 8 + 2 x 4 x 12 / 8 + 4 x 16 + 2 heads x 2 x 12 for the scores of short rows
    a = 48 + 16 + 12 + 64 + 48
    short, _ = memory(SIZES, **plain)
    assert short["activations"] == 400 * (5 * a + 3 * 8)
    checkpointed, _ = memory(SIZES, **plain, checkpointing=True)
    assert checkpointed == short | {"activations": 400 * (5 * 8 + 3 * a)}
    shared, _ = memory(SIZES, **plain, gpus=4)
    assert shared == short | {"weights": 1000 + 4000, "moments": 2000}
    adapted, _ = memory(SIZES, **plain, trained=50)
    assert adapted == short | {"gradients": 200, "moments": 400}
    compared, _ = memory(SIZES, **plain, reference=True)
    assert compared == short | {"reference": 4000}
    _, vllm = memory(SIZES, **plain, vllm=True)
    assert vllm["vLLM"] == 2000 + 4 * 4 * 2 * 3 * 12 and "draws" not in vllm


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("length", [48, 128])
def test_kept_activations_are_those_that_autograd_keeps(length, checkpointing):
    """Catches a formula that is not that of the scorer: bytes of all tensors that wait for the backward pass,
    without the weights, for rows whose scores are kept and for longer ones."""
    model, _ = load_model(str(ROOT / "models/tiny"), checkpointing)
    prompt, rows, found = list(range(5, 25)), 16, {}
    completions = torch.randint(5, 300, (rows, length), generator=torch.Generator().manual_seed(0)).tolist()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def keep(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        score(model, [prompt] * rows, completions, 1.0)
    measured = sum(size for place, size in found.items() if place not in weights)
    sizes, tokens = plan.sizes_of(model), rows * length + len(prompt)
    whole, working = (
        memory(each, tokens, len(prompt), length, rows, checkpointing=checkpointing)[0]["activations"]
        for each in (sizes, dataclasses.replace(sizes, layers=0))
    )
    behind_the_last_layer = 12 * tokens * sizes.hidden
    assert whole - working + behind_the_last_layer == pytest.approx(measured, rel=0.1)


@mutant(
    "adapters counted as the model's",
    "plainrl/plan.py",
    "parameters=model.num_parameters() - adapters",
    "parameters=model.num_parameters()",
)
@mutant(
    "adapters that a table forgets",
    "benchmarks/memory.py",
    "2 * (d + q) + 2 * (d + k) + 3 * (d + f)",
    "2 * (d + q) + 2 * (d + k) + 2 * (d + f)",
)
def test_sizes_of_a_model(toy_model):
    """Catches sizes of another part of the config, adapters that make the model larger, and a table that
    counts other adapters than peft makes."""
    model, _ = load_model(toy_model)
    expected = Sizes(
        parameters=sum(weight.numel() for weight in model.parameters()),
        layers=2,
        hidden=32,
        inner=64,
        heads=2,
        key_heads=2,
        head=16,
        vocabulary=model.config.vocab_size,
    )
    assert plan.sizes_of(model) == expected
    adapted, _ = load_model(toy_model, lora_rank=table.RANK)
    assert plan.sizes_of(adapted) == expected
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert table.adapters(expected) == trained


# --- tokens -------------------------------------------------------------------------------------------------


@mutant(
    "last score that nobody plans",
    "plainrl/plan.py",
    "-(-args.steps // args.eval_every)",
    "args.steps // args.eval_every",
)
@mutant("test scored once in a plan", "plainrl/plan.py", "times * dev + 2 * test", "times * dev + test")
@mutant(
    "plan of one completion",
    "plainrl/plan.py",
    "step = args.prompts_per_step * args.group_size * args.max_new_tokens",
    "step = args.prompts_per_step * args.max_new_tokens",
)
@pytest.mark.parametrize("steps", [4, 5])
def test_tokens_are_those_of_a_run_that_never_ends_early(toy_model, tmp_path, steps):
    """Catches a step, or a score, that is left out or planned twice: a run is counted whose completions are
    all as long as they may be."""
    endless = FakeSampler(lambda prompt, sample, seed: ([7] * 8, "length"))
    args = grpo.Args(**quick_flags(toy_model, tmp_path / "run", steps=steps, eval_problems=3, eval_every=2))
    args.max_logprob_gap = float("inf")
    planned = tokens_of(args)
    grpo.main(args, task=HashTask(), sampler=endless)
    assert 8 * sum(map(len, endless.calls)) == planned.sampled + planned.scores
    assert planned.sampled == steps * planned.step == steps * 2 * 4 * 8
    assert planned.first_scores == (3 + 2) * 2 * 8


@mutant(
    "plan without a budget's last step",
    "plainrl/plan.py",
    "args.token_budget - 1 + a_step)",
    "args.token_budget)",
)
def test_a_budget_ends_after_the_step_in_which_it_is_used_up(toy_model, tmp_path):
    """Catches a plan that a run goes beyond: its last step begins with one token of the budget left."""
    endless = FakeSampler(lambda prompt, sample, seed: ([7] * 8, "length"))
    args = grpo.Args(**quick_flags(toy_model, tmp_path / "run", token_budget=65))
    args.max_logprob_gap = float("inf")
    planned = tokens_of(args)
    grpo.main(args, task=HashTask(), sampler=endless)
    assert column(tmp_path / "run", "rollout/tokens_total") == [64, 128]
    assert planned.sampled == 128


@mutant(
    "budget that bounds no training",
    "plainrl/plan.py",
    "batches=in_all_steps(batch)",
    "batches=batch * args.steps",
)
@mutant(
    "passes that a plan forgets",
    "plainrl/plan.py",
    "return self.epochs * self.batches",
    "return self.batches",
)
@mutant(
    "refills that a plan forgets",
    "plainrl/plan.py",
    "in_rounds=in_all_steps(step * rounds)",
    "in_rounds=step",
)
@mutant("refills that are off", "plainrl/plan.py", "if refilled else 0", "if True else 0")
@mutant("hints that a plan forgets", "plainrl/plan.py", "rounds *= 2", "rounds *= 1")
@mutant("joined groups that a plan forgets", "plainrl/plan.py", "2 * step if joined else step", "step")
@mutant("scores of stages", "plainrl/plan.py", "times += args.max_horizon - 1", "times += 0")
def test_tokens_of_passes_rounds_and_budgets():
    """Catches a flag that makes a run longer or shorter, and its plan not."""
    plain = tokens_of(grpo.Args(**FLAGS))
    assert plain.sampled == plain.in_rounds == plain.trained == 5 * 64 and plain.scores == 2 * 8 + 2 * 8
    assert tokens_of(grpo.Args(**FLAGS, epochs=3)).trained == 3 * 5 * 64
    long = tokens_of(grpo.Args(**FLAGS, token_budget=1000))
    assert long == plain  # --steps come first

    refilled = tokens_of(dapo.Args(**FLAGS, max_refills=2, epochs=2, token_budget=100))
    assert (refilled.rounds, refilled.sampled, refilled.in_rounds) == (3, 99 + 64, 99 + 3 * 64)
    assert refilled.trained == 2 * refilled.sampled
    assert tokens_of(dapo.Args(**FLAGS, dynamic_sampling=False)) == plain
    guided = tokens_of(guide.Args(**FLAGS, max_refills=2))
    assert (guided.rounds, guided.in_rounds, guided.trained) == (6, 6 * 5 * 64, 5 * 64)
    assert tokens_of(guide.Args(**FLAGS, max_refills=2, trigger="never")).rounds == 3
    joined = tokens_of(guide_ablations.Args(**FLAGS, group="join"))
    assert joined.trained == 2 * joined.sampled == 2 * 5 * 64
    stages = tokens_of(h1_curriculum.Args(**FLAGS, max_horizon=3))
    assert stages.scores == (2 + 2) * 8 + 2 * 8  # two stages more end with a score of their own


@mutant("plan of problems that are not there", "plainrl/tasks.py", "else min(asked, size)", "else asked")
@mutant(
    "plan of another task",
    "plainrl/plan.py",
    "args, tokens, sizes = run.args, tokens_of(run.args, run.task)",
    "args, tokens, sizes = run.args, tokens_of(run.args)",
)
@mutant(
    "memory for problems that are not there",
    "plainrl/plan.py",
    'scored(run.task, "test", args.test_problems))\n    return memory(',
    "args.test_problems)\n    return memory(",
)
@mutant(
    "a start scored on problems that are not there",
    "plainrl/run.py",
    'scored(self.task, "test", args.test_problems)',
    "args.test_problems",
)
def test_problems_that_are_not_there_are_not_planned(toy_model, tmp_path, monkeypatch, capsys):
    """Catches tokens, memory and a line on the screen for more held-out problems than a file has."""
    count, seen = {"dev": 6, "test": 5, "train": 20}, []
    rows = [
        {"prompt": f"{split} {i}", "answer": "1", "split": split}
        for split in count
        for i in range(count[split])
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = quick_flags(
        toy_model, tmp_path / "run", task=f"jsonl:{tmp_path / 'mine.jsonl'}", max_logprob_gap=1
    )
    flags |= dict(steps=1, prompts_per_step=1, eval_problems=64, test_problems=128)
    monkeypatch.setattr(plan, "memory", lambda *args, rows, **sizes: seen.append(rows) or ({}, {}))
    with pytest.raises(SystemExit):
        grpo.main(grpo.Args(**flags, plan=True))
    tokens = 2 * 6 * 2 * 8 + 2 * 5 * 2 * 8  # twice dev and twice test, two samples of eight tokens each
    assert f" {tokens} for scores on dev and test at most" in capsys.readouterr().out
    assert seen == [6 * 2]  # sampled at once: more than the four of a step
    assert tokens_of(grpo.Args(**flags), HashTask()).scores == 2 * 64 * 16 + 2 * 128 * 16  # without end
    grpo.main(grpo.Args(**flags))
    said = "scoring the starting model on 5 test and 6 dev problems, 2 completions each\n"
    assert said in capsys.readouterr().out


@mutant(
    "plan without the reference's pass",
    "plainrl/plan.py",
    "old_logprobs + has_reference(args)",
    "old_logprobs",
)
@mutant("plan without old log-probabilities", "plainrl/plan.py", "guided or updates > 1", "guided")
@mutant(
    "reference of KL-Cov", "papers/kl_cov.py", "start: ClassVar[bool] = False", "start: ClassVar[bool] = True"
)
@mutant(
    "plan without the passes of updates",
    "plainrl/plan.py",
    "before_updates = epochs if",
    "before_updates = 0 if",
)
def test_passes_without_gradients():
    """Catches a script that scores its batch without gradients, and a plan in which that takes no time."""
    assert tokens_of(grpo.Args(**FLAGS)).passes == 0
    assert tokens_of(grpo.Args(**FLAGS, minibatches=2)).passes == 1
    assert tokens_of(grpo.Args(**FLAGS, epochs=2, kl_coef=0.1)).passes == 2
    assert tokens_of(siren.Args(**FLAGS)).passes == 1
    assert tokens_of(siren.Args(**FLAGS, epochs=3)).passes == 1 + 3
    assert tokens_of(kl_cov.Args(**FLAGS)).passes == 1 + 1
    assert tokens_of(guide.Args(**FLAGS)).passes == 1 + 1
    assert tokens_of(guide.Args(**FLAGS, trigger="never")).passes == 0


@mutant("plan that forgets a script", "plainrl/plan.py", "guided or args.pass_before_update", "guided")
@mutant(
    "every script has a pass",
    "plainrl/flags.py",
    "update: ClassVar[bool] = False",
    "update: ClassVar[bool] = True",
)
def test_a_copy_has_the_plan_of_its_script(tmp_path):
    """Catches a plan that knows scripts by their names, so that a copy of siren.py under another plans a pass
    too few."""
    for file, flags, passes in (
        ("siren.py", {"epochs": 3}, 1 + 3),
        ("papers/kl_cov.py", {}, 1 + 1),
        ("papers/dr_grpo.py", {}, 0),
    ):
        copy = tmp_path / f"my_{Path(file).name}"
        copy.write_text((ROOT / file).read_text())
        spec = importlib.util.spec_from_file_location(copy.stem, copy)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert tokens_of(module.Args(**FLAGS, **flags)).passes == passes, file


@mutant(
    "script that forgets its pass",
    "papers/kl_cov.py",
    "update: ClassVar[bool] = True",
    "update: ClassVar[bool] = False",
)
@pytest.mark.parametrize("script", sorted([*ROOT.glob("[!e]*.py"), *ROOT.glob("papers/*.py")]), ids=str)
def test_scripts_say_that_their_updates_score_the_batch(script):
    """Catches a script whose updates make a pass of their own, and whose Args do not say so. Guide's flag
    --trigger does."""
    Args = importlib.import_module(".".join(script.relative_to(ROOT).with_suffix("").parts)).Args
    said = getattr(Args, "pass_before_update", False) or hasattr(Args, "trigger")
    text = script.read_text()
    assert said == ("score_all(" in text and "run.optimizer_step(" in text)  # LatentSeek trains nothing


# --- time ---------------------------------------------------------------------------------------------------


@mutant("plan that does not wait for a GPU", "plainrl/plan.py", 'device.type == "cuda"', "False")
@mutant(
    "plan that waits for a CPU",
    "plainrl/plan.py",
    '    if device.type == "cuda":\n        torch.cuda',
    "    if True:\n        torch.cuda",
)
def test_the_clock_waits_for_the_device(monkeypatch):
    """Catches a backward pass that is still going on when its time is taken, and a plan without a GPU that
    asks for one."""
    seen = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: seen.append(device))
    monkeypatch.setattr(plan.time, "monotonic", lambda: seen.append("look") or 3.0)
    gpu = torch.device("cuda", 1)
    assert plan.clock(gpu) == 3.0 and seen == [gpu, "look"]
    assert plan.clock(torch.device("cpu")) == 3.0 and seen == [gpu, "look", "look"]


@mutant("time of a part for the whole", "plainrl/plan.py", "tokens = len(part) *", "tokens = len(batch) *")
@mutant(
    "time of completions that ended",
    "plainrl/plan.py",
    "(clock(device) - began) / tokens_in(found)\n\n",
    "(clock(device) - began) / (few * len(found))\n\n",
)
@mutant(
    "sampling on another clock",
    "plainrl/plan.py",
    "sampling = (clock(device)",
    "sampling = (time.monotonic()",
)
@mutant(
    "training on another clock",
    "plainrl/plan.py",
    "training = (clock(device)",
    "training = (time.monotonic()",
)
@mutant(
    "scoring on another clock", "plainrl/plan.py", "scoring = (clock(device)", "scoring = (time.monotonic()"
)
def test_time_is_that_of_the_tokens_that_were_timed(toy_model, tmp_path, monkeypatch):
    """Catches a micro-batch taken for a batch, completions that ended taken for longer ones, a measurement
    that does not wait for the device, and a plan that leaves gradients behind."""
    timed, wound, devices = [], iter(range(10**6)), []
    clock = lambda device: devices.append(device) or 3.0 * next(wound)  # noqa: E731, each look takes 3 s

    def look(run):
        timed.append(plan.time_tokens(run))
        assert all(weight.grad is None for weight in run.model.parameters())

    monkeypatch.setattr(plan, "clock", clock)
    monkeypatch.setattr(run_module, "say_plan", look)
    task = HashTask()
    ends = FakeSampler(lambda prompt, sample, seed: ([7] * (4 if sample else 16), "length"))
    args = grpo.Args(**quick_flags(toy_model, tmp_path / "run", max_new_tokens=32, plan=True))
    prompt = len(encode_prompt(load_model(toy_model)[1], task.problem("train", 1, 0).prompt))
    args.micro_batch_tokens = prompt + 4 * 32  # one of two groups
    with pytest.raises(SystemExit):
        grpo.main(args, task=task, sampler=ends)
    sampled = 2 * (16 + 3 * 4)
    assert timed == [Seconds(sampling=3 / sampled, training=3 / (4 * 32), scoring=3 / (4 * 32))]
    assert devices == [torch.device("cpu")] * 6


@mutant(
    "epochs that take no time", "plainrl/plan.py", "batches * tokens.epochs * seconds", "batches * seconds"
)
@mutant("passes that take no time", "plainrl/plan.py", "batches * tokens.passes * seconds", "0 * seconds")
@mutant(
    "rounds that take no time", "plainrl/plan.py", "{in_all(tokens.in_rounds)}", "{in_all(tokens.sampled)}"
)
@mutant(
    "hours without a budget",
    "plainrl/plan.py",
    "sampled, tokens.batches).values()",
    "sampled, tokens.batch * args.steps).values()",
)
@mutant("hours without scores", "plainrl/plan.py", ".values()) + scores)", ".values()))")
def test_hours_are_those_of_the_tokens(toy_model, tmp_path, monkeypatch, capsys):
    """Catches tokens of rounds, passes, scores or a budget that are planned, and hours that are without
    them."""
    monkeypatch.setattr(plan, "time_tokens", lambda run: Seconds(sampling=1.0, training=2.0, scoring=0.5))
    flags = quick_flags(toy_model, tmp_path / "run", max_refills=2, epochs=3, token_budget=100, plan=True)
    with pytest.raises(SystemExit):
        dapo.main(dapo.Args(**flags), task=HashTask())
    said = capsys.readouterr().out
    # 99 + 64 tokens sampled, three times trained and once scored besides; 4 x 32 + 2 x 32 for scores
    more = "with all further rounds, 3 times as many tokens a step: "
    for words in (
        f"163 sampled and 489 trained in all at most\n        {more}291 sampled at most\n",
        "        192 for scores on dev and test at most\n",
        "time, measured: 480.0 s a step at most (sampling 64.0, training 384.0, scoring 32.0), "
        f"0:03:12 for all scores, {plan.minutes(163 * 7.5 + 192)} in all\n",
        f"\n                {more}{plan.minutes(291 + 163 * 6.5 + 192)} in all\n",
        "sampling is that of the first 8 tokens, multiplied; "
        "scoring is 1 x 32.0 s, the time of a pass without gradients\n",
    ):
        assert words in said


@mutant(
    "first scores in a step", "plainrl/plan.py", "tokens.first_scores * seconds", "tokens.scores * seconds"
)
@mutant(
    "step of a plan for a batch of another size",
    "plainrl/plan.py",
    "    step = seconds_for(seconds, tokens, tokens.step, tokens.batch)\n    parts",
    "    step = seconds_for(seconds, tokens, tokens.sampled, tokens.batch)\n    parts",
)
def test_what_a_run_says_before_it_begins(toy_model, tmp_path, monkeypatch, capsys):
    """Catches a run that expects other times than its plan."""
    monkeypatch.setattr(plan, "time_tokens", lambda run: Seconds(sampling=1.0, training=2.0, scoring=0.5))
    monkeypatch.setattr(run_module, "say_plan", plan.say_how_long)
    for script, flags, words in (
        (dapo, {"epochs": 3}, "sampling 0:01:04, training 0:06:24, scoring 0:00:32"),
        (grpo, {}, "sampling 0:01:04, training 0:02:08"),
    ):
        with pytest.raises(SystemExit):
            flags = quick_flags(toy_model, tmp_path / "run", plan=True) | flags
            script.main(script.Args(**flags), task=HashTask())
        said = capsys.readouterr().out
        assert f"({words}), and the scores before the first one take 0:01:04" in said
        assert ("; further rounds of a step come on top\n" in said) == (script is dapo)


# --- the dry run --------------------------------------------------------------------------------------------


@mutant(
    "plan that goes on",
    "plainrl/run.py",
    "            raise SystemExit(0)  # everything",
    "            pass  # everything",
)
@mutant(
    "plan that makes a folder",
    "plainrl/run.py",
    "            return check_folder(self.dir)\n",
    "            self.dir.mkdir(parents=True)\n",
)
def test_a_plan_writes_nothing(toy_model, tmp_path, monkeypatch, capsys):
    """Catches a dry run that trains, that leaves a folder, or that keeps Ctrl-C to itself."""
    handler = signal.getsignal(signal.SIGINT)
    out_dir = tmp_path / "not" / "there" / "run"
    args = grpo.Args(**quick_flags(toy_model, out_dir, steps=7, plan=True))
    with pytest.raises(SystemExit) as stop:
        grpo.main(args, task=HashTask())
    assert stop.value.code == 0 and list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is handler
    said = capsys.readouterr().out
    for words in (
        "tokens: 64 a step at most (2 prompts x 4 completions x 8 tokens)\n",
        "448 sampled and 448 trained in all at most",
        "memory by formula: training ",
        "a full micro-batch was tried: ",
        "time, measured: ",
        "shorter steps: --max-new-tokens",
        "less memory: --micro-batch-tokens",
    ):
        assert words in said
    assert "further rounds" not in said


def test_the_quoted_plan_is_what_is_printed(toy_model, tmp_path, capsys):
    """Catches lines in docs/own-experiment.md that are not those of a plan any more; numbers are left out."""
    args = grpo.Args(**quick_flags(toy_model, tmp_path / "run", plan=True))
    with pytest.raises(SystemExit):
        grpo.main(args, task=HashTask())
    number = r"…|\d+(?:[.,:]\d+)*(?:e-\d+)?"
    said = re.sub(
        number, "#", capsys.readouterr().out.replace("task hash", "task gym-needle_haystack-x2-chain_sum")
    )
    page = re.sub(number, "#", (ROOT / "docs/own-experiment.md").read_text())
    assert f"```\n{said}```" in page


def test_a_plan_says_what_was_not_timed(toy_model, tmp_path, capsys):
    """Catches hours that are those of another sampler."""
    never = FakeSampler(lambda prompt, sample, seed: pytest.fail("sampled"))
    args = grpo.Args(**quick_flags(toy_model, tmp_path / "run", plan=True))
    with pytest.raises(SystemExit):
        grpo.main(args, task=HashTask(), sampler=never)
    assert "time: is measured only in one process" in capsys.readouterr().out


@mutant("plan that is silent on its folder", "plainrl/plan.py", "if not is_unused(run.dir):", "if False:")
def test_a_plan_for_a_folder_that_is_taken(toy_model, tmp_path, capsys):
    """Catches a plan that is refused although it writes nothing, one that does not say that its run would be,
    and one that touches what is there."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit) as stop:
        grpo.main(grpo.Args(**quick_flags(toy_model, tmp_path / "taken", plan=True)), task=HashTask())
    assert stop.value.code == 0 and [path.name for path in (tmp_path / "taken").iterdir()] == [
        "metrics.jsonl"
    ]
    *_, before, note = capsys.readouterr().out.splitlines()
    assert before.startswith("less memory: ")
    assert note == (
        f"note: --out-dir {tmp_path / 'taken'} exists; the run itself needs another --out-dir, or --resume"
    )


@mutant("plan of a pass that there is not", "plainrl/plan.py", "if tokens.passes else", "if True else")
@mutant(
    "plan that pushes weights to their owner",
    "plainrl/plan.py",
    '"" if run.sampler.shares_weights else ", weights',
    '", weights',
)
@mutant(
    "times of 0",
    "plainrl/plan.py",
    '{value:.1f}" for name, value in step.items() if value)',
    '{value:.1f}" for name, value in step.items())',
)
def test_a_plan_speaks_of_what_the_run_does(toy_model, tmp_path, monkeypatch, capsys):
    """Catches a pass that the script does not make, multiplied by 0, and weights on their way to a sampler
    that has the trainer's own; and a plan that leaves them out where they are sent."""
    monkeypatch.setattr(plan, "time_tokens", lambda run: Seconds(sampling=1.0, training=2.0, scoring=0.5))

    def said(**flags):
        with pytest.raises(SystemExit):
            grpo.main(
                grpo.Args(**quick_flags(toy_model, tmp_path / "run", plan=True, **flags)), task=HashTask()
            )
        return capsys.readouterr().out

    plain = said()
    assert "a step at most (sampling 64.0, training 128.0)," in plain
    assert "tokens, multiplied\n                not in it: AdamW, grading\n" in plain
    assert "multiplied; scoring is 1 x 32.0 s" in said(minibatches=2)
    monkeypatch.setattr(HFSampler, "shares_weights", False)
    assert "not in it: AdamW, grading, weights on their way to the sampler\n" in said()


@mutant(
    "plan for a run that has begun",
    "plainrl/flags.py",
    'if getattr(args, "plan", False) and args.resume:',
    "if False:",
)
def test_a_plan_refuses_what_a_run_refuses(toy_model, tmp_path):
    """Catches a plan of a run that could not begin."""
    (tmp_path / "file").write_text("")
    for changes, said in (
        ({"out_dir": tmp_path / "file"}, "--out-dir .*file: .*file is a file; choose a folder"),
        ({"out_dir": tmp_path / "file" / "run"}, "--out-dir .*run: .*file is a file; choose a folder"),
        ({"resume": True}, "--plan: is for a run that has not begun; leave --resume out"),
        ({"max_new_tokens": 600}, "--max-new-tokens 600: dev problem 0 has .* tokens"),
        ({"lr": -1.0}, "--lr -1.0: must be"),
    ):
        flags = quick_flags(toy_model, tmp_path / "run", plan=True) | changes
        with pytest.raises(SystemExit, match=f"^error: {said}"):
            grpo.main(grpo.Args(**flags), task=HashTask())
    with pytest.raises(SystemExit, match="^error: --task nope: unknown"):
        grpo.main(grpo.Args(**quick_flags(toy_model, tmp_path / "run", plan=True, task="nope")))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
