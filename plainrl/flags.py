"""The flags that all training scripts share, their defaults by the size of the model, and what is refused.

`SharedFlags` are those of every training script, `RunFlags` those of one that samples what it trains on,
`RowFlags` those of one that trains on rows of text. A script adds its own in a class of its own:

    @dataclass
    class Args(RunFlags):
        clip_low: NotNegative = 0.2
        \"\"\"the ratio is clipped below at 1 - clip_low\"\"\"

    main(parse(Args, __doc__))
"""

import dataclasses
import difflib
import math
import os
import socket
import sys
import typing
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from plainrl.screen import fail, say

HERE = Path(__file__).resolve().parent
# The embedded models, one for each world, wherever plainrl/ was copied to.
EMBEDDED = {
    "models/tiny": HERE / "tiny",
    "models/countdown": HERE / "tiny_countdown",
    "models/orthogonal": HERE / "tiny_orthogonal",  # an architecture alone, for --init random
}
EVAL_SEED = 2**31  # evaluation has its own seed: every checkpoint meets the same problems and random numbers
EVAL_LENGTHS = {"tiny": 160, "small": 1024, "large": 3072}  # longest completions of eval.py, by size
# Models that stay as they are: the flag, which is an attribute of a run too, and what --plan calls the model.
FROZEN = {"teacher": "teacher", "frozen": "frozen model", "verifier": "verifier", "solver": "solver"}
MODEL_FLAGS = ("model", "baseline", *FROZEN, "plus", "minus", "to")  # flags that name a model

# --- defaults by the size of the model ----------------------------------------------------------------------

SIZES = {"tiny": 0, "small": 10_000_000, "large": 1_300_000_000}  # and the least number of parameters of each
SIZES_IN_HELP = (
    "Defaults depend on the size of --model: tiny is an embedded model, small 135M to 1B (a CPU or one "
    "small GPU), large what is above (the papers' scale). countdown and orthogonal are the embedded models "
    "on these tasks."
)


def size_of(parameters: int) -> str:
    """The row of defaults that a model belongs to.

    >>> size_of(1_100_000), size_of(135_000_000), size_of(7_600_000_000)
    ('tiny', 'small', 'large')
    """
    return [size for size, least in SIZES.items() if parameters >= least][-1]


def by_size(tiny, small, large, **worlds):
    """A flag whose right default depends on the model: None until `resolve_defaults` has seen the model.

    tiny is the embedded model of the chain world, small what was measured to work for SmolLM2-135M on two
    cores, large the papers' scale. Another world of small models may have a default of its own
    (`countdown=200`), else it has that of tiny.
    """
    rows = {"tiny": tiny, **worlds, "small": small, "large": large}
    return dataclasses.field(default=None, metadata={"by_size": rows})


def resolve_defaults(args, parameters: int, task=None) -> None:
    """Fill the flags that were left open, by the number of the model's parameters and the task's world."""
    size, world = size_of(parameters), getattr(task, "world", "tiny")
    for flag in dataclasses.fields(args):
        if "by_size" in flag.metadata and getattr(args, flag.name) is None:
            rows = flag.metadata["by_size"]
            setattr(args, flag.name, rows[world if size == "tiny" and world in rows else size])


def resolve_model(args, task) -> None:
    """Without --model a run starts from the embedded model of the task's world."""
    if args.model is None:
        args.model = "models/" + getattr(task, "world", "tiny")


# --- what a flag may be -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bounds:
    """The numbers that a flag may have. `infinite` allows infinity besides; nan is always refused.

    An upper end is where a number can only be a slip, far from what anybody asks for on purpose.
    """

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf
    infinite: bool = False

    def contain(self, value: float) -> bool:
        if value == math.inf:
            return self.infinite
        return (  # nan and minus infinity are within no such limits
            value >= self.at_least and value > self.above and value <= self.at_most and value < self.below
        )

    def __str__(self) -> str:
        limits = (
            ("at least", self.at_least),
            ("above", self.above),
            ("at most", self.at_most),
            ("below", self.below),
        )
        words = " and ".join(f"{word} {limit:,}" for word, limit in limits if math.isfinite(limit))
        none = ", or inf for no limit" if self.infinite else ""
        return f"must be {words}{none}" if words else "must be a number"


