"""Run by itself: guards on a model of two weights, resume, files; test_loop.py has whole runs."""

import json
import math
import shutil
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from mutants import mutant
from toys import FakeSampler, HashTask, quick_flags
from transformers import AutoModelForCausalLM

import grpo
from papers import dr_grpo
from plainrl import curves, run as run_module
from plainrl.folder import write_text
from plainrl.rollout import PromptRoom, Rollout
from plainrl.run import Run
from plainrl.sources import ListTask
from plainrl.tasks import Grade, Problem


@pytest.fixture
def run() -> Run:
    """A run without a folder, whose two weights are 1."""
    run = Run.__new__(Run)
    run.model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(run.model.weight, 1.0)
    run.args = SimpleNamespace(max_grad_norm=0.5, max_logprob_gap=1e-3, report=False)
    run.stop = SimpleNamespace(in_step=False, forget=lambda: None)
    run.give_back, run.tracker, run.lock, run.over = None, None, None, False
    run.state, run.sums, run.grad_norms = {"skips_in_a_row": 0}, Counter(), []
    return run


def step(run: Run, gradient: list[float], loss: float = 1.0, gap: float = 0.0) -> bool:
    """One update of plain gradient descent; `gap` is that of each of ten tokens."""
    optimizer = torch.optim.SGD(run.model.parameters(), lr=1.0)
    (run.model.weight * torch.tensor([gradient])).sum().backward()
    return run.optimizer_step(optimizer, Counter(total_loss=loss, gap=10 * gap, tokens=10))


@mutant(
    "gradients add up", "plainrl/run.py", "optimizer.zero_grad()  # no memory", "optimizer.state  # no memory"
)
@mutant(
    "gradients that are not clipped",
    "plainrl/run.py",
    "ranks.clip_gradients(self.model, self.args.max_grad_norm)",
    "ranks.clip_gradients(self.model, math.inf)",
)
def test_an_update_is_clipped(run):
    """Catches another limit than the flag's, a norm logged after clipping, and gradients that stay."""
    assert step(run, [3.0, 4.0]) and run.grad_norms == [5.0]
    torch.testing.assert_close(run.model.weight, torch.tensor([[1 - 0.3, 1 - 0.4]]))
    assert step(run, [0.3, 0.0]) and run.grad_norms[-1] == pytest.approx(0.3)  # the first gradient is gone
    assert run.sums == Counter(total_loss=2.0, tokens=20, gap=0.0, skipped=0)


@mutant(
    "NaN into the weights",
    "plainrl/run.py",
    'finite = math.isfinite(self.grad_norms[-1]) and math.isfinite(update["total_loss"])',
    "finite = True",
)
@mutant("skips that are not forgiven", "plainrl/run.py", '            self.state["skips_in_a_row"] = 0\n', "")
@mutant("skip that nobody counts", "plainrl/run.py", 'self.sums["skipped"] += not finite', "pass")
@mutant(
    "update of a loss that is not finite",
    "plainrl/run.py",
    ' and math.isfinite(update["total_loss"])\n        if finite',
    "\n        if finite",
)
@pytest.mark.parametrize(
    "gradient, loss", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, -math.inf)]
)
def test_an_update_that_is_not_finite_is_skipped(run, gradient, loss):
    """Catches weights that become nan, a skip that nobody counts, or one that is never forgiven."""
    assert not step(run, [gradient, 0.0], loss)
    assert run.model.weight.tolist() == [[1.0, 1.0]]
    assert run.sums["skipped"] == 1 and run.state["skips_in_a_row"] == 1
    assert step(run, [0.0, 0.1]) and run.model.weight.tolist() == [[1.0, pytest.approx(0.9)]]
    assert run.sums["skipped"] == 1 and run.state["skips_in_a_row"] == 0


@mutant(
    "run without end though every update is skipped",
    "plainrl/run.py",
    "< MAX_SKIPS_IN_A_ROW:\n            return",
    "<= MAX_SKIPS_IN_A_ROW:\n            return",
)
def test_five_skips_in_a_row_end_the_run(run, tmp_path):
    """Catches a broken run that goes on for ever, ends at its first nan, or leaves nothing to look at."""
    run.dir, run.sampled = tmp_path, Rollout([], [], [], [], [])
    for gradient in (math.nan,) * 4 + (1.0,) + (math.nan,) * 4:
        assert step(run, [gradient, 0.0]) == math.isfinite(gradient)
    with pytest.raises(SystemExit, match="not finite in 5 updates in a row; .*failed_batch.json"):
        step(run, [math.nan, 0.0])
    assert (tmp_path / "failed_batch.json").exists()


