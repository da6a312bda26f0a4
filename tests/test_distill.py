"""papers/distill.py: the KL and its gradient, what tau and the hard loss do to it, its memory, which teachers
it refuses, and a run from beginning to end."""

import json
import math
import shutil
from pathlib import Path

import kit
import numpy as np
import pytest
import torch
import toys
from mutants import mutant
from random_model import distance, gradient, random_model
from safetensors.torch import load_file
from test_sft import kill_after, lines_of_sums, on_one_and_two_ranks, some_rows, written
from torch.distributions import Categorical, kl_divergence

import sft
from papers import distill
from plainrl import logit_sum, models, plan, rows

# --- the divergence -----------------------------------------------------------------------------------------

STUDENT, TEACHER = [1.0, 0.0, -1.0], [0.0, 1.0, 0.0]


def softmax(logits) -> np.ndarray:
    powers = np.exp(np.asarray(logits, dtype=np.float64))
    return powers / powers.sum()


@mutant(
    "distill: sign of the KL",
    "papers/distill.py",
    "(teacher_logprobs - logprobs)",
    "(logprobs - teacher_logprobs)",
)
@mutant(
    "distill: weighted by the student",
    "papers/distill.py",
    "p = teacher_logprobs.exp()",
    "p = logprobs.exp()",
)
@mutant(
    "distill: sign of the entropy",
    "papers/distill.py",
    "-(p * teacher_logprobs).sum(-1)",
    "(p * teacher_logprobs).sum(-1)",
)
def test_kl_and_entropy_of_the_reference():
    """Catches KL(student || teacher), which is 0.474321, a sign, and the entropy of the student."""
    kl, entropy = distill.kl_to_teacher(torch.tensor([STUDENT]), torch.tensor([TEACHER]))
    p, q = softmax(TEACHER), softmax(STUDENT)
    cross_entropy = -sum(p[v] * math.log(q[v]) for v in range(3))  # = KL(teacher || student) + H(teacher)
    assert cross_entropy == pytest.approx(1.407606, abs=1e-6)
    assert kl.item() == pytest.approx(0.432278, abs=1e-6)
    assert entropy.item() == pytest.approx(0.975328, abs=1e-6)
    assert (kl + entropy).item() == pytest.approx(cross_entropy, abs=1e-6)


