"""papers/passk.py and papers/srpo.py: advantages against the official functions' numbers and against all sets
of k, one by one; the reward for a right beginning of a chain."""

import itertools
import json
import math
from fractions import Fraction

import kit
import pytest
import torch
import toys
from mutants import mutant
from safetensors.torch import load_file

import grpo
from papers import dr_grpo, passk, srpo
from plainrl import curves
from plainrl.chains import right_beginning
from plainrl.tasks import Problem, load_task
from plainrl.world import ChainTask

BOTH = pytest.mark.parametrize("script", [passk, srpo], ids=["passk", "srpo"])
SIZES = [(n, k) for n in range(1, 8) for k in range(1, n + 1)]


@pytest.fixture
def float64():
    with kit.numbers(torch.float64):
        yield


def bonus_of(script):
    """What both files have: Pass@k training's advantage of rewards [B, G]."""
    return passk.group_advantages if script is passk else srpo.passk_bonus


def rewards_of(size: int, right: int) -> torch.Tensor:
    """One group, its right completions first."""
    return torch.tensor([[1.0] * right + [0.0] * (size - right)])


# --- the seven checks of a loss -----------------------------------------------------------------------------


def loss(now, start, batch, args) -> float:
    """Dr. GRPO's in loops: minus the mean over completions of the sum of min(ratio A, clip(ratio) A) / L."""
    total = 0.0
    for i, completion in enumerate(batch["completion_ids"]):
        A = batch["advantages"][i].item()
        for t, token in enumerate(completion) if batch["loss_mask"][i].any() else ():
            old = batch["old_logprobs"][i, t].item() if "old_logprobs" in batch else start[i][t, token]
            ratio = math.exp(now[i][t, token] - old)
            total -= min(ratio * A, min(max(ratio, 1 - args.clip_low), 1 + args.clip_high) * A)
    return total / args.max_new_tokens / len(batch["completion_ids"])


def test_by_hand():
    """Catches a formula that is wrong where one can still count.

    Of the six pairs of four completions, of which one is right, three are right: rho = sigma = 1/2. All three
    pairs with the right one are, and one of three with a wrong one: (1 - 1/2) / (1/2), (1/3 - 1/2) / (1/2).
    GRPO's advantages there are 1.5 and -0.5.
    """
    given = [[1.0, 0.0, 0.0, 0.0]]
    bonus = [[1.0, -1 / 3, -1 / 3, -1 / 3]]
    kit.check_by_hand(lambda rewards: passk.group_advantages(rewards, 2) * (1 + 2e-6), given, bonus)
    kit.check_by_hand(lambda rewards: srpo.passk_bonus(rewards, 2) * (1 + 2e-6), given, bonus)
    both = torch.tensor([[1.5 + 1, -0.5 - 1 / 3, -0.5 - 1 / 3, -0.5 - 1 / 3]])
    torch.testing.assert_close(srpo.group_advantages(torch.tensor(given), 2), both, rtol=0, atol=1e-5)


@BOTH
def test_loops(script):
    """Catches a wrong sign, mask, denominator or clip, in the first update of a batch and in later ones."""
    kit.check_loops(script, loss, kit.make_args(script))
    kit.check_loops(script, loss, kit.make_args(script), old=True)


@BOTH
def test_finite_difference(script):
    """Catches a term that has no gradient and should, or has one and should not."""
    kit.check_finite_difference(script, loss, kit.make_args(script, clip_low=0.6, clip_high=2.0), old=True)


@BOTH
def test_micro_batches(script):
    """Catches a denominator of the micro-batch."""
    kit.check_micro_batches(script, kit.make_args(script))


@BOTH
def test_padding_and_order(script):
    """Catches padding that is counted, and rows that are mixed up."""
    kit.check_padding(script, kit.make_args(script))
    kit.check_order(script, kit.make_args(script))


