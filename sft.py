r"""SFT: supervised fine-tuning on prompts with their completions, the baseline of everything that is no RL.

Cross-entropy on the tokens of the completions, and none on the prompts:

    L = - 1/M sum_i sum_t log pi(o_it | q_i, o_i<t),      M = sum_i T_i over the rows of one optimizer step

or, with --aggregation sequence_mean, 1/N sum_i 1/T_i sum_t. The denominators are counted over the whole step,
on all ranks, before it is split into micro-batches. Rows are those of --data, or a task's worked solutions.

No paper is its source. Where common trainers differ, this is what it does, tagged again where it happens:
[D1] The end token is the one that the sampler stops at, once, and it is learned; `end: false` in a row leaves
     it out.
[D2] No packing: rows of another text never meet. The scorer runs the linear layers without padding and equal
     prompts once; rows of about one length share a step, which takes the padding from attention.
[D3] A row is never cut. One that is too long is left out and counted, or the run stops.
[D4] AdamW's betas are 0.9 and 0.95, and the learning rate falls by a cosine to a tenth.

    python sft.py                 on 512 worked solutions of the embedded world: test avg@16 0.048 -> 0.727
                                  (one seed), 1 minute on one CPU thread

Letters in shapes: N rows of a step, T completion tokens. Masks come from lengths; the end token is inside.
"""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from plainrl.files import name_of
from plainrl.flags import Fraction, NotNegative, RowFlags, by_size, parse
from plainrl.ranks import total
from plainrl.rollout import Batch
from plainrl.row_order import number_of_steps, rows_of_steps
from plainrl.rows import batch_of, load_rows, read_mixture, row_sums
from plainrl.run import Run
from plainrl.scoring import logprob_and_entropy, micro_batches, score
from plainrl.screen import fail, or_fail
from plainrl.tasks import NoTask


@dataclass
class Args(RowFlags):
    aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
    """the mean is over all tokens of a step, or over each row's tokens and then over rows"""
    mixture: Path | None = None
    """file with {"source": share}, as tools/influence.py writes it: each row that is drawn first draws its
    source; an epoch is then as many draws as there are rows (default: each row once an epoch)"""
    lr: NotNegative | None = by_size(tiny=1e-3, small=1e-5, large=1e-5)
    """peak learning rate of AdamW"""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """how the learning rate goes from its peak to --final-lr-share of it"""
    warmup_share: Fraction = 0.03
    """share of the steps in which the learning rate rises to its peak"""
    final_lr_share: Fraction = 0.1
    """learning rate of the last step, as a share of the peak"""
    weight_decay: NotNegative = 0.0
    """AdamW's weight decay"""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the mean and of the mean square of the gradients"""


# --- the mathematics ----------------------------------------------------------------------------------------


def cross_entropy(logprobs: torch.Tensor) -> torch.Tensor:
    """The loss of each token, - log pi(o_it | q_i, o_i<t), in nats. [N, T] -> [N, T]"""
    return -logprobs


def token_mean(mask: torch.Tensor) -> torch.Tensor:
    """Weights of a mean over all tokens of a step, so that long completions weigh more. [N, T] -> [N, T]

    The loss is the weighted sum of the tokens' losses: rows with losses 1, 2, 3 and 4 have 10/4 = 2.5.
    """
    return mask / mask.sum().clamp(min=1)


def sequence_mean(mask: torch.Tensor) -> torch.Tensor:
    """Weights of a mean over a completion's tokens, then over completions. [N, T] -> [N, T]

    Rows with losses 1, 2, 3 and 4 have (2 + 4)/2 = 3.
    """
    lengths = mask.sum(dim=1, keepdim=True)  # [N, 1]
    return mask / lengths.clamp(min=1) / (lengths > 0).sum().clamp(min=1)


AGGREGATIONS = {"token_mean": token_mean, "sequence_mean": sequence_mean}


def lr_share(step: int, steps: int, schedule: str, warmup_share: float, final_share: float) -> float:
    """The learning rate of a step as a share of its peak; steps count from 1.

    It rises evenly over the first W steps, then falls to `final_share` at the last one.

    >>> [round(lr_share(step, 100, "cosine", 0.1, 0.1), 6) for step in (1, 10, 30, 55, 100)]
    [0.1, 1.0, 0.89472, 0.55, 0.1]
    """
    warmup = round(warmup_share * steps)  # W
    if step <= warmup:
        return step / warmup
    done = (step - warmup) / (steps - warmup)  # of the way down, above 0 and at most 1
    left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[schedule]
    return 1.0 if schedule == "constant" else final_share + (1 - final_share) * left


# --- the update ---------------------------------------------------------------------------------------------


def numbers_of_token(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Log-probability, entropy, and whether the likeliest token is the right one. [M, V], [M] -> [M] each"""
    logprobs, entropy = logprob_and_entropy(logits, targets)
    return logprobs, entropy, logits.argmax(dim=-1) == targets


