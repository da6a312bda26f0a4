"""The README tells the truth: its commands parse, its glossary is complete, its example runs, its reference logs are of this model."""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import test_mutations
import tyro
from committed_runs import logged_flags

import compose
import dapo
import entropy_baselines
import eval as evaluation
import grpo
import guide
import h1_curriculum
import hints
import plot
import rollout_vllm
import runtime
import sft
import siren
import tasks
from benchmarks import (
    against_lighteval,
    calibration,
    coverage,
    entropy,
    guide_smollm2,
    h1_smollm2,
    hard_chains,
    horizons,
    memory,
    real_model,
    reference,
    siren_smollm2,
    smollm2,
)

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SCRIPTS = {"grpo.py": grpo.Args, "dapo.py": dapo.Args, "siren.py": siren.Args, "guide.py": guide.Args, "hints.py": hints.Args,
           "h1_curriculum.py": h1_curriculum.Args, "compose.py": compose.Args, "rollout_vllm.py": rollout_vllm.Args,
           "entropy_baselines.py": entropy_baselines.Args,
           "eval.py": evaluation.Args, "sft.py": sft.Args,
           "benchmarks/reference.py": reference.Args, "benchmarks/real_model.py": real_model.Args,
           "benchmarks/calibration.py": calibration.Args, "benchmarks/coverage.py": coverage.Args,
           "benchmarks/against_lighteval.py": against_lighteval.Args, "benchmarks/smollm2.py": smollm2.Args,
           "benchmarks/entropy.py": entropy.Args, "benchmarks/siren_smollm2.py": siren_smollm2.Args,
           "benchmarks/hard_chains.py": hard_chains.Args, "benchmarks/guide_smollm2.py": guide_smollm2.Args,
           "benchmarks/horizons.py": horizons.Args, "benchmarks/h1_smollm2.py": h1_smollm2.Args}  # fmt: skip


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Every `python script.py flags` in it, `torchrun .. script.py flags` too."""
    found = re.findall(r"(?:python|torchrun [^\n]*?) ([\w/]+\.py)([^\n&`#|;]*)", text)
    return [(script, shlex.split(flags.split("  ")[0])) for script, flags in found if script in SCRIPTS]


def test_every_command_in_readme_and_docstrings_parses():
    """A flag that was renamed, a value that is no longer allowed."""
    docstrings = [ast.get_docstring(ast.parse((ROOT / script).read_text())) for script in SCRIPTS]
    texts = [README, (ROOT / "benchmarks/trials.md").read_text(), *docstrings]
    parsed = [tyro.cli(SCRIPTS[script], args=flags) for text in texts for script, flags in commands(text)]
    assert len(parsed) >= 15


def test_every_script_in_readme_is_there():
    """A command of a file that was renamed."""
    for name in re.findall(r"python ([\w/]+\.py)", README):
        assert (ROOT / name).exists(), name


def test_every_check_with_vllm_in_readme_is_there():
    """A part that was renamed. (The file imports what only the environment of vLLM has.)"""
    parts = re.search(r"part: [\w.]*\[Literal\[([^\]]*)\]", (ROOT / "benchmarks/checks/with_vllm.py").read_text())[1]
    assert set(re.findall(r"with_vllm\.py (\w+)", README)) == set(json.loads(f"[{parts}]"))


def test_readme_counts_the_mutations():
    """A number that has drifted."""
    assert f"{len(test_mutations.MUTATIONS)} ways to break it" in README


def test_benchmark_variants_parse_and_are_in_the_readme():
    """A figure whose command is not the one beside it."""
    for line in reference.VARIANTS.values():
        script, *flags = shlex.split(line)
        tyro.cli(SCRIPTS[script], args=flags)
        assert f"python {line}" in README, line


def test_the_gpu_command_is_planned():
    """The Qwen command resolves against the defaults for real models, and its batch fits the flags' rules."""
    flags = next(flags for script, flags in commands(README) if "Qwen/Qwen2.5-1.5B-Instruct" in flags)
    args = tyro.cli(grpo.Args, args=flags)

    class Model:
        def num_parameters(self):
            return 1_500_000_000

    runtime.resolve_defaults(args, Model(), grpo.DEFAULTS)
    runtime.check_args(args)
    assert args.lr == 1e-6 and args.max_new_tokens == 512 and args.activation_checkpointing


def test_the_readme_shows_the_planned_memory():
    """A table that is not that of the formula."""
    assert memory.table() in README