@BOTH
def test_against_its_base(script):
    """Catches another difference to Dr. GRPO than the advantages: for equal ones all is equal, to the bit."""
    kit.check_against_base(script, kit.make_args(script), dr_grpo, kit.make_args(dr_grpo), old=True)


@pytest.mark.parametrize(
    "old, new",
    [
        ("return -torch.min(ratio", "return torch.min(ratio"),
        ("return mask / (max_new_tokens * mask.shape[0])", "return mask / mask.sum()"),
        ('constant(batch["loss_mask"], args', 'constant(batch["completion_mask"], args'),
    ],
)
@BOTH
def test_a_mutant_goes_red(script, old, new):
    """Catches checks that see nothing: a wrong sign, a mean over tokens, masked completions in the loss."""
    check = lambda script: kit.check_loops(script, loss, kit.make_args(script))  # noqa: E731
    kit.check_mutant(script, old, new, check)


# --- the advantages -----------------------------------------------------------------------------------------

OFFICIAL = [  # n, k, c, of a right completion, of a wrong one: printed by both papers' calc_adv
    (8, 4, 1, 0.999998, -0.142857),
    (8, 4, 2, 0.522232, -0.174077),
    (8, 4, 4, 0.120385, -0.120385),
    (8, 4, 5, 0.0, 0.0),
    (8, 4, 8, 0.0, 0.0),
    (10, 4, 1, 1.224742, -0.136082),
    (10, 4, 2, 0.707105, -0.176776),
    (10, 4, 6, 0.069170, -0.103756),
]


@mutant(
    "std of sets without the 1e-6",
    "papers/passk.py",
    "return (1 - rho) / (sigma + 1e-6),",
    "return (1 - rho) / sigma,",
)
@mutant("variance for the std of sets", "papers/passk.py", "math.sqrt(rho * (1 - rho))", "rho * (1 - rho)")
@mutant(
    "variance for the std of SRPO's sets", "papers/srpo.py", "math.sqrt(rho * (1 - rho))", "rho * (1 - rho)"
)
@BOTH
def test_official_numbers(script):
    """Catches any other number than the official code's, to its six digits."""
    for size, k, right, of_right, of_wrong in OFFICIAL:
        found = bonus_of(script)(rewards_of(size, right).double(), k)[0].tolist()
        expected = [of_right] * right + [of_wrong] * (size - right)
        assert found == pytest.approx(expected, abs=1e-6), (size, k, right)


@mutant("SRPO without the bonus", "papers/srpo.py", "0.0) + passk_bonus(", "0.0) + 0 * passk_bonus(")
@mutant("bonus that is a punishment", "papers/srpo.py", "0.0) + passk_bonus(", "0.0) - passk_bonus(")
@mutant(
    "SRPO's rewards that are centred alone",
    "papers/srpo.py",
    "centred / (rewards.std(",
    "centred / (0 * rewards.std(",
)
@mutant(
    "std of SRPO with ddof 0",
    "papers/srpo.py",
    "rewards.std(dim=1, keepdim=True)",
    "rewards.std(dim=1, keepdim=True, correction=0)",
)
@mutant("partial credit is right for SRPO", "papers/srpo.py", "right = rewards == 1", "right = rewards > 0.8")
def test_official_numbers_of_srpo():
    """Catches a std of the wrong kind, another sign, and .95 or .866 that count as right. (The last digit of
    the first group's negative values is that of sigma + 1e-6.)"""
    for rewards, expected in (
        (
            [1, 1, 0.866, 0.5, 0.5, 0, 0, 0, 0, 0],
            [2.096037, 2.096037, 0.908737, 0.079997, 0.079997, *[-1.052161] * 5],
        ),
        ([0.866, 0.5, 0, 0], [1.243802, 0.375868, -0.809835, -0.809835]),
    ):
        given = torch.tensor([rewards], dtype=torch.float64)
        assert srpo.group_advantages(given, 4)[0].tolist() == pytest.approx(expected, abs=1e-6)


