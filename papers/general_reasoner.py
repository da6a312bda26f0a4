r"""General-Reasoner: the reward is what a small verifier says, a model that reads (arXiv 2505.14652).

    R = -0.5                                                            where no answer is found
    R = 1 - 0.05 min(10, | tokens(answer) - tokens(reference) |)        where the verifier says yes
    R = 0                                                               where it says no

Read it as `diff grpo.py papers/general_reasoner.py`. What changes is where rewards come from:
- The answer is taken out of a completion: its last box, else what follows the last "Answer:".
- A frozen model reads question, reference and answer, and writes whether the last two are the same. It is
  asked once a step for each different one, greedily, and its last "Final Decision: Yes" or "No" counts.
- The length term is about the answer, not about the completion: "x = 4 m/s" earns less than "4 m/s".
- reward/* is what the verifier says. verifier/* compares it with the task's own grader, which dev and test
  are scored by: a policy that learns to please the verifier is seen there.

A verifier is any model. `python sft.py --task verdicts` trains one. It learns from rows as any model does, so
what the paper trains its verifier on is a task here (plainrl/verdicts.py), and no script of its own.

Deviations from the paper, tagged again where they happen:
[D1] Only the completion is searched for an answer, and all of it (its code: the last 1,024 tokens of prompt
     and completion, where the prompt's own box may be the last).
[D2] The end of a completion ends a line (its code finds no answer in a last line "Answer: 5").
[D3] Without an answer nobody is asked (its code asks about the answer "None").
[D4] The last verdict counts (its code takes a yes anywhere, as in "No. Else Final Decision: Yes").
[D5] An answer is one line, without the verifier's special tokens: it cannot write into the prompt.
[D6] The loss is grpo.py's (the paper: clip 0.3, a KL term of 1e-4, an entropy bonus of 1e-3).

    python sft.py --task verdicts --train-size 12288     trains a verifier, which is read from its folder
    python papers/general_reasoner.py                    on the embedded model

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens. Rows are
prompt-major: rows i*G .. i*G+G-1 belong to prompt i. Masks come from lengths; EOS is inside the mask when
the completion ended by itself.
"""

import re
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl.flags import (
    ClipRange,
    Count,
    Fraction,
    Length,
    Natural,
    NotNegative,
    Positive,
    RunFlags,
    by_size,
    parse,
)
from plainrl.ranks import total
from plainrl.rollout import Batch, Rollout, completion_seed
from plainrl.run import Run
from plainrl.scoring import micro_batches, score, update_sums
from plainrl.tasks import Grade, hash_number
from plainrl.verifier import VERIFIER, Verifier, check_verifier, load_verifier

# A box holds at most two further levels of braces.
BOX = re.compile(r"\\boxed\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
MARK = re.compile(r"(?:(?:final|the) answer is|the solution is|answer|solution):", re.IGNORECASE)
END_OF_TEXT = re.compile(r"\s*(?:</s>|<\|[a-z_]+\|>)\s*$")


@dataclass
class Args(RunFlags):
    verifier: str = VERIFIER
    """model that says whether an answer is right: a Hugging Face folder, hub name or .gguf file (the default
    is what `python sft.py --task verdicts --train-size 12288` leaves)"""
    verifier_prompt: Path | None = None
    """file with what it is asked, with {question}, {reference} and {answer} in their places (default: as in
    --task verdicts)"""
    verifier_tokens: Length | None = by_size(tiny=64, small=1024, large=2048)
    """most tokens of what it writes"""
    length_weight: NotNegative = 0.05
    """what a right answer loses for each token that it is longer or shorter than the reference; 0: nothing"""
    flip_no: Fraction = 0.0
    """turn this share of the verifier's no into yes, by chance: how much error does training bear?"""
    clip_low: ClipRange = 0.2  # [D6]
    """the ratio is clipped below at 1 - clip_low"""
    clip_high: ClipRange = 0.2
    """the ratio is clipped above at 1 + clip_high"""
    kl_coef: NotNegative = 0.0
    """beta, weight of the k3 estimate of KL(policy || starting model) in the loss"""
    kl_bias_correction: bool = False
    """multiply that estimate by pi / pi_old, so that its gradient is that KL's too"""
    mask_truncated: bool = False
    """leave completions cut at --max-new-tokens out of the loss instead of scoring them"""
    importance_cap: Positive | None = None
    """weight tokens by min(pi_old / sampler, cap), if the sampler differs from the trainer (2.0 is common)"""
    minibatches: Count = 1
    """optimizer steps per pass over the sampled batch"""
    epochs: Count = 1
    """passes over the sampled batch"""
    lr: NotNegative | None = by_size(tiny=3e-4, small=1e-5, large=1e-6, countdown=5e-5)
    """peak learning rate of AdamW"""
    warmup_steps: Natural | None = by_size(tiny=5, small=5, large=5)
    """steps of linear warm-up; constant afterwards"""
    weight_decay: NotNegative = 0.0
    """AdamW's weight decay"""

    @property
    def tokens_of_others(self) -> dict[str, int]:
        """of a step: what the verifier writes about each completion"""
        return {"verifier": self.prompts_per_step * self.group_size * self.verifier_tokens}


# --- the mathematics ----------------------------------------------------------------------------------------


def extracted_answer(text: str) -> str | None:
    r"""The last box that closes, else what follows the last "Answer:" or its like in a line. None: nothing.

    >>> extracted_answer("\\boxed{\\frac{1}{2}} and \\boxed{3}"), extracted_answer("Answer: 5\n")
    ('3', '5')
    """
    boxes = BOX.findall(text)
    if boxes and boxes[-1].strip():
        return boxes[-1].strip()
    for line in reversed(text.split("\n")):  # [D2]
        *before, after = MARK.split(line)
        answer = END_OF_TEXT.sub("", after).strip()
        if before and answer and "<<" not in answer:  # its code takes none with << in it
            return answer
    return None


def verifier_reward(is_found: bool, yes: bool, difference: int, length_weight: float) -> float:
    """R of one completion; `difference` is tokens(answer) - tokens(reference).

    >>> verifier_reward(True, True, 3, 0.05), verifier_reward(True, False, 3, 0.05)
    (0.85, 0.0)
    """
    reward = 0.0 if is_found else -0.5
    if yes:
        reward += 1 - length_weight * min(10, abs(difference))
    return reward


def group_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Each completion's reward against its group, (R - mean) / (std + 1e-6).

    rewards [B, G] -> advantages [B, G]. The std is the unbiased one (ddof 1) that torch computes by default.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000]])
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)  # [B, G]
    centred = centred / (rewards.std(dim=1, keepdim=True) + 1e-6)
    no_signal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)  # [B, 1]
    return centred.masked_fill(no_signal, 0.0)  # rounding in the mean, divided by 1e-6, would not be 0


