"""The vLLM samplers without vLLM: against a server that says what its would (requests, refusals, restarts),
and an engine that notes what it is told."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from mutants import mutant
from random_model import EOS, random_model
from safetensors.torch import load_file

from plainrl import ranks, vllm_sampler
from plainrl.rollout import Completion
from plainrl.sampler import make_sampler
from plainrl.vllm_sampler import MARKER, ServerSampler, VLLMSampler, write_weights


class Server:
    """Answers like vLLM 0.32. `answers` can be changed; so many requests get no answer (`fails`, after `slow`
    seconds), a part of one (`cuts`), or a completion that was broken off (`aborts`)."""

    def __init__(self, folder):
        self.requests, self.fails, self.cuts, self.aborts, self.slow, self.port = [], 0, 0, 0, 0.0, 0
        self.answers = {
            "/version": {"version": "0.32.0"},
            "/v1/models": {"data": [{"id": "name", "root": str(folder), "max_model_len": 20}]},
            "/server_info": {"vllm_config": {"model_config": {"logprobs_mode": "processed_logprobs"}}},
            "/collective_rpc": {"results": [None]},
            "/reset_prefix_cache": {"success": True},
            "/get_world_size": {"world_size": 3},
        }
        self.start()

    def start(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                path, body = (
                    self.path.split("?")[0],
                    self.rfile.read(int(self.headers.get("Content-Length") or 0)),
                )
                body = json.loads(body) if body else None
                server.requests.append((path, body))
                if server.fails:
                    time.sleep(server.slow)
                    server.fails -= 1
                    self.connection.close()
                    return
                reply = complete(body) if path == "/v1/completions" else server.answers.get(path)
                if path == "/v1/completions" and server.aborts:
                    server.aborts -= 1
                    reply["choices"][0] |= {"finish_reason": "abort", "token_ids": []}
                text = json.dumps(reply).encode()
                self.send_response(200 if reply is not None else 404)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text[: len(text) // 2] if server.cuts else text)
                server.cuts = max(0, server.cuts - 1)

            do_GET = do_POST = answer

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("localhost", self.port), Handler)
        self.port = self.http.server_port
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}/"


def complete(body: dict) -> dict:
    """A completion that shows what was asked: the prompt's first id, the seed, and EOS if the seed is
    even."""
    ids = [body["prompt"][0], body["seed"]] + [EOS] * (body["seed"] % 2 == 0)
    return {
        "choices": [
            {
                "token_ids": ids,
                "logprobs": {"token_logprobs": [-0.5 * i for i in range(len(ids))]},
                "finish_reason": "stop" if ids[-1] == EOS else "length",
            }
        ]
    }


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_sampler, "PATIENCE", 5)
    model = random_model(torch.float32, tied=True)
    write_weights(model, tmp_path / "weights")
    (tmp_path / "weights" / MARKER).touch()
    server = Server(tmp_path / "weights")
    yield server, model, tmp_path / "weights"
    server.stop()


@mutant("a group with one seed", "plainrl/vllm_sampler.py", '"seed": seeds[row]}', '"seed": seeds[row // n]}')
def test_completions_are_prompt_major_with_their_seeds(world, monkeypatch):
    """Catches seeds that go to other rows, a lost EOS or log-probability, and limits that are not passed
    on."""
    server, model, _ = world
    monkeypatch.setattr(vllm_sampler, "AT_ONCE", 4)
    sampler = ServerSampler(server.url, model, [EOS])
    completions = sampler.generate([[5, 6], [7]], 3, 9, 0.7, [10, 11, 12, 13, 14, 15], top_p=0.9)
    assert sampler.generate([], 3, 9, 0.7, []) == []  # a rank whose share of few prompts is none
    assert [c.ids for c in completions] == [
        [5, 10, EOS],
        [5, 11],
        [5, 12, EOS],
        [7, 13],
        [7, 14, EOS],
        [7, 15],
    ]
    assert [c.finish_reason for c in completions] == ["stop", "length"] * 1 + [
        "stop",
        "length",
        "stop",
        "length",
    ]
    assert completions[0].logprobs == [0.0, -0.5, -1.0]
    asked = [body for path, body in server.requests if path == "/v1/completions"]
    assert len(asked) == 6 and all(
        (body["max_tokens"], body["temperature"], body["top_p"]) == (9, 0.7, 0.9) for body in asked
    )
    assert all(
        body["stop_token_ids"] == [EOS] and body["return_token_ids"] and body["logprobs"] == 0
        for body in asked
    )


@mutant(
    "a head that vLLM takes for tied",
    "plainrl/vllm_sampler.py",
    "config.tie_word_embeddings = False",
    "config.tie_word_embeddings = True",
)
def test_weights_are_written_before_the_server_reads_them(world):
    """Catches a server that is told to reload what is not there yet, a cache of prompts that is kept, and a
    head that stays tied."""
    server, model, folder = world
    sampler = ServerSampler(server.url, model, [EOS])
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1.0)
    server.requests.clear()
    sampler.load_weights(model)
    saved = load_file(folder / "model.safetensors")
    assert all(
        torch.equal(saved[name], model.lm_head.weight)
        for name in ("lm_head.weight", "model.embed_tokens.weight")
    )
    assert server.requests == [
        ("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}),
        ("/reset_prefix_cache", {}),
    ]
    assert (
        not list(folder.glob("*.tmp"))
        and json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    )


@pytest.fixture
def nccl(monkeypatch):
    """vLLM's side of a transfer from GPU to GPU, which cannot be run here: what it is given, and what it is
    told to send."""
    seen = []

    @dataclass
    class Client:
        url: str

        def finish_weight_update(self, weight_version):
            seen.append(("version", weight_version))

    class Engine:
        @classmethod
        def trainer_init(cls, meeting, client, source):
            seen.append(("meet", meeting, client.url))
            return cls()

        def send_weights(self):
            self.client.finish_weight_update()
            moved = [(name, tuple(weight.shape), weight.dtype) for name, weight in self.source]
            assert moved == [(part.name, part.shape, part.dtype) for part in self.source.metadata()]
            seen.append(("send", dict(self.source)))

    modules = {
        "base": dict(ParamMeta=namedtuple("ParamMeta", "name dtype shape"), WeightSource=object),
        "clients": dict(HTTPVLLMWeightSyncClient=Client),
        "nccl_engine": dict(
            NCCLTrainerInitInfo=lambda *place, rank: (*place, rank), NCCLTrainerWeightTransferEngine=Engine
        ),
    }
    modules = {f"distributed.weight_transfer.{name}": content for name, content in modules.items()}
    modules["utils.network_utils"] = dict(get_ip=lambda: "here", get_open_port=lambda: 4321)
    for name, content in modules.items():
        monkeypatch.setitem(sys.modules, f"vllm.{name}", SimpleNamespace(**content))
    for name in ("vllm", "vllm.distributed", "vllm.distributed.weight_transfer", "vllm.utils"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(vllm_sampler, "dtype_name", lambda: "float32")
    move = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda tensor, *where, **how: tensor if where == ("cuda",) else move(tensor, *where, **how),
    )
    return seen


def test_weights_from_gpu_to_gpu(world, nccl):
    """Catches a group of another size than trainer and workers, a tied head that is left out, and a cache of
    prompts that is kept."""
    server, model, _ = world
    server.answers["/server_info"]["vllm_config"]["weight_transfer_config"] = {"backend": "nccl"}
    sampler = ServerSampler(server.url, model, [EOS])
    for _ in range(2):
        with torch.no_grad():
            model.get_input_embeddings().weight.add_(1.0)
        sampler.load_weights(model)
        server.answers["/weight_info"] = {"weight_version": sampler.sent}
        assert nccl[-2:-1] == [("version", sampler.sent)]  # with the weights, not after them
    assert [what for what, *_ in nccl] == ["meet", "version", "send", "version", "send"]
    assert nccl[0][1:] == (("here", 4321, 4, 0), server.url.rstrip("/"))
    sent = nccl[-1][1]
    assert all(
        torch.equal(sent[name], model.lm_head.weight)
        for name in ("lm_head.weight", "model.embed_tokens.weight")
    )
    assert [path for path, _ in server.requests if path == "/reset_prefix_cache"] == [
        "/reset_prefix_cache"
    ] * 2
    assert not any(path == "/collective_rpc" for path, _ in server.requests)


@mutant(
    "ranks that do not know which weights were sent",
    "plainrl/vllm_sampler.py",
    "self.sent = name\n",
    "self.sent = name if ranks.MAIN else None\n",
)
def test_a_restart_that_loses_sent_weights_ends_the_run(world, nccl, monkeypatch):
    """Catches completions of a policy that is older than the one that is trained."""
    server, model, _ = world
    server.answers["/server_info"]["vllm_config"]["weight_transfer_config"] = {"backend": "nccl"}
    sampler = ServerSampler(server.url, model, [EOS])
    sampler.load_weights(model)
    server.answers["/weight_info"] = {"weight_version": sampler.sent}
    sampler.generate([[5]], 1, 9, 1.0, [1])
    server.answers["/weight_info"] = {"weight_version": "default"}
    for use in (lambda: sampler.generate([[5]], 1, 9, 1.0, [1]), lambda: sampler.load_weights(model)):
        with pytest.raises(SystemExit, match="has lost the weights; --resume goes on"):
            use()
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "MAIN", False)  # a rank that samples, too, but sends nothing
        other = ServerSampler(server.url, model, [EOS])
        other.load_weights(model)
    with pytest.raises(SystemExit, match="has lost the weights"):
        other.generate([[5]], 1, 9, 1.0, [1])


@mutant(
    "a completion that was broken off",
    "plainrl/vllm_sampler.py",
    'if reason not in ("stop", "length"):',
    'if reason not in ("stop", "length", "abort"):',
)
def test_requests_wait_for_a_server_that_restarts(world):
    """Catches a run that ends, or a completion that is lost, when connections are cut and refused for a
    while; parts of an answer or of a completion that are taken for the whole."""
    server, model, _ = world
    sampler = ServerSampler(server.url, model, [EOS])
    server.fails = 2
    assert [c.ids for c in sampler.generate([[5]], 2, 9, 1.0, [1, 2])] == [[5, 1], [5, 2, EOS]]
    for way in ("cuts", "aborts"):
        setattr(server, way, 2)
        assert [c.ids for c in sampler.generate([[5]], 2, 9, 1.0, [1, 2])] == [[5, 1], [5, 2, EOS]]
        assert getattr(server, way) == 0
    server.requests.clear()
    server.fails = 2
    sampler.load_weights(model)
    assert [path for path, _ in server.requests] == ["/collective_rpc"] * 3 + ["/reset_prefix_cache"]
    server.stop()
    threading.Timer(1.0, server.start).start()
    assert [c.ids for c in sampler.generate([[5]], 2, 9, 1.0, [3, 4])] == [[5, 3], [5, 4, EOS]]


@mutant(
    "patience that is used up for ever",
    "plainrl/vllm_sampler.py",
    "self.silent_since = None\n                return",
    "return",
)
def test_patience_begins_when_the_server_goes(world, monkeypatch, capfd):
    """Catches a run that ends because a long completion was lost, and one that waits without saying so."""
    server, model, _ = world
    sampler = ServerSampler(server.url, model, [EOS])
    monkeypatch.setattr(vllm_sampler, "PATIENCE", 1.0)
    server.slow = 1.5
    for _ in range(2):
        server.fails = 1
        assert [c.ids for c in sampler.generate([[5]], 1, 9, 1.0, [1])] == [[5, 1]]
    assert capfd.readouterr().err.count(f"waiting for the vLLM server at {sampler.url}") == 1


def test_a_server_that_stays_away_ends_the_run(world, monkeypatch):
    """Catches a run that hangs for ever, and one that ends without saying how it goes on."""
    server, model, _ = world
    sampler = ServerSampler(server.url, model, [EOS])
    monkeypatch.setattr(vllm_sampler, "PATIENCE", 0.2)
    server.fails = 10**6
    with pytest.raises(SystemExit, match="no answer for 0.2 s .* --resume goes on"):
        sampler.generate([[5]], 1, 9, 1.0, [1])
    asked = len(server.requests)
    # The next of many rows does not begin to wait anew.
    with pytest.raises(SystemExit, match="no answer for 0.2 s"):
        sampler.generate([[5]], 1, 9, 1.0, [1])
    assert len(server.requests) == asked + 1


@pytest.mark.parametrize(
    "path, answer, message",
    [
        ("/version", {"version": "0.33.1"}, "vLLM 0.33.1 is not supported, 0.32.x is"),
        (
            "/v1/models",
            {"data": [{"id": "name", "root": "meta-llama/Somewhere", "max_model_len": 20}]},
            "which is not seen here",
        ),
        (
            "/server_info",
            {"vllm_config": {"model_config": {"logprobs_mode": "raw_logprobs"}}},
            "without --logprobs-mode processed_logprobs",
        ),
        (
            "/server_info",
            None,
            "/server_info.* answered 404, null; start it as python -m plainrl.vllm_sampler says",
        ),
    ],
)
def test_servers_that_are_refused(world, path, answer, message):
    """Catches a server with other log-probabilities, another version, or without the interface that takes
    weights."""
    server, model, _ = world
    server.answers[path] = answer
    with pytest.raises(SystemExit, match=message):
        ServerSampler(server.url, model, [EOS])


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("hidden_size", 48, "hidden_size is 48, not 32"),
        ("rms_norm_eps", 1e-3, "rms_norm_eps is 0.001, not 1e-06"),
    ],
)
def test_other_models_are_refused(world, name, value, message):
    """Catches weights that are pushed into a model of another shape."""
    server, model, folder = world
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(SystemExit, match=message):
        ServerSampler(server.url, model, [EOS])


@mutant(
    "a model of the user's that is overwritten",
    "plainrl/vllm_sampler.py",
    "not (self.folder / MARKER).exists() or not os.access(",
    "not os.access(",
)
def test_a_folder_of_somebody_else_is_never_written_to(world, tmp_path, capsys):
    """Catches a user's own model, which a server was started on, or which is named as the folder, that
    training overwrites."""
    server, model, folder = world
    (folder / MARKER).unlink()
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(
        SystemExit, match="not made for weights that change; python -m plainrl.vllm_sampler makes a folder"
    ):
        ServerSampler(server.url, model, [EOS])
    with pytest.raises(SystemExit, match=f"--folder {folder}: something else is in it"):
        vllm_sampler.main(vllm_sampler.Args("models/tiny", folder))
    assert before == {file: file.read_bytes() for file in folder.iterdir()}
    for _ in range(2):  # its own folder it may make again
        vllm_sampler.main(vllm_sampler.Args("models/tiny", tmp_path / "new"))
    assert {"config.json", "model.safetensors", "tokenizer.json", MARKER} <= {
        file.name for file in (tmp_path / "new").iterdir()
    }
    assert f"--model {tmp_path / 'new'} --host 127.0.0.1 --port 8000" in capsys.readouterr().out


@mutant(
    "two runs whose weights one server has",
    "plainrl/vllm_sampler.py",
    "self.lock = lock(self.folder, in_use) if ranks.MAIN else None",
    "pass",
)
def test_a_server_has_the_weights_of_one_run(world):
    """Catches two runs that push into one folder, each of which then samples from the other's policy."""
    server, model, folder = world
    code = "import filelock, sys; held = filelock.FileLock(sys.argv[1]); held.acquire()"
    code += "; print('locked', flush=True); input()"
    command = [sys.executable, "-c", code, folder / ".lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(SystemExit, match=f"--vllm-server .*: another run has its weights in {folder}"):
            ServerSampler(server.url, model, [EOS])
        with pytest.raises(SystemExit, match=f"--folder {folder}: a run has its weights there"):
            vllm_sampler.main(vllm_sampler.Args("models/tiny", folder))
        other.kill()
    ServerSampler(server.url, model, [EOS])


def test_ctrl_c_while_a_server_is_awaited(world, monkeypatch):
    """Catches a second Ctrl-C that waits for all threads that wait for the server."""
    server, model, _ = world
    sampler, left = ServerSampler(server.url, model, [EOS]), []
    server.fails = 10**6
    monkeypatch.setattr(ranks, "leave", lambda message: left.append((message, time.monotonic())))
    monkeypatch.setattr(vllm_sampler, "PATIENCE", 2.0)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # as the first Ctrl-C leaves it
    began = time.monotonic()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(UnboundLocalError):  # as the process is not left here
        sampler.generate([[5]], 4, 9, 1.0, [1, 2, 3, 4])
    signal.signal(signal.SIGINT, previous)
    ((message, when),) = left
    assert "--resume goes on" in message and when - began < 1.5


def test_a_cache_that_is_not_emptied_ends_the_run(world, monkeypatch):
    """Catches completions that begin with keys and values of older weights."""
    server, model, _ = world
    sampler = ServerSampler(server.url, model, [EOS])
    server.answers["/reset_prefix_cache"] = {"success": False}
    monkeypatch.setattr(vllm_sampler, "PATIENCE", 0.2)
    with pytest.raises(SystemExit, match="no answer for 0.2 s .its cache of prompts could not be emptied"):
        sampler.load_weights(model)


# --- vLLM in this process, without vLLM ---------------------------------------------------------------------


@pytest.fixture
def engine(monkeypatch):
    """In place of vLLM, on what passes for a GPU: what its engine is told to do."""
    told = []

    class LLM:
        def __init__(self, **settings):
            told.append(("start", settings))

        def wake_up(self):
            told.append("wake")

        def sleep(self, level):
            told.append(f"sleep {level}")

        def collective_rpc(self, method, kwargs):
            told.append(method)

        model_config = SimpleNamespace(max_model_len=20)

        def reset_prefix_cache(self):
            told.append("reset")
            return True

        def generate(self, prompts, settings, use_tqdm):
            told.append("generate")
            logprobs = [{5: SimpleNamespace(logprob=-0.5)}, {EOS: SimpleNamespace(logprob=-1.0)}]
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[5, EOS], logprobs=logprobs)])] * len(
                prompts
            )

    monkeypatch.setitem(
        sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=lambda **settings: settings)
    )
    monkeypatch.setattr(vllm_sampler, "version", lambda package: "0.32.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return told


def test_memory_is_handed_back_while_the_model_trains(engine):
    """Catches a GPU that holds vLLM and the training step together, and an engine that works in its sleep."""
    model = random_model(torch.float32, tied=True)
    sampler = VLLMSampler(model, [EOS], 0.3)
    (_, settings) = engine.pop(0)
    assert (settings["gpu_memory_utilization"], settings["enable_sleep_mode"], settings["enforce_eager"]) == (
        0.3,
        True,
        False,
    )
    assert sampler.generate([[3]], 2, 9, 1.0, [1, 2]) == [Completion([5, EOS], [-0.5, -1.0], "stop")] * 2
    sampler.load_weights(model)
    sampler.generate([[3]], 1, 9, 1.0, [1])
    assert engine == ["generate", "sleep 1", "wake", "reload_weights", "reset", "generate", "sleep 1"]
    engine.clear()
    sampler = VLLMSampler(model, [EOS], None)  # an evaluation, which has the GPU for itself
    sampler.generate([[3]], 1, 9, 1.0, [1])
    (_, settings) = engine.pop(0)
    assert (settings["gpu_memory_utilization"], settings["enable_sleep_mode"], settings["enforce_eager"]) == (
        0.9,
        False,
        False,
    )
    assert engine == ["generate"]


@mutant(
    "completions that vLLM cuts",
    "plainrl/vllm_sampler.py",
    "if longest > room:",
    "if max(max_new_tokens, len(prompt_ids[0])) > room:",
)
@pytest.mark.parametrize("kind", ["engine", "server"])
def test_completions_that_vllm_would_cut_are_refused(engine, world, kind):
    """Catches completions that end at vLLM's length instead of at --max-new-tokens, without a word."""
    args = SimpleNamespace(
        engine="vllm", vllm_server=world[0].url if kind == "server" else None, max_new_tokens=19
    )
    sampler = make_sampler(args, world[1], [EOS])
    assert len(sampler.generate([[3], [3, 4]], 1, 18, 1.0, [1, 2])) == 2
    with pytest.raises(
        SystemExit,
        match="--max-new-tokens 19: makes 21 tokens with the longest prompt, and vLLM has room for 20",
    ):
        sampler.generate([[3], [3, 4]], 1, 19, 1.0, [1, 2])
    with pytest.raises(SystemExit, match="--max-new-tokens 20: makes 21 tokens"):
        make_sampler(SimpleNamespace(**vars(args) | {"max_new_tokens": 20}), world[1], [EOS])


def test_other_versions_and_several_ranks_are_refused(engine, monkeypatch):
    """Catches an engine whose log-probabilities nobody has checked, and one on every rank's GPU."""
    model = random_model(torch.float32, tied=True)
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "WORLD_SIZE", 2)
        with pytest.raises(SystemExit, match="with torchrun start a server and give --vllm-server"):
            VLLMSampler(model, [EOS])
    monkeypatch.setattr(vllm_sampler, "version", lambda package: "0.31.0")
    monkeypatch.setitem(sys.modules, "vllm", None)  # another version may not even be imported
    with pytest.raises(SystemExit, match="--engine vllm: vLLM 0.31.0 is not supported, 0.32.x is"):
        VLLMSampler(model, [EOS])
    assert engine == []