@mutant(
    "update that compares no sampler",
    "plainrl/run.py",
    'if math.isfinite(update["total_loss"]) and "gap" in update:\n',
    "if False:\n",
)
@mutant(
    "gap of a whole batch for that of a token",
    "plainrl/run.py",
    'check_gap(update["gap"] / update["tokens"], ',
    'check_gap(update["gap"], ',
)
def test_a_sampler_that_differs_is_stopped_before_the_update(run):
    """Catches a gap that is only looked at after a push: one that shares the weights has none."""
    assert step(run, [1.0, 0.0], gap=1e-3)
    before = run.model.weight.tolist()
    with pytest.raises(SystemExit, match="--max-logprob-gap"):
        step(run, [1.0, 0.0], gap=1.1e-3)
    assert run.model.weight.tolist() == before


@mutant("another script on resume", "plainrl/run.py", "if script != self.script:", "if False:")
def test_resume_with_another_script_is_refused(toy_model, tmp_path):
    """Catches a run of one algorithm that goes on with another, whose flags happen to be the same."""
    flags = quick_flags(toy_model, tmp_path / "run", steps=1)
    grpo.main(grpo.Args(**flags), task=HashTask())
    with pytest.raises(SystemExit, match="error: --resume: .*run is a run of grpo, not of dr_grpo"):
        dr_grpo.main(dr_grpo.Args(**flags | {"resume": True, "steps": 2}), task=HashTask())


@mutant(
    "gap limit of zero taken for none",
    "plainrl/run.py",
    "if args.max_logprob_gap is None:",
    "if not args.max_logprob_gap:",
)
def test_a_gap_limit_of_zero_is_one(toy_model, tmp_path):
    """Catches a limit of 0 that is taken for none."""
    args = grpo.Args(**quick_flags(toy_model, tmp_path / "run", max_logprob_gap=0.0))
    Run("grpo", args, HashTask())
    assert args.max_logprob_gap == 0.0


@mutant(
    "--bf16 that is forgotten",
    "plainrl/run.py",
    "new_weights=seed, bf16=self.args.bf16)",
    "new_weights=seed)",
)
@mutant(
    "a limit that bfloat16 exceeds",
    "plainrl/run.py",
    "0.05 if args.bf16 or torch.cuda.is_available() else 1e-4",
    "0.05 if torch.cuda.is_available() else 1e-4",
)
@mutant("bfloat16 without being asked", "plainrl/models.py", "if bf16 or device ==", "if True or device ==")
def test_bfloat16_on_a_cpu(toy_model, tmp_path):
    """Catches --bf16 that is forgotten, weights that lose small updates, a gap limit that its rounding
    exceeds, and bfloat16 for those who did not ask."""
    ids, outputs = torch.tensor([[5, 6, 7, 8]]), []  # of each dtype those of the model and of its copy
    for bf16 in (False, True):
        args = grpo.Args(**quick_flags(toy_model, tmp_path / f"{bf16}", bf16=bf16))
        run = Run("grpo", args, HashTask())
        assert {weight.dtype for weight in run.model.parameters()} == {torch.float32}
        assert args.max_logprob_gap == (0.05 if bf16 else 1e-4)
        models = (run.model, run.load_reference())
        outputs.append([model.base_model(ids).last_hidden_state.detach() for model in models])
    (exact, exact_copy), (rounded, rounded_copy) = outputs
    assert torch.equal(exact, exact_copy) and torch.equal(rounded, rounded_copy)
    assert 1e-4 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()
    plain = AutoModelForCausalLM.from_pretrained(toy_model).model(ids).last_hidden_state
    torch.testing.assert_close(exact, plain)