def all_sets(rewards: list[int], k: int) -> tuple[list[Fraction], Fraction, float]:
    """By enumeration: the mean reward of the sets with each completion, that of all sets, and their std."""
    sets = list(itertools.combinations(range(len(rewards)), k))
    reward = {members: Fraction(max(rewards[i] for i in members)) for members in sets}
    mean = sum(reward.values()) / len(sets)
    variance = sum((each - mean) ** 2 for each in reward.values()) / len(sets)
    of_each = []
    for i in range(len(rewards)):
        own = [reward[members] for members in sets if i in members]
        of_each.append(sum(own) / len(own))
    return of_each, mean, math.sqrt(variance)


@mutant(
    "all have to be right",
    "papers/passk.py",
    "1 - math.comb(size - right, k)",
    "math.comb(right, k)",
    case="passk",
)
@mutant(
    "SRPO's sets all have to be right",
    "papers/srpo.py",
    "1 - math.comb(size - right, k)",
    "math.comb(right, k)",
    case="srpo",
)
@mutant(
    "a companion of itself",
    "papers/passk.py",
    "pass_at_k(size - 1, right, k - 1)",
    "pass_at_k(size, right, k - 1)",
    case="passk",
)
@mutant(
    "a companion of itself in SRPO",
    "papers/srpo.py",
    "pass_at_k(size - 1, right, k - 1)",
    "pass_at_k(size, right, k - 1)",
    case="srpo",
)
@mutant(
    "a companion too many",
    "papers/passk.py",
    "pass_at_k(size - 1, right, k - 1)",
    "pass_at_k(size - 1, right, k)",
    case="passk",
)
@mutant(
    "right and wrong swapped",
    "papers/passk.py",
    "torch.where(right, of_right, of_wrong)",
    "torch.where(right, of_wrong, of_right)",
    case="passk",
)
@mutant("error where all are right", "papers/passk.py", "if rho in (0, 1):", "if rho == 0:", case="passk")
@mutant(
    "error in SRPO where all are right", "papers/srpo.py", "if rho in (0, 1):", "if rho == 0:", case="srpo"
)
@BOTH
def test_it_is_the_mean_over_all_sets(script, float64):
    """Catches an advantage that is not the mean, over all sets of k that hold the completion, of the set's
    reward less the mean of all sets over their std; and advantages that do not add up to 0."""
    differ = 0
    for size, k in SIZES:
        for right in range(size + 1):
            rewards = [1] * right + [0] * (size - right)
            of_each, mean, std = all_sets(rewards, k)
            found = bonus_of(script)(torch.tensor([rewards], dtype=torch.float64), k)[0]
            expected = [float(each - mean) for each in of_each]
            assert (found * (std + 1e-6)).tolist() == pytest.approx(expected, abs=1e-12), (size, k, right)
            assert found.sum().item() == pytest.approx(0, abs=1e-9)
            nothing = std == 0  # all sets alike: nothing right, or fewer than k wrong
            assert nothing == (right == 0 or size - right < k)
            assert nothing == (found.count_nonzero() == 0)
            differ += not nothing
    assert differ == sum(size - k for size, k in SIZES)  # with 1 to size - k right ones


@BOTH
def test_every_group_has_its_own(script):
    """Catches numbers of another group, and right completions that have to come first."""
    rewards = torch.tensor(
        [[0.0, 1, 0, 0, 1, 0], [0.0, 0, 0, 0, 0, 0], [1.0, 1, 1, 1, 1, 1], [0.0, 0, 0, 1, 0, 0]]
    )
    found = bonus_of(script)(rewards, 3)
    alone = torch.cat([bonus_of(script)(group[None], 3) for group in rewards])
    assert torch.equal(found, alone) and not found[1:3].any()
    assert found[0].tolist() == pytest.approx([-0.25, 0.5, -0.25, -0.25, 0.5, -0.25], abs=1e-5)
    assert found[3].tolist() == pytest.approx([-0.2, -0.2, -0.2, 1.0, -0.2, -0.2], abs=1e-5)


