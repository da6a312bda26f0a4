"""What float32's rounding does to scores and samples on a CPU; writes benchmarks/checks/rounding.md.

    python benchmarks/checks/rounding.py

Scores: log-probabilities of sampled completions by the trainer and by the plain padded forward pass, both
beside the same in float64. Samples: 64 completions with the same seeds, all at once, in 16 places, and one
prompt after the other. Where two of them part, the number that drew both tokens is looked up in the
distribution in float64: how far is it from the interval of the one and of the other?
"""

import sys
from pathlib import Path

import numpy as np
import torch
import tyro
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from benchmarks import compare, contenders  # noqa: E402
from plainrl.folder import write_text  # noqa: E402
from plainrl.models import device_name, eos_ids as ids_that_end  # noqa: E402
from plainrl.rollout import completion_seed  # noqa: E402
from plainrl.sampler import HFSampler  # noqa: E402
from plainrl.scoring import score  # noqa: E402

TOKENS = 96  # of a completion at most


def load(work: compare.Work):
    """Model, tokenizer, ids of the prompts, and a function that samples them, as the benchmark has them; and
    the model in float64."""
    place = {"model": str(ROOT / work.model), "prompts": compare.texts(work)}
    return *contenders.ours(vars(work) | place), AutoModelForCausalLM.from_pretrained(
        place["model"], dtype=torch.float64
    )


@torch.no_grad()
def scores(name: str, work: compare.Work) -> str:
    """A line of the table."""
    model, _, ids, sample, exact = load(work)
    prompts, completions = (
        [prompt for prompt in ids for _ in range(work.group_size)],
        [completion.ids for completion in sample()],
    )
    columns = []
    for first in range(0, len(prompts), work.group_size):  # a group at a time, as memory allows
        group = prompts[first : first + work.group_size], completions[first : first + work.group_size], 1.0
        ways = (
            score(model, *group),
            score(model, *group, share_prompts=False),
            score(exact, *group, share_prompts=False),
        )
        columns.append(torch.stack([logprobs.double().flatten() for logprobs, _ in ways]))
    ours, plain, true = torch.cat(columns, dim=1)
    gaps = [(one - other).abs() for one, other in ((ours, plain), (ours, true), (plain, true))]
    return (
        f"| {name} | {len(ours)} | {int((gaps[0] > 1e-5).sum())} | "
        + " | ".join(f"{gap.max():.1e}" for gap in gaps)
        + " |"
    )


@torch.no_grad()
def samples(work: compare.Work) -> list[str]:
    """The lines of the table."""
    model, tokenizer, ids, _, exact = load(work)
    eos_ids, n = ids_that_end(model, tokenizer), work.group_size
    seeds = [completion_seed(0, 1, row) for row in range(len(ids) * n)]

    def sample(rows_at_once: int, prompts_at_once: int) -> list[list[int]]:
        sampler, found = HFSampler(model, eos_ids, rows_at_once), []
        for i in range(0, len(ids), prompts_at_once):
            found += sampler.generate(
                ids[i : i + prompts_at_once], n, work.tokens, 1.0, seeds[i * n : (i + prompts_at_once) * n]
            )
        return [completion.ids for completion in found]

    def distance(row: int, one: list[int], other: list[int]) -> float:
        """From the number that drew the first token where they part, to the farther of both intervals."""
        t = next(t for t, (a, b) in enumerate(zip(one, other)) if a != b)
        uniform = np.random.Generator(np.random.Philox(seeds[row])).random(work.tokens)[t]
        sums = exact(torch.tensor([ids[row // n] + one[:t]])).logits[0, -1].softmax(-1).cumsum(-1)
        intervals = [
            (sums[token - 1].item() if token else 0.0, sums[token].item()) for token in (one[t], other[t])
        ]
        return max(max(low - uniform, uniform - high, 0.0) for low, high in intervals)

    together, lines = sample(len(seeds), len(ids)), []
    for how, (rows_at_once, prompts_at_once) in {
        "in 16 places": (16, len(ids)),
        "one prompt after the other": (len(seeds), 1),
    }.items():
        apart = sample(rows_at_once, prompts_at_once)
        parted = [distance(row, *pair) for row, pair in enumerate(zip(together, apart)) if pair[0] != pair[1]]
        lines.append(
            f"| {how} | {sum(map(len, apart))} | {len(parted)} of {len(apart)} | "
            f"{max(parted, default=0.0):.1e} |"
        )
    return lines


PAGE = """# What rounding does

Log-probabilities of sampled completions of a forced length: the largest differences.

| work | tokens | above 1e-5 | trainer and plain pass | trainer and float64 | plain pass and float64 |
|---|---|---|---|---|---|
{scores}

64 completions of SmolLM2-135M, of at most {tokens} tokens, beside the same seeds all at once. Where they
part, the number that drew both tokens lies at most so far outside of the interval of either (in float64,
where all tokens together have 1).

| sampled | tokens | part from those sampled at once | distance |
|---|---|---|---|
{samples}

torch {torch}, {device}: `python benchmarks/checks/rounding.py`
"""


def main() -> None:
    compare.check_smollm2()
    compare.make_random_model(ROOT / compare.QWEN, **compare.SHAPE)
    lines = [scores(name, work) for name, work in compare.STEPS.items()]
    others = samples(compare.Work(compare.SMOL, 8, 0, 8, TOKENS, forced=False))
    page = PAGE.format(
        scores="\n".join(lines),
        samples="\n".join(others),
        tokens=TOKENS,
        torch=torch.__version__,
        device=device_name(),
    )
    write_text(Path(__file__).with_suffix(".md"), page)
    print(page)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
