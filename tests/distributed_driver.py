"""Every training script in float64, in several processes.

    torchrun --nproc-per-node N distributed_driver.py TOY_MODEL OUT [RUN,RUN,... [STEPS [HOW]]]
    python distributed_driver.py TOY_MODEL fork PLAN    many such jobs: one import of torch, ranks are forked

Leaves OUT/<run>/, the output folder of each run; one that is there goes on. HOW is "float32" (single
precision), "die last" (the last rank is killed in the third step), "die first" (the main one), "fail" (the
last one stops with a message), "ctrl-c" (which comes in the fourth step) or "go on" (with the flags of
those).
"""

import gc
import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import toys  # noqa: E402
import transformers  # noqa: E402
from random_model import Float64  # noqa: E402

import grpo  # noqa: E402
import guide  # noqa: E402
import h1_curriculum  # noqa: E402
import siren  # noqa: E402
from papers import cispo, clip_cov, dapo, general_reasoner, gspo, passk, srpo  # noqa: E402
from plainrl import asked, curves, ranks, run, sampler, screen, verifier  # noqa: E402
from plainrl.sampler import HFSampler  # noqa: E402
from plainrl.vllm_sampler import write_weights  # noqa: E402

RUNS = {  # name: script and flags
    "grpo": (grpo, {"kl_coef": 0.1}),
    "lora": (grpo, {"lora_rank": 4, "lr": 1e-2}),
    "dapo": (dapo, {"max_refills": 3, "overlong_buffer": 4}),
    "cispo": (cispo, {}),
    "gspo": (gspo, {}),
    "passk": (passk, {"k": 2}),
    "srpo": (srpo, {"k": 2}),
    "siren": (siren, {"beta": 1.0}),
    "general_reasoner": (general_reasoner, {"verifier_tokens": 8}),
    "guide": (guide, {"max_refills": 2}),
    "clip_cov": (clip_cov, {"cov_low": -1.0, "cov_high": 1.0, "cov_fraction": 0.2}),
    "few_rows": (
        grpo,
        {"prompts_per_step": 2, "group_size": 2, "activation_checkpointing": True},
    ),  # two in an update: ranks without any
    "pushed": (grpo, {}),
    "pushed lora": (grpo, {"lora_rank": 4, "lr": 1e-2}),
    "h1_curriculum": (h1_curriculum, {"max_horizon": 3, "steps_per_stage": 2, "eval_problems": 3}),
}


EARLY_ENDS = {  # how: which rank, with which exit status
    "die last": (-1, -signal.SIGKILL),
    "die first": (0, -signal.SIGKILL),
    "fail": (-1, 1),
}


class FolderSampler(HFSampler):
    """A sampler with weights of its own, which come to it as to a vLLM server: through a folder."""

    shares_weights, folder = False, None

    def __init__(self, model, eos_ids):
        self.load_weights(model)
        super().__init__(self.model, eos_ids)

    def load_weights(self, model) -> None:
        write_weights(model, self.folder)
        self.model = Float64.from_pretrained(self.folder)


def end_in_the_third_step(how: str) -> None:
    """A step makes two updates: this is before the sixth."""
    original, calls = run.Run.optimizer_step, []

    def optimizer_step(*args):
        calls.append(args)
        if len(calls) == 6 and ranks.RANK == EARLY_ENDS[how][0] % ranks.WORLD_SIZE:
            screen.fail("this rank alone") if how == "fail" else os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    run.Run.optimizer_step = optimizer_step


def main(toy_model: str, out: str, only: str | None = None, steps: str = "3", how: str | None = None) -> None:
    if how != "float32":
        transformers.AutoModelForCausalLM = Float64
    curves.plot_run = lambda folder: None
    # Every text of a random model is an answer, and a random verifier goes on with it in some way: half of
    # its texts are a yes.
    general_reasoner.extracted_answer = lambda text: text or None
    verifier.VERIFIER_PROMPT = "{answer}"
    asked.encode_prompt = lambda tokenizer, text: tokenizer.encode(text) or [0]
    verifier.last_verdict = lambda text: sum(text.encode()) % 2 == 0
    if how in EARLY_ENDS:
        end_in_the_third_step(how)
    for name, (script, extra) in RUNS.items():
        if only is None or name in only.split(","):
            folder = Path(out) / name
            # A float32 run draws in float64 too: ranks sample other batches, whose rounding could turn a
            # token.
            pushed = name.startswith("pushed") or how == "float32"
            sampler.HFSampler = FolderSampler if pushed else HFSampler
            FolderSampler.folder = Path(out) / f"{name} weights"
            flags = (
                toys.quick_flags(
                    toy_model,
                    folder,
                    prompts_per_step=4,
                    minibatches=2,
                    max_new_tokens=6,
                    micro_batch_tokens=60,
                    seed=10,
                    steps=int(steps),
                    resume=folder.exists(),
                    # writing and scoring take much of a rank's time: only where it matters
                    save_every=2 if how else 100,
                    eval_every=2 if how else 100,
                )
                | extra
                | ({"verifier": toy_model} if script is general_reasoner else {})
            )
            script.main(script.Args(**flags), task=toys.HashTask())


def as_rank(rank: int, count: int, port: int) -> None:
    """What torchrun tells a process before it imports anything."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    ranks.RANK, ranks.WORLD_SIZE, ranks.MAIN = rank, count, rank == 0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def interrupt(rank: int, log: Path) -> None:
    """Send Ctrl-C to a rank once three steps are logged."""
    deadline = time.monotonic() + 120
    while not log.exists() or log.read_text().count("\n") < 4:
        assert time.monotonic() < deadline, "no steps are made"
        time.sleep(0.02)
    os.kill(rank, signal.SIGINT)


def fork(toy_model: str, plan: list[dict]) -> int:
    """One job after the other, its ranks forked; returns the worst exit status.

    A job is {"ranks", "out", "only", "steps", "how", "after"}: the arguments of `main`, and a folder that
    `out` begins as a copy of. Of one in which a rank ends early no rank may end well, and all must end: there
    is no torchrun here that ends them.
    """
    import peft  # noqa: F401  (these here, so that no rank imports them after its fork)
    import torch.distributed.checkpoint.state_dict
    import torch.distributed.fsdp  # noqa: F401
    from transformers import AutoTokenizer, LlamaForCausalLM  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("llama")  # nor builds this table, which is kept
    gc.freeze()  # what was imported here need not be looked through in every rank
    worst = 0
    for job in plan:
        if job.get("after"):
            shutil.copytree(job["after"], job["out"])
        arguments = [toy_model, job["out"], job.get("only"), job.get("steps", "3"), job.get("how")]
        port, children = free_port(), []
        for rank in range(job["ranks"]):
            children.append(os.fork())
            if children[-1] == 0:
                status = 1
                try:
                    as_rank(rank, job["ranks"], port)
                    main(*arguments)
                    status = 0
                except BaseException:
                    sys.excepthook(*sys.exc_info())  # that of plainrl/ranks.py, once it is there
                finally:
                    os._exit(status)
        if job.get("how") == "ctrl-c":
            interrupt(children[-1], Path(job["out"]) / job["only"] / "metrics.jsonl")
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if job.get("how") in EARLY_ENDS:
            rank, status = EARLY_ENDS[job["how"]]
            assert statuses[rank] == status and 0 not in statuses, statuses
        else:
            worst = max([worst, *map(abs, statuses)])
    return worst


if __name__ == "__main__":
    if sys.argv[2] == "fork":
        sys.exit(fork(sys.argv[1], json.loads(Path(sys.argv[3]).read_text())))
    main(*sys.argv[1:])