def test_no_picture_is_worth_a_run(toy_model, tmp_path, monkeypatch, capsys):
    """Catches hours of training that end because a picture cannot be written."""

    def plot_run(folder):
        raise OSError("the disk is full")

    monkeypatch.setattr(curves, "plot_run", plot_run)
    final = grpo.main(grpo.Args(**quick_flags(toy_model, tmp_path / "run", steps=1)), task=HashTask())
    assert final.exists() and "curves.png could not be drawn: the disk is full" in capsys.readouterr().out


def test_files_are_written_in_utf_8(tmp_path, monkeypatch):
    """Catches hints with an ellipsis that a machine with another locale cannot write, or not read again."""
    monkeypatch.setattr("locale.getpreferredencoding", lambda do_setlocale=True: "ascii")
    write_text(tmp_path / "hints.jsonl", "a plan …")
    assert (tmp_path / "hints.jsonl").read_bytes() == "a plan …".encode()


@mutant("time left that counts the scores before", "plainrl/run.py", "- self.first_began)", "- self.started)")
@mutant("time left of all steps", "plainrl/run.py", "/ (step - self.first_step)", "/ step")
def test_the_time_left_counts_from_the_first_step(run, monkeypatch, capsys):
    """Catches a forecast that takes the scores before the first step, or those of an earlier life, for
    steps."""
    run.args.steps, run.lines, run.started, run.first_step, run.first_began = 10, 1, 0.0, 4, 90.0
    run.sampled = SimpleNamespace(grades=[])
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    run.show({"step": 6, "optim/lr": 1e-3, "reward/mean": 0.5})
    assert capsys.readouterr().out.endswith("| 0:00:20\n")


@mutant("speed of a clock that stands still", "plainrl/run.py", " if seconds > 0 else None,", ",")
def test_a_clock_that_stands_still(toy_model, tmp_path, monkeypatch):
    """Catches a division by no time at all."""
    monkeypatch.setattr("plainrl.curves.plot_run", lambda folder: None)
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    grpo.main(grpo.Args(**quick_flags(toy_model, tmp_path / "run", steps=1)), task=HashTask())
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    assert line["perf/tokens_per_s"] is None and line["time/train"] == 0


@mutant("no word of partial scores", "plainrl/run.py", "if name.endswith", "if not name.endswith")
def test_a_score_is_shown_where_it_says_more(run, capsys):
    """Catches a mean score that is never seen, or that is shown twice where answers are right or wrong."""
    run.show({"step": 0, "eval/a/score": 0.25, "eval/a/avg@2": 0.0, "eval/b/score": 0.5, "eval/b/avg@2": 0.5})
    assert capsys.readouterr().out.split() == [
        "eval/a/avg@2",
        "0.000",
        "eval/b/avg@2",
        "0.500",
        "eval/a/score",
        "0.250",
    ]


@mutant("errors that nobody is told of", "plainrl/run.py", "            self.show_errors()\n", "")
def test_grader_errors_are_shown(run, capsys):
    """Catches a grader that fails while the rewards look like those of a weak model, and a reason that steers
    the terminal."""
    run.args.steps, run.lines, run.first_step, run.first_began = 10, 1, 0, time.monotonic()
    whys = ["wrong", "error: \x1b[2J\nno", "timeout", "correct"]
    run.sampled = SimpleNamespace(grades=[Grade(False, 0.0, None, why) for why in whys])
    run.show({"step": 2, "optim/lr": 1e-3, "reward/mean": 0.25})
    run.sampled.grades[1:3] = []
    run.show({"step": 3, "optim/lr": 1e-3, "reward/mean": 0.25})
    lines = capsys.readouterr().out.splitlines()
    said = "  the grader failed on 2 of 4 completions, which get no reward; first: error: \\x1b[2J\\nno"
    assert len(lines) == 3 and lines[1] == said