def test_planned_memory_by_hand():
    """A formula that forgets a part, or counts it on the wrong GPUs."""
    model = memory.Model(parameters=1e9, layers=10, hidden=100, inner=1000, keys=50, vocabulary=2000)
    extra = 4 * 1000 * (1000 + 4000 + 8000) + 5 * 4 * 2**25  # activations of 1,000 tokens, a block of logits
    assert memory.training(model, 1, 1000) == 16e9 + extra and memory.training(model, 4, 1000) == 3e9 + 8e9 + extra
    assert memory.training(model, 1, 1000, lora=True) == 4e9 + extra and memory.training(model, 4, 1000, lora=True) == 5e9 + extra
    assert memory.sampling(model, 1000, vllm=True) == 2e9 + 2 * (2 * 10 * 50 * 1000)  # keys and values, two bytes each
    assert memory.sampling(model, 1000, vllm=False) == 4 * (2 * 10 * 50 * 1000) + 512 * 2000 * 16  # and the draws of 512 rows


def resolved_for_7b(module, flags: list[str]):
    """The script's flags, with the defaults of a model of that size."""
    args = tyro.cli(module.Args, args=flags)
    args.test_problems = args.eval_problems = 1

    class Model:
        def num_parameters(self):
            return 7_600_000_000

    runtime.resolve_defaults(args, Model(), module.DEFAULTS)
    runtime.check_args(args)
    return args


def test_the_large_command_of_siren_is_that_of_the_authors_script():
    """A command that is called that of the authors' script and is not: 128 prompts x 8 in 16 updates, 3072 tokens, and so on."""
    flags = next(flags for script, flags in commands(README) if script == "siren.py" and "Qwen/Qwen2.5-Math-7B" in flags)
    papers = dict(prompts_per_step=128, group_size=8, minibatches=16, epochs=1, max_new_tokens=3072, temperature=1.0, lr=1e-6,
                  warmup_steps=5, weight_decay=0.1, max_grad_norm=1.0, clip_low=0.2, clip_high=0.2, beta=0.005, nucleus_p=0.8, tau=0.8,
                  nucleus_rule="official", anchor=True, eval_every=10, eval_samples=16, save_every=10)  # fmt: skip
    args = resolved_for_7b(siren, flags)
    assert {name: getattr(args, name) for name in papers} == papers


def test_the_large_command_of_guide_is_that_of_the_authors_script():
    """A command that is called that of the authors' script and is not: 128 prompts x 8 in 2 updates, 3072 tokens, and so on."""
    flags = next(flags for script, flags in commands(README) if script == "guide.py" and "Qwen/Qwen2.5-Math-7B" in flags)
    papers = dict(prompts_per_step=128, group_size=8, minibatches=2, epochs=1, max_new_tokens=3072, temperature=1.0, lr=1e-6,
                  warmup_steps=0, max_grad_norm=1.0, clip_low=0.2, clip_high=0.2, advantage="std",
                  aggregation="sequence_mean", trigger="all_wrong", correction="token", shaping="quantile", gamma_quantile=0.9,
                  group="replace")  # fmt: skip
    args = resolved_for_7b(guide, flags)
    assert {name: getattr(args, name) for name in papers} == papers


def test_the_large_command_of_h1_is_the_papers_setting():
    """A command that is called the paper's and is not: five stages of 200 steps, 16 completions, the budgets of each stage."""
    flags = next(flags for script, flags in commands(README) if script == "h1_curriculum.py" and "Qwen/Qwen2.5-3B-Instruct" in flags)
    papers = dict(schedule="curriculum", max_horizon=5, steps=1000, steps_per_stage=200, group_size=16, eval_every=50, save_every=50,
                  completion_budgets=(768, 1024, 1280, 1536, 1536), max_new_tokens=1536, format_reward=True, advance_at=None)  # fmt: skip
    args = resolved_for_7b(h1_curriculum, flags)
    args.eval_problems = 5
    h1_curriculum.check_schedule(args, tasks.ChainTask())
    assert {name: getattr(args, name) for name in papers} == papers


@pytest.mark.parametrize("script", ["grpo", "dapo", "siren", "guide", "entropy_baselines", "h1_curriculum"])
def test_help_shows_every_flag_with_its_text(script):
    """A flag without a docstring."""
    module = {"grpo": grpo, "dapo": dapo, "siren": siren, "guide": guide, "entropy_baselines": entropy_baselines,
              "h1_curriculum": h1_curriculum}[script]  # fmt: skip
    source = (ROOT / f"{script}.py").read_text()
    block = source[source.index("class Args:") : source.index("# --- the mathematics")]
    assert len(re.findall(r'^    """', block, flags=re.M)) == len(module.Args.__dataclass_fields__)


