"""Five steps of every training script in float64. `torchrun --nproc-per-node N distributed_driver.py TOY_MODEL OUT [SCRIPT]`

Leaves OUT/<script>/, the output folder of each run.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import toys  # noqa: E402
from random_model import in_float64  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

import dapo  # noqa: E402
import entropy_baselines  # noqa: E402
import grpo  # noqa: E402
import guide  # noqa: E402
import h1_curriculum  # noqa: E402
import plot  # noqa: E402
import runtime  # noqa: E402
import siren  # noqa: E402

SCRIPTS = {grpo: {"kl_coef": 0.1}, dapo: {"max_refills": 3, "overlong_buffer": 4}, siren: {"beta": 1.0},
           guide: {"max_refills": 2}, entropy_baselines: {"method": "clip_cov", "cov_low": -1.0, "cov_high": 1.0, "cov_fraction": 0.2},
           h1_curriculum: {"max_horizon": 3, "steps_per_stage": 2, "eval_problems": 3}}  # fmt: skip


class Float64:
    """In place of transformers' AutoModelForCausalLM."""

    @staticmethod
    def from_pretrained(path, **kwargs):
        return in_float64(AutoModelForCausalLM.from_pretrained(path))


def main(toy_model: str, out: Path, only: str | None = None) -> None:
    runtime.AutoModelForCausalLM = Float64
    plot.plot_run = lambda run: None
    for script, extra in SCRIPTS.items():
        if only in (None, script.__name__):
            flags = toys.quick_flags(toy_model, out / script.__name__, prompts_per_step=4, minibatches=2, max_new_tokens=6,
                                     micro_batch_tokens=60, seed=10, **extra)  # fmt: skip
            script.main(script.Args(**flags), task=toys.HashTask())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
