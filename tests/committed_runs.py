"""What tests of the committed comparisons have in common."""

import importlib
import json
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

import tyro

# The committed logs are older than some of the scripts: {script of today: (script of the logs, its flags that
# made it what is a file of its own today)}. A script that is not here had the same name then.
THEN = {
    "papers/dr_grpo.py": ("grpo", {"advantage": "centred", "aggregation": "constant"}),
    "papers/dapo.py": ("dapo", {}),
    "papers/naive_bonus.py": ("entropy_baselines", {"method": "naive_bonus"}),
    "papers/adaptive_bonus.py": ("entropy_baselines", {"method": "adaptive_bonus"}),
    "papers/entropy_advantage.py": ("entropy_baselines", {"method": "entropy_advantage"}),
    "papers/high_entropy_tokens.py": ("entropy_baselines", {"method": "high_entropy_tokens"}),
    "papers/clip_cov.py": ("entropy_baselines", {"method": "clip_cov"}),
    "papers/kl_cov.py": ("entropy_baselines", {"method": "kl_cov"}),
    "papers/adarft.py": ("h1_curriculum", {"schedule": "adarft"}),
    "papers/e2h.py": ("h1_curriculum", {}),
    "papers/guide_ablations.py": ("guide", {}),
}
CALLED = {  # values that had another name
    ("papers/e2h.py", "schedule", "cosine"): "e2h_cosine",
    ("papers/e2h.py", "schedule", "gaussian"): "e2h_gaussian",
}


def module_of(script: str):
    """
    >>> module_of("papers/dr_grpo.py").__name__
    'papers.dr_grpo'
    """
    return importlib.import_module(script.removesuffix(".py").replace("/", "."))


def flags_of(module, flags: list[str]) -> dict:
    """A script's flags as they are read back from config.json."""
    return json.loads(json.dumps(vars(tyro.cli(module.Args, args=flags)), default=str))


def logged_flags(config: dict, module) -> dict:
    """The flags of a committed run. Those that its script did not have then are at their defaults."""
    return flags_of(module, []) | config["flags"]


def check_run(config: dict, script: str, module, flags: list[str]) -> None:
    """A committed run is what `script flags` gives: of that script, with every flag that the command sets."""
    now = Path(script).stem
    then, own = (now, {}) if config["script"] == now else THEN.get(script, (now, {}))
    assert config["script"] == then, (config["script"], script)
    flags_then, wanted = logged_flags(config, module), flags_of(module, flags) | own
    for name, value in wanted.items():
        if name not in ("out_dir", "resume") and value is not None:
            assert flags_then[name] == CALLED.get((script, name, str(value)), value), (script, name)


def check_reported_runs(
    logs: Path,
    chosen: dict[str, str],
    command: Callable[[str, str, int], str],
    seeds: Iterable[int] = range(1, 6),
    ten: Iterable[str] = (),
) -> None:
    """Every arm has its seeds and no other, those of `ten` seeds 1 to 10; each log is of the script, setting
    and seed of `command`."""
    for arm, setting in chosen.items():
        own_seeds = range(1, 11) if arm in ten else seeds
        assert {path.name for path in (logs / arm).glob("seed*")} == {f"seed{n}" for n in own_seeds}, arm
        for seed in own_seeds:
            script, *flags = shlex.split(command(arm, setting, seed))
            config = json.loads((logs / arm / f"seed{seed}" / "config.json").read_text())
            assert config["flags"]["seed"] == seed, (arm, seed)
            check_run(config, script, module_of(script), flags)
