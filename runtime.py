"""Plumbing that every training script shares: load a model, the output folder, checkpoints, the log and the screen.

Nothing here belongs to an algorithm; a reader who wants to know what GRPO does can skip this file.
"""

import ctypes
import fcntl
import hashlib
import importlib
import json
import math
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

import distributed
import lora
from tasks import is_error

disable_progress_bar()  # one line a step is progress enough

EVAL_SEED = 2**31  # evaluation has its own seed, so every checkpoint meets the same problems and the same random numbers
MICRO_BATCH_TOKENS = 16384 if torch.cuda.is_available() else 1024  # of a real model; on a CPU 16384 are 6% faster, for 1.6 GB
DEFAULT_LENGTHS = {"tiny": 160, "real": 3072}  # longest completion of an evaluation


def size_of(parameters: int) -> str:
    """The row of a script's table of defaults that a model belongs to."""
    return "tiny" if parameters < 10_000_000 else "real"


def fail(message: str) -> None:
    """Stop with one clear line."""
    if not distributed.MAIN:
        time.sleep(2)  # most often the main rank says the same and ends the others
    if distributed.several():
        distributed.leave(f"error: {message}")
    sys.exit(f"error: {message}")


def or_fail(function, *arguments):
    """Call it; a ValueError, whose message names the flag, file or field, becomes the one line that the user sees."""
    try:
        return function(*arguments)
    except ValueError as error:
        fail(str(error))


def start_process() -> None:
    """What every script does first."""
    keep_freed_memory()
    distributed.start()


def in_one_process(script: str) -> None:
    """Refuse several processes, which would do the same thing side by side."""
    if distributed.WORLD_SIZE > 1:
        fail(f"{script} runs in one process; start it without torchrun, one on each GPU (CUDA_VISIBLE_DEVICES)")


def keep_freed_memory() -> None:
    """Tell glibc to keep freed pages for the next tensor; without it a CPU step spends much of its time in page faults."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # no glibc here
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
    for option, size in ((M_MMAP_THRESHOLD, 32 << 20), (M_MMAP_THRESHOLD, 1 << 30),  # an old glibc knows no more than the first
                         (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 256 << 20)):  # fmt: skip  (never trim)
        mallopt(option, size)


# --- models -------------------------------------------------------------------------------------------------------------


def load_model(name: str, activation_checkpointing: bool = False,
               lora_rank: int | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:  # fmt: skip
    """Load a folder, a hub name or a .gguf file, in float32 whatever the file says (bfloat16 weights lose small updates).

    On a GPU the model body computes in bfloat16 autocast over these float32 weights; the head stays float32.
    """
    path, kwargs = name, {}
    if name.endswith(".gguf"):
        try:
            version("gguf"), version("accelerate")
        except PackageNotFoundError:
            fail(f"--model {name}: reading a .gguf file needs two more packages; run: pip install gguf accelerate")
        if not os.path.isfile(name):
            fail(f"--model {name}: no such file")
        path, kwargs = os.path.dirname(name) or ".", {"gguf_file": os.path.basename(name)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **kwargs)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **kwargs)
    except (OSError, ValueError) as error:
        fail(f"--model {name}: cannot be loaded ({str(error).splitlines()[0]}); give a Hugging Face folder, a hub name or a .gguf file")
    if kwargs:  # dequantised into ordinary weights; the marks left behind would forbid saving
        model.hf_quantizer, model.is_quantized = None, False
        for owner, mark in ((model, "quantization_method"), (model.config, "quantization_config")):
            if hasattr(owner, mark):
                delattr(owner, mark)
    config = model.config.get_text_config()
    for scaling in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, scaling, None) not in (None, 1, 1.0):
            fail(f"--model {name}: its logits are changed after the head ({scaling}), which the scorer does not do; use another model")
    for module in model.modules():  # training and sampling must be the same policy, so nothing is dropped out
        for dropout in {"p", "dropout", "attention_dropout", "hidden_dropout"} & vars(module).keys():
            if isinstance(getattr(module, dropout), float):
                setattr(module, dropout, 0.0)
    if model.get_output_embeddings() is None:
        fail(f"--model {name}: is no causal language model with an output head")
    tokens = max(tokenizer.get_vocab().values()) + 1
    if model.get_input_embeddings().num_embeddings > tokens:  # rows that only fill up would be sampled, and mean nothing
        model.resize_token_embeddings(tokens)
    if lora_rank:
        or_fail(lora.add_adapter, model, lora_rank, name)
    if activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if torch.cuda.is_available():
        model.to("cuda")
        body = model.base_model
        body.forward = torch.autocast("cuda", torch.bfloat16, cache_enabled=False)(body.forward)  # its copies of all weights would stay
    distributed.shard(model)
    return model.train(), tokenizer


def check_model(name: str) -> None:
    """Find out cheaply whether there is a model of this name."""
    try:
        if not (name.endswith(".gguf") and os.path.isfile(name)):
            AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        fail(f"--model {name}: cannot be loaded ({str(error).splitlines()[0]}); give a Hugging Face folder, a hub name or a .gguf file")


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a completion; the one thing taken from the model's generation_config.json."""
    ids = {tokenizer.eos_token_id}
    for config in (model.generation_config, model.config):
        value = getattr(config, "eos_token_id", None)
        ids |= set(value) if isinstance(value, list) else {value}
    ids.discard(None)
    if not ids:
        fail("--model: neither its tokenizer nor its config names an EOS token, so no completion could end")
    return sorted(ids)


