"""The vLLM sampler against transformers, where vLLM is installed (CPU or GPU); skipped elsewhere."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
import torch
from safetensors.torch import load_file, save_file

from plainrl import models
from plainrl.rollout import completion_seed, encode_prompt
from plainrl.sampler import HFSampler, make_sampler, probe_gap
from plainrl.scoring import score_all
from plainrl.tasks import load_task
from plainrl.vllm_sampler import ServerSampler

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
float32 = pytest.mark.skipif(
    torch.cuda.is_available(), reason="in bfloat16 the two samplers round differently"
)
TINY = str(Path(__file__).resolve().parent.parent / "models/tiny")


@pytest.fixture(scope="module")
def world():
    """Both samplers of models/tiny, and prompts of different lengths."""
    model, tokenizer = models.load_model(TINY)
    eos = models.eos_ids(model, tokenizer)
    prompts = [
        encode_prompt(tokenizer, load_task(f"chain?horizon={h}").problem("dev", 0, 0).prompt)
        for h in (1, 3, 2)
    ]
    return (
        model.eval(),
        HFSampler(model, eos),
        make_sampler(SimpleNamespace(engine="vllm", max_new_tokens=64), model, eos),
        prompts,
        eos,
    )


def test_order_lengths_and_ends(world):
    """Catches completions in another order than prompts x n, an end that is dropped or kept twice, a limit
    that is off by one."""
    _, _, sampler, prompts, eos = world
    completions = sampler.generate(prompts, 4, 24, 1.0, list(range(12)))
    assert len(completions) == 12
    for completion in completions:
        assert len(completion.ids) == len(completion.logprobs) <= 24 and not set(completion.ids[:-1]) & set(
            eos
        )
        assert completion.finish_reason == ("stop" if completion.ids[-1] in eos else "length")
        assert completion.finish_reason == "stop" or len(completion.ids) == 24


@float32
def test_tokens_do_not_depend_on_the_batch(world):
    """Catches seeds that go to other completions."""
    _, _, sampler, prompts, _ = world
    together, alone = (
        sampler.generate(prompts[rows], 4, 24, 1.0, list(range(12))[4 * rows.start : 4 * rows.stop])
        for rows in (slice(0, 3), slice(1, 2))
    )
    assert [c.ids for c in alone] == [c.ids for c in together[4:8]]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_log_probabilities_are_the_models(world, temperature):
    """Catches a temperature that is not applied, raw instead of processed log-probabilities, other
    weights."""
    model, _, sampler, prompts, _ = world
    seeds = [completion_seed(1, i) for i in range(24)]
    completions = sampler.generate(prompts, 8, 32, temperature, seeds)
    rows = [prompt for prompt in prompts for _ in range(8)]
    logprobs, _ = score_all(model, rows, [c.ids for c in completions], temperature, 4096)
    gap = max(
        abs(ours - theirs)
        for row, c in zip(logprobs.tolist(), completions)
        for ours, theirs in zip(row, c.logprobs)
    )
    assert gap < (0.3 if torch.cuda.is_available() else 1e-4)


@float32
def test_greedy_is_greedy(world):
    """Catches a generation_config.json that changes the sampling."""
    _, ours, sampler, prompts, _ = world
    for one, other in zip(
        ours.generate(prompts, 1, 40, 0.0, [0] * 3), sampler.generate(prompts, 1, 40, 0.0, [0] * 3)
    ):
        assert one.ids == other.ids


@float32
def test_top_p_keeps_the_nucleus(world):
    """Catches a top-p that is not passed on: with nearly no mass allowed every sample is the greedy one."""
    _, ours, sampler, prompts, _ = world
    greedy = [c.ids for c in ours.generate(prompts, 1, 16, 0.0, [0] * 3)]
    assert [c.ids for c in sampler.generate(prompts, 1, 16, 1.0, [5, 6, 7], top_p=1e-4)] == greedy


# --- weights that are trained -------------------------------------------------------------------------------


@pytest.fixture
def probe(world):
    """The check that every script makes after each push: ends the run if sampler and trainer disagree. The
    weights are put back."""
    model, _, sampler, _, _ = world
    tokenizer, task = models.load_model(TINY)[1], load_task("chain")
    limit = 0.05 if torch.cuda.is_available() else 1e-4
    args = SimpleNamespace(
        seed=0,
        system_prompt=None,
        max_new_tokens=32,
        temperature=1.0,
        micro_batch_tokens=4096,
        max_logprob_gap=limit,
    )
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    yield lambda other=None: probe_gap(other or sampler, model, tokenizer, task, args)
    model.load_state_dict(before)
    sampler.load_weights(model)


def train(model) -> None:
    """All weights move, as far as in many updates."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * weight.std().nan_to_num() * torch.randn_like(weight))


def test_probe_passes_after_each_push(world, probe):
    """Catches weights that do not arrive, the head of a tied model among them, and prompts kept from
    before."""
    model, _, sampler, _, _ = world
    probe()
    for _ in range(5):
        train(model)
        sampler.load_weights(model)
        probe()


def test_probe_stops_at_stale_weights(world, probe):
    """Catches a probe that would let a run go on with weights that were never pushed."""
    train(world[0])
    with pytest.raises(SystemExit, match="log-probabilities differ"):
        probe()


def test_probe_stops_at_a_tied_head_that_was_left_behind(world, probe):
    """Catches a probe that looks at the body only: vLLM, reloading a tied model, leaves its head as it
    was."""
    model, _, sampler, _, _ = world
    file = sampler.folder / "model.safetensors"
    old_head = load_file(file)["lm_head.weight"]
    train(model)
    sampler.load_weights(model)
    save_file(load_file(file) | {"lm_head.weight": old_head}, file, metadata={"format": "pt"})
    sampler.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(sampler.folder)})
    with pytest.raises(SystemExit, match="log-probabilities differ"):
        probe()


def test_probe_stops_at_another_temperature(world, probe):
    """Catches a probe that asks the sampler for what it should have done."""
    sampler, other = world[2], 0.5 if torch.cuda.is_available() else 0.9
    colder = SimpleNamespace(
        generate=lambda prompts, n, length, temperature, seeds: sampler.generate(
            prompts, n, length, other, seeds
        )
    )
    with pytest.raises(SystemExit, match="log-probabilities differ"):
        probe(colder)


def test_the_transfer_by_nccl_is_called_as_vllm_defines_it(monkeypatch):
    """Catches, without the GPUs that it needs, a name or an argument that this version of vLLM does not
    have."""
    from vllm.distributed.weight_transfer import nccl_engine

    engine = create_autospec(nccl_engine.NCCLTrainerWeightTransferEngine)
    monkeypatch.setattr(nccl_engine, "NCCLTrainerWeightTransferEngine", engine)
    sampler = ServerSampler.__new__(ServerSampler)
    sampler.url, sampler.sender, sampler.sent, sampler.ask = (
        "http://localhost:1",
        None,
        None,
        lambda *_: {"world_size": 2},
    )
    sampler.send({"weight": torch.ones(3, 2)}, "7")
    (meeting,), given = engine.trainer_init.call_args
    assert (meeting.world_size, meeting.rank, meeting.is_sender) == (3, 0, True)
    (part,) = given["source"].metadata()
    assert (part.name, part.dtype, part.shape) == ("weight", torch.float32, (3, 2)) and given[
        "client"
    ].base_url == sampler.url
    engine.trainer_init.return_value.send_weights.assert_called_once_with()