def glossary() -> set[str]:
    rows = re.findall(r"^\| (`[^|]+`) \|", README[README.index("## Metrics") : README.index("## Questions")], flags=re.M)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def general(name: str) -> str:
    name = re.sub(r"^(eval|test)/[^/]+/", r"\1/<task>/", re.sub(r"^h1/reward_\d+$", "h1/reward_<h>", name))
    return "test/<task>/..." if name.startswith("test/") else re.sub(r"@\d+$", "@<k>", name)


def test_glossary_equals_the_keys_that_are_logged(toy_model, tmp_path, monkeypatch):
    """A metric that nobody explains, or an explanation of a metric that is gone."""
    monkeypatch.setattr(plot, "plot_run", lambda run: None)  # a picture takes its time
    logged = set()
    small = {"model": toy_model, "steps": 1, "prompts_per_step": 2, "group_size": 2, "max_new_tokens": 4, "eval_problems": 2,
             "test_problems": 2, "eval_samples": 2}  # fmt: skip
    refills = {"max_refills": 0}
    for module, extra in ((grpo, {"kl_coef": 0.1}), (dapo, refills), (siren, {}), (guide, refills), (entropy_baselines, {}),
                          (h1_curriculum, {"max_horizon": 2}), (h1_curriculum, {"max_horizon": 2, "schedule": "adarft"})):  # fmt: skip
        folder = tmp_path / f"{module.__name__} {extra}"
        module.main(module.Args(out_dir=folder, **small, **extra))
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            logged |= {general(name) for name in json.loads(line) if name != "step"}
    assert logged == glossary()


def test_own_task_example_runs(toy_model, tmp_path):
    """The ten lines that a reader copies first."""
    code = re.search(r"```python\n(.*?)```", README, flags=re.S)[1]
    (tmp_path / "echo.py").write_text(code)
    flags = "--steps 1 --prompts-per-step 2 --group-size 2 --max-new-tokens 4 --eval-problems 2 --test-problems 2 --eval-samples 2"
    command = [sys.executable, "echo.py", "--model", toy_model, "--out-dir", "run", *flags.split()]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/final/model.safetensors").exists()


def test_reference_logs_are_of_the_embedded_model():
    """Logs made with another model than the one in the repository."""
    model, _ = runtime.load_model(str(ROOT / "models/tiny"))
    configs = [json.loads(path.read_text()) for path in (ROOT / "runs/reference").glob("*/*/seed*/config.json")]
    embedded = [config for config in configs if config["flags"]["model"] == "models/tiny"]
    assert {config["model_hash"] for config in embedded} <= {runtime.model_hash(model)}


def test_reference_logs_are_small_and_complete():
    """A run that was cut short, or a log too large for a repository."""
    for path in (ROOT / "runs/reference").glob("*/*/seed*/metrics.jsonl"):
        logged = [json.loads(line) for line in path.read_text().splitlines()]
        flags = json.loads(path.with_name("config.json").read_text())["flags"]
        tokens = [record["rollout/tokens_total"] for record in logged[1:-1]]
        steps = len(tokens) if flags["token_budget"] else flags["steps"]
        assert path.stat().st_size <= 110_000 and [record["step"] for record in logged] == [*range(steps + 1), steps], path
        assert not flags["token_budget"] or tokens[-2] < flags["token_budget"] <= tokens[-1], path
        assert tokens == sorted(tokens) and any(name.startswith("test/") for name in logged[-1]), path


def test_a_run_that_was_stopped_is_no_reference(tmp_path, monkeypatch):
    """Part of a run that is taken for the whole: Ctrl-C saves, and ends with exit status 0."""
    monkeypatch.setattr(reference.subprocess, "run", lambda *args, **options: subprocess.CompletedProcess(args, 0))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "metrics.jsonl").write_text('{"step": 0}\n')
    assert not reference.train(["grpo.py"], run, tmp_path / "target") and not (tmp_path / "target").exists()
    (run / "final").mkdir()
    assert reference.train(["grpo.py"], run, tmp_path / "target") and (tmp_path / "target/metrics.jsonl").exists()


def test_the_readme_shows_the_reference_runs():
    """Numbers beside a command that another command gave, a variant without its five seeds, a figure that is not there."""
    runs = plot.reference_runs()
    assert {variant: len(seeds) for variant, seeds in runs.items()} == dict.fromkeys(reference.VARIANTS, 5)
    for variant, seeds in runs.items():
        assert f"`python {reference.VARIANTS[variant]}` | {plot.reference_row(seeds)} |" in README, variant
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / picture).exists()