@mutant("distill: gradient without tau", "papers/distill.py", "return tau**2 * kl", "return kl")
@mutant("distill: gradient with one tau", "papers/distill.py", "return tau**2 * kl", "return tau * kl")
@mutant("distill: sign of the loss", "papers/distill.py", "return tau**2 * kl", "return -(tau**2) * kl")
@mutant(
    "distill: a teacher that learns",
    "papers/distill.py",
    "torch.log_softmax(teacher_logits.detach(), dim=-1)",
    "torch.log_softmax(teacher_logits, dim=-1)",
)
@pytest.mark.parametrize("tau", [1.0, 2.0, 0.5])
def test_gradient_in_the_logits_by_hand(tau):
    """Catches a wrong sign or factor, and a gradient that reaches the teacher: tau^2 KL has the gradient
    tau (p_S - p_T), since the chain rule divides by tau once."""
    student = torch.tensor([STUDENT], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([TEACHER], dtype=torch.float64, requires_grad=True)
    kl, entropy = distill.kl_to_teacher(student / tau, teacher / tau)
    assert not entropy.requires_grad
    distill.distillation_loss(kl, torch.zeros(1, dtype=torch.float64), tau, 0.0).sum().backward()
    expected = tau * (softmax(np.array(STUDENT) / tau) - softmax(np.array(TEACHER) / tau))
    assert student.grad[0].numpy() == pytest.approx(expected, abs=1e-12)
    assert teacher.grad is None


@mutant(
    "distill: sign of the hard loss",
    "papers/distill.py",
    "kl + hard_weight * cross_entropy",
    "kl - hard_weight * cross_entropy",
)
@mutant(
    "distill: the usual loss, always",
    "papers/distill.py",
    "kl + hard_weight * cross_entropy",
    "kl + cross_entropy",
)
def test_loss_of_a_token_by_hand():
    """Catches a hard loss that is scaled by tau too, has another sign, or is always there: 4 .5 + .25 3."""
    kl, logprobs = torch.tensor([[0.5]]), torch.tensor([[-3.0]])
    assert distill.distillation_loss(kl, logprobs, 2.0, 0.25).item() == pytest.approx(2.75)
    assert distill.distillation_loss(kl, logprobs, 2.0, 0.0).item() == pytest.approx(2.0)


# --- loss and gradient of an update -------------------------------------------------------------------------


def teacher_model(seed: int = 5, kind: str = "qwen2", **options):
    """Another architecture than the student's, frozen."""
    return random_model(seed=seed, kind=kind, **options).eval().requires_grad_(False)


def update(model, teacher, learned, **changes):
    model.zero_grad()
    args = distill.Args(**{"micro_batch_tokens": 10**6} | changes)
    sums = distill.accumulate_gradients(model, rows.batch_of(learned, "cpu"), args, teacher)
    return sums, gradient(model)


def by_loop(model, teacher, learned, tau: float, hard_weight: float, aggregation: str):
    """The same loss of plain forward passes, one row each, with torch's own divergence. Besides, the sums of
    KL and entropy over all tokens."""
    losses, kl_sum, entropy_sum = [], 0.0, 0.0
    for each in learned:
        ids = torch.tensor([[*each.prompt_ids, *each.completion_ids]])
        first = len(each.prompt_ids)
        logits, wanted = (net(input_ids=ids).logits[0, first - 1 : -1] for net in (model, teacher))
        there, here = Categorical(logits=wanted / tau), Categorical(logits=logits / tau)
        kl = kl_divergence(there, here)
        hard = torch.nn.functional.cross_entropy(logits, ids[0, first:], reduction="none")
        losses.append(tau * tau * kl + hard_weight * hard)
        kl_sum, entropy_sum = kl_sum + kl.sum().item(), entropy_sum + there.entropy().sum().item()
    if aggregation == "token_mean":
        return torch.cat(losses).mean(), kl_sum, entropy_sum
    return torch.stack([loss.mean() for loss in losses]).mean(), kl_sum, entropy_sum


@mutant(
    "distill: KL of the other direction",
    "papers/distill.py",
    "kl_to_teacher(logits / tau, teacher_logits / tau)",
    "kl_to_teacher(teacher_logits / tau, logits / tau)",
)
@mutant(
    "distill: tau of the student alone",
    "papers/distill.py",
    "kl_to_teacher(logits / tau, teacher_logits / tau)",
    "kl_to_teacher(logits / tau, teacher_logits)",
)
@mutant(
    "distill: tau of the hard loss",
    "papers/distill.py",
    "*numbers_of_token(logits, targets)",
    "*numbers_of_token(logits / tau, targets)",
)
@mutant(
    "distill: weights of the micro-batch",
    "papers/distill.py",
    '(loss_per_token * part["weights"]).sum()',
    '(loss_per_token * part["completion_mask"]).mean()',
)
@mutant(
    "distill: KL over the padding",
    "papers/distill.py",
    "(kl.detach() * mask).sum().item()",
    "kl.detach().mean().item()",
)
@mutant(
    "distill: entropy over the padding",
    "papers/distill.py",
    "(teacher_entropy * mask).sum().item()",
    "teacher_entropy.mean().item()",
)
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("tau, hard_weight", [(1.0, 0.0), (2.0, 0.5)])
def test_loss_gradient_and_metrics_of_plain_loops(tau, hard_weight, aggregation):
    """Catches a teacher of another row or token, a direction, a tau, a mask or a denominator: torch's
    divergence, a row at a time."""
    settings = dict(distill_temperature=tau, hard_weight=hard_weight, aggregation=aggregation)
    with kit.numbers(torch.float64):
        model, teacher = random_model(), teacher_model()
        sums, ours = update(model, teacher, some_rows(), **settings)
        model.zero_grad()
        loss, kl, entropy = by_loop(model, teacher, some_rows(), tau, hard_weight, aggregation)
        loss.backward()
    assert sums["total_loss"] == pytest.approx(loss.item(), rel=1e-10)
    assert distance(ours, gradient(model)) <= 1e-10
    assert [sums["teacher_kl"], sums["teacher_entropy"]] == pytest.approx([kl, entropy], rel=1e-10)
    assert all(weight.grad is None for weight in teacher.parameters())


def test_what_the_hard_loss_adds_is_sft():
    """Catches a hard loss that is not sft.py's: its sums, and its gradient as the difference of two."""
    with kit.numbers(torch.float64):
        model, teacher = random_model(), teacher_model()
        soft_sums, soft = update(model, teacher, some_rows())
        _, both = update(model, teacher, some_rows(), hard_weight=1.0)
        model.zero_grad()
        batch = rows.batch_of(some_rows(), "cpu")
        sums = sft.accumulate_gradients(model, batch, sft.Args(micro_batch_tokens=10**6))
        assert distance(both - soft, gradient(model)) <= 1e-10
    for name in ("tokens", "nll", "right", "entropy"):
        assert soft_sums[name] == pytest.approx(sums[name], rel=1e-12), name


def test_a_student_like_its_teacher_has_nothing_to_learn():
    """Catches a divergence that is not 0 where it must be: a cross-entropy, or a teacher of other rows."""
    with kit.numbers(torch.float64):
        model = random_model()
        sums, ours = update(model, teacher_model(seed=0, kind="llama"), some_rows(), distill_temperature=2.0)
        _, far = update(model, teacher_model(seed=1, kind="llama"), some_rows(), distill_temperature=2.0)
    assert abs(sums["total_loss"]) < 1e-12 and ours.norm() < 1e-12 < 1e-2 < far.norm()


def test_split_order_and_padding_change_nothing():
    """Catches means of micro-batch means, a teacher's row beside another one, and padding that is counted."""
    learned, settings = some_rows(), dict(distill_temperature=1.5, hard_weight=0.3)
    with kit.numbers(torch.float64):
        model, teacher = random_model(), teacher_model()
        sums, ours = update(model, teacher, learned, **settings)
        others = [
            update(model, teacher, learned, micro_batch_tokens=1, **settings),
            update(model, teacher, learned, micro_batch_tokens=40, **settings),
            update(model, teacher, learned[::-1], **settings),
        ]
    for their_sums, theirs in others:
        assert distance(theirs, ours) <= 1e-10
        for name in sums:
            assert their_sums[name] == pytest.approx(sums[name], rel=1e-10), name


@mutant(
    "distill: logits of all tokens",
    "papers/distill.py",
    "LOGITS_AT_ONCE // 2 // head",
    "10**9 // head",
)
@mutant(
    "distill: blocks of two heads as large as of one",
    "papers/distill.py",
    "LOGITS_AT_ONCE // 2 // head",
    "LOGITS_AT_ONCE // head",
)
def test_blocks_change_nothing_and_bound_the_logits(monkeypatch):
    """Catches a full [N, T, V] tensor of either model's logits, also in the backward pass, a block that is
    left out, and a block of no rows."""
    learned = some_rows()
    total = sum(len(each.completion_ids) for each in learned)
    with kit.numbers(torch.float64):
        model, teacher = random_model(vocab=67), teacher_model(vocab=67)
        whole = update(model, teacher, learned)
        for numbers, most in ((8 * 67 + 1, 4), (2 * 3 * 67, 3), (10, 1)):
            made = {"student": [], "teacher": []}  # the shapes of their logits
            nets = {"student": model, "teacher": teacher}
            hooks = [
                net.lm_head.register_forward_hook(lambda _, args, out, to=made[name]: to.append(out.shape))
                for name, net in nets.items()
            ]
            monkeypatch.setattr(distill, "LOGITS_AT_ONCE", numbers)
            sums, ours = update(model, teacher, learned)
            assert distance(ours, whole[1]) <= 1e-10
            assert sums["teacher_kl"] == pytest.approx(whole[0]["teacher_kl"], rel=1e-12)
            for shapes in made.values():
                assert max(shape[0] for shape in shapes) == most
                assert sum(shape[0] for shape in shapes) == 2 * total  # once more in the backward pass
            for hook in hooks:
                hook.remove()


@mutant(
    "distill: blocks that are kept",
    "plainrl/scoring.py",
    "checkpoint(function, *part, use_reentrant=False)",
    "function(*part)",
)
@mutant(
    "distill: a teacher with a graph",
    "papers/distill.py",
    "    with torch.no_grad():\n        teacher_hidden = ranks",
    "    if True:\n        teacher_hidden = ranks",
)
def test_no_logits_and_no_graph_of_the_teacher_are_kept(monkeypatch):
    """Catches blocks without recomputation, whose logits would all be alive when the backward pass begins,
    and activations that are kept for a gradient of the teacher that nobody asks for."""
    monkeypatch.setattr(distill, "LOGITS_AT_ONCE", 8 * 67)
    model, saved = random_model(vocab=67), []
    teacher = teacher_model(vocab=67).requires_grad_(True)
    part = rows.batch_of(some_rows(), "cpu")
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    ):
        distill.score_beside_teacher(model, teacher, part, 1.0)
    theirs = {weight.data_ptr() for weight in teacher.model.parameters()}
    assert saved and not any(tensor.shape[-1:] == (67,) for tensor in saved)
    assert not any(tensor.data_ptr() in theirs for tensor in saved)