Count = Annotated[int, Bounds(at_least=1, at_most=10**9)]
Natural = Annotated[int, Bounds(at_least=0, at_most=10**9)]
NotNegative = Annotated[float, Bounds(at_least=0, at_most=1000)]
Positive = Annotated[float, Bounds(above=0, infinite=True)]
ClipRange = Annotated[float, Bounds(at_least=0, at_most=1, infinite=True)]
Share = Annotated[float, Bounds(above=0, at_most=1)]
Fraction = Annotated[float, Bounds(at_least=0, at_most=1)]
Number = Annotated[float, Bounds()]
Temperature = Annotated[
    float, Bounds(above=0, at_most=100)
]  # a greedy group has no differences to learn from
Prompts = Annotated[int, Bounds(at_least=1, at_most=100_000)]
GroupSize = Annotated[int, Bounds(at_least=2, at_most=10_000)]  # a completion is compared with its group
Samples = Annotated[int, Bounds(at_least=1, at_most=10_000)]
Length = Annotated[int, Bounds(at_least=1, at_most=2**20)]  # tokens of a completion
Problems = Annotated[int, Bounds(at_least=1, at_most=10**6)]  # that are scored
Tokens = Annotated[int, Bounds(at_least=1, at_most=10**15)]
Rank = Annotated[int, Bounds(at_least=1, at_most=2**16)]

BY_NAME = {  # of flags that stand in every script
    "lr": Bounds(at_most=0.1),  # AdamW moves every weight by about so much a step
    "weight_decay": Bounds(at_most=10),
    "max_grad_norm": Bounds(at_least=1e-6, infinite=True),
    "importance_cap": Bounds(at_least=0.01, infinite=True),
    "epochs": Bounds(at_most=1000),
    "max_refills": Bounds(at_most=1000),
}
OWN_FOLDERS = ("models", "runs")  # of this project: no names of the hub begin like that
COLDEST = 0.01  # least temperature that is not 0: logits divided by less are no numbers any more


# --- the flags ----------------------------------------------------------------------------------------------


