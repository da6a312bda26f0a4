"""plainrl/flags.py: what a number may be, flags that do not go together, defaults by size of the model."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from mutants import mutant

import eval as evaluation
import grpo
import guide
from plainrl import flags
from plainrl.flags import Bounds, RunFlags
from tools import compose

LEAST = math.nextafter(0.0, 1.0)


@mutant(
    "least number that is refused itself",
    "plainrl/flags.py",
    "value >= self.at_least and",
    "value > self.at_least and",
)
@mutant("least number that is not looked at", "plainrl/flags.py", "value >= self.at_least and", "True and")
@mutant(
    "zero where more than zero is asked for",
    "plainrl/flags.py",
    "and value > self.above",
    "and value >= self.above",
)
@mutant(
    "no clip that is refused",
    "plainrl/flags.py",
    "return self.infinite",
    "return False",
)
@mutant("greatest number that is not looked at", "plainrl/flags.py", "and value <= self.at_most", "and True")
@mutant(
    "infinity as any flag",
    "plainrl/flags.py",
    "return self.infinite",
    "return True",
)
@pytest.mark.parametrize(
    "kind, allowed, refused",
    [
        (flags.Count, [1, 10**9], [0, -1, 10**9 + 1, 10**400]),
        (flags.GroupSize, [2, 64, 1024], [1, 10**9]),
        (flags.Samples, [1, 1024], [0, 10**9]),
        (flags.Length, [1, 2**18], [0, 10**9]),
        (flags.Tokens, [1, 10**12], [0, 10**18]),
        (flags.Temperature, [0.01, 2.0], [0.0, 1e3, math.inf, math.nan]),
        (flags.NotNegative, [0.0, 1e3], [-LEAST, 1e9, math.inf, math.nan]),
        (flags.ClipRange, [0.0, 1.0, math.inf], [-LEAST, 5.0, -math.inf, math.nan]),
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
    "seed of the evaluation allowed", "plainrl/flags.py", "and value < self.below", "and value <= self.below"
)
def test_bounds_with_an_upper_end():
    """Catches a seed that is the evaluation's, and words that do not say what is allowed."""
    assert Bounds(at_least=0, below=4).contain(3) and not Bounds(at_least=0, below=4).contain(4)
    assert str(Bounds(above=0, at_most=1)) == "must be above 0 and at most 1"
    assert str(Bounds()) == "must be a number"
    assert str(Bounds(at_most=1, infinite=True)) == "must be at most 1, or inf for no limit"


@mutant(
    "bounds of optional flags not seen",
    "plainrl/flags.py",
    "options = [hint, *typing.get_args(hint)]",
    "options = [hint]",
)
@mutant(
    "learning rate of any size",
    "plainrl/flags.py",
    "bounds_of(hint) + ([BY_NAME[name]] if name in BY_NAME else [])",
    "bounds_of(hint)",
)
@mutant(
    "temperature next to nothing",
    "plainrl/flags.py",
    "if temperature is not None and 0 < temperature < COLDEST:",
    "if False:",
)
@mutant(
    "minibatches that do not divide",
    "plainrl/flags.py",
    "if prompts is not None and prompts % minibatches:",
    "if False:",
)
def test_flags_that_are_refused():
    """Catches bounds that are not looked up behind `| None`, a number that can only be a slip, and
    minibatches that split a group."""
    flags.check_flags(grpo.Args(minibatches=2, prompts_per_step=4, lr=0.1, temperature=0.01, epochs=1000))
    for changes, said in (
        ({"steps": 0}, "--steps 0: must be at least 1"),
        ({"lr": 10.0}, "--lr 10.0: must be at most 0.1"),
        ({"clip_high": 5.0}, "--clip-high 5.0: must be at least 0 and at most 1, or inf for no limit"),
        ({"group_size": 10**9}, "--group-size 1000000000: must be at least 2 and at most 10,000"),
        ({"temperature": 1e-30}, "--temperature 1e-30: must be at least 0.01"),
        ({"temperature": math.inf}, "--temperature inf: must be above 0 and at most 100 and a finite number"),
        ({"max_grad_norm": math.nan}, "--max-grad-norm nan: must be above 0, or inf for no limit"),
        ({"epochs": 10**6}, "--epochs 1000000: must be at most 1,000"),
        ({"weight_decay": 100.0}, "--weight-decay 100.0: must be at most 10"),
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


@mutant(
    "a home folder that is called tilde",
    "plainrl/flags.py",
    "return with_home(Args(**vars(tyro.cli(with_visible_defaults(Args), description=shown))))",
    "return Args(**vars(tyro.cli(with_visible_defaults(Args), description=shown)))",
)
def test_home_folder_in_flags(monkeypatch):
    """Catches a folder that is called ~: the shell leaves it as it is behind a =."""
    monkeypatch.setenv("HOME", "/home/ann")

    def parsed(Args: type, *words: str):
        monkeypatch.setattr(flags.sys, "argv", ["x.py", *words])
        return flags.parse(Args)

    args = parsed(guide.Args, "--model=~/m", "--out-dir=~/o", "--hints=~/h", "--system-prompt=~")
    assert (args.model, args.out_dir, args.hints) == ("/home/ann/m", Path("/home/ann/o"), Path("/home/ann/h"))
    assert args.system_prompt == "~" and args.vllm_server is None
    args = parsed(evaluation.Args, "--baseline=~/b", "--plot", "~/p", "p~")
    assert (args.baseline, args.plot) == ("/home/ann/b", (Path("/home/ann/p"), Path("p~")))
    args = parsed(compose.Args, "--task=jsonl:~/t", "--out=~")
    assert (args.task, args.out) == ("jsonl:~/t", Path("/home/ann"))  # load_task knows what ~ is in a task


@mutant(
    "folder of this project asked for at the hub",
    "plainrl/flags.py",
    'if name.split("/")[0] in OWN_FOLDERS:',
    "if False:",
)
@mutant(
    "a minute without a network",
    "plainrl/flags.py",
    "        socket.create_connection((address.hostname, address.port or 443), timeout=10).close()\n",
    "        pass\n",
)
def test_a_model_that_is_not_here(monkeypatch, capsys):
    """Catches a mistyped folder that the hub is asked for, a minute of silence without a network, and a
    network that is asked where it is not needed."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(flags.urllib.request, "getproxies", dict)
    asked, reachable = [], False

    def connect(address, timeout):
        asked.append(address)
        if not reachable:
            raise OSError("no route")
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(flags.socket, "create_connection", connect)
    for name in (None, "models/tiny", "./nowhere", "/no/where", "nowhere.gguf"):  # there, or a path
        flags.check_model_is_there(name, "--model")
    for name in ("models/tinny", "runs/grpo/final"):
        with pytest.raises(SystemExit, match=f"error: --model {name}: no such folder or file"):
            flags.check_flags(grpo.Args(model=name))
    assert not asked
    with pytest.raises(
        SystemExit, match="error: --baseline nobody/has-this: no such folder here, and hugging"
    ):
        flags.check_flags(SimpleNamespace(baseline="nobody/has-this"))
    reachable = True
    flags.check_model_is_there("nobody/has-this", "--model")
    assert asked == [("huggingface.co", 443)] * 2 and "asking huggingface.co" in capsys.readouterr().out
