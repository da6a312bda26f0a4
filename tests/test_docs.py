"""README and docs tell the truth: links resolve, commands parse, the glossary is complete, examples run.

The committed logs are of this model and of the commands beside them. Numbers: test_pages.py."""

import ast
import inspect
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
from committed_runs import logged_flags, module_of

import guide
import h1_curriculum
from benchmarks import guide_smollm2, h1_smollm2, pages, real_model, reference, siren_smollm2
from plainrl import curves, flags, models
from plainrl.curves import read_metrics

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {page.relative_to(ROOT).as_posix(): page.read_text() for page in pages.pages()}
SOURCES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
    for folder in (".", "papers", "tools", "benchmarks", "plainrl")
    for path in sorted((ROOT / folder).glob("*.py"))
}


def class_of(script: str, name: str) -> ast.ClassDef | None:
    classes = [node for node in SOURCES[script].body if isinstance(node, ast.ClassDef)]
    return next((node for node in classes if node.name == name), None)


SCRIPTS = [script for script in SOURCES if class_of(script, "Args")]
SHARED = {"RunFlags", "RowFlags"}
FLAG_CLASSES = ("SharedFlags", "RunFlags", "RowFlags")
TRAINING = [script for script in SCRIPTS if SHARED & set(map(ast.unparse, class_of(script, "Args").bases))]
SMALL = "--steps 1 --max-new-tokens 4 --eval-problems 2 --test-problems 2 --eval-samples 2".split()
SMALL_BATCH = {
    "RunFlags": "--prompts-per-step 2 --group-size 2".split(),
    "RowFlags": "--rows-per-step 2 --train-size 40".split(),
}


def small(script: str) -> list[str]:
    """Flags of a run that takes a second."""
    (base,) = SHARED & set(map(ast.unparse, class_of(script, "Args").bases))
    return SMALL + SMALL_BATCH[base]


# --- links --------------------------------------------------------------------------------------------------


def without_code(text: str) -> str:
    """A page without its code blocks, in which brackets are no links and # begins no heading."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.*)$", without_code(text), flags=re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings(text)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page):
    """Catches a page, a picture or a heading that was renamed."""
    text = re.sub(r"`[^`\n]*`", "", without_code(PAGES[page]))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+://", target):
            continue
        file, _, anchor = target.partition("#")
        found = (ROOT / page).parent / file if file else ROOT / page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found.read_text()), target


def test_readme_is_read_in_one_sitting():
    """Catches a README that grows, and a first screen that does not lead to data, metrics and results."""
    assert len(README.splitlines()) < 200
    first = "\n".join(README.splitlines()[:12])
    for page in ("first-run", "own-experiment", "metrics", "new-algorithm"):
        assert f"(docs/{page}.md)" in first, page
    assert "(#the-scripts)" in first
    assert README.index("![") < README.index("## ")  # a picture


def test_readme_leads_to_every_page_and_script():
    """Catches a page that nobody finds, and a script without a row that says what was shown."""
    for page in PAGES:
        if page.startswith("docs/"):
            assert f"({page}" in README, page
    table = README[README.index("## The scripts") : README.index("## Your own")]
    for script in TRAINING:
        assert f"`{script}`" in table or f"`{Path(script).name}`" in table, script
    for row in table.splitlines():
        if row.startswith("| `") and "papers/rloo" not in row:
            assert re.search(r"\(docs/[\w-]+\.md", row.rsplit(" | ", 1)[1]), row


PARTS = "Idea, Command, Equations beside code, Deviations and traps, Results, Trials, Exercises".split(", ")


def test_every_page_of_a_script_has_its_parts():
    """Catches a page without results, trials or exercises, or with its verdict below the tables."""
    for page, text in PAGES.items():
        if "\n## Equations beside code" not in text or page == "docs/measuring.md":
            continue
        assert [part for part in headings(text) if part in PARTS] == PARTS, page
        head = text[text.index("\n## Results") :].strip().splitlines()[2:6]
        assert [line[:6] for line in head] == ["- **Cl", "- **Pr", "- **Fi", "- **Ve"], page
        exercises = re.findall(r"^\d\. ", text[text.index("## Exercises") :], flags=re.MULTILINE)
        assert 3 <= len(exercises) <= 5, page


# --- commands -----------------------------------------------------------------------------------------------


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Every `python script.py flags` in it, `torchrun .. script.py flags` and `python -m plainrl.x` too."""
    text = re.sub(r"\\\n\s*", "", text)  # a command that goes on in the next line
    found = re.findall(r"(?:python|torchrun [^\n]*?) (?:-m )?([\w/.-]+)((?:\"[^\n\"]*\"|[^\n&`#|;])*)", text)
    scripts = [
        (name if name.endswith(".py") else name.replace(".", "/") + ".py", rest) for name, rest in found
    ]
    return [(script, shlex.split(rest.split("  ")[0])) for script, rest in scripts if script in SCRIPTS]