@dataclass
class SharedFlags:
    """Flags of every training script; the lines that read them are in plainrl/."""

    model: str | None = None
    """Hugging Face folder, hub name or .gguf file to start from (default: models/tiny, or with --task
    countdown or orthogonal the model of that name)"""
    init: Literal["random"] | None = None
    """random: new weights, drawn by --seed, in the architecture and with the tokenizer of --model (default:
    its own weights)"""
    task: str = "chain"
    """chain[?horizon=3&family=plain], countdown, jsonl:PATH, gym:NAME?key=value or gsm8k (see
    plainrl/tasks.py)"""
    system_prompt: str | None = None
    """system turn put before every prompt"""
    enable_thinking: Literal["yes", "no"] | None = None
    """what the chat template is told of `enable_thinking` (default: nothing, so that its own default holds);
    a template that does not know the word ignores it"""
    seed: Annotated[int, Bounds(at_least=0, below=EVAL_SEED)] = 0
    """problems or rows, their order and every sampled token follow from it"""

    max_grad_norm: Positive = 1.0
    """gradients are clipped to this norm"""
    micro_batch_tokens: Count | None = by_size(tiny=32768, small=2048, large=16384)
    """tokens per forward and backward pass, equal prompts counted once;
    changes memory and speed, never the result"""
    activation_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third slower"""
    bf16: bool = False
    """compute in bfloat16 on a CPU too, as on a GPU: faster where the processor has instructions for it"""
    lora_rank: Rank | None = None
    """train adapters of this rank instead of all weights (LoRA; needs peft)"""
    engine: Literal["auto", "hf", "vllm"] = "auto"
    """sampler; auto takes vLLM where CUDA and vLLM are there, in one process"""
    vllm_server: str | None = None
    """sample on this vLLM server instead (its URL; plainrl/vllm_sampler.py says how to start it)"""
    vllm_memory: Annotated[float, Bounds(above=0, below=1)] = 0.4
    """share of the GPU that vLLM in this process may take while it samples"""
    max_logprob_gap: Annotated[float, Bounds(at_least=0, infinite=True)] | None = None
    """stop when sampler and trainer differ by more than this on average
    (default 1e-4, or 0.05 in bfloat16)"""

    eval_every: Count | None = by_size(tiny=20, small=20, large=20)
    """steps between two scores on dev"""
    eval_problems: Problems | None = by_size(tiny=64, small=32, large=128)
    """problems in a dev score"""
    eval_samples: Samples | None = by_size(tiny=16, small=4, large=4)
    """completions per problem in dev and test scores: k of avg@k, pass@k, maj@k"""
    test_problems: Problems | None = by_size(tiny=128, small=64, large=500)
    """problems in the test score, taken before the first step and after the last"""
    save_every: Count = 20
    """steps between two checkpoints"""
    out_dir: Path | None = None
    """output folder (default runs/<script>/<task>-seed<seed>)"""
    resume: bool = False
    """continue the run in --out-dir from its last checkpoint"""
    report: bool = True
    """keep what a report shows, completions token by token, and make report.html at the end"""
    plan: bool = False
    """only say what the run needs: check everything, print tokens, memory and hours, write nothing"""
    track: Literal["none", "wandb", "tensorboard"] = "none"
    """also send the metrics there, and at the end the report, the curves and samples"""

    # No flags, but what --plan has to know of a script beside its flags. A script says it in its own Args, so
    # that a copy under any name says it too.
    pass_before_update: ClassVar[bool] = False
    """every update begins with a pass over its batch without gradient (`score_all`)"""
    kl_to_start: ClassVar[bool] = True
    """--kl-coef, where a script has it, compares with a frozen copy of the starting model"""

    @property
    def runs_of_a_token(self) -> int:
        """how often a token of a row goes through the model in a step"""
        return 1

    @property
    def tokens_of_others(self) -> dict[str, int]:
        """most tokens that models which stay as they are write in a step, by what --plan calls them"""
        return {}


@dataclass
class RunFlags(SharedFlags):
    """Flags of a script that samples what it trains on."""

    steps: Count | None = by_size(tiny=80, small=60, large=500, countdown=200)
    """steps: batches sampled and trained on"""
    token_budget: Tokens | None = None
    """stop after this many sampled tokens, should that come before --steps"""
    prompts_per_step: Prompts | None = by_size(tiny=16, small=8, large=128)
    """B, prompts sampled per step"""
    group_size: GroupSize | None = by_size(tiny=16, small=8, large=8)
    """G, completions per prompt"""
    max_new_tokens: Length | None = by_size(tiny=160, small=256, large=3072, countdown=32, orthogonal=14)
    """longest completion; Dr. GRPO divides by it"""
    temperature: Temperature = 1.0
    """sampling temperature; the same one divides the logits in the loss"""
    train_size: Count | None = None
    """train on this many problems only, over and over"""


@dataclass
class RowFlags(SharedFlags):
    """Flags of a script that trains on rows of text: prompts with their completions."""

    data: tuple[Path, ...] = ()
    """files of rows with prompt and completion, or messages (see plainrl/rows.py); without it the worked
    solutions of --task"""
    task: str = "chain"
    """what dev and test are measured on by sampling: chain, countdown, jsonl:PATH, gym:NAME or gsm8k (see
    plainrl/tasks.py); none: only the loss on held-out rows is measured"""
    epochs: Count = 3
    """passes over the rows"""
    steps: Count | None = None
    """stop after this many optimizer steps, should that come before --epochs (default: as --epochs says)"""
    token_budget: Tokens | None = None
    """stop after this many tokens with loss, should that come first"""
    rows_per_step: Prompts | None = by_size(tiny=64, small=64, large=64)
    """N, rows of one optimizer step"""
    train_size: Count | None = None
    """train on this many rows, drawn by --seed (default: on all; on 512 of a task that never ends)"""
    max_length: Length | None = by_size(tiny=1024, small=4096, large=4096)
    """most tokens of a row, prompt and completion; never more than the model's context"""
    over_length: Literal["drop", "fail"] = "drop"
    """what is done about a longer row: it is left out and counted, or the run stops; no row is ever cut"""
    loss_on: Literal["completion", "all"] = "completion"
    """learn the completions alone, or the prompts too (continued pretraining)"""
    dev_share: Annotated[float, Bounds(at_least=0, at_most=0.5)] = 0.05
    """share of the prompts whose rows are held out for eval/loss, by a hash of the prompt; about 512 rows at
    most"""
    max_new_tokens: Length | None = by_size(tiny=160, small=256, large=3072, countdown=32, orthogonal=14)
    """longest completion in dev and test scores"""
    temperature: Temperature = 1.0
    """sampling temperature of dev and test scores; the loss is always at 1"""
    eval_every: Count | None = by_size(tiny=8, small=20, large=20)
    """steps between two scores on dev"""


