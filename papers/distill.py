r"""Distillation: SFT that learns a teacher's whole distribution at every token, and not only the row's token.

The part of MobileLLM-R1 (arXiv 2509.24945) that trains beside a teacher. Read it as `diff sft.py
papers/distill.py`:

    L = 1/M sum_i sum_t (tau^2 KL_it - hard_weight log pi(o_it | q_i, o_i<t)),     M = sum_i T_i
    KL_it = sum_v p_T(v) (log p_T(v) - log p_S(v)),     p = softmax(logits / tau)

p_T is the teacher's distribution of the token, p_S the student's. Rows are those of --data, or a task's
worked solutions, as in sft.py; they may be samples of the teacher (tools/select_data.py --traces).

What changes against sft.py:
- A teacher: a frozen model with the student's vocabulary.
- The loss. sft/loss, sft/accuracy and eval/loss are about the rows' own tokens, as they were.

Where common trainers differ, and where this goes on from what the paper says, tagged again in the code:
[D1] The end token is the one that the sampler stops at, once, and it is learned; `end: false` in a row leaves
     it out.
[D2] No packing: rows of another text never meet. The scorer runs the linear layers without padding and equal
     prompts once; rows of about one length share a step, which takes the padding from attention.
[D3] A row is never cut. One that is too long is left out and counted, or the run stops.
[D4] AdamW's betas are 0.9 and 0.95, and the learning rate falls by a cosine to a tenth.
[D5] The paper gives neither the direction of its KL nor a weight or a temperature. Here it is KL(teacher ||
     student) alone, at tau = 1; --hard-weight adds the usual loss.
[D6] The paper has a teacher of 8B and distils in the middle of pretraining. Here it is any model with the
     student's vocabulary, in fine-tuning.

    python grpo.py                leaves a teacher in runs/grpo/chain-seed0/final
    python papers/distill.py      teaches models/tiny what that one knows

Letters in shapes: N rows of a step, T completion tokens, M tokens end to end, V vocabulary. Masks come from
lengths; the end token is inside.
"""

import math
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl import ranks
from plainrl.files import name_of
from plainrl.flags import Fraction, NotNegative, RowFlags, Temperature, by_size, parse
from plainrl.logit_sum import load_beside
from plainrl.ranks import total
from plainrl.rollout import Batch, pad
from plainrl.row_order import number_of_steps, rows_of_steps
from plainrl.rows import batch_of, load_rows, read_mixture, row_sums
from plainrl.run import Run
from plainrl.scoring import (
    LOGITS_AT_ONCE,
    in_blocks,
    logprob_and_entropy,
    micro_batches,
    shared_hidden_states,
)
from plainrl.screen import fail, or_fail
from plainrl.tasks import NoTask

TEACHER = "runs/grpo/chain-seed0/final"  # where `python grpo.py` leaves its model


@dataclass
class Args(RowFlags):
    teacher: str = TEACHER
    """model to learn from, with the vocabulary of --model: a Hugging Face folder, hub name or .gguf file (the
    default is what `python grpo.py` leaves)"""
    distill_temperature: Temperature = 1.0
    """tau, which divides the logits of teacher and student before they are compared"""
    hard_weight: NotNegative = 0.0
    """weight of the usual loss, on the rows' own tokens, beside the teacher's"""
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