def test_every_command_parses():
    """Catches a flag that was renamed, and a value that is no longer allowed, in a page or a docstring."""
    docstrings = {script: ast.get_docstring(tree) or "" for script, tree in SOURCES.items()}
    checked = 0
    for where, text in (PAGES | docstrings).items():
        for script, words in commands(text):
            try:
                tyro.cli(module_of(script).Args, args=words)
            except SystemExit:
                pytest.fail(f"{where}: {script} {shlex.join(words)}")
            checked += 1
    assert checked >= 60


def test_every_script_that_is_named_is_there():
    """Catches a command of a file that was renamed, and a path in a page that leads nowhere."""
    for page, text in PAGES.items():
        for name in re.findall(r"(?:python|torchrun [^\n]*?) ([\w/]+\.py)", text):
            assert (ROOT / name).exists(), (page, name)
        for name in re.findall(r"`((?:papers|tools|benchmarks|plainrl|tests)/[\w/]+\.\w+)`", text):
            assert (ROOT / name).exists(), (page, name)


def test_every_check_with_vllm_is_there():
    """Catches a part that was renamed. (The file imports what only the environment of vLLM has.)"""
    parts = re.search(
        r"part: [\w.]*\[Literal\[([^\]]*)\]", (ROOT / "benchmarks/checks/with_vllm.py").read_text()
    )[1]
    assert set(re.findall(r"with_vllm\.py (\w+)", PAGES["docs/gpus.md"])) == set(json.loads(f"[{parts}]"))


def test_the_two_commands_of_the_readme_stand_in_order():
    """Catches another order than .ci/run reads: the run first, the tests second, PyTorch's CPU build last."""
    first, second, third = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)
    assert first.endswith("python grpo.py") and "pytest" in second and "download.pytorch.org/whl/cpu" in third


def test_benchmark_variants_parse():
    """Catches a figure whose command is none."""
    for line in reference.VARIANTS.values():
        script, *words = shlex.split(line)
        tyro.cli(module_of(script).Args, args=words)


def resolved(script: str, words: list[str], parameters: int):
    """The script's flags, with the defaults of a model of that size."""
    args = tyro.cli(module_of(script).Args, args=words)
    flags.resolve_defaults(args, parameters)
    flags.check_flags(args)
    return args


def command_for(page: str, script: str, model: str) -> list[str]:
    return next(words for name, words in commands(PAGES[page]) if name == script and model in words)


def has(args, wanted: dict) -> None:
    assert {name: getattr(args, name) for name in wanted} == wanted


def test_the_gpu_command_is_planned():
    """Catches a Qwen command that does not resolve against the defaults for real models."""
    words = command_for("docs/gpus.md", "grpo.py", "Qwen/Qwen2.5-1.5B-Instruct")
    has(
        resolved("grpo.py", words, 1_500_000_000),
        dict(lr=1e-6, max_new_tokens=512, activation_checkpointing=True, prompts_per_step=16),
    )


def test_the_large_command_of_siren_is_that_of_the_authors_script():
    """Catches a command that is not what it is called: 128 prompts x 8 in 16 updates, 3072 tokens."""
    papers = dict(
        prompts_per_step=128,
        group_size=8,
        minibatches=16,
        epochs=1,
        max_new_tokens=3072,
        temperature=1.0,
        lr=1e-6,
        warmup_steps=5,
        weight_decay=0.1,
        max_grad_norm=1.0,
        clip_low=0.2,
        clip_high=0.2,
        beta=0.005,
        nucleus_p=0.8,
        tau=0.8,
        nucleus_rule="official",
        anchor=True,
        eval_every=10,
        eval_samples=16,
        save_every=10,
    )
    words = command_for("docs/siren.md", "siren.py", "Qwen/Qwen2.5-Math-7B")
    has(resolved("siren.py", words, 7_600_000_000), papers)


def test_the_large_command_of_guide_is_that_of_the_authors_script():
    """Catches a command that is not what it is called: 128 prompts x 8 in 2 updates, 3072 tokens."""
    papers = dict(
        prompts_per_step=128,
        group_size=8,
        minibatches=2,
        epochs=1,
        max_new_tokens=3072,
        temperature=1.0,
        lr=1e-6,
        warmup_steps=0,
        max_grad_norm=1.0,
        clip_low=0.2,
        clip_high=0.2,
        trigger="all_wrong",
        gamma_quantile=0.9,
    )
    words = command_for("docs/guide.md", "guide.py", "Qwen/Qwen2.5-Math-7B")
    has(resolved("guide.py", words, 7_600_000_000), papers)