def test_one_of_one_is_the_centred_advantage():
    """Catches a k that is off by one: with k = 1 every completion is a set, and the std has ddof 0."""
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.float64)
    expected = dr_grpo.group_advantages(rewards) / (rewards.std(dim=1, keepdim=True, correction=0) + 1e-6)
    torch.testing.assert_close(passk.group_advantages(rewards, 1), expected, rtol=1e-12, atol=1e-12)


def test_srpo_with_all_of_the_group_is_grpo():
    """Catches another first term than GRPO's: with the group as the only set nothing else is left."""
    rewards = torch.rand(20, 6, generator=torch.Generator().manual_seed(3)).round(decimals=1)
    rewards[:8] = rewards[:8].round()
    assert torch.equal(srpo.group_advantages(rewards, 6), grpo.group_advantages(rewards))
    assert not passk.group_advantages(rewards, 6).any()


@mutant(
    "rounding in SRPO",
    "papers/srpo.py",
    "standardised.masked_fill(no_signal, 0.0) + passk",
    "standardised + passk",
)
def test_groups_without_differences_have_advantage_zero():
    """Catches rounding that pushes the policy where nothing was learned."""
    rounded = 0
    for value in (1.0, 0.1, 0.7, 1 / 3, 0.95):
        for size in (3, 5, 6, 7, 16):
            rewards = torch.full((2, size), value)
            rounded += int((rewards - rewards.mean(dim=1, keepdim=True)).any())
            for script in (passk, srpo):
                assert script.group_advantages(rewards, 3).tolist() == [[0.0] * size] * 2
    assert rounded > 3, "no case here rounds, so the test shows nothing"


@mutant(
    "partial credit is right", "papers/passk.py", "right = rewards == 1", "right = rewards > 0", case="passk"
)
@mutant(
    "partial credit has a bonus", "papers/srpo.py", "right = rewards == 1", "right = rewards > 0", case="srpo"
)
@BOTH
def test_partial_credit_is_wrong_for_the_sets(script):
    """Catches .95 that makes a set right, or that is an advantage of its own as in the first paper's code."""
    graded = torch.tensor([[1.0, 0.95, 0.5, 0.0], [0.95, 0.5, 0.0, 0.0]])
    assert torch.equal(bonus_of(script)(graded, 2), bonus_of(script)((graded == 1).float(), 2))


EXPECTED_GRADIENTS = {  # of the reference, n = 4
    2: [0.295490, -0.098047, -0.197443],
    3: [0.095500, -0.031688, -0.063812],
    4: [0.0, 0.0, 0.0],
}


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_expected_gradient_is_that_of_pass_at_k(k, float64):
    """Catches an advantage that maximises something else: over all 81 groups of four of a policy with three
    outcomes, E[sum_i A_i grad log pi(y_i)] is (n / k - 1) grad pass@k where A is not divided by sigma."""
    n, logits = 4, torch.tensor([0.3, -0.2, 0.5], requires_grad=True)
    log_pi = torch.log_softmax(logits, dim=0)
    groups = torch.tensor(list(itertools.product(range(3), repeat=n)))  # [81, n]
    rewards = (groups == 0).double()  # outcome 0 is right
    std = [all_sets(row, k)[2] for row in rewards.int().tolist()]
    advantages = passk.group_advantages(rewards, k) * (torch.tensor(std) + 1e-6)[:, None]
    chance = log_pi[groups].sum(dim=1).exp().detach()  # [81]
    (found,) = torch.autograd.grad((chance[:, None] * advantages * log_pi[groups]).sum(), logits)
    pass_at_k = 1 - (1 - torch.softmax(logits, dim=0)[0]) ** k
    (of_pass_at_k,) = torch.autograd.grad(pass_at_k, logits)
    torch.testing.assert_close(found, (n / k - 1) * of_pass_at_k, rtol=1e-10, atol=1e-12)
    if k in EXPECTED_GRADIENTS:
        assert found.tolist() == pytest.approx(EXPECTED_GRADIENTS[k], abs=1e-6)