@mutant("hints beyond the context", "plainrl/run.py", "if prompts and not all(fits):", "if False:")
def test_a_prompt_that_is_too_long_with_its_hint_goes_without(run, monkeypatch, capsys):
    """Catches a run that ends at a long hint, and again at every resume."""
    tokenizer = SimpleNamespace(chat_template=None, encode=list)
    run.args = SimpleNamespace(system_prompt=None, max_new_tokens=2, group_size=1, temperature=1.0)
    run.tokenizer, run.sampler, run.task, run.sampled = tokenizer, SimpleNamespace(room=6), None, None
    run.room, run.state, run.times, run.clock = (
        PromptRoom(tokenizer, run.sampler, run.args),
        {"tokens": 0},
        {},
        0,
    )
    sampled = []

    def sample_rollout(sampler, tokenizer, task, problems, prompts, *rest, **settings):
        sampled.append(prompts)
        return SimpleNamespace(tokens=0)

    monkeypatch.setattr(run_module, "sample_rollout", sample_rollout)
    problems = [Problem("abc", "1"), Problem("de", "1")]
    run.sample(problems, [0, 1], ["abc-h", "de-h"])
    run.sampled = None
    run.sample(problems, [0, 1])
    assert sampled == [["abc", "de-h"], ["abc", "de"]]
    assert "1 of 2 prompts have no room for their hints" in capsys.readouterr().out


@mutant(
    "run that keeps long prompts",
    "plainrl/run.py",
    "            self.task = with_short_prompts(self.task, self.room, args)\n",
    "",
)
@mutant(
    "run without the flag for thinking",
    "plainrl/run.py",
    "            set_thinking(self.tokenizer, args.enable_thinking)\n",
    "",
)
@mutant(
    "run that does not look at its prompts",
    "plainrl/run.py",
    "            check_prompts(self.task, self.tokenizer, self.sampler, args)\n",
    "            pass\n",
)
def test_a_run_checks_its_prompts_and_tells_the_template(quick, toy_model, tmp_path):
    """Catches a run that begins with prompts its model has no room for, and one that records
    --enable-thinking and samples without it."""
    model = tmp_path / "model"
    shutil.copytree(toy_model, model)
    template = "{{ messages[0]['content'] }}{% if enable_thinking is false %} no{% endif %}"
    (model / "chat_template.jinja").write_text(template)
    flags = quick_flags(str(model), tmp_path / "run", steps=1)
    with pytest.raises(SystemExit, match="--max-new-tokens 511: dev problem 0 has"):
        grpo.main(grpo.Args(**flags | {"max_new_tokens": 511}), HashTask())
    assert not (tmp_path / "run").exists()
    task = ListTask("list", {"train": [Problem("x" * 600, "1")], "dev": [Problem("1?", "1")]})
    task.problems["test"] = task.problems["dev"]
    with pytest.raises(
        SystemExit, match="--task list: 1 of 1 training problems have prompts of more than 504"
    ):
        grpo.main(grpo.Args(**flags), task)
    ends = []
    for choice in (None, "no"):
        sampler = FakeSampler(lambda ids, sample, seed: ends.append(ids[-1]) or ([5, 6], "stop"))
        changes = {"enable_thinking": choice, "max_logprob_gap": 1e9, "out_dir": tmp_path / str(choice)}
        grpo.main(grpo.Args(**flags | changes), HashTask(), sampler)
    half = len(ends) // 2
    assert len(set(ends[:half])) == len(set(ends[half:])) == 1 and ends[0] != ends[-1]


@mutant(
    "the other way round",
    "plainrl/run.py",
    "change = after[key] - before[key]",
    "change = before[key] - after[key]",
)
@mutant("less is more", "plainrl/run.py", 'more = "more" if change >= 0 else "less"', 'more = "more"')
def test_a_run_ends_with_what_it_gained_and_paid(toy_model, tmp_path, capsys):
    """Catches a run that sharpened and lost reach, and says only the one; a sentence about one sample as if
    there were several; an older run without one of the scores, which would break the last line."""
    before, after = (
        {"test/t/avg@16": 0.13, "test/t/pass@16": 0.8},
        {"test/t/avg@16": 0.2, "test/t/pass@16": 0.6},
    )
    gained = "one answer is right 0.070 more often (avg@16)"
    paid = "the best of 16 is right 0.200 less often (pass@16)"
    assert run_module.gains(before, after, "test/t", 16) == f"{gained}; {paid}"
    assert run_module.gains({"test/t/avg@1": 0.5}, {"test/t/avg@1": 0.5}, "test/t", 1) == (
        "one answer is right 0.000 more often (avg@1)"
    )
    assert run_module.gains({}, after, "test/t", 16) == ""
    grpo.main(grpo.Args(**quick_flags(toy_model, tmp_path / "run", steps=1)), HashTask())
    assert "one answer is right " in capsys.readouterr().out.split("final = ")[1]
