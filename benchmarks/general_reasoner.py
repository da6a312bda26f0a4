"""The experiment behind docs/general_reasoner.md (General-Reasoner, arXiv 2505.14652): how often does a small
verifier err, and what becomes of a policy that is rewarded by it?

    python benchmarks/general_reasoner.py --trials    the trials on development seeds 100 and 101
    python benchmarks/general_reasoner.py             the reported runs: every arm on seeds 1 to 5
    python benchmarks/general_reasoner.py --tables    the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- Verifiers: models/tiny after one epoch of `sft.py --task verdicts`, one for each seed. The weak one has seen
  2,048 rows, the other 12,288.
- First they are measured: 400 held-out pairs, whose references are of no training row, spelled in the ways
  that were trained and in new ones. Beside them stand the comparison of characters and the grader of rules.
  The first claim is that the verifier accepts right answers that the comparison of characters misses.
- On the development seeds the verifier has to agree in nine of ten pairs in trained spellings, as the paper's
  does with its teacher. If it does not, ROWS get larger before anything is rewarded by it.
- World of the second part: chains of three steps, 80 steps of 16 prompts x 16 completions. The answer is a
  number in a box, which the grader of rules always judges rightly. So the paper's premise, rules that are too
  strict, does not hold here, and no gain is expected. The question is what the verifier's errors cost.
- Arms: GRPO with the task's own grader; the verifier; the verifier without the length term; the weak
  verifier; and the verifier with 5% and 10% of its no turned into yes by chance, which no policy can learn to
  please.
- Every arm has the best of the same three learning rates, by avg@16 on 100 dev problems, mean over both
  development seeds. One whose best is the first or the last gets one more beyond it.
- Measured: the model after the last step on 200 test problems x 16 samples, by the task's own grader, with
  the same random numbers for all. What an arm has more than GRPO is paired by seed.
- Reward hacking is said to be there where false_yes of the last ten steps is above that of the first ten, and
  test avg@16 is below that of the verifier with as many errors by chance.
- The claim that a learned reward is as good is refuted here if the verifier's arm ends below that of GRPO.
"""

import sys
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import recipes  # noqa: E402
from benchmarks.arms import cell  # noqa: E402
from benchmarks.recipes import NO_SCORES, Args, Experiment  # noqa: E402
from papers.general_reasoner import Verifier  # noqa: E402
from plainrl.grading import same_answer  # noqa: E402
from plainrl.models import eos_ids, load_model  # noqa: E402
from plainrl.sampler import HFSampler  # noqa: E402
from plainrl.verdicts import SPELLINGS, VERIFIER_PROMPT, VerdictTask  # noqa: E402

PAIRS = 400  # of each kind of spelling
ROWS = {"verifier": 12_288, "weak": 2_048}
TRAIN = f"sft.py --task verdicts --epochs 1 {NO_SCORES} --seed {{seed}}"
COMMON = f"--steps 80 {NO_SCORES} --seed {{seed}} --out-dir {{out}}"
BY_VERIFIER = f"papers/general_reasoner.py --verifier {{here}}/verifier/last {COMMON}"


def agreement(pairs: list, verdicts: list[bool | None]) -> dict[str, float]:
    """How often verdicts are right, and how often wrong among wrong and among right answers. No verdict is no
    yes."""
    share = lambda values: float(np.mean(values)) if values else 0.0  # noqa: E731
    both = list(zip(pairs, verdicts, strict=True))
    return {
        "agree": share([verdict == pair.same for pair, verdict in both]),
        "false_yes": share([verdict is True for pair, verdict in both if not pair.same]),
        "false_no": share([verdict is not True for pair, verdict in both if pair.same]),
        "undecided": share([verdict is None for verdict in verdicts]),
    }


