"""The experiment behind docs/reasoning_vector.md (arXiv 2509.01363): does what RL added to one model help
another?

    python benchmarks/vectors.py             the reported runs: every arm on seeds 1 to 5
    python benchmarks/vectors.py --tables    the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- The ancestor of all models is models/tiny. Every seed makes: minus, by sft.py on worked chains of three;
  plus, by 80 steps of grpo.py on such chains, from the ancestor (a) or from minus (b), the two readings of
  the paper; and the target, by sft.py on 256 worked one-step problems with the rare reading.
- Arms: the target, with alpha times plus a minus minus, for alpha of -1, -0.5, 0.5, 1 and 1.5; with that of
  plus b; with plus a minus the ancestor (does subtracting SFT matter?); and with a random vector that has the
  norm of the first in every tensor. Nothing is tuned: alpha is 1 in the paper.
- The premise: all models lie in one basin. The loss of worked chains on the line between two of them is
  measured first.
- Measured: chains of three, and the target's own task; unparsed answers stand beside, since a gain could be
  format alone.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from safetensors import safe_open
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import recipes  # noqa: E402
from benchmarks.recipes import NO_SCORES  # noqa: E402
from plainrl.models import load_model  # noqa: E402
from plainrl.rollout import encode_prompt  # noqa: E402
from plainrl.scoring import score  # noqa: E402
from plainrl.tasks import load_task  # noqa: E402

TASK, OWN = "chain?horizon=3", "chain?horizon=1&family=reversed"
SEEDED = f"{NO_SCORES} --seed {{seed}}"
SFT, GRPO = f'sft.py --task "{TASK}" {SEEDED}', f'grpo.py --task "{TASK}" --steps 80 {SEEDED}'
TARGET = f'sft.py --task "{OWN}" --train-size 256 --rows-per-step 64 --epochs 4 {SEEDED}'
VECTOR = "papers/reasoning_vector.py"
ADD = f"{VECTOR} --to {{here}}/target/last --out {{out}} --vector {{here}}"
ALPHAS = (-1.0, -0.5, 0.5, 1.0, 1.5)
PATHS = (("minus", "plus_a"), ("minus", "plus_b"), ("target", "plus_a"), ("target", "minus"))


@dataclass
class Args(recipes.Args):
    random: Path | None = None
    """make random.safetensors of this folder, from its a.safetensors, and stop"""
    random_seed: int = 0
    """of its numbers"""


def random_vector(here: Path, seed: int) -> None:
    """A vector with the same norm in every tensor and a direction by chance."""
    generator = torch.Generator().manual_seed(seed)
    with safe_open(here / "a.safetensors", "pt") as file:
        said = file.metadata()
    made = {}
    for name, v in load_file(here / "a.safetensors").items():
        chance = torch.randn(v.shape, generator=generator)
        made[name] = (chance * (v.norm() / chance.norm())).to(v.dtype)
    save_file(made, here / "random.safetensors", metadata=said)


@torch.no_grad()
def describe(here: Path) -> dict:
    """Loss of 128 worked chains, nats a token, on the line between two models: {"minus to plus_a": [at 0,
    1/4, ..., 1]}."""
    task, found = load_task(TASK), {}
    model, tokenizer = load_model(str(here / "minus/last"))
    problems = [task.problem("dev", index, 0) for index in range(128)]
    prompts = [encode_prompt(tokenizer, problem.prompt, None) for problem in problems]
    completions = [tokenizer.encode(problem.solution, add_special_tokens=False) for problem in problems]
    for first, last in PATHS:
        ends = [load_model(str(here / name / "last"))[0].state_dict() for name in (first, last)]
        losses = []
        for part in (0.0, 0.25, 0.5, 0.75, 1.0):
            model.load_state_dict({name: torch.lerp(ends[0][name], ends[1][name], part) for name in ends[0]})
            logprobs, _ = score(model, prompts, completions, 1.0)
            losses.append(-logprobs.sum().item() / sum(map(len, completions)))
        found[f"{first} to {last}"] = losses
    return found


def keep(name: str, plus: str, minus: str) -> str:
    """The command that keeps a vector."""
    return f"{VECTOR} --plus {plus} --minus {minus} --out {{here}}/{name}.safetensors"


ARMS = {f"a_{alpha:g}": f"{ADD}/a.safetensors --alpha {alpha:g}" for alpha in ALPHAS}
ARMS |= {name: f"{ADD}/{name}.safetensors" for name in ("b", "from_ancestor", "random")}

EXPERIMENT = recipes.Experiment(
    file=__file__,
    materials={
        "minus": f"{SFT} --out-dir {{here}}/minus",
        "plus_a": f"{GRPO} --out-dir {{here}}/plus_a",
        "plus_b": f"{GRPO} --model {{here}}/minus/last --out-dir {{here}}/plus_b",
        "target": f"{TARGET} --out-dir {{here}}/target",
        "a.safetensors": keep("a", "{here}/plus_a/last", "{here}/minus/last"),
        "b.safetensors": keep("b", "{here}/plus_b/last", "{here}/minus/last"),
        "from_ancestor.safetensors": keep("from_ancestor", "{here}/plus_a/last", "models/tiny"),
        "random.safetensors": "benchmarks/vectors.py --random {here} --random-seed {seed}",
    },
    arms=ARMS,
    names={f"a_{alpha:g}": f"{alpha:+g} v" for alpha in ALPHAS}
    | {
        "b": "+1 v, plus from minus",
        "from_ancestor": "+1 (plus minus the ancestor)",
        "random": "+1 random vector of the same norms",
        "before": "target",
    },
    grids={},
    chosen=dict.fromkeys(ARMS, ""),
    measured={TASK: (200, 16), OWN: (200, 16)},
    decides=TASK,
    start="{here}/target/last",
    model=".",
    against="before",
    describe=describe,
)


def main(args: Args) -> None:
    if args.random:
        return random_vector(args.random, args.random_seed)
    recipes.main(EXPERIMENT, args)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