# --- which model may be a teacher ---------------------------------------------------------------------------


def test_vocabularies_are_compared_by_ids():
    """Catches two vocabularies of the same tokens in another order, which would teach another language."""
    ours, compare = {"a": 0, "b": 1, "c": 2}, models.check_same_tokens
    compare("--teacher t", {"c": 2, "a": 0, "b": 1}, "--model", ours)
    said = r"^--teacher t: differs from --model in 2 of 3 token ids, first in 1: 'c', there 'b'; give models"
    with pytest.raises(ValueError, match=said):
        compare("--teacher t", {"a": 0, "b": 2, "c": 1}, "--model", ours)
    with pytest.raises(ValueError, match=r" in 1 of 3 token ids, first in 2: no token, there 'c';"):
        compare("--teacher t", {"a": 0, "b": 1}, "--model", ours)
    compare("--teacher t", {"a": 0, "b": 1}, "--model", ours, True)  # ids without a token do not matter
    with pytest.raises(ValueError, match=r" in 1 of 4 token ids, first in 3: 'd\\x1b', there no token;"):
        compare("--teacher t", {**ours, "d\x1b": 3}, "--model", ours)


@pytest.fixture(scope="module")
def teacher(toy_model, tmp_path_factory) -> str:
    return toys.with_other_weights(toy_model, tmp_path_factory.mktemp("teacher") / "model")