def test_the_large_command_of_h1_is_the_papers_setting():
    """Catches a command that is not what it is called: five stages of 200 steps, their budgets."""
    papers = dict(
        schedule="curriculum",
        max_horizon=5,
        steps=1000,
        steps_per_stage=200,
        group_size=16,
        eval_every=50,
        save_every=50,
        completion_budgets=(768, 1024, 1280, 1536, 1536),
        max_new_tokens=1536,
        format_reward=True,
        advance_at=None,
    )
    words = command_for("docs/h1.md", "h1_curriculum.py", "Qwen/Qwen2.5-3B-Instruct")
    has(resolved("h1_curriculum.py", words, 3_000_000_000), papers)


@pytest.mark.parametrize(
    "script, name",
    [*((script, "Args") for script in TRAINING), *(("plainrl/flags.py", name) for name in FLAG_CLASSES)],
)
def test_every_flag_has_its_text(script, name):
    """Catches a flag without a docstring, which --help would show without a word."""
    body = class_of(script, name).body
    for field, after in zip(body, [*body[1:], None]):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(after, ast.Expr) and isinstance(after.value.value, str), ast.unparse(field)


# --- the glossary -------------------------------------------------------------------------------------------


def glossary() -> set[str]:
    rows = re.findall(r"^\| (`[^|]+`) \|", PAGES["docs/metrics.md"], flags=re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def general(name: str) -> str:
    name = re.sub(r"^(eval|test)/[^/]+/", r"\1/<task>/", re.sub(r"/reward_\d+$", "/reward_<h>", name))
    return "test/<task>/..." if name.startswith("test/") else re.sub(r"@\d+$", "@<k>", name)


def test_glossary_equals_the_keys_that_are_logged(toy_model, tmp_path, monkeypatch):
    """Catches a metric that nobody explains, and an explanation of a metric that is gone."""
    monkeypatch.setattr(curves, "plot_run", lambda run: None)  # a picture takes its time
    own = {"kl_coef": 0.1, "max_refills": 0, "max_horizon": 2, "k": 1}
    own |= {"teacher": toy_model, "verifier": toy_model}
    pairs = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"{i}+1?", "chosen": f"{i + 1}", "rejected": f"{i}+1={i + 1}"} for i in range(50)]
    pairs.write_text("\n".join(map(json.dumps, lines)))
    logged = set()
    for script in TRAINING:
        module = module_of(script)
        args = tyro.cli(module.Args, args=small(script))
        args.model, args.out_dir = toy_model, tmp_path / script.replace("/", "-")
        for name in own.keys() & vars(args).keys():
            setattr(args, name, own[name])
        if script == "papers/dto.py":
            args.data = (pairs,)
        module.main(args)
        for line in (args.out_dir / "metrics.jsonl").read_text().splitlines():
            logged |= {general(name) for name in json.loads(line) if name != "step"}
    assert logged == glossary()


def test_every_metric_says_what_it_does_in_each_kind_of_run():
    """Catches a metric of which a reader learns what it is and not what to make of it."""
    for line in PAGES["docs/metrics.md"].splitlines():
        if line.startswith("| `") and " → " not in line:
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            assert len(cells) == 5 and all(cells), line


# --- code in pages ------------------------------------------------------------------------------------------

WRITTEN = [
    (page, code)
    for page, text in PAGES.items()
    for code in re.findall(r"^```python\n(.*?)^```", pages.BLOCK.sub("", text), re.DOTALL | re.MULTILINE)
]


@pytest.mark.parametrize("page, code", WRITTEN, ids=[f"{page}-{i}" for i, (page, _) in enumerate(WRITTEN)])
def test_code_in_a_page_runs(page, code, toy_model, tmp_path, monkeypatch):
    """Catches lines that a reader copies and that do not work: whole programs are run, others compiled."""
    compile(code, page, "exec")
    if "__main__" not in code:
        return
    (tmp_path / "yours.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["yours.py", "--model", toy_model, "--out-dir", "run", *small("grpo.py")]
    )
    runpy.run_path("yours.py", run_name="__main__")
    assert (tmp_path / "run/final/model.safetensors").exists()


def test_the_readme_has_an_example_that_runs():
    """Catches a README whose complete experiment was cut down to a fragment."""
    assert any(page == "README.md" and "__main__" in code for page, code in WRITTEN)


