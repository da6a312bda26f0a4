"""h1_curriculum.py: schedules, stages, budgets, the reward's terms, and a resume inside a stage and at its
edge.

tests/test_adarft_e2h.py has the schedules without stages.
"""

import doctest
import json
import math
from collections import Counter

import pytest
import torch
from mutants import mutant
from stopping import assert_same_run, stopping_after
from toys import FirstLetterTask, HashTask, column, quick_flags, records
from transformers import AutoModelForCausalLM

import h1_curriculum as h1
import plainrl.run as run_module
from papers import dr_grpo
from plainrl import horizons
from plainrl.world import ChainTask

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def run(toy_model, tmp_path):
    """run(name, task=..., script=..., **flags) -> the output folder of a quick run."""

    def function(name="run", task=None, script=h1, sampler=None, **changes):
        script.main(
            script.Args(**quick_flags(toy_model, tmp_path / name, **changes)),
            task=task or HashTask(),
            sampler=sampler,
        )
        return tmp_path / name

    function.folder = lambda name: tmp_path / name
    return function


def drawn(schedule: str, stage: int = 1, **flags) -> Counter:
    """How often each horizon is drawn in 400 steps."""
    args = h1.Args(schedule=schedule, prompts_per_step=10, steps=400, **flags)
    return Counter(horizon for step in range(1, 401) for horizon in h1.draw_horizons(args, step, stage))


def test_doctests():
    """Catches examples that are not true."""
    for module, count in ((h1, 2), (horizons, 2)):
        result = doctest.testmod(module)
        assert result.attempted >= count and result.failed == 0


# --- schedules ----------------------------------------------------------------------------------------------


@mutant("short for long", "h1_curriculum.py", '"only_short": 1, ', '"only_short": args.max_horizon, ')
@mutant("stage ahead of its time", "h1_curriculum.py", '{"curriculum": stage, ', '{"curriculum": stage + 1, ')
def test_schedules_of_one_horizon():
    """Catches short and long mixed up, and a stage off by one."""
    assert drawn("only_short") == {1: 4000} and drawn("only_long") == {5: 4000}
    assert drawn("only_long", max_horizon=7) == {7: 4000}
    assert drawn("curriculum", stage=3) == {3: 4000}


@mutant(
    "mix that favours the short",
    "h1_curriculum.py",
    "rng.choices(range(1, args.max_horizon + 1), k",
    "rng.choices(range(1, args.max_horizon + 1), range(args.max_horizon, 0, -1), k",
)
@mutant(
    "the same draw in every step",
    "h1_curriculum.py",
    'random.Random(f"{args.seed}/{step}/horizons")',
    'random.Random(f"{args.seed}/horizons")',
)
def test_uniform_mix_is_uniform_and_pure():
    """Catches weights that grow, a draw that is the same in all steps or for all prompts, and one that is
    not the seed's."""
    counts = drawn("uniform_mix")
    assert all(abs(counts[h] - 800) < 5 * math.sqrt(4000 * 0.2 * 0.8) for h in range(1, 6))
    args = h1.Args(schedule="uniform_mix", prompts_per_step=10)
    draws = [h1.draw_horizons(args, step, 1) for step in range(1, 6)]
    assert draws == [h1.draw_horizons(args, step, 1) for step in range(1, 6)]
    assert len(set(map(tuple, draws))) == 5
    assert h1.draw_horizons(h1.Args(schedule="uniform_mix", prompts_per_step=10, seed=1), 1, 1) != draws[0]