def verifiers(here: Path) -> dict[str, dict]:
    """{who: {kind of spelling: agreement}} on held-out pairs, the same for all."""
    found = {}
    for rules in SPELLINGS:
        pairs = [VerdictTask(rules).pair("test", index, 0) for index in range(PAIRS)]
        characters = [pair.answer == pair.reference for pair in pairs]
        found.setdefault("characters", {})[rules] = agreement(pairs, characters)
        by_rules = [same_answer(pair.reference, pair.answer) for pair in pairs]
        found.setdefault("rules", {})[rules] = agreement(pairs, by_rules)
        asked = [(pair.question, pair.reference, pair.answer) for pair in pairs]
        for name in ROWS:
            model, tokenizer = load_model(str(here / name / "last"))
            sampler = HFSampler(model.eval(), eos_ids(model, tokenizer))
            verdicts = Verifier(sampler, tokenizer, VERIFIER_PROMPT, 64).verdicts(asked)
            found.setdefault(name, {})[rules] = agreement(pairs, verdicts)
    return found


ARMS = {
    "rules": f"grpo.py {COMMON}",
    "verifier": BY_VERIFIER,
    "no_length": f"{BY_VERIFIER} --length-weight 0",
    "weak": BY_VERIFIER.replace("/verifier/last", "/weak/last"),
    "flip_5": f"{BY_VERIFIER} --flip-no 0.05",
    "flip_10": f"{BY_VERIFIER} --flip-no 0.1",
}
RATES = [f"--lr {lr}" for lr in ("1e-4", "3e-4", "1e-3")]

EXPERIMENT = Experiment(
    file=__file__,
    materials={name: f"{TRAIN} --train-size {rows} --out-dir {{here}}/{name}" for name, rows in ROWS.items()},
    arms=ARMS,
    names={
        "rules": "GRPO, the task's grader",
        "verifier": "verifier",
        "no_length": "verifier, no length term",
        "weak": "weak verifier",
        "flip_5": "verifier, 5% of no by chance yes",
        "flip_10": "verifier, 10% of no by chance yes",
    },
    grids=dict.fromkeys(ARMS, RATES),
    chosen={},
    measured={"chain": (200, 16)},
    decides="chain",
    on_dev=(100, 16),
    describe=verifiers,
)
WHO = {
    "characters": "equal characters",
    "rules": "the grader of rules",
    "verifier": f"verifier, {ROWS['verifier']:,} rows",
    "weak": f"weak verifier, {ROWS['weak']:,} rows",
}


def agreement_table(out: Path) -> str:
    """Agreement of verifiers and rules with the truth, mean over the verifiers of all reported seeds."""
    seeds = recipes.known_materials(out)
    rates = ("agree", "false_yes", "false_no", "undecided")
    lines = ["| | spelled | " + " | ".join(rates) + " |", "|---" * (2 + len(rates)) + "|"]
    for who in WHO if seeds else ():
        for rules in SPELLINGS:
            cells = [cell([seed[who][rules][rate] for seed in seeds]) for rate in rates]
            lines.append(f"| {WHO[who]} | {rules} | {' | '.join(cells)} |")
    return "\n".join(lines)


def hacking_table(out: Path) -> str:
    """What the verifier said of the first and of the last ten steps, and what was true of the last ten."""
    shown = {"false_yes": "verifier/false_yes", "yes": "verifier/yes_rate", "right": "verifier/right"}
    parts = {"first": slice(0, 10), "last": slice(-10, None)}
    titles = [f"{name}, {part} ten" for name in shown for part in parts]
    lines = ["| arm | " + " | ".join(titles) + " |", "|---" * (1 + len(titles)) + "|"]
    for arm, name in EXPERIMENT.names.items():
        runs = [recipes.read(file) for file in sorted((out / arm).glob("seed[1-9]/curves.json"))]
        if runs and "verifier/yes_rate" in runs[0]:
            cells = []
            for metric in shown.values():
                for part in parts.values():
                    cells.append(cell([np.mean([*run[metric].values()][part]) for run in runs]))
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    args = tyro.cli(Args, description=__doc__)
    recipes.main(EXPERIMENT, args)
    if args.one is None:
        print("", agreement_table(args.out), hacking_table(args.out), sep="\n\n")