@pytest.fixture
def flags(toy_model, teacher, tmp_path, quick):
    """Flags of a run of five steps on a file of 40 rows, 4 of which are held out."""
    own = dict(data=(written(tmp_path, *lines_of_sums()),), eval_every=5, warmup_share=0.2, teacher=teacher)
    return toys.quick_row_flags(toy_model, tmp_path / "run", **own)


def train(flags: dict, **changes) -> Path:
    args = distill.Args(**flags | changes)
    distill.main(args, task=toys.HashTask())
    return args.out_dir


@mutant(
    "distill: any teacher is taken",
    "plainrl/logit_sum.py",
    "or_fail(check_same_tokens, where, its_tokenizer.get_vocab(),",
    "or_fail(check_same_tokens, where, tokenizer.get_vocab(),",
)
@pytest.mark.parametrize(
    "name, said",
    [
        (distill.TEACHER, "is not there yet; `python grpo.py` makes it in about five minutes"),
        (
            "models/countdown",
            "differs from --model in .* token ids, first in .*; give models with the same tokens",
        ),
        ("./nowhere", "no such folder or file"),
        ("runs/nowhere", "no such folder or file"),
        (str(Path(__file__).parent), "cannot be loaded"),
    ],
)
def test_what_cannot_be_a_teacher_is_one_line_and_leaves_no_folder(flags, name, said, tmp_path, monkeypatch):
    """Catches a traceback, a message about another flag, and a folder that would bar the next try."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^error: --teacher {name}: {said}") as stop:
        train(flags, teacher=name)
    assert "\n" not in str(stop.value) and not flags["out_dir"].exists()


def test_a_teacher_with_a_larger_head_is_refused(flags, teacher, tmp_path, monkeypatch):
    """Catches logits of two lengths, which torch would complain of in the middle of a step."""
    original = logit_sum.load_model

    def with_fewer_tokens(name, flag):
        model, tokenizer = original(name, flag=flag)
        model.resize_token_embeddings(200)
        return model, tokenizer

    monkeypatch.setattr(logit_sum, "load_model", with_fewer_tokens)
    with pytest.raises(
        SystemExit, match=f"--teacher {teacher}: its head has 200 tokens, that of --model 288"
    ):
        train(flags)


def test_another_chat_template_is_said(flags, teacher, tmp_path, capsys):
    """Catches a teacher that is asked in words it has never seen, without a word to the user."""
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    (other / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    train(flags, teacher=str(other), steps=1)
    assert "warning: --teacher has another chat template" in capsys.readouterr().out


# --- a run --------------------------------------------------------------------------------------------------


@mutant(
    "distill: no teacher in the loop",
    "papers/distill.py",
    '"distill/kl": sums["teacher_kl"] / sums["tokens"]',
    '"distill/kl": sums["nll"] / sums["tokens"]',
)
def test_a_run_comes_near_its_teacher_and_logs_how_near(flags, teacher, capsys):
    """Catches a student that learns the rows instead, a teacher that moves, and metrics of something else."""
    before = (Path(teacher) / "model.safetensors").read_bytes()
    folder = train(flags, epochs=20, steps=20, eval_every=10, save_every=20)
    steps = [record for record in toys.records(folder) if "distill/kl" in record]
    first, last = steps[0], steps[-1]
    assert last["distill/kl"] < 0.7 * first["distill/kl"]
    assert first["loss/total"] == pytest.approx(
        first["distill/kl"], rel=1e-4
    )  # tau 1, no hard loss, token_mean
    assert first["sft/loss"] > first["loss/total"] and {"sft/accuracy", "policy/entropy"} <= first.keys()
    assert 0 < first["distill/teacher_entropy"] < math.log(288)
    assert (Path(teacher) / "model.safetensors").read_bytes() == before
    screen = capsys.readouterr().out
    assert "loss     kl accuracy" in screen and "warning: --teacher" not in screen
    assert json.loads((folder / "config.json").read_text())["script"] == "distill"


def test_adapters_learn_from_a_whole_teacher(flags):
    """Catches a teacher that gets adapters of its own, and a final model without them."""
    folder = train(flags, lora_rank=4, epochs=20, steps=8, eval_every=8, save_every=8, lr=3e-2)
    kl = [record["distill/kl"] for record in toys.records(folder) if "distill/kl" in record]
    assert kl[-1] < 0.9 * kl[0]
    assert "lora" not in " ".join(load_file(folder / "final" / "model.safetensors"))


@mutant(
    "plan: a teacher that weighs nothing",
    "plainrl/plan.py",
    "{name: 4 * model.num_parameters()",
    "{name: 0 * model.num_parameters()",
)
@mutant("plan: a teacher that takes no time", "plainrl/plan.py", "a_row += (clock", "a_row += 0 * (clock")
def test_the_plan_counts_the_teacher(flags, teacher, capsys, monkeypatch):
    """Catches a plan whose memory or time is that of a run without a teacher."""
    ticks = iter(range(100))
    monkeypatch.setattr(plan, "clock", lambda device: float(next(ticks)))
    with pytest.raises(SystemExit) as ended:
        train(flags, plan=True, rows_per_step=4, micro_batch_tokens=10**6)
    assert ended.value.code == 0 and not flags["out_dir"].exists()
    screen = capsys.readouterr().out
    parameters = models.load_model(teacher)[0].num_parameters()
    assert screen.count(f"teacher {4 * parameters / 1e9:.2g}") == 2
    assert "time, measured: 2.0 s a step" in screen  # a tick for the student, one for the teacher


# --- resume and ranks ---------------------------------------------------------------------------------------


@mutant(
    "distill: a teacher that may change",
    "plainrl/run.py",
    'if before.get(f"{name}_hash") != self.config.get(f"{name}_hash"):',
    "if False:",
)
def test_killed_and_resumed_equals_the_uninterrupted(flags, teacher, tmp_path):
    """Catches a teacher that has moved, or may have moved, in a run that goes on."""
    own = tmp_path / "own teacher"
    shutil.copytree(teacher, own)
    flags = flags | dict(teacher=str(own), distill_temperature=2.0, hard_weight=0.5)
    whole = train(flags, out_dir=flags["out_dir"].with_name("whole"))
    kill_after(4, lambda: train(flags))
    kept = (own / "model.safetensors").read_bytes()
    shutil.copy(Path(flags["model"]) / "model.safetensors", own)
    log = (flags["out_dir"] / "metrics.jsonl").read_text()
    with pytest.raises(SystemExit, match="--resume: the weights of --teacher have changed since"):
        train(flags, resume=True)
    assert (flags["out_dir"] / "metrics.jsonl").read_text() == log
    (own / "model.safetensors").write_bytes(kept)
    ours = train(flags, resume=True)
    assert toys.records(ours) == toys.records(whole)
    for folder in ("last", "best", "final"):
        names = [path / folder / "model.safetensors" for path in (ours, whole)]
        assert names[0].read_bytes() == names[1].read_bytes(), folder


@mutant("distill: KL of one rank", "papers/distill.py", "return total(sums)  # over ranks", "return sums")
def test_two_ranks_change_nothing(flags):
    """Catches a teacher that is not gathered, and denominators, metrics or gradients of one rank's rows. In
    float64."""
    own = dict(steps=2, distill_temperature=2.0, hard_weight=0.5)
    folders = on_one_and_two_ranks(lambda folder: train(flags, out_dir=folder, **own), flags["out_dir"])
    one, two = map(toys.records, folders)
    assert [record.keys() for record in one] == [record.keys() for record in two]
    for left, right in zip(one, two):
        for name in [name for name in left if name.startswith(("sft/", "distill/", "loss/", "optim/"))]:
            assert right[name] == pytest.approx(left[name], rel=1e-10, abs=1e-12), name
