"""plainrl/flags.py: what a number may be, flags that do not go together, defaults by size of the model."""

import math

import pytest
from mutants import mutant

import grpo
from plainrl import flags
from plainrl.flags import Bounds, RunFlags

LEAST = math.nextafter(0.0, 1.0)


@mutant(
    "least number that is refused itself",
    "plainrl/flags.py",
    "and value >= self.at_least",
    "and value > self.at_least",
)
@mutant("least number that is not looked at", "plainrl/flags.py", "and value >= self.at_least", "and True")
@mutant(
    "zero where more than zero is asked for",
    "plainrl/flags.py",
    "and value > self.above",
    "and value >= self.above",
)
@mutant(
    "no clip that is refused",
    "plainrl/flags.py",
    "(value < self.below or math.isinf(self.below))",
    "value < self.below",
)
@mutant("greatest number that is not looked at", "plainrl/flags.py", "and value <= self.at_most", "and True")
@mutant(
    "infinity as any flag",
    "plainrl/flags.py",
    "math.isfinite(value) or (self.infinite and not math.isnan(value))",
    "not math.isnan(value)",
)
@pytest.mark.parametrize(
    "kind, allowed, refused",
    [
        (flags.Count, [1, 10**9], [0, -1]),
        (flags.GroupSize, [2, 64], [1]),
        (flags.NotNegative, [0.0, 1e9], [-LEAST, math.inf, math.nan]),
        (flags.ClipRange, [0.0, math.inf], [-LEAST, math.nan]),
        (flags.Positive, [LEAST, math.inf], [0.0, math.nan]),
        (flags.Share, [LEAST, 1.0], [0.0, math.nextafter(1.0, 2.0), math.nan]),
        (flags.Fraction, [0.0, 1.0], [-LEAST, math.nextafter(1.0, 2.0)]),
        (flags.Number, [-5.0, 0.0, 5.0], [math.inf, -math.inf, math.nan]),
    ],
)
def test_bounds(kind, allowed, refused):
    """Catches a limit on the wrong side, and infinity or nan where a number is asked for."""
    (bounds,) = kind.__metadata__
    assert all(map(bounds.contain, allowed)) and not any(map(bounds.contain, refused))


@mutant(
    "seed of the evaluation allowed", "plainrl/flags.py", "(value < self.below or", "(value <= self.below or"
)
def test_bounds_with_an_upper_end():
    """Catches a seed that is the evaluation's, and words that do not say what is allowed."""
    assert Bounds(at_least=0, below=4).contain(3) and not Bounds(at_least=0, below=4).contain(4)
    assert str(Bounds(above=0, at_most=1)) == "must be above 0 and at most 1"
    assert str(Bounds()) == "must be a number"


@mutant(
    "bounds of optional flags not seen",
    "plainrl/flags.py",
    "options = [hint, *typing.get_args(hint)]",
    "options = [hint]",
)
@mutant(
    "minibatches that do not divide",
    "plainrl/flags.py",
    "if prompts is not None and prompts % minibatches:",
    "if False:",
)
def test_flags_that_are_refused():
    """Catches bounds that are not looked up behind `| None`, and minibatches that split a group."""
    flags.check_flags(grpo.Args(minibatches=2, prompts_per_step=4))
    for changes, said in (
        ({"steps": 0}, "--steps 0: must be at least 1"),
        ({"minibatches": 3, "prompts_per_step": 4}, "--minibatches 3: does not divide --prompts-per-step 4"),
        ({"engine": "hf", "vllm_server": "http://x"}, "--engine hf: does not go with --vllm-server"),
    ):
        with pytest.raises(SystemExit, match=f"error: {said}"):
            flags.check_flags(grpo.Args(**changes))


@mutant(
    "flags of the user's overwritten",
    "plainrl/flags.py",
    '"by_size" in flag.metadata and getattr(args, flag.name) is None',
    '"by_size" in flag.metadata',
)
@mutant(
    "defaults of the smallest size",
    "plainrl/flags.py",
    "if parameters >= least][-1]",
    "if parameters >= least][0]",
)
@mutant(
    "size that begins a parameter late",
    "plainrl/flags.py",
    "if parameters >= least]",
    "if parameters > least]",
)
def test_defaults_by_size():
    """Catches a default that replaces what the user asked for, and one of a smaller or larger model."""
    sizes = {parameters: flags.size_of(parameters) for parameters in (1, 10**7 - 1, 10**7, 1_300_000_000)}
    assert list(sizes.values()) == ["tiny", "tiny", "small", "large"]
    args = RunFlags(steps=7)
    flags.resolve_defaults(args, 135_000_000)
    assert (args.steps, args.group_size, args.max_new_tokens) == (7, 8, 256)
