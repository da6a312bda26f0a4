"""plainrl/flags.py: what a number may be, flags that do not go together, defaults by size of the model."""

import math

import pytest

import grpo
from plainrl import flags
from plainrl.flags import Bounds, RunFlags

LEAST = math.nextafter(0.0, 1.0)


@pytest.mark.parametrize(
    "kind, allowed, refused",
    [
        (flags.Count, [1, 10**9], [0, -1]),
        (flags.GroupSize, [2, 64], [1]),
        (flags.NotNegative, [0.0, 1e9], [-LEAST, math.inf, math.nan]),
        (flags.ClipRange, [0.0, math.inf], [-LEAST, math.nan]),
        (flags.Positive, [LEAST, 1e9], [0.0, math.inf, math.nan]),
        (flags.Share, [LEAST, 1.0], [0.0, math.nextafter(1.0, 2.0), math.nan]),
        (flags.Fraction, [0.0, 1.0], [-LEAST, math.nextafter(1.0, 2.0)]),
        (flags.Number, [-5.0, 0.0, 5.0], [math.inf, -math.inf, math.nan]),
    ],
)
def test_bounds(kind, allowed, refused):
    """Catches a limit on the wrong side, and infinity or nan where a number is asked for."""
    (bounds,) = kind.__metadata__
    assert all(map(bounds.contain, allowed)) and not any(map(bounds.contain, refused))


def test_bounds_with_an_upper_end():
    """Catches a seed that is the evaluation's, and words that do not say what is allowed."""
    assert Bounds(at_least=0, below=4).contain(3) and not Bounds(at_least=0, below=4).contain(4)
    assert str(Bounds(above=0, at_most=1)) == "must be above 0 and at most 1"
    assert str(Bounds()) == "must be a number"


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


def test_defaults_by_size():
    """Catches a default that replaces what the user asked for, and one of a smaller or larger model."""
    sizes = {parameters: flags.size_of(parameters) for parameters in (1, 10**7 - 1, 10**7, 1_300_000_000)}
    assert list(sizes.values()) == ["tiny", "tiny", "small", "large"]
    args = RunFlags(steps=7)
    flags.resolve_defaults(args, 135_000_000)
    assert (args.steps, args.group_size, args.max_new_tokens) == (7, 8, 256)