def clipped_surrogate(logprobs, old_logprobs, advantages, clip_low: float, clip_high: float) -> torch.Tensor:
    """PPO's pessimistic loss per token, -min(ratio A, clip(ratio) A).

    logprobs [N, T], advantages [N, 1] -> [N, T]. The gradient vanishes only where a clipped ratio already
    moved the way the advantage asks for.
    """
    ratio = torch.exp(logprobs - old_logprobs)  # [N, T]
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def k3(logprobs, ref_logprobs) -> torch.Tensor:
    """KL(policy || reference) per token, estimated on the policy's own samples (eq. 4).

    exp(d) - 1 - d with d = ref_logprobs - logprobs: [N, T], [N, T] -> [N, T]. Unbiased and never negative as
    a value. As a loss its gradient is that of the KL in the other direction, KL(reference || policy), since
    only the value was made unbiased. Times pi / pi_old, differentiated too, it has value and gradient of
    KL(policy || reference), and is right for samples of pi_old.
    """
    difference = ref_logprobs - logprobs  # [N, T]
    return torch.expm1(difference) - difference


def truncated_importance(old_logprobs, rollout_logprobs, cap: float) -> torch.Tensor:
    """min(pi_old / sampler, cap) per token [N, T], no gradient: for a sampler that is not quite pi_old."""
    return torch.exp(old_logprobs - rollout_logprobs).clamp(max=cap).detach()


def sequence_mean(mask: torch.Tensor) -> torch.Tensor:
    """Weights of a mean over a completion's tokens, then over completions. [N, T] -> [N, T]

    The loss is the weighted sum of the tokens' losses. Completions without a token in the mask do not count.
    """
    lengths = mask.sum(dim=1, keepdim=True)  # [N, 1]
    return mask / lengths.clamp(min=1) / (lengths > 0).sum().clamp(min=1)


# --- the update ---------------------------------------------------------------------------------------------


def accumulate_gradients(model, batch: Batch, args: Args) -> Counter:
    """Backward pass of one optimizer step's loss, micro-batch by micro-batch. Returns sums for the log.

    The weights of the tokens are made before the split: loss and gradient are the same for any micro-batches.
    """
    sums = Counter()
    batch["weights"] = sequence_mean(batch["loss_mask"])  # [N, T]
    for part in micro_batches(model, batch, args.micro_batch_tokens):
        logprobs, entropy = score(model, part.prompt_ids, part.completion_ids, args.temperature)  # [n, T']
        old_logprobs = part.get("old_logprobs", logprobs.detach())  # one update: pi_old is the policy
        advantages = part["advantages"]  # [n, 1]

        loss_per_token = clipped_surrogate(logprobs, old_logprobs, advantages, args.clip_low, args.clip_high)
        clipped = loss_per_token > -torch.exp(logprobs - old_logprobs) * advantages  # the clipped term won
        if args.importance_cap is not None:
            importance = truncated_importance(old_logprobs, part["rollout_logprobs"], args.importance_cap)
            loss_per_token = loss_per_token * importance
        policy_loss = total_loss = (loss_per_token * part["weights"]).sum()
        if args.kl_coef:
            kl = k3(logprobs, part["ref_logprobs"])
            if args.kl_bias_correction:
                kl = kl * torch.exp(logprobs - old_logprobs)
            total_loss = policy_loss + args.kl_coef * (kl * part["weights"]).sum()
            sums["kl"] += (kl.detach() * part["completion_mask"]).sum().item()
        total_loss.backward()
        sums.update(update_sums(part, logprobs, old_logprobs, entropy, clipped, policy_loss, total_loss))
    return total(sums)  # over ranks