@mutant(
    "advantages larger than said",
    "papers/passk.py",
    "(beside_wrong - rho) / (sigma + 1e-6)",
    "2 * (beside_wrong - rho) / (sigma + 1e-6)",
)
def test_its_size_against_dr_grpos():
    """Catches a docstring that is not true: of 16 with k = 4, larger than Dr. GRPO's up to two right ones."""
    larger = []
    for right in range(1, 16):
        rewards = rewards_of(16, right)
        ours, theirs = passk.group_advantages(rewards, 4), dr_grpo.group_advantages(rewards)
        larger.append((ours.abs().sum() > theirs.abs().sum()).item())
    assert larger == [True, True] + [False] * 13


# --- the loop -----------------------------------------------------------------------------------------------


@pytest.fixture
def run(toy_model, tmp_path, monkeypatch):
    """run(script, name, **flags) -> the output folder of a quick run; a picture takes its time."""
    monkeypatch.setattr(curves, "plot_run", lambda run: None)

    def function(script, name="run", task=None, **changes):
        flags = toys.quick_flags(toy_model, tmp_path / name, **changes)
        script.main(script.Args(**flags), task=task or toys.HashTask())
        return tmp_path / name

    return function


@mutant(
    "share of groups where nothing is right", "papers/passk.py", "rho in (0, 1) for rho", "rho == 0 for rho"
)
@mutant(
    "SRPO's share of groups where nothing is right",
    "papers/srpo.py",
    "rho in (0, 1) for rho",
    "rho == 0 for rho",
)
@BOTH
def test_metrics_by_hand(script):
    """Catches a share of other groups. Of 4 with k = 2: rho is 0, 1/2, 5/6, 1, 1 for 0 to 4 right ones."""
    found = script.passk_metrics([0, 1, 2, 3, 4], 4, 2)
    assert found == pytest.approx({"passk/group_pass@k": (0.5 + 5 / 6 + 2) / 5, "passk/frac_no_bonus": 3 / 5})


@mutant(
    "the k of the flag",
    "papers/passk.py",
    "rollout.rewards(), args.k)",
    "rollout.rewards(), 4)",
    case="passk",
)
@mutant(
    "SRPO's k of the flag",
    "papers/srpo.py",
    "rollout.rewards(), args.k)",
    "rollout.rewards(), 4)",
    case="srpo",
)
@mutant(
    "metrics of another k",
    "papers/passk.py",
    "rollout.correct(), G, args.k)",
    "rollout.correct(), G, 1)",
    case="passk",
)
@BOTH
def test_a_run_has_the_advantages_of_its_rewards(script, run):
    """Catches advantages of another k, or of other rewards than the log has, and metrics of other groups."""
    folder = run(script, k=2, group_size=6)
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    seen = 0
    for step in sorted({line["step"] for line in lines}):
        own = [line for line in lines if line["step"] == step]
        rewards = torch.tensor([[line["reward"] for line in own]])
        expected = script.group_advantages(rewards, 2)[0].tolist()
        assert [line["advantage"] for line in own] == pytest.approx(expected, abs=1e-3)
        seen += any(expected)
    assert seen >= 2, "no group with differences: choose another seed"
    sampled = [json.loads(line) for line in (folder / "groups.jsonl").read_text().splitlines()]
    correct = [line["right"] for line in sampled if line["split"] == "train"]  # of both groups of a step
    shown = [sum(passk.pass_at_k(6, right, 2) for right in groups) / 2 for groups in correct]
    assert toys.column(folder, "passk/group_pass@k") == pytest.approx(shown) and len(set(shown)) > 1