def test_only_short_is_dr_grpo(run):
    """Catches anything of h1 that is left when it is switched off: equal to papers/dr_grpo.py to the last
    bit on chains of one step."""
    ours = run("ours", schedule="only_short", max_horizon=2, minibatches=2)
    theirs = run("theirs", script=dr_grpo, minibatches=2)
    shared = records(theirs)[1].keys() - {"step"}
    for one, other in zip(records(ours)[1:6], records(theirs)[1:6]):
        assert {name: one[name] for name in shared if "eval/" not in name} == {
            n: other[n] for n in shared if "eval/" not in n
        }
    ours, theirs = (
        dict(AutoModelForCausalLM.from_pretrained(folder / "last").named_parameters())
        for folder in (ours, theirs)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# --- stages -------------------------------------------------------------------------------------------------


def test_stages_by_steps(run):
    """Catches a stage that is a step too long or too short, one after the last, and tokens that are not of
    the stage."""
    folder = run(max_horizon=3, steps_per_stage=2, steps=8, eval_problems=4)
    assert column(folder, "h1/stage") == column(folder, "h1/horizon") == [1, 1, 2, 2, 3, 3, 3, 3]
    tokens, total = column(folder, "h1/stage_tokens"), column(folder, "rollout/tokens_total")
    assert tokens[:2] == total[:2] and tokens[2] == total[2] - total[1] and tokens[7] == total[7] - total[3]
    for step, stage in enumerate(column(folder, "h1/stage"), start=1):
        record = records(folder)[step]
        assert record[f"h1/reward_{stage}"] == record["reward/mean"]
        assert all(record[f"h1/reward_{h}"] is None for h in {1, 2, 3} - {stage})
    assert all(f"eval/hash-h{h}/avg@2" in records(folder)[step] for h in (1, 2, 3) for step in (2, 4, 6, 8))
    mix = run("mix", schedule="uniform_mix", max_horizon=2)
    assert not {"h1/stage", "h1/stage_tokens"} & records(mix)[1].keys()


def test_default_length_of_a_stage(run):
    """Catches stages that do not share the steps equally."""
    assert column(run(max_horizon=2, steps=5), "h1/stage") == [1, 1, 1, 2, 2]


@mutant(
    "stage a step too long",
    "h1_curriculum.py",
    'return reached or state["stage_step"] >= args.steps_per_stage',
    'return reached or state["stage_step"] > args.steps_per_stage',
)
@mutant(
    "stage that ends below the threshold",
    "h1_curriculum.py",
    "accuracy is not None and accuracy >= args.advance_at",
    "accuracy is not None and accuracy <= args.advance_at",
)
def test_stage_is_over():
    """Catches a threshold that is another horizon's business, inverted or strict, and a last stage that
    ends."""
    args = h1.Args(steps_per_stage=10, advance_at=0.5, max_horizon=3)

    def over(stage, done, accuracy):
        return h1.stage_is_over(args, {"stage": stage, "stage_step": done}, accuracy)

    assert not over(1, 9, 0.49) and not over(1, 9, None)
    assert over(1, 1, 0.5) and over(1, 10, 0.0) and over(1, 11, None)
    assert not over(3, 99, 1.0)
    args.advance_at = None
    assert not over(1, 9, 1.0)


@mutant(
    "threshold of another horizon",
    "h1_curriculum.py",
    "eval/{run.task.name}-h{stage}/avg",
    "eval/{run.task.name}-h{args.max_horizon}/avg",
)
def test_advance_at_accuracy(run, monkeypatch):
    """Catches a stage that goes on although its own horizon is learned, or ends by another horizon's
    accuracy."""
    # scores of horizons 1 and 2 before the first step, after 2, after 4: h = 2 must not end stage 1
    right = iter([0, 0] + [0, 1, 1, 0])

    def evaluate(sampler, tokenizer, task, split, problems, *rest):
        rates = [next(right, 0), next(right, 0)] if split == "dev" else [0, 0]
        none = {"errors": 0, "timeouts": 0}
        rows = [{"correct": rate, "n": 1, "horizon": h} | none for h, rate in enumerate(rates, start=1)]
        return {"score": sum(rates) / 2, "avg@2": sum(rates) / 2}, rows

    monkeypatch.setattr(run_module, "evaluate", evaluate)
    folder = run(max_horizon=2, advance_at=0.9, steps_per_stage=100, steps=6)
    assert column(folder, "h1/stage") == [1, 1, 1, 1, 2, 2]


@mutant(
    "next stage from the last weights",
    "h1_curriculum.py",
    '    load_weights(run.dir / "stage", run.model)\n',
    "",
)
@mutant(
    "next stage from the best of all",
    "h1_curriculum.py",
    'load_weights(run.dir / "stage", run.model)',
    'load_weights(run.dir / "best", run.model)',
)
@mutant(
    "optimizer of the stage before",
    "h1_curriculum.py",
    "    run.optimizer = torch.optim.AdamW(weights, args.lr, weight_decay=args.weight_decay, fused=True)\n",
    "",
)
@mutant(
    "best of the stage is forgotten",
    "h1_curriculum.py",
    'run.state |= {"stage": stage} | NEW_STAGE',
    'run.state |= {"stage": stage, "stage_step": 0, "stage_tokens": 0}',
)
@mutant(
    "next stage from the first of equal ones",
    "h1_curriculum.py",
    'if scores[run.dev_score] >= run.state["stage_best"]:',
    'if scores[run.dev_score] > run.state["stage_best"]:',
)
def test_next_stage_starts_from_the_best_checkpoint_of_the_stage(run, monkeypatch):
    """Catches a stage that starts from the last weights, from the best of all stages, or with the old
    optimizer."""
    # before the first step, then after each: two stages of three, and two more
    dev = iter([0.0, 0.9, 0.9, 0.2, 0.5, 0.4, 0.3, 0.1, 0.1])
    snapshots, original = [], h1.accumulate_gradients

    def accumulate_gradients(model, *rest):
        snapshots.append(model.get_output_embeddings().weight.detach().clone())
        return original(model, *rest)

    monkeypatch.setattr(h1, "accumulate_gradients", accumulate_gradients)
    scores = lambda score: ({"score": score, "avg@2": score}, [])  # noqa: E731
    monkeypatch.setattr(run_module, "evaluate", lambda *args: scores(next(dev) if args[3] == "dev" else 0.0))
    folder = run(max_horizon=3, steps_per_stage=3, steps=8, eval_every=1, prompts_per_step=4, eval_problems=3)
    after = snapshots[1:]  # after[i]: the weights after step i + 1, before the next
    assert column(folder, "h1/stage") == [1, 1, 1, 2, 2, 2, 3, 3]
    # before step 4: those after step 2, the later of two with 0.9; before step 7: those after step 4, whose
    # 0.5 is the best of its stage, not of all
    assert torch.equal(after[2], after[1]) and not torch.equal(after[1], after[0])
    assert not torch.equal(after[3], after[1])
    optimizer = torch.load(folder / "last" / "optimizer.pt")["state"]
    assert {int(entry["step"]) for entry in optimizer.values()} == {2}
    assert column(folder, "optim/lr") == [0.0005, 0.001, 0.001, 0.0005, 0.001, 0.001, 0.0005, 0.001]
    assert torch.equal(after[5], after[3]) and not torch.equal(after[5], after[1])


@mutant("edge of a stage is not saved", "h1_curriculum.py", "run.save(now=over)", "run.save()")
def test_every_edge_is_a_checkpoint(run, monkeypatch):
    """Catches a run killed after an edge that goes back into a stage whose best checkpoint is overwritten."""
    saved, save_checkpoint = [], run_module.save_checkpoint
    monkeypatch.setattr(
        run_module, "save_checkpoint", lambda *args: (saved.append(dict(args[-1])), save_checkpoint(*args))
    )
    run(max_horizon=3, steps_per_stage=2, steps=6, save_every=100, eval_problems=3)
    edges = [(state["step"], state["stage"], state["stage_step"]) for state in saved]
    assert edges == [(2, 2, 0), (4, 3, 0), (6, 3, 2)]


@pytest.mark.parametrize("stop_at", [2, 3, 4])
def test_stopped_inside_a_stage_and_at_its_edge(run, stop_at):
    """Catches a resume that forgets how far the stage is, its best score or its tokens."""
    flags = dict(max_horizon=2, steps=6, save_every=100, eval_every=1)  # a stage ends after step 3
    with stopping_after(stop_at):
        stopped = run("stopped", **flags)
    assert json.loads((stopped / "last" / "state.json").read_text())["step"] == stop_at
    assert not (stopped / "final").exists()
    run("stopped", resume=True, **flags)
    assert_same_run(stopped, run("whole", **flags))


def test_more_steps_do_not_lengthen_the_stages(run):
    """Catches a resumed run whose stages become longer, and a schedule without stages that cannot go on."""
    flags = dict(max_horizon=2, eval_every=100, save_every=1)
    for schedule, more in (("uniform_mix", {}), ("curriculum", {"steps_per_stage": 2})):
        run(schedule, schedule=schedule, steps=4, **flags)  # of the curriculum: two in each stage
        run(schedule, schedule=schedule, steps=6, resume=True, **flags)
        whole = run(f"whole {schedule}", schedule=schedule, steps=6, **more, **flags)
        assert column(whole, "reward/mean") == column(run.folder(schedule), "reward/mean")


def test_resume_in_the_folder_of_another_script(toy_model, tmp_path):
    """Catches a traceback where the folder's flags know nothing of stages."""
    (tmp_path / "config.json").write_text(
        json.dumps({"script": "grpo", "flags": {"seed": 0}, "model_hash": ""})
    )
    with pytest.raises(SystemExit, match="--resume: .* is a run of grpo, not of h1_curriculum"):
        h1.main(h1.Args(**quick_flags(toy_model, tmp_path, max_horizon=2, resume=True)), task=HashTask())


# --- completions and rewards --------------------------------------------------------------------------------


def limits_asked_for(monkeypatch) -> list[int]:
    """The longest completion of each step's sampling, noted while a run goes on."""
    asked, original = [], run_module.sample_rollout

    def sample_rollout(*args, **kwargs):
        asked.append(kwargs["max_new_tokens"])
        return original(*args, **kwargs)

    monkeypatch.setattr(run_module, "sample_rollout", sample_rollout)
    return asked


@mutant(
    "budget of the stage before",
    "h1_curriculum.py",
    "return budgets[min(horizon, len(budgets)) - 1]",
    "return budgets[max(0, min(horizon, len(budgets)) - 2)]",
)
@mutant(
    "constant of another stage",
    "h1_curriculum.py",
    'constant(batch["loss_mask"], budget)',
    'constant(batch["loss_mask"], args.max_new_tokens)',
)
def test_completion_budgets(run, monkeypatch):
    """Catches a budget of another stage, one for evaluation, a constant that stays at the longest, and the
    last budget not carried on."""
    args = h1.Args(max_new_tokens=50)
    assert h1.completion_budget(args, 4) == 50
    args.completion_budgets = (10, 20)
    assert [h1.completion_budget(args, horizon) for horizon in (1, 2, 3, 9)] == [10, 20, 20, 20]

    asked, constants, constant = limits_asked_for(monkeypatch), [], h1.constant
    monkeypatch.setattr(
        h1, "constant", lambda mask, budget: (constants.append(budget), constant(mask, budget))[1]
    )
    folder = run(max_horizon=2, steps_per_stage=2, steps=4, max_new_tokens=8, completion_budgets=(3, 6))
    assert asked == constants == [3, 3, 6, 6]
    assert records(folder)[0]["eval/hash/len_mean"] > 3 or records(folder)[0]["eval/hash/frac_truncated"] < 1


@mutant(
    "budget of the first problem",
    "h1_curriculum.py",
    "max(completion_budget(args, horizon) for horizon in horizons)",
    "completion_budget(args, horizons[0])",
)
def test_a_mixed_batch_has_the_longest_budget_of_its_horizons(run, monkeypatch):
    """Catches a batch cut at the budget of its first problem."""
    asked = limits_asked_for(monkeypatch)
    folder = run(
        schedule="uniform_mix", max_horizon=3, completion_budgets=(2, 4, 6), steps=12, eval_problems=3
    )
    present = [
        max(h for h in (1, 2, 3) if record[f"h1/reward_{h}"] is not None) for record in records(folder)[1:13]
    ]
    assert asked == [2 * longest for longest in present] and len(set(present)) > 1


@mutant(
    "trailing text is praised", "h1_curriculum.py", "0.5 - 0.001 * len(after)", "0.5 + 0.001 * len(after)"
)
@pytest.mark.parametrize(
    "text, parsed, expected",
    [
        ("1+1=2\n\\boxed{2}", "2", 2.0),
        ("1+1=2\n\\boxed{2}\n", "2", 2.0),
        ("so \\boxed{1/2}", "1/2", 2.0),
        ("\\boxed{2}", "2", 1.5),  # no work
        ("1+1=2\n\\boxed{two}", "two", 1.5),  # no number
        ("\\boxed{1} \\boxed{2}", "2", 1.5),  # two boxes
        # 0.5 less 0.001 for each character, never below 0
        ("so \\boxed{2}.", "2", 1.499),
        ("so \\boxed{2}" + "!" * 600, "2", 1.0),
        ("so 2", None, 0.0),
        ("so 2", "2", 0.0),
        ("so \\boxed{}", "", 0.0),
        ("1+1=2\n\\boxed{ 2 }", "2", 2.0),
    ],
)
def test_format_terms(text, parsed, expected):
    """Catches a term that is lost, and a punishment of trailing text without end."""
    assert h1.format_terms(text, parsed) == pytest.approx(expected)


@mutant(
    "format terms by default",
    "h1_curriculum.py",
    "        if args.format_reward:",
    "        if not args.format_reward:",
)
@mutant(
    "answer that weighs as little as the format",
    "h1_curriculum.py",
    "rewards = 2 * rewards +",
    "rewards = rewards +",
)
def test_format_reward(run, monkeypatch):
    """Catches format terms that are on by default, outweigh the answer, or change the logged reward."""
    seen, original = [], h1.group_advantages
    monkeypatch.setattr(
        h1, "group_advantages", lambda rewards: (seen.append(rewards.clone()), original(rewards))[1]
    )
    monkeypatch.setattr(h1, "format_terms", lambda text, parsed: 0.25)
    task = FirstLetterTask()
    off, on = (run(name, task, steps=1, max_horizon=1, format_reward=name == "on") for name in ("off", "on"))
    assert torch.equal(seen[1], 2 * seen[0] + 0.25) and set(seen[0].flatten().tolist()) == {0.0, 1.0}
    assert column(off, "reward/mean") == column(on, "reward/mean")


@mutant(
    "std in h1",
    "h1_curriculum.py",
    "    centred = rewards - rewards.mean(dim=1, keepdim=True)  # [B, G]\n",
    "    centred = (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, "
    "keepdim=True) + 1e-6)\n",
)
def test_group_advantages_by_hand():
    """Catches a std that Dr. GRPO does not have."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1], [2.5, 0.5, 0.0, 1.0]])
    expected = [[0.75, -0.25, -0.25, -0.25], [0.0] * 4, [1.5, -0.5, -1.0, 0.0]]
    assert h1.group_advantages(rewards).tolist() == expected


# --- the task and the flags ---------------------------------------------------------------------------------


@mutant(
    "scores of one horizon",
    "plainrl/horizons.py",
    "self.tasks[position].problem(split, rounds, seed)",
    "self.tasks[0].problem(split, index, seed)",
)
def test_scores_are_of_all_horizons_in_equal_parts():
    """Catches one horizon left out or counted twice, and a problem of another index than the task's own."""
    args = h1.Args(max_horizon=4, eval_problems=12, test_problems=12)
    task = horizons.EveryHorizon(ChainTask(family="mixed"), args)
    problems = [task.problem("dev", index, 5) for index in range(12)]
    assert [problem.horizon for problem in problems] == [1, 2, 3, 4] * 3
    assert problems[6] == ChainTask(horizon="3", family="mixed").problem("dev", 1, 5)
    assert task.grade(f"\\boxed{{{problems[0].answer}}}", problems[0]).correct
    assert not hasattr(task, "same_answer")


@pytest.mark.parametrize(
    "flags, said",
    [
        (dict(max_horizon=0), "--max-horizon 0: must be at least 1"),
        (dict(steps_per_stage=0), "--steps-per-stage 0: must be at least 1"),
        (dict(advance_at=0.0), "--advance-at 0.0: must be above 0 and at most 1"),
        (dict(advance_at=1.5), "--advance-at 1.5: must be above 0 and at most 1"),
        (dict(completion_budgets=(4, 9)), "--completion-budgets 9: must be within 1 to --max-new-tokens 8"),
        (dict(completion_budgets=(0,)), "--completion-budgets 0: must be within 1"),
        (dict(completion_budgets=(4, 4, 4)), "--completion-budgets: 3 numbers for --max-horizon 2"),
        (dict(max_horizon=3), "--eval-problems 2: must be at least --max-horizon 3"),
        (dict(schedule="only_long", advance_at=0.5), ".*--advance-at: --schedule only_long has no stages"),
        (
            dict(schedule="uniform_mix", steps_per_stage=5),
            "--steps-per-stage, .*: --schedule uniform_mix has no",
        ),
        (
            dict(schedule="adarft"),
            "--schedule adarft: is not one of .*; AdaRFT and E2H are papers/adarft.py and",
        ),
        (dict(schedule="e2h_cosine"), "--schedule e2h_cosine: is not one of .* papers/e2h.py"),
    ],
)
def test_refused_flags(run, tmp_path, flags, said):
    """Catches a flag that fails late, or with a traceback."""
    with pytest.raises(SystemExit, match="error: " + said):
        run(**({"max_horizon": 2} | flags))
    assert not (tmp_path / "run").exists()


def test_refused_tasks(toy_model, tmp_path):
    """Catches a task whose problems cannot be made longer, refused without the way out."""
    with pytest.raises(
        SystemExit,
        match="--task gym:leg_counting: its problems have no horizon; use chain, or chain them with",
    ):
        h1.main(h1.Args(**quick_flags(toy_model, tmp_path / "run", task="gym:leg_counting")))
    with pytest.raises(SystemExit, match="--max-horizon 11: --task chain: horizon=11 is not within 1 to 10"):
        h1.main(h1.Args(**quick_flags(toy_model, tmp_path / "run", task="chain", max_horizon=11)))
    with pytest.raises(
        SystemExit, match=r"the task has no method at_horizon\(horizon\), see plainrl/tasks.py"
    ):
        h1.main(
            h1.Args(**quick_flags(toy_model, tmp_path / "run")),
            task=object.__new__(type("Flat", (), {"name": "flat"})),
        )
    flat = HashTask()
    flat.at_horizon = lambda horizon: flat
    with pytest.raises(SystemExit, match=r"at_horizon\(2\) gives a problem whose field horizon is 1"):
        h1.main(h1.Args(**quick_flags(toy_model, tmp_path / "run", max_horizon=2)), task=flat)
    (tmp_path / "flat.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n}?", "answer": "1"}) + "\n" for n in range(20))
    )
    with pytest.raises(
        SystemExit, match="has no problem of horizon 2, only of 1; horizon=1 in --task chains them"
    ):
        h1.main(h1.Args(**quick_flags(toy_model, tmp_path / "run", task=f"jsonl:{tmp_path / 'flat.jsonl'}")))
    assert not (tmp_path / "run").exists()