def test_the_readme_shows_the_real_model():
    """A table that was not made from the committed counts."""
    summaries = list((ROOT / "runs/reference/grpo/smollm2").glob("seed*/summary.json"))
    assert summaries and all(real_model.readme_table(json.loads(path.read_text())) in README for path in summaries)


def test_the_readme_shows_siren_on_the_real_model():
    """A table that was not made from the committed logs, and runs of unequal length."""
    folder = ROOT / "runs/reference/siren_smollm2"
    assert siren_smollm2.readme_table(folder) in README
    curves = [plot.read_metrics(folder / arm / "seed1") for arm in siren_smollm2.ARMS]
    assert {max(each["rollout/tokens_total"]) for each in curves} == {18}
    assert all(abs(max(each["rollout/tokens_total"].values()) - 21_000) < 100 for each in curves)


@pytest.mark.parametrize("name, module, metrics", [
    ("guide", guide, ["test/chain/avg@16"]), ("h1", h1_curriculum, ["test/chain/avg@16", "test/chain-h5/avg@16"])])  # fmt: skip
def test_what_the_default_run_is_said_to_reach(name, module, metrics):
    """A number in a docstring that no committed log of `python guide.py` or `python h1_curriculum.py` has."""
    folder = ROOT / f"runs/reference/{name}/chain-seed0"
    flags = logged_flags(json.loads((folder / "config.json").read_text()), module)
    defaults = json.loads(json.dumps(vars(tyro.cli(module.Args, args=[])), default=str))
    assert all(flags[name] == value for name, value in defaults.items() if value is not None) and flags["seed"] == 0
    for metric in metrics:
        values = plot.read_metrics(folder)[metric]
        assert f"{values[0]:.3f} -> {values[80]:.3f}" in " ".join(module.__doc__.split())


@pytest.mark.parametrize("script, name", [(guide_smollm2, "guide_smollm2"), (h1_smollm2, "h1_smollm2")])
def test_the_readme_shows_a_comparison_on_the_real_model(script, name):
    """A table that was not made from the committed results, and runs of unequal length."""
    folder = ROOT / "runs/reference" / name
    assert script.readme_table(folder) in README
    budget = int(script.BUDGET[script.BUDGET.index("--token-budget") + 1])
    for arm in script.ARMS:
        *_, before, tokens = plot.read_metrics(folder / arm / "seed1")["rollout/tokens_total"].values()
        assert before < budget <= tokens, arm


def measured_table() -> str:
    """The README's table of the model that the first command trains, from the committed comparison."""
    comparison = json.loads((ROOT / "runs/reference/eval/grpo-chain-seed0/comparison.json").read_text())
    lines = ["| steps | avg@16 | difference | excludes 0 | pass@16 | difference | excludes 0 |", "|---|---|---|---|---|---|---|"]
    for row in comparison["rows"]:
        cells = []
        for name in ("avg@16", "pass@16"):
            entry = row["metrics"][name]
            verdict = "yes" if entry["excludes_zero"] else "no"
            cells += [f"{entry['before']:.3f} → {entry['after']:.3f}", evaluation.cell(entry, signed=True), verdict]
        lines.append(f"| {row['horizon']} | {' | '.join(cells)} |")
    gain = comparison["rows"][-1]["gain"]
    return "\n".join(lines) + "\n\nwhere the gain comes from: " + ", ".join(f"{name} {evaluation.cell(gain[name])}" for name in gain) + "."


def test_the_readme_shows_a_measurement():
    """A table that no command gave."""
    assert measured_table() in README
    comparison = json.loads((ROOT / "runs/reference/eval/grpo-chain-seed0/comparison.json").read_text())
    assert f"({comparison['rows'][-1]['forgetting_by_chance']:.3f} for the starting model against itself)" in README
    model, _ = runtime.load_model(str(ROOT / "models/tiny"))
    assert comparison["settings"]["baseline"]["model_hash"] == runtime.model_hash(model)


def test_the_readme_shows_the_real_models_evaluation():
    """Numbers beside a model that another evaluation gave."""
    for folder, shown in (("smollm2-gsm_symbolic", ("frac_unparsed", "avg@4")),
                          ("smollm2-gsm_symbolic-examples", ("frac_unparsed", "avg@4", "pass@4"))):  # fmt: skip
        results = json.loads((ROOT / "runs/reference/eval" / folder / "results.json").read_text())
        (row,) = results["rows"]
        assert row["problems"] == len(results["problems"]) == 200 and row["samples"] == 4
        for name in shown:
            assert f"{name.removeprefix('frac_')} {row['metrics'][name]['value']:.3f}" in README, (folder, name)