def problem_indices(args: Args, step: int) -> list[int]:
    """The training problems of a step: a pure function of its number, so resuming needs no data state."""
    first = (step - 1) * args.prompts_per_step
    indices = range(first, first + args.prompts_per_step)
    return [index % args.train_size if args.train_size else index for index in indices]


def learning_rate(args: Args, step: int) -> float:
    """Linear warm-up to `lr` over `warmup_steps`, then constant; the step counts from 1."""
    return args.lr * min(1.0, step / max(1, args.warmup_steps))


# --- the rewards of a step ----------------------------------------------------------------------------------


def verified(rollout: Rollout, verifier: Verifier, args: Args) -> tuple[list[Grade], dict]:
    """A grade of every completion by the verifier, and for the log how it compares with the task's own."""
    problems = [problem for problem in rollout.problems for _ in range(rollout.group_size)]  # N
    answers = [extracted_answer(text) for text in rollout.texts]  # [D1]
    asked = [
        (problem.prompt, problem.answer, verifier.one_line(answer))  # [D5]
        for problem, answer in zip(problems, answers)
        if answer is not None  # [D3]
    ]
    verdicts, grades, undecided = iter(verifier.verdicts(asked)), [], 0  # [D4]
    for problem, answer in zip(problems, answers):
        if answer is None:
            grades.append(
                Grade(False, verifier_reward(False, False, 0, args.length_weight), None, "no_answer")
            )
            continue
        yes = next(verdicts)
        undecided += yes is None
        why = {True: "verifier_yes", False: "verifier_no", None: "verifier_undecided"}[yes]
        chance = hash_number(f"{args.seed}/{problem.prompt}/{answer}") / 2**64  # from 0 to 1, always the same
        if not yes and chance < args.flip_no:
            yes, why = True, "flipped_to_yes"
        difference = verifier.tokens(answer) - verifier.tokens(problem.answer)
        reward = verifier_reward(True, bool(yes), difference, args.length_weight)
        grades.append(Grade(bool(yes), reward, answer, why))
    return grades, verifier_metrics(grades, rollout.grades) | {"verifier/undecided": undecided / len(grades)}


def verifier_metrics(grades: list[Grade], of_task: list[Grade]) -> dict[str, float | None]:
    """For the log: how often the verifier says yes, and how often where the task's own grader says
    otherwise."""
    yes = {True: [], False: []}  # the verifier's, of completions that the task calls right, and wrong
    for grade, true in zip(grades, of_task, strict=True):
        yes[bool(true.correct)].append(grade.correct)
    mean = lambda values: sum(values) / len(values) if values else None  # noqa: E731
    return {
        "verifier/yes_rate": mean(yes[True] + yes[False]),
        "verifier/right": len(yes[True]) / len(grades),
        "verifier/false_yes": mean(yes[False]),
        "verifier/false_no": None if not yes[True] else 1 - mean(yes[True]),
    }


# --- the loop -----------------------------------------------------------------------------------------------


def main(args: Args, task=None, sampler=None) -> Path:
    """Train and return the folder of the final model. A task or sampler of your own can be passed in."""
    check_verifier(args.verifier)
    run = Run("general_reasoner", args, task, sampler)
    run.verifier, verifier = load_verifier(args)
    reference = run.load_reference() if args.kl_coef else None
    optimizer = torch.optim.AdamW(run.model.parameters(), args.lr, weight_decay=args.weight_decay, fused=True)
    run.restore(optimizer)
    B, G = args.prompts_per_step, args.group_size
    for step in run.steps():
        # --- 1 sample
        problems = [run.task.problem("train", index, args.seed) for index in problem_indices(args, step)]
        seeds = [completion_seed(args.seed, step, j, 0, i) for j in range(B) for i in range(G)]
        rollout = run.sample(problems, seeds)  # N completions, graded by the task

        # --- 2 reward and advantage
        grades, own = verified(rollout, verifier, args)
        run.sampled = rollout = replace(rollout, grades=grades)  # the log, too, is about these rewards
        advantages = group_advantages(rollout.rewards())  # [B, G]
        batch = rollout.batch(advantages, run.model.device, args.mask_truncated)

        # --- 3 update
        optimizer.param_groups[0]["lr"] = learning_rate(args, step)
        if args.minibatches * args.epochs > 1:
            batch["old_logprobs"], _ = run.score(batch)  # [N, T], before the first of several updates
        if reference is not None:
            batch["ref_logprobs"], _ = run.score(batch, reference)  # [N, T]
        for minibatch in batch.split(args.minibatches) * args.epochs:
            run.optimizer_step(optimizer, accumulate_gradients(run.model, minibatch, args))

        # --- 4 push the weights to the sampler, log, score dev, save
        run.end_step(rollout, batch, own)
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