def test_a_file_that_compose_wrote_trains(toy_model, tmp_path, capsys):
    """Catches a file that h1_curriculum.py cannot read, and a command that evaluates other problems."""
    from tools import compose

    out = tmp_path / "chains.jsonl"
    compose.main(compose.Args(task="chain?style=h1", out=out, horizons=(1, 2), problems=20, held_out=5))
    said = "horizon 1: 20 train, 5 dev, 5 test\n  horizon 2: 20 train, 5 dev, 5 test"
    assert said in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    counts = {"train": 20, "dev": 5, "test": 5}
    assert Counter((row["horizon"], row["split"]) for row in rows) == {
        (h, split): count for h in (1, 2) for split, count in counts.items()
    }
    assert all(row["hint"] and row["solution"] for row in rows)
    assert [row["prompt"] for row in rows if row["split"] == "dev" and row["horizon"] == 2] == [
        ChainTask(horizon="2", style="h1").problem("dev", index, 0).prompt for index in range(5)
    ]
    h1.main(h1.Args(**quick_flags(toy_model, tmp_path / "run", task=f"jsonl:{out}", max_horizon=2, steps=2)))
    assert column(tmp_path / "run", "h1/horizon") == [1, 2]
    assert f"--task jsonl:{out}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--out .*chains.jsonl: exists and is never overwritten"):
        compose.main(compose.Args(task="chain", out=out))
    refused = [
        (dict(task="gsm9k"), "--task gsm9k"),
        (dict(task="chain", problems=0), "--problems 0: must be at least 1"),
        (dict(task="gsm8k?horizon=3"), "--task gsm8k.horizon=3: leave horizon= out"),
        (dict(task="chain", horizons=(11,)), "--horizons 11: --task chain: horizon=11 is not"),
    ]
    for flags, said in refused:
        with pytest.raises(SystemExit, match=said):
            compose.main(compose.Args(out=tmp_path / "other.jsonl", **flags))
    assert not (tmp_path / "other.jsonl").exists()
    named = tmp_path / "horizon=1.jsonl"  # a file's name is no setting
    rows = [{"prompt": f"What is {n} more than 3?", "answer": str(n + 3)} for n in range(2, 60)]
    named.write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = dict(horizons=(1,), problems=3, held_out=2)
    compose.main(compose.Args(task=f"jsonl:{named}", out=tmp_path / "other.jsonl", **few))


