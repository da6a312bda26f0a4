"""--plan and what it says: memory by formula, tokens by counting, time by a clock that is wound by hand."""

import dataclasses
import signal
from pathlib import Path

import pytest
import torch
from mutants import mutant
from toys import FakeSampler, HashTask, quick_flags

import grpo
from benchmarks import memory as table
from papers import dapo
from plainrl import plan, run as run_module
from plainrl.models import load_model
from plainrl.plan import Sizes, memory, tokens_of
from plainrl.rollout import encode_prompt
from plainrl.scoring import score

pytestmark = pytest.mark.usefixtures("quick")
ROOT = Path(__file__).resolve().parent.parent
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
    "* args.group_size * args.max_new_tokens\n    rounds",
    "* args.max_new_tokens\n    rounds",
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


@mutant("budget that a plan forgets", "plainrl/plan.py", "args.token_budget or step", "step")
@mutant(
    "passes that a plan forgets",
    "plainrl/plan.py",
    'trained=step * args.steps * getattr(args, "epochs", 1)',
    "trained=step * args.steps",
)
@mutant(
    "refills that a plan forgets", "plainrl/plan.py", 'getattr(args, "max_refills", 0)  # DAPO', "0  # DAPO"
)
def test_tokens_of_passes_rounds_and_budgets():
    """Catches a flag that makes a run longer or shorter, and its plan not."""
    flags = dict(prompts_per_step=2, group_size=4, max_new_tokens=8, steps=5, eval_every=5)
    flags |= dict(eval_problems=1, eval_samples=1, test_problems=1)
    assert tokens_of(grpo.Args(**flags)).sampled == tokens_of(grpo.Args(**flags)).trained == 5 * 64
    assert tokens_of(grpo.Args(**flags, token_budget=100)).sampled == 100
    assert tokens_of(grpo.Args(**flags, epochs=3)).trained == 3 * 5 * 64
    assert tokens_of(dapo.Args(**flags, max_refills=2)).sampled == 3 * 5 * 64


# --- time ---------------------------------------------------------------------------------------------------


@mutant(
    "time of a part for the whole",
    "plainrl/plan.py",
    "training = (time.monotonic() - began) / share",
    "training = time.monotonic() - began",
)
@mutant("time of a few tokens for all", "plainrl/plan.py", "/ few * args.max_new_tokens", "")
@mutant(
    "passes that take no time",
    "plainrl/plan.py",
    "Seconds(sampling, epochs * training,",
    "Seconds(sampling, training,",
)
def test_time_is_multiplied_as_tokens_are(toy_model, tmp_path, monkeypatch):
    """Catches a micro-batch taken for a batch, 16 tokens for a completion, and epochs that cost nothing."""
    seconds, wound = [], iter(range(10**6))
    monkeypatch.setattr(plan.time, "monotonic", lambda: 3.0 * next(wound))  # each look takes three seconds
    monkeypatch.setattr(run_module, "say_plan", lambda run: seconds.append(plan.time_a_step(run)))
    task = HashTask()
    args = grpo.Args(**quick_flags(toy_model, tmp_path / "run", max_new_tokens=32, epochs=2, plan=True))
    prompt = len(encode_prompt(load_model(toy_model)[1], task.problem("train", 1, 0).prompt))
    args.micro_batch_tokens = prompt + 4 * 32  # one of two groups
    with pytest.raises(SystemExit):
        grpo.main(args, task=task)
    assert seconds == [plan.Seconds(sampling=3 * 2, training=3 * 2 * 2, scoring=3 * 2)]


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


def test_a_plan_says_what_was_not_timed(toy_model, tmp_path, capsys):
    """Catches hours that are those of another sampler."""
    never = FakeSampler(lambda prompt, sample, seed: pytest.fail("sampled"))
    args = grpo.Args(**quick_flags(toy_model, tmp_path / "run", plan=True))
    with pytest.raises(SystemExit):
        grpo.main(args, task=HashTask(), sampler=never)
    assert "time: is measured only in one process" in capsys.readouterr().out


@mutant(
    "plan for a folder that is taken",
    "plainrl/plan.py",
    "    refuse_another_run(out_dir, resume=False)\n",
    "",
)
@mutant(
    "plan for a run that has begun",
    "plainrl/flags.py",
    'if getattr(args, "plan", False) and args.resume:',
    "if False:",
)
def test_a_plan_refuses_what_a_run_refuses(toy_model, tmp_path):
    """Catches a plan of a run that could not begin."""
    (tmp_path / "file").write_text("")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "metrics.jsonl").write_text("{}\n")
    for changes, said in (
        ({"out_dir": tmp_path / "taken"}, "--out-dir .*taken exists; "),
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
    assert {path.name for path in tmp_path.iterdir()} == {"file", "taken"}
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["metrics.jsonl"]