def model_hash(model: PreTrainedModel) -> str:
    """The first 16 hex digits of a hash over all weights: which model a run started from."""
    digest = hashlib.sha256()
    for name, weight in sorted(lora.merged(distributed.full_weights(model), model).items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return distributed.gather([digest.hexdigest()[:16]])[0]


def peak_gb() -> float:
    """Peak memory so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def learning_rate(args, step: int) -> float:
    """Linear warm-up to `lr` over `warmup_steps`, then constant: a pure function of the step (which counts from 1)."""
    return args.lr * min(1.0, step / max(1, args.warmup_steps))


# --- checkpoints --------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write aside, then rename: a kill leaves the old file or the new one, never a half. Makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text)
    aside.rename(path)


def save_model(folder: Path, model, tokenizer, extra: dict | None = None) -> None:
    """Write a plain Hugging Face folder aside, then rename it: a kill leaves the old one or the new one, never a half."""
    weights = distributed.full_weights(model)
    if not distributed.MAIN:
        return
    aside, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside, state_dict=lora.merged(weights, model))
    lora.save_adapter(aside / "adapter", weights, model)
    tokenizer.save_pretrained(aside)
    for name, content in (extra or {}).items():
        if name.endswith(".json"):
            (aside / name).write_text(json.dumps(content))
        else:
            torch.save(content, aside / name)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def save_checkpoint(folder: Path, model, tokenizer, optimizer, state: dict) -> None:
    """Everything a run needs to go on: weights, optimizer, and a small JSON state (the step and the algorithm's own)."""
    save_model(folder, model, tokenizer, {"optimizer.pt": distributed.full_optimizer(model, optimizer), "state.json": state})


def load_checkpoint(folder: Path, model, optimizer) -> dict | None:
    """Restore model and optimizer in place and return the state; None when the run was stopped before its first checkpoint."""
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if (candidate / "state.json").exists():
            load_weights(candidate, model)
            state = torch.load(candidate / "optimizer.pt", map_location="cpu", weights_only=True) if distributed.MAIN else {}
            distributed.load_optimizer(model, optimizer, state)
            return json.loads((candidate / "state.json").read_text())
    return None


def load_weights(folder: Path, model) -> None:
    """Copy the weights of a saved folder into a model of the same shape."""
    distributed.wait_for_all()  # until the main rank has written it
    if lora.has_adapter(model):
        distributed.load_weights(model, lora.load_adapter(folder / "adapter") if distributed.MAIN else {}, strict=False)
    else:
        saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict() if distributed.MAIN else {}
        distributed.load_weights(model, saved)


# --- the output folder, the log and the screen ----------------------------------------------------------------------------

MAY_CHANGE_ON_RESUME = {"steps", "token_budget", "save_every", "out_dir", "resume", "track", "micro_batch_tokens",
                        "activation_checkpointing", "max_logprob_gap", "vllm_server", "vllm_memory"}  # fmt: skip

COLUMNS = [  # title, metric, width, format
    ("reward", "reward/mean", 6, ".3f"),
    ("zero-std", "reward/frac_zero_std", 8, ".2f"),
    ("len", "rollout/len_mean", 6, ".1f"),
    ("trunc", "rollout/frac_truncated", 5, ".2f"),
    ("unparsed", "rollout/frac_unparsed", 8, ".2f"),
    ("entropy", "policy/entropy", 7, ".3f"),
    ("gap", "rollout/logprob_gap", 7, ".0e"),
    ("grad", "optim/grad_norm", 6, ".2f"),
    ("s/step", "time/step", 6, ".1f"),
    ("sampling", "time/rollout", 8, ".1f"),
]


def step_record(step: int, tokens_total: int, rollout, group_size: int, sums: dict, grad_norms: list[float], lr: float,
                times: dict[str, float]) -> dict:  # fmt: skip
    """The metrics that every script logs, under the same keys (the README's glossary defines them).

    `rollout` is everything that was sampled in the step, `sums` what the updates added up over tokens and updates.
    """
    scores = rollout.rewards(group_size)  # [B, G]
    count, tokens, updates = len(rollout.texts), sums.get("tokens", 0), len(grad_norms)
    per_token = lambda name: sums[name] / tokens if tokens else None  # noqa: E731
    per_update = lambda total: total / updates if updates else None  # noqa: E731
    return {
        "step": step,
        "reward/mean": scores.mean().item(),
        "reward/frac_zero_std": (scores.amax(1) == scores.amin(1)).float().mean().item(),
        "reward/errors": sum(map(is_error, rollout.grades)),
        "rollout/len_mean": rollout.tokens / count,
        "rollout/frac_truncated": sum(rollout.truncated) / count,
        "rollout/frac_unparsed": sum(grade.parsed is None for grade in rollout.grades) / count,
        "rollout/logprob_gap": per_token("gap"),
        "rollout/tokens_total": tokens_total,
        "policy/entropy": per_token("entropy"),
        "policy/clip_frac": per_token("clipped"),
        **({"policy/kl_ref": per_token("kl")} if "kl" in sums else {}),
        "loss/policy": per_update(sums["policy_loss"]),
        "loss/total": per_update(sums["total_loss"]),
        "optim/grad_norm": per_update(sum(grad_norms)),
        "optim/lr": lr,
        "optim/skipped": sums["skipped"],
        **{f"time/{name}": seconds for name, seconds in times.items()},
        "perf/tokens_per_s": rollout.tokens / sum(times.values()),
        "perf/peak_gb": peak_gb(),
    }


class Run:
    """The output folder of one run, and what is shown of it on the screen.

    config.json, metrics.jsonl (one flat record a step), samples.jsonl, and the folders last/, best/ and final/.
    """

    def __init__(self, script: str, args, task_name: str, model, keep: list[str] | tuple = ()):
        self.keep = keep  # flags that a resumed run of this algorithm must not change
        self.args, self.dir, self.task = args, Path(args.out_dir), task_name
        self.started, self.first_step, self.lines = time.time(), 0, 0
        self.config = {
            "script": script,
            "flags": json.loads(json.dumps(asdict(args), default=str)),  # a path as text, a tuple as a list: as it is read back
            "parameters": model.num_parameters(),
            "model_hash": model_hash(model),
            "git_commit": git_commit(),
            "device": device_name(),
            "versions": {"python": sys.version.split()[0], **{name: version(name) for name in ("torch", "transformers", "numpy")}},
        }
        self.tracker = None
        self.lock = lock(self.dir) if self.dir.exists() and distributed.MAIN else None
        if args.resume and (self.dir / "config.json").exists():
            self.compare_with(json.loads((self.dir / "config.json").read_text()))

    def compare_with(self, before: dict) -> None:
        """A resumed run goes on with the flags and the starting model that it had."""
        for name, value in self.config["flags"].items():
            if (name in self.keep or name not in MAY_CHANGE_ON_RESUME) and before["flags"].get(name) != value:
                fail(f"--resume: --{name.replace('_', '-')} was {before['flags'].get(name)} and is now {value}; "
                     "give the old value, or another --out-dir")  # fmt: skip
        if before["model_hash"] != self.config["model_hash"]:
            fail(f"--resume: the weights of --model {self.args.model} have changed since {self.dir} was started; use another --out-dir")

    def start(self, steps_done: int) -> None:
        """Create the folder and open the log."""
        self.first_step = steps_done
        distributed.wait_for_all()  # until the other ranks have seen that there was no such folder
        self.tracker = lambda metrics, step: None
        if not distributed.MAIN:
            return
        self.dir.mkdir(parents=True, exist_ok=True)
        self.lock = self.lock or lock(self.dir)
        write_text(self.dir / "config.json", json.dumps(self.config, indent=1) + "\n")
        for name in ("metrics.jsonl", "samples.jsonl"):
            truncate_log(self.dir / name, self.first_step or -1)  # no checkpoint yet: step 0 is logged again too
        self.tracker = open_tracker(self.args.track, self.dir, self.config)
        flags, rows = self.args, self.args.prompts_per_step * self.args.group_size
        say(f"{self.config['parameters']:,} parameters on {self.config['device']}; task {self.task}; lr {flags.lr:g}")
        say(f"{flags.steps} steps of {flags.prompts_per_step} prompts x {flags.group_size} completions of at most "
            f"{flags.max_new_tokens} tokens ({rows * flags.max_new_tokens:,} tokens a step at most)")  # fmt: skip
        resumed = f", going on after step {steps_done}" if steps_done else ""
        say(f"output: {self.dir}{resumed}")

    def log(self, record: dict) -> None:
        """Append one step's record and show it."""
        if not distributed.MAIN:
            return
        record = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()}
        with open(self.dir / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        self.tracker({name: value for name, value in record.items() if name != "step"}, record["step"])
        self.show(record)

    def sample(self, step: int, rollout, advantages: torch.Tensor, **columns: list) -> None:
        """Write a step's first group to samples.jsonl and, every ten steps, one of its completions to the screen. An algorithm's own
        columns have an entry for each completion of the group."""
        if not distributed.MAIN:
            return
        count = len(rollout.texts) // len(rollout.problems)
        with open(self.dir / "samples.jsonl", "a") as file:
            for i in range(count):
                problem, grade = rollout.problems[0], rollout.grades[i]
                row = {"step": step, "prompt": problem.prompt, "completion": rollout.texts[i], "gold": problem.answer,
                       "parsed": grade.parsed, "reward": grade.score, "why": grade.why,
                       "advantage": round(advantages.flatten()[i].item(), 4),
                       **{name: values[i] for name, values in columns.items()}}  # fmt: skip
                file.write(json.dumps(row) + "\n")
        if step % 10 == 1:
            problem, grade = rollout.problems[0], rollout.grades[0]
            text = "\n".join(f"  | {line}" for line in f"{problem.prompt}\n> {rollout.texts[0]}".splitlines())
            say(f"{text}\n  | gold {problem.answer}, parsed {grade.parsed}, reward {grade.score:g} ({grade.why})")

    def show(self, record: dict) -> None:
        evals = [f"{name} {value:.3f}" for name, value in record.items() if "/avg@" in name]
        if "reward/mean" in record:
            if self.lines % 20 == 0:
                say(f"{'step':>9} | " + " ".join(f"{title:>{width}}" for title, _, width, _ in COLUMNS) + " | left")
            self.lines += 1
            step, steps = record["step"], self.args.steps
            record = record | {"time/step": sum(value for name, value in record.items() if name.startswith("time/"))}
            cells = [f"{record[name]:>{width}{form}}" if record.get(name) is not None else " " * width for _, name, width, form in COLUMNS]
            left = (time.time() - self.started) / (step - self.first_step) * (steps - step)
            say(f"{step:>4}/{steps:<4} | {' '.join(cells)} | {minutes(left)}")
        if evals:
            say("  " + "   ".join(evals))

    def interrupted(self) -> Path:
        self.close()
        say(f"stopped and saved; the same command with --resume --out-dir {self.dir} goes on")
        return self.dir / "last"

    def finish(self, model, tokenizer, before: dict, after: dict) -> Path:
        """Save the final model, draw the curves, and say what happened and what to do next."""
        final = self.dir / "final"
        save_model(final, model, tokenizer)
        if not distributed.MAIN:
            return final
        from plot import plot_run  # matplotlib is only needed here

        plot_run(self.dir)
        say(f"\n{'test (best checkpoint by dev)':32} {'before':>8} {'after':>8}")
        for name, value in after.items():
            say(f"{name.split('/', 1)[1]:32} {before[name]:8.3f} {value:8.3f}")
        say(f"\ntook {minutes(time.time() - self.started)}; curves: {self.dir / 'curves.png'}; model: {final}")
        if self.args.task is not None:
            say(f"evaluate it: {self.eval_command(final)}")
        self.close()
        return final

    def close(self) -> None:
        """Other processes may write into the folder."""
        if self.lock:
            self.lock.close()

    def eval_command(self, model: Path) -> str:
        """What to type to measure the model as it was measured here."""
        python = Path(sys.executable)
        python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else "python"
        command = [str(python), "eval.py", "--model", str(model), "--task", self.args.task]
        if self.args.system_prompt is not None:
            command += ["--system-prompt", self.args.system_prompt]
        if self.args.temperature != 1:
            command += ["--temperature", f"{self.args.temperature:g}"]
        if self.args.max_new_tokens != DEFAULT_LENGTHS[size_of(self.config["parameters"])]:
            command += ["--max-new-tokens", str(self.args.max_new_tokens)]
        return shlex.join(command)


def marked_tokens(tokenizer, completion_ids: list[list[int]], selected: torch.Tensor) -> list[str]:
    """The completions with [[ ]] round the selected tokens [N, T], for a reader of samples.jsonl."""
    texts = []
    for ids, row in zip(completion_ids, selected.tolist()):
        text, marked = "", ""
        for chosen, run in groupby(range(len(ids)), key=row.__getitem__):  # neighbours together: letters of several tokens stay whole
            before, text = text, tokenizer.decode(ids[: list(run)[-1] + 1])
            marked += f"[[{text[len(before) :]}]]" if chosen else text[len(before) :]
        texts.append(marked)
    return texts


def say(text: str) -> None:
    """Print, once for all ranks."""
    if distributed.MAIN:
        print(text, flush=True)


def minutes(seconds: float) -> str:
    seconds = int(seconds)
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"


def check_out_dir(out_dir: Path, resume: bool) -> None:
    """A run never overwrites another."""
    if out_dir.exists() and not resume:
        fail(f"--out-dir {out_dir} exists; continue that run with --resume, or choose another --out-dir")
    if resume and not out_dir.exists():
        fail(f"--resume: there is no run in --out-dir {out_dir}")


def lock(folder: Path, message: str = ""):
    """Keep other processes from writing into the folder while the returned file is open; it is closed with the process."""
    file = open(folder / ".lock", "w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        fail(message or f"--out-dir {folder}: another process is writing there; wait for its end, or choose another --out-dir")
    return file


def truncate_log(path: Path, last_step: int) -> None:
    """Drop what a resumed run will write again: the records after its checkpoint, and the closing test scores."""
    if path.exists():
        kept = []
        for line in path.read_text().splitlines(keepends=True):
            try:
                record = json.loads(line)
                closing = record["step"] > 0 and all(name == "step" or name.startswith("test/") for name in record)
                if line.endswith("\n") and record["step"] <= last_step and not closing:
                    kept.append(line)
            except json.JSONDecodeError:
                break  # the line that the kill cut short
        write_text(path, "".join(kept))


def git_commit() -> str | None:
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


TRACKERS = {"wandb": "wandb", "tensorboard": "torch.utils.tensorboard"}


def open_tracker(kind: str, out_dir: Path, config: dict):
    """A function (metrics, step) that sends a record to wandb or tensorboard, or does nothing."""
    if kind == "wandb":
        import wandb

        run_id = hashlib.sha1(str(out_dir.absolute()).encode()).hexdigest()[:12]
        wandb.init(project="plainrl", name=out_dir.name, dir=out_dir, config=config, resume="allow", id=run_id)
        return lambda metrics, step: wandb.log(metrics, step=step)
    if kind == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(out_dir)
        return lambda metrics, step: [writer.add_scalar(name, value, step) for name, value in metrics.items() if value is not None]
    return lambda metrics, step: None


MAX_SKIPS_IN_A_ROW = 5


def step_or_skip(optimizer, grad_norm: float, loss: float, state: dict, run: "Run", rollout) -> bool:
    """One optimizer step, unless loss or gradient is not finite: then the update is skipped, and after five in a row the
    batch is saved and the run stops. Returns whether it was skipped."""
    if math.isfinite(grad_norm) and math.isfinite(loss):
        optimizer.step()
        state["skips_in_a_row"] = 0
        return False
    state["skips_in_a_row"] += 1
    if state["skips_in_a_row"] >= MAX_SKIPS_IN_A_ROW:
        batch = {"prompt_ids": rollout.prompt_ids, "completion_ids": rollout.completion_ids,
                 "logprobs": [completion.logprobs for completion in rollout.completions],
                 "scores": [grade.score for grade in rollout.grades]}  # fmt: skip
        if distributed.MAIN:
            (run.dir / "failed_batch.json").write_text(json.dumps(batch))
        fail(f"loss or gradient was not finite in {MAX_SKIPS_IN_A_ROW} updates in a row; the batch is in {run.dir / 'failed_batch.json'}; "
             "try a smaller --lr")  # fmt: skip
    return True


def check_gap(gap: float, args) -> None:
    """Stop when sampler and trainer do not agree on the log-probability of the sampled tokens."""
    if not gap <= args.max_logprob_gap:
        fail(f"sampler and trainer log-probabilities differ by {gap:.2g} on average, more than --max-logprob-gap {args.max_logprob_gap:g}; "
             "the sampler is not sampling from the policy that is trained (stale weights, another temperature or dtype, "
             "a model whose logits are processed): fix that, or raise the limit; --importance-cap, in a new run, makes up for "
             "what remains")  # fmt: skip


def check_at_least_one(args, *names: str) -> None:
    """Refuse a flag below 1; None stands for a default."""
    for name in names:
        if getattr(args, name) is not None and getattr(args, name) < 1:
            fail(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 1")


def check_args(args) -> None:
    """Refuse flags that cannot work, naming the flag and the way out."""
    for name, value in vars(args).items():
        if isinstance(value, float) and math.isnan(value):
            fail(f"--{name.replace('_', '-')} nan: is not a number")
    check_at_least_one(args, "steps", "prompts_per_step", "max_new_tokens", "micro_batch_tokens", "minibatches", "epochs", "eval_every",
                       "eval_problems", "eval_samples", "test_problems", "save_every", "train_size", "token_budget",
                       "lora_rank")  # fmt: skip
    if args.group_size < 2:
        fail(f"--group-size {args.group_size}: a completion is compared with its group; give at least 2")
    if args.prompts_per_step % args.minibatches:
        fail(f"--minibatches {args.minibatches}: does not divide --prompts-per-step {args.prompts_per_step}")
    if args.temperature <= 0:
        fail(f"--temperature {args.temperature:g}: must be above 0; a greedy group has no differences to learn from")
    for name in ("lr", "warmup_steps", "weight_decay", "clip_low", "clip_high", "kl_coef", "max_refills", "overlong_buffer", "beta",
                 "bonus", "bonus_rate", "target_share", "shape_alpha"):  # fmt: skip
        value = getattr(args, name, None) or 0
        if value < 0 or (math.isinf(value) and not name.startswith("clip")):  # no clip at all is a choice
            fail(f"--{name.replace('_', '-')} {value}: must not be negative" + " or infinite" * math.isinf(value))
    for name in ("max_grad_norm", "importance_cap", "shape_kappa"):
        if getattr(args, name, None) is not None and not getattr(args, name) > 0:
            fail(f"--{name.replace('_', '-')} {getattr(args, name):g}: must be above 0")
    for name in ("nucleus_p", "token_fraction", "cov_fraction"):
        if getattr(args, name, None) is not None and not 0 < getattr(args, name) <= 1:
            fail(f"--{name.replace('_', '-')} {getattr(args, name):g}: must be above 0 and at most 1")
    if not 0 <= getattr(args, "tau", 0.0) < 1:
        fail(f"--tau {args.tau:g}: must be at least 0 and below 1; no token is above the highest of its completion")
    for name in ("gamma_quantile", "trigger_accuracy"):
        if not 0 <= getattr(args, name, 0.0) <= 1:
            fail(f"--{name.replace('_', '-')} {getattr(args, name):g}: must be within 0 to 1")
    if args.vllm_server and args.engine == "hf":
        fail("--engine hf: does not go with --vllm-server; leave one of them out")
    if args.vllm_server and not args.vllm_server.startswith(("http://", "https://")):
        fail(f"--vllm-server {args.vllm_server}: must begin with http:// or https://")
    if not 0 < args.vllm_memory < 1:
        fail(f"--vllm-memory {args.vllm_memory:g}: must be above 0 and below 1")
    if not 0 <= args.seed < EVAL_SEED:
        fail(f"--seed {args.seed}: must be 0 or more and below {EVAL_SEED}, from where evaluation takes its own")
    if args.track in TRACKERS:
        try:
            importlib.import_module(TRACKERS[args.track])
        except ImportError:
            fail(f"--track {args.track}: the package is not installed; run: pip install {args.track}")
    if args.max_logprob_gap is None:
        args.max_logprob_gap = 0.05 if torch.cuda.is_available() else 1e-4


def check_task(task, args) -> None:
    """Find out before anything is written whether the task has the problems that evaluation will ask for."""
    for split, count in (("dev", args.eval_problems), ("test", args.test_problems)):
        or_fail(task.problem, split, count - 1, EVAL_SEED)


class StopRequest:
    """Ctrl-C once: finish the step, save, stop. Twice: stop at once (the last checkpoint stays valid)."""

    def __init__(self):
        self.here = False
        signal.signal(signal.SIGINT, self._first)

    def _first(self, *_):
        self.here = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say("\nfinishing this step, then saving; press Ctrl-C again to stop at once")

    @property
    def requested(self) -> bool:
        """On any rank, so that all stop after the same step. All ranks must ask."""
        return distributed.any_rank(self.here)


def resolve_defaults(args, model, table: dict[str, dict]) -> None:
    """Fill the flags left at None from the script's table: the row "tiny" or "real", by the model's size."""
    for name, value in table[size_of(model.num_parameters())].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    unresolved = [field.name for field in fields(args) if getattr(args, field.name) is None and field.name in table["tiny"]]
    assert not unresolved, unresolved