# --- the committed logs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded_hash() -> str:
    return models.model_hash(models.load_model(str(ROOT / "models/tiny"))[0])


def test_reference_logs_are_of_the_embedded_model(embedded_hash):
    """Catches logs made with another model than the one in the repository."""
    configs = [pages.read(path) for path in pages.LOGS.glob("*/*/seed*/config.json")]
    embedded = [config for config in configs if config["flags"]["model"] == "models/tiny"]
    assert {config["model_hash"] for config in embedded} == {embedded_hash}
    assert pages.read(pages.COMPARISON)["settings"]["baseline"]["model_hash"] == embedded_hash


def test_reference_logs_are_small_and_complete():
    """Catches a run that was cut short, and a log too large for a repository."""
    for path in pages.LOGS.glob("*/*/seed*/metrics.jsonl"):
        logged = [json.loads(line) for line in path.read_text().splitlines()]
        run_flags = json.loads(path.with_name("config.json").read_text())["flags"]
        tokens = [record["rollout/tokens_total"] for record in logged[1:-1]]
        steps = len(tokens) if run_flags["token_budget"] else run_flags["steps"]
        assert path.stat().st_size <= 110_000, path
        assert [record["step"] for record in logged] == [*range(steps + 1), steps], path
        assert not run_flags["token_budget"] or tokens[-2] < run_flags["token_budget"] <= tokens[-1], path
        assert tokens == sorted(tokens) and any(name.startswith("test/") for name in logged[-1]), path


def test_every_reference_variant_has_its_seeds():
    """Catches a row of the first table without its five seeds."""
    for variant in reference.VARIANTS:
        seeds = {path.name for path in (ROOT / "runs/reference" / variant).glob("seed*")}
        assert seeds == {f"seed{seed}" for seed in range(1, 6)}, variant


def test_a_run_that_was_stopped_is_no_reference(tmp_path, monkeypatch):
    """Catches part of a run that is taken for the whole: Ctrl-C saves, and ends with exit status 0."""
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(reference.subprocess, "run", lambda *args, **options: done)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "metrics.jsonl").write_text('{"step": 0}\n')
    assert not reference.train(["grpo.py"], run, tmp_path / "target") and not (tmp_path / "target").exists()
    (run / "final").mkdir()
    assert reference.train(["grpo.py"], run, tmp_path / "target")
    assert (tmp_path / "target/metrics.jsonl").exists()


@pytest.mark.parametrize(
    "name, module, metrics",
    [
        ("guide", guide, ["test/chain/avg@16"]),
        ("h1", h1_curriculum, ["test/chain/avg@16", "test/chain-h5/avg@16"]),
    ],
)
def test_what_the_default_run_is_said_to_reach(name, module, metrics):
    """Catches a number in a docstring that no committed log of the default run has."""
    folder = ROOT / f"runs/reference/{name}/chain-seed0"
    logged = logged_flags(json.loads((folder / "config.json").read_text()), module)
    args = resolved(f"{module.__name__}.py", [], 1_100_000)
    defaults = json.loads(json.dumps(vars(args), default=str))
    assert all(logged[flag] == value for flag, value in defaults.items() if value is not None)
    assert logged["seed"] == 0
    for metric in metrics:
        values = read_metrics(folder)[metric]
        assert f"{values[0]:.3f} -> {values[80]:.3f}" in " ".join(inspect.getdoc(module).split())


def test_the_comparison_with_siren_on_the_real_model_is_at_equal_tokens():
    """Catches runs of unequal length."""
    logs = [read_metrics(ROOT / "runs/reference/siren_smollm2" / arm / "seed1") for arm in siren_smollm2.ARMS]
    assert {max(each["rollout/tokens_total"]) for each in logs} == {18}
    assert all(abs(max(each["rollout/tokens_total"].values()) - 21_000) < 100 for each in logs)


@pytest.mark.parametrize("script", [guide_smollm2, h1_smollm2])
def test_a_comparison_on_the_real_model_is_at_equal_tokens(script):
    """Catches runs of unequal length."""
    folder = ROOT / "runs/reference" / script.__name__.rpartition(".")[2]
    budget = int(script.BUDGET[script.BUDGET.index("--token-budget") + 1])
    for arm in script.ARMS:
        *_, before, tokens = read_metrics(folder / arm / "seed1")["rollout/tokens_total"].values()
        assert before < budget <= tokens, arm


def test_the_real_models_run_is_the_one_that_is_shown():
    """Catches a second seed beside the table of one."""
    found = [path.parent.name for path in pages.LOGS.glob("grpo/smollm2/seed*/summary.json")]
    assert found == ["seed1"]
    assert real_model.Args().seed == 1