# --- from the command line ----------------------------------------------------------------------------------


def flag_of(name: str) -> str:
    """A field of Args as it is typed.

    >>> flag_of("max_new_tokens")
    '--max-new-tokens'
    """
    return "--" + name.replace("_", "-")


def parse(Args: type, description: str | None = None, moved: dict[str, str] | None = None):
    """Args from the command line. --help shows the defaults for each size of model.

    `moved` names flags that the script once had, or one with its value, and where to go instead.
    """
    known = {flag_of(field.name) for field in dataclasses.fields(Args)}
    known |= {f"--no-{name[2:]}" for name in known} | {"--help"}
    for word, after in zip(sys.argv[1:], [*sys.argv[2:], ""]):
        name, _, value = word.partition("=")
        name = name.replace("_", "-")
        for gone in (name, f"{name} {value or after}"):
            if gone.startswith("--") and gone[2:] in (moved or {}):
                fail(f"{gone}: is not in this script any more; {moved[gone[2:]]}")
        if name.startswith("--tyro-"):  # tyro's own, such as --tyro-print-completion bash
            continue
        if name.startswith("--") and len(name) > 2 and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "--help lists all flags"
            fail(f"{name}: there is no such flag; {hint}")
    has_sizes = any("by_size" in flag.metadata for flag in dataclasses.fields(Args))
    shown = f"{description or ''}\n\n{SIZES_IN_HELP}".strip() if has_sizes else description
    return with_home(Args(**vars(tyro.cli(with_visible_defaults(Args), description=shown))))


def with_home(args):
    """The same flags with ~ as the home folder, in every path: shells leave it as it is in --out-dir=~/x."""
    for name, value in vars(args).items():
        if isinstance(value, Path):
            setattr(args, name, Path(os.path.expanduser(value)))
        elif isinstance(value, tuple) and all(isinstance(part, Path) for part in value):
            setattr(args, name, tuple(Path(os.path.expanduser(part)) for part in value))
        elif name in MODEL_FLAGS and value is not None:  # it may be a folder, a file or a hub name
            setattr(args, name, os.path.expanduser(value))
    return args


def with_visible_defaults(Args: type) -> type:
    """The same flags, where --help says the defaults of each size instead of None."""
    hints = typing.get_type_hints(Args, include_extras=True)
    annotations = {}
    for flag in dataclasses.fields(Args):
        if flag.default is not None:
            continue  # tyro shows it
        rows = flag.metadata.get("by_size", {})
        values = [f"{value:g} {size}" for size, value in rows.items()]
        if len(set(rows.values())) == 1:
            values = [f"{rows['tiny']:g}"]
        shown = f"(default: {', '.join(values)})" if rows else ""  # else the docstring says what happens
        help_line = tyro.conf.arg(help_behavior_hint=shown, metavar=plain_type(hints[flag.name]))
        annotations[flag.name] = Annotated[hints[flag.name], help_line]
    return dataclass(
        type(Args.__name__, (Args,), {"__annotations__": annotations} | dict.fromkeys(annotations))
    )