def test_the_command_to_evaluate_has_all_horizons():
    """Catches a command that measures one horizon where the run measured all."""
    shown = {
        "chain": "chain?horizon=1-5",
        "chain?family=mixed": "chain?horizon=1-5&family=mixed",
        "jsonl:horizon=1.jsonl": "jsonl:horizon=1.jsonl",
        "gym:leg_counting?min_animals=2&horizon=1": "gym:leg_counting?horizon=1-5&min_animals=2",
        "chain?horizon=3&family=mixed": "chain?horizon=1-5&family=mixed",
        "jsonl:a.jsonl": "jsonl:a.jsonl",
        "jsonl:a?.jsonl?horizon=1": "jsonl:a?.jsonl?horizon=1-5",
        "gsm8k?horizon=1": "gsm8k?horizon=1-5",
        None: None,
    }
    assert {task: horizons.all_horizons(task, 5) for task in shown} == shown


def test_rewards_by_horizon():
    """Catches rewards of another horizon's problems, and 0 where a step had no problem of a horizon."""
    rewards = torch.tensor([[1.0, 0.0], [0.5, 0.5], [1.0, 1.0], [0.0, 0.0]])
    found = horizons.horizon_metrics("h1", [2, 1, 2, 4], rewards, 4)
    assert found.pop("h1/horizon") == 2.25
    assert found == {"h1/reward_1": 0.5, "h1/reward_2": 0.75, "h1/reward_3": None, "h1/reward_4": 0.0}