@mutant(
    "a set larger than the group",
    "papers/passk.py",
    "if args.k > args.group_size:",
    "if args.k > 99:",
    case="passk",
)
@mutant(
    "a set of SRPO larger than the group",
    "papers/srpo.py",
    "if args.k > args.group_size:",
    "if args.k > 99:",
    case="srpo",
)
@mutant(
    "the whole group without a word",
    "papers/passk.py",
    "if args.k == args.group_size:",
    "if args.k == 99:",
    case="passk",
)
@BOTH
def test_a_k_that_cannot_work(script, run, tmp_path, capsys):
    """Catches a traceback for a k above the group's size, a folder that it leaves, and a run that learns
    nothing and does not say so."""
    with pytest.raises(SystemExit) as stop:
        run(script, k=5)
    assert stop.value.code == "error: --k 5: is more than --group-size 4; give a number below it"
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit, match="--k 0: must be at least 1"):
        run(script, k=0)
    folder = run(script, "all", k=4, steps=2)
    said = capsys.readouterr().out
    assert "--k 4: is all of --group-size, so" in said
    assert toys.column(folder, "passk/frac_no_bonus") == [1.0, 1.0]
    moved = any(toys.column(folder, "optim/grad_norm"))
    assert moved == (script is srpo)


def test_passk_with_all_of_the_group_stands_still(run, toy_model):
    """Catches a note that is not true: there is no signal at all, and no weight moves."""
    folder = run(passk, k=4, steps=3)
    first, last = load_file(f"{toy_model}/model.safetensors"), load_file(folder / "last/model.safetensors")
    assert all(torch.equal(first[name], last[name]) for name in first)


@pytest.mark.parametrize(
    "script, flags", [(passk, {}), (srpo, {"lora_rank": 4, "lr": 1e-2})], ids=["passk", "srpo with LoRA"]
)
def test_a_resumed_run_is_the_same_to_the_bit(script, flags, run):
    """Catches an advantage that depends on what a checkpoint does not keep."""
    whole = run(script, "whole", k=2, **flags)
    run(script, "broken", k=2, **flags, steps=2)
    broken = run(script, "broken", k=2, **flags, resume=True)
    for metric in ("loss/policy", "optim/grad_norm", "passk/group_pass@k"):
        assert toys.column(whole, metric) == toys.column(broken, metric)
    ours, theirs = (load_file(folder / "last/model.safetensors") for folder in (whole, broken))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(toys.column(whole, "optim/grad_norm")[2:]), "nothing to learn after the break: another seed"


# --- the reward for a right beginning -----------------------------------------------------------------------

SOLUTION = "A=20+5=25\nB=25*2=50\nC=50-4=46\nD=46+9=55\n\\boxed{55}"
BEGINNINGS = [  # what is written, lines of four that are right, the score
    ("\\boxed{54}", 0, 0.0),
    ("A=20+5=26\nB=25*2=50\nC=50-4=46\nD=46+9=55\n\\boxed{54}", 0, 0.0),
    ("A=20+5=25\nB=25*2=40\nC=50-4=46\n\\boxed{54}", 1, 0.5),
    ("A = 20 + 5 = 25\n\nB=25*2=50\nC=50-4=45\nD=45+9=54\n\\boxed{54}", 2, 0.5**0.5),
    ("A=20+5=25\nB=25*2=50\nC=50-4=46\n\\boxed{54}", 3, 0.75**0.5),
    ("A=20+5=25\nB=25*2=50\nC=50-4=46\nD=46+9=55\n\\boxed{54}", 4, 0.95),
    ("B=25*2=50\nA=20+5=25\n\\boxed{54}", 0, 0.0),
    ("A=20+5=25\nA=20+5=25\nA=20+5=25\n\\boxed{54}", 1, 0.5),
]


