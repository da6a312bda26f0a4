"""Several processes (ranks) on one model: `torchrun --nproc-per-node N grpo.py`. In one process nothing here
is shared or waits.

Ranks share the work in two places: each samples and grades some of the prompts, and each scores some of the
rows. What they made is gathered at once, so that rollout, advantages, weights, denominators and statistics
are those of the whole batch on every rank, computed by the same lines as in one process. Gradients are
summed.

The model is sharded by PyTorch's FSDP2: each rank keeps its part of weights, gradients and optimizer moments
in float32. The whole weights are gathered for a step (sampling, forward and backward passes) and given back
before the update.
"""

import atexit
import contextlib
import gc
import os
import sys
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from functools import partial
from types import MethodType

import torch
import torch.distributed as dist

# FSDP and its checkpoints take half a second to import and are only needed in several processes, or to save
# an optimizer: the functions that use them import them.

RANK, WORLD_SIZE, LOCAL_RANK = (
    int(os.environ.get(name, default))
    for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
)
MAIN = RANK == 0  # the rank that writes files and speaks
PATIENCE = timedelta(
    minutes=90
)  # with a rank that writes a large checkpoint, or waits an hour for a server's answer


def start() -> None:
    """Meet the other processes that torchrun started."""
    if WORLD_SIZE > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            if LOCAL_RANK >= torch.cuda.device_count():
                gpus = torch.cuda.device_count()
                leave(f"error: torchrun --nproc-per-node: there are {gpus} GPUs here, one for each process")
            torch.cuda.set_device(LOCAL_RANK)
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        atexit.register(say_goodbye)
        lost = (
            "error: this rank cannot go on, by its own fault or because another has ended; "
            "--resume continues from the last checkpoint"
        )
        sys.excepthook = lambda *error: (sys.__excepthook__(*error), leave(lost))


def say_goodbye() -> None:
    gc.collect()  # what still holds the group, whose threads must not outlive the interpreter
    dist.destroy_process_group()


def several() -> bool:
    """Whether there are other processes, and this one has met them."""
    return WORLD_SIZE > 1 and dist.is_initialized()


def leave(message: str = "") -> None:
    """End this process at once. An orderly end could wait for ranks that wait for this one; torchrun then
    ends them."""
    with contextlib.suppress(OSError, AttributeError):  # a closed pipe, or no stream at all
        print(message, end="\n" * bool(message), file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(1)


def share(count: int) -> slice:
    """This rank's part of so many things: neighbours, and equally many for all ranks or one fewer."""
    return slice(count * RANK // WORLD_SIZE, count * (RANK + 1) // WORLD_SIZE)


def gather(things: list) -> list:
    """The lists of all ranks, one after the other, on every rank."""
    if WORLD_SIZE == 1:
        return things
    parts = [None] * WORLD_SIZE
    dist.all_gather_object(parts, things)
    return [thing for part in parts for thing in part]


def total(sums: Counter) -> Counter:
    """Sums over all ranks."""
    totals = Counter()
    for each in gather([sums]):
        totals.update(each)
    return totals


def any_rank(flag: bool) -> bool:
    """Whether it is true on at least one rank."""
    return any(gather([flag]))


def wait_for_all() -> None:
    if WORLD_SIZE > 1:
        dist.barrier()


# --- the model --------------------------------------------------------------------------------------------


def is_sharded(model) -> bool:
    """Whether FSDP has the model. In one process it never has, and FSDP is not imported."""
    if WORLD_SIZE == 1:
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def shard(model) -> None:
    """Leave to each rank its part of every weight, and of gradients and optimizer moments."""
    if WORLD_SIZE == 1:
        return
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    layers = next(module for module in model.base_model.modules() if isinstance(module, torch.nn.ModuleList))
    for part in (*layers, model):
        fully_shard(part)
        part.set_gradient_divide_factor(1.0)  # gradients are summed,
        part.set_force_sum_reduction_for_comms(True)  # by plain sums: gloo has no others
    # A layer runs prompts, then what follows them. The second uses the prompts' keys and values behind
    # FSDP's back. So weights stay until `release_weights`.
    model.set_reshard_after_forward(False)
    model.set_reshard_after_backward(False)
    model.set_requires_gradient_sync(False)
    model.inside = MethodType(lambda _, function: function(), model)
    register_fsdp_forward_method(model, "inside")
    one_token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    inside(model, lambda: model.base_model(input_ids=one_token))  # FSDP sets itself up
    release_weights(model)


def sharded_parts(model) -> list:
    """The modules that FSDP gathers and releases one by one; none in one process."""
    return [module for module in model.modules() if is_sharded(module)] if WORLD_SIZE > 1 else []


def inside(model, function, *arguments):
    """Call a function that uses parts of the model; FSDP takes the call for the model's forward pass."""
    return model.inside(partial(function, *arguments)) if hasattr(model, "inside") else function(*arguments)


def gather_weights(model) -> None:
    """The whole weights on every rank, for sampling and scoring. All ranks must call it."""
    for part in sharded_parts(model):
        part.unshard()


def release_weights(model) -> None:
    """Back to a part of them; `model.parameters()` are those that the optimizer knows again."""
    for part in sharded_parts(model):
        part.reshard()


def clip_gradients(model, max_norm: float) -> float:
    """Sum the gradients over ranks and clip them to this norm; returns their norm before."""
    if is_sharded(model):
        gather_weights(model)
        model.set_requires_gradient_sync(True)
        one_token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        (
            0.0 * model(input_ids=one_token).logits.sum()
        ).backward()  # FSDP sums at a backward pass, so it gets one
        model.set_requires_gradient_sync(False)
        release_weights(model)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    return (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item()  # FSDP's norm is a DTensor


# --- checkpoints, which do not depend on the number of ranks ------------------------------------------------


def options():
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=WORLD_SIZE > 1, cpu_offload=WORLD_SIZE > 1)


def full_weights(model) -> dict[str, torch.Tensor]:
    """{name: whole weight} on the main rank. All ranks must call it."""
    if not is_sharded(model):
        return model.state_dict()
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    release_weights(model)
    weights, names = get_model_state_dict(model, options=options()), {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), name)
        if name in weights:
            weights[name] = weights[names[id(weight)]]  # tied weights are one tensor, as without FSDP
    return weights


def full_optimizer(model, optimizer) -> dict:
    """The optimizer's state by names of weights, whole, on the main rank. All ranks must call it."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    release_weights(model)
    if not optimizer.state:  # torch would make one, as after a first step
        return {"state": {}, "param_groups": []}
    return get_optimizer_state_dict(model, optimizer, options=options())


def load_weights(model, weights: dict, strict: bool = True) -> None:
    """Each rank takes its part of whole weights, which the main one has; not `strict`: those that are not
    given stay."""
    release_weights(model)
    if is_sharded(model):
        from torch.distributed.checkpoint.state_dict import set_model_state_dict

        set_model_state_dict(
            model, weights, options=replace(options(), strict=strict, broadcast_from_rank0=True)
        )
    else:
        model.load_state_dict(weights, strict=strict)


def load_optimizer(model, optimizer, state: dict) -> None:
    """Each rank takes its part of what `full_optimizer` returned on the main one; the others have {}."""
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    release_weights(model)
    if any_rank(bool(state.get("state"))):
        broadcast = replace(options(), broadcast_from_rank0=WORLD_SIZE > 1)
        set_optimizer_state_dict(model, optimizer, state, options=broadcast)