def plain_type(hint) -> str:
    """How --help calls a flag's type, without None and without bounds.

    >>> plain_type(Count | None), plain_type(Literal["a", "b"] | None)
    ('INT', '{a,b}')
    """
    if typing.get_origin(hint) is Literal:
        return "{" + ",".join(typing.get_args(hint)) + "}"
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    return plain_type(options[0]) if options else getattr(hint, "__name__", str(hint)).upper()


def check_flags(args) -> None:
    """Refuse numbers that cannot work, naming the flag and what it may be, and flags that do not go
    together."""
    for name, hint in typing.get_type_hints(type(args), include_extras=True).items():
        value = getattr(args, name)
        for bounds in bounds_of(hint) + ([BY_NAME[name]] if name in BY_NAME else []):
            if isinstance(value, int | float) and not bounds.contain(value):
                odd = isinstance(value, float) and not math.isfinite(value)
                finite = " and a finite number" if odd and not bounds.infinite else ""
                fail(f"{flag_of(name)} {value}: {bounds}{finite}")
    temperature = getattr(args, "temperature", None)
    if temperature is not None and 0 < temperature < COLDEST:
        greedy = "" if isinstance(args, SharedFlags) else ", or 0 for greedy sampling"
        fail(f"--temperature {temperature}: must be at least {COLDEST}{greedy}")
    for flag in MODEL_FLAGS:
        check_model_is_there(getattr(args, flag, None), flag_of(flag))
    minibatches, prompts = getattr(args, "minibatches", 1), getattr(args, "prompts_per_step", None)
    if prompts is not None and prompts % minibatches:
        fail(f"--minibatches {minibatches}: does not divide --prompts-per-step {prompts}")
    if getattr(args, "plan", False) and args.resume:
        fail("--plan: is for a run that has not begun; leave --resume out")
    if getattr(args, "init", None) and args.lora_rank:
        fail("--init random: does not go with --lora-rank, which adds little to weights that have learned")
    server = getattr(args, "vllm_server", None)
    if server and args.engine == "hf":
        fail("--engine hf: does not go with --vllm-server; leave one of them out")
    if server and not server.startswith(("http://", "https://")):
        fail(f"--vllm-server {server}: must begin with http:// or https://")


def looks_like_a_path(model: str) -> bool:
    """Whether a model is a folder or a file, and no hub name."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or model.endswith(".gguf")


def check_model_is_there(name: str | None, flag: str) -> None:
    """Refuse a model that is not on this machine where no network can bring it: transformers would ask for
    it for a minute. Say so where the hub is asked."""
    if not name or name in EMBEDDED or os.path.exists(os.path.expanduser(name)):
        return
    if name.split("/")[0] in OWN_FOLDERS:
        fail(f"{flag} {name}: no such folder or file; give a Hugging Face folder, a hub name or a .gguf file")
    if looks_like_a_path(name):
        return  # `load_model` refuses it without a network
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        in_cache = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return  # no name that the hub could have: `load_model` says so
    if in_cache or constants.HF_HUB_OFFLINE:
        return
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    say(f"{flag} {name}: no such folder here; asking {address.hostname}")
    if urllib.request.getproxies():
        return  # what is behind a proxy is not seen from here
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=10).close()
    except OSError as error:
        fail(
            f"{flag} {name}: no such folder here, and {address.hostname} cannot be reached ({error}); "
            "give a folder, or try again with a network"
        )


def bounds_of(hint) -> list[Bounds]:
    """The bounds in a flag's type, also in one like `Count | None`."""
    options = [hint, *typing.get_args(hint)]
    return [
        each for option in options for each in getattr(option, "__metadata__", ()) if isinstance(each, Bounds)
    ]