@mutant(
    "lines in any order", "plainrl/chains.py", "written[right] == steps[right]", "written[right] in steps"
)
@mutant("the box is a line", "plainrl/chains.py", "*steps, _ = [", "steps = [")
@mutant(
    "an empty line ends the beginning",
    "plainrl/chains.py",
    "for line in completion.splitlines() if line.strip()]",
    "for line in completion.splitlines()]",
)
@mutant(
    "all lines earn the most",
    "plainrl/world.py",
    "min(MOST_FOR_A_BEGINNING, math.sqrt(right / steps))",
    "math.sqrt(right / steps)",
)
@mutant("lines earn their share", "plainrl/world.py", "math.sqrt(right / steps)", "right / steps")
def test_a_right_beginning_by_hand():
    """Catches lines that count wherever they stand, a box or an empty line among them, another curve than
    sqrt(l / h), and 1 for a wrong answer."""
    task = ChainTask(reward="prefix")
    problem = Problem("?", "55", solution=SOLUTION, horizon=4)
    for completion, right, score in BEGINNINGS:
        assert right_beginning(completion, SOLUTION) == (right, 4), completion
        grade = task.grade(completion, problem)
        assert (grade.correct, grade.parsed) == (False, "54")
        assert grade.score == pytest.approx(score), completion


@mutant(
    "the way decides",
    "plainrl/world.py",
    'self.reward == "answer" or grade.correct or',
    'self.reward == "answer" or',
)
@mutant(
    "lines without an answer", "plainrl/world.py", "grade.correct or grade.parsed is None:", "grade.correct:"
)
def test_the_answer_comes_first():
    """Catches a right answer that earns less than 1, and lines that earn something without an answer."""
    task, plain = load_task("chain?horizon=4&reward=prefix"), load_task("chain?horizon=4")
    for index in range(5):
        problem = task.problem("train", index, 1)
        assert problem == plain.problem("train", index, 1)
        lines = problem.solution.rsplit("\n", 1)[0]
        box, wrong = f"\\boxed{{{problem.answer}}}", f"\\boxed{{{int(problem.answer) + 1}}}"
        for completion in (
            problem.solution,
            box,
            f"A=1+1=3\n{box}",
            lines,
            f"{lines}\n\\boxed{{2*3}}",
            wrong,
        ):
            assert task.grade(completion, problem) == plain.grade(completion, problem), completion
        ours, theirs = (each.grade(f"{lines}\n{wrong}", problem) for each in (task, plain))
        assert (ours.score, theirs.score) == (0.95, 0.0) and ours.why == theirs.why == "wrong"


def test_every_kind_of_chain_has_beginnings():
    """Catches a style, a family or a length whose solution is not read line by line."""
    for settings in ("horizon=1", "horizon=10", "horizon=3&style=h1", "horizon=2-6&family=mixed"):
        task = load_task(f"chain?reward=prefix&{settings}")
        for index in range(5):
            problem = task.problem("train", index, 0)
            assert right_beginning(problem.solution, problem.solution) == (problem.horizon,) * 2
            first = problem.solution.split("\n")[0] + "\n\\boxed{1}"
            assert task.grade(first, problem).score == pytest.approx(min(0.95, problem.horizon**-0.5))
    assert task.at_horizon(3).reward == "prefix"


def test_a_score_counts_beginnings_and_accuracy_does_not(run):
    """Catches avg@k or pass@k of partial credit: right beginnings alone have solved nothing."""
    score = lambda text, problem: 0.25 if text[:1].islower() else 0.5  # noqa: E731
    folder = run(srpo, k=2, task=toys.FunctionTask(score))
    records = toys.records(folder)
    scored = [record for record in records if any(name.endswith("/avg@2") for name in record)]
    assert scored and all(record[name] == 0 for record in scored for name in record if "@2" in name)
    assert all(value > 0 for record in scored for name, value in record.items() if name.endswith("/score"))
    assert toys.column(folder, "passk/frac_no_bonus") == [1.0] * 5
    assert toys.column(folder, "passk/group_pass@k") == [0.0] * 5
    assert any(toys.column(folder, "optim/grad_norm"))  # GRPO's term learns from them
