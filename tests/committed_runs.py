"""What tests of the committed comparisons have in common."""

import json
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

import tyro


def logged_flags(config: dict, module) -> dict:
    """The flags of a committed run; those that the script did not have then are at their defaults, which change nothing."""
    return json.loads(json.dumps(vars(tyro.cli(module.Args, args=[])), default=str)) | config["flags"]


def check_reported_runs(logs: Path, chosen: dict[str, str], command: Callable[[str, str, int], str], scripts: dict,
                        seeds: Iterable[int] = range(1, 6)) -> None:  # fmt: skip
    """Every arm has its seeds and no other, and each log is of the script, setting and seed that `command` gives."""
    for arm, setting in chosen.items():
        assert {path.name for path in (logs / arm).glob("seed*")} == {f"seed{seed}" for seed in seeds}, arm
        for seed in seeds:
            script, *flags = shlex.split(command(arm, setting, seed))
            config = json.loads((logs / arm / f"seed{seed}" / "config.json").read_text())
            wanted = json.loads(json.dumps(vars(tyro.cli(scripts[script].Args, args=flags)), default=str))
            flags_then = logged_flags(config, scripts[script])
            assert config["script"] == scripts[script].__name__ and config["flags"]["seed"] == seed, (arm, seed)
            for name, value in wanted.items():
                if name not in ("out_dir", "resume") and value is not None:
                    assert flags_then[name] == value, (arm, seed, name)