def accumulate_gradients(model, batch: Batch, args: Args) -> Counter:
    """Backward pass of one optimizer step's loss, micro-batch by micro-batch. Returns sums for the log.

    The weights of the tokens are made before the split: loss and gradient are the same for any micro-batches.
    """
    sums = Counter()
    batch["weights"] = AGGREGATIONS[args.aggregation](batch["completion_mask"])  # [N, T]
    for part in micro_batches(model, batch, args.micro_batch_tokens):
        temperature = 1.0
        inputs = (model, part.prompt_ids, part.completion_ids, temperature, numbers_of_token)
        logprobs, entropy, right = score(*inputs)  # [n, T']
        loss = (cross_entropy(logprobs) * part["weights"]).sum()
        loss.backward()
        sums.update(row_sums(part, logprobs, entropy, right, loss))
    return total(sums)  # over ranks


# --- the loop -----------------------------------------------------------------------------------------------


def main(args: Args, task=None, sampler=None) -> Path:
    """Train and return the folder of the final model. A task or sampler of your own can be passed in."""
    if not all(0 <= beta < 1 for beta in args.betas):
        fail(f"--betas {args.betas[0]:g} {args.betas[1]:g}: must be at least 0 and below 1")
    if task is None and args.task == "none":
        task = NoTask(name_of(str(args.data[0])) if args.data else "none")
    run = Run("sft", args, task, sampler, state={"tokens_seen": 0})
    run.rows, run.dev_rows = load_rows(args, run.task, run.model, run.tokenizer)  # [D1], [D3]
    args.steps = number_of_steps(args, len(run.rows))
    if args.mixture:
        # The shares themselves take the place of the path: config.json keeps them, and --resume finds the
        # same ones or refuses.
        args.mixture = or_fail(read_mixture, args.mixture, run.rows)
    steps = rows_of_steps(run.rows, args.mixture, args.rows_per_step, args.seed, args.steps)  # [D2]
    optimizer = torch.optim.AdamW(
        run.model.parameters(), args.lr, args.betas, weight_decay=args.weight_decay, fused=True
    )
    run.restore(optimizer)
    for step in run.steps():
        # --- 1 the rows of the step
        rows = steps[step - 1]
        batch = batch_of(rows, run.model.device)

        # --- 2 update
        share = lr_share(step, args.steps, args.schedule, args.warmup_share, args.final_lr_share)  # [D4]
        optimizer.param_groups[0]["lr"] = args.lr * share
        sums = accumulate_gradients(run.model, batch, args)
        run.optimizer_step(optimizer, sums)

        # --- 3 log, score dev, save
        run.state["tokens"] += sums["tokens"]  # what --token-budget counts
        run.state["tokens_seen"] += sum(row.length for row in rows)
        own = {
            "sft/loss": sums["nll"] / sums["tokens"],
            "sft/accuracy": sums["right"] / sums["tokens"],
            "sft/tokens_total": run.state["tokens"],
            "sft/tokens_seen": run.state["tokens_seen"],
            "sft/rows_total": step * args.rows_per_step,
            "sft/epoch": step * args.rows_per_step / len(run.rows),
            "policy/entropy": sums["entropy"] / sums["tokens"],
        }
        run.end_step_on_rows(batch, own)
    return run.finish()


if __name__ == "__main__":
    main(parse(Args, __doc__))


# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "transformers>=5.16.1,<5.20", "safetensors", "numpy", "tyro", "filelock",
#     "math-verify>=0.9,<0.10", "antlr4-python3-runtime==4.13.2", "matplotlib", "jinja2",
# ]
# ///