def kl_to_teacher(logits: torch.Tensor, teacher_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(teacher || student) of each token, and the entropy of the teacher's distribution, in nats.

    sum_v p_T (log p_T - log p_S) and - sum_v p_T log p_T; logits [M, V], divided by tau already; two results
    [M]. The teacher carries no gradient. The KL's gradient in the student's logits is p_S - p_T.

    >>> student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    >>> [round(number.item(), 4) for number in kl_to_teacher(student, teacher)]
    [0.4323, 0.9753]
    """
    logprobs = torch.log_softmax(logits, dim=-1)  # [M, V], log p_S
    teacher_logprobs = torch.log_softmax(teacher_logits.detach(), dim=-1)  # [M, V], log p_T
    p = teacher_logprobs.exp()
    return (p * (teacher_logprobs - logprobs)).sum(-1), -(p * teacher_logprobs).sum(-1)


def distillation_loss(kl, logprobs, tau: float, hard_weight: float) -> torch.Tensor:
    """The loss of each token, tau^2 KL + hard_weight * cross-entropy. [N, T], [N, T] -> [N, T]

    The gradient of the KL is smaller by tau, since the logits were divided by it, and by about tau once more,
    since flatter distributions differ less. tau^2 makes up for both.
    """
    return tau**2 * kl + hard_weight * cross_entropy(logprobs)


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


def score_beside_teacher(model, teacher, part: Batch, tau: float) -> tuple[torch.Tensor, ...]:
    """What `numbers_of_token` and `kl_to_teacher` say of each target token: five tensors [n, T'].

    The teacher's hidden states of the rows come first. The logits of both are then made for one block of
    tokens after the other, and made again in the backward pass, so that no [n, T', V] tensor ever exists.
    """
    rows = part.prompt_ids, part.completion_ids
    targets, mask = pad(part.completion_ids, model.device)  # [n, T']
    targets = targets[mask]  # [M]
    with torch.no_grad():
        teacher_hidden = ranks.inside(teacher, shared_hidden_states, teacher, *rows)  # [M, its hidden size]
    head, teacher_head = model.get_output_embeddings(), teacher.get_output_embeddings()
    dtype = torch.promote_types(head.weight.dtype, torch.float32)

    def numbers_of_block(hidden, teacher_hidden, targets):
        logits, teacher_logits = head(hidden).to(dtype), teacher_head(teacher_hidden).to(dtype)  # [m, V]
        return *numbers_of_token(logits, targets), *kl_to_teacher(logits / tau, teacher_logits / tau)

    def numbers_of_part():
        hidden = shared_hidden_states(model, *rows)  # [M, hidden size]
        size = LOGITS_AT_ONCE // 2 // head.weight.shape[0]  # half: two heads make logits
        return in_blocks(numbers_of_block, size, hidden, teacher_hidden, targets)

    found = ranks.inside(model, numbers_of_part)
    return tuple(column.new_zeros(mask.shape).masked_scatter(mask, column) for column in found)


def accumulate_gradients(model, batch: Batch, args: Args, teacher) -> Counter:
    """Backward pass of one optimizer step's loss, micro-batch by micro-batch. Returns sums for the log.

    The weights of the tokens are made before the split: loss and gradient are the same for any micro-batches.
    """
    sums, tau = Counter(), args.distill_temperature
    batch["weights"] = AGGREGATIONS[args.aggregation](batch["completion_mask"])  # [N, T]
    ranks.gather_weights(teacher)
    for part in micro_batches(model, batch, args.micro_batch_tokens):
        numbers = score_beside_teacher(model, teacher, part, tau)  # [n, T'] each
        logprobs, entropy, right, kl, teacher_entropy = numbers
        loss_per_token = distillation_loss(kl, logprobs, tau, args.hard_weight)  # [D5]
        loss = (loss_per_token * part["weights"]).sum()
        loss.backward()
        sums.update(row_sums(part, logprobs, entropy, right, loss))
        mask = part["completion_mask"]
        sums["teacher_kl"] += (kl.detach() * mask).sum().item()
        sums["teacher_entropy"] += (teacher_entropy * mask).sum().item()
    ranks.release_weights(teacher)
    return total(sums)  # over ranks


# --- the loop -----------------------------------------------------------------------------------------------


def main(args: Args, task=None, sampler=None) -> Path:
    """Train and return the folder of the final model. A task or sampler of your own can be passed in."""
    if not all(0 <= beta < 1 for beta in args.betas):
        fail(f"--betas {args.betas[0]:g} {args.betas[1]:g}: must be at least 0 and below 1")
    if args.teacher == TEACHER and not Path(TEACHER).exists():
        fail(
            f"--teacher {TEACHER}: is not there yet; `python grpo.py` makes it in about five minutes; or "
            "give another model with the vocabulary of --model"
        )
    if task is None and args.task == "none":
        task = NoTask(name_of(str(args.data[0])) if args.data else "none")
    run = Run("distill", args, task, sampler, state={"tokens_seen": 0})
    run.teacher = load_beside("--teacher", args.teacher, "--model", run.model, run.tokenizer)  # [D6]
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
        sums = accumulate_gradients(run.model, batch, args, run.teacher)
        run.optimizer_step(optimizer, sums)

        # --- 3 log, score dev, save
        run.state["tokens"] += sums["tokens"]  # what --token-budget counts
        run.state["tokens_seen"] += sum(row.length for row in rows)
        own = {
            "distill/kl": sums["teacher_kl"] / sums["tokens"],
            "distill/teacher_entropy": sums["teacher_entropy"] / sums["tokens"],
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
