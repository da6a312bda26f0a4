"""The sampler that asks a vLLM server, against a server that says what vLLM's would: requests, refusals, restarts."""

import json
import sys
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from random_model import EOS, random_model
from safetensors.torch import load_file

import rollout_vllm
from rollout_vllm import ServerSampler, write_weights


class Server:
    """Answers like vLLM 0.32. `answers` can be changed; `fails` requests are cut off before it answers again."""

    def __init__(self, folder):
        self.requests, self.fails, self.port = [], 0, 0
        self.answers = {
            "/version": {"version": "0.32.0"},
            "/v1/models": {"data": [{"id": "name", "root": str(folder)}]},
            "/server_info": {"vllm_config": {"model_config": {"logprobs_mode": "processed_logprobs"}}},
            "/collective_rpc": {"results": [None]},
            "/reset_prefix_cache": {"success": True},
            "/get_world_size": {"world_size": 3},
            "/update_weight_version": {"success": True},
        }
        self.start()

    def start(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                path, body = self.path.split("?")[0], self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = json.loads(body) if body else None
                server.requests.append((path, body))
                if server.fails:
                    server.fails -= 1
                    self.connection.close()
                    return
                reply = complete(body) if path == "/v1/completions" else server.answers.get(path)
                self.send_response(200 if reply is not None else 404)
                self.end_headers()
                self.wfile.write(json.dumps(reply).encode())

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
    """A completion that shows what was asked: the prompt's first id, the seed, and EOS if the seed is even."""
    ids = [body["prompt"][0], body["seed"]] + [EOS] * (body["seed"] % 2 == 0)
    return {"choices": [{"token_ids": ids, "logprobs": {"token_logprobs": [-0.5 * i for i in range(len(ids))]}}]}


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(rollout_vllm, "PATIENCE", 5)
    model = random_model(torch.float32, tied=True)
    write_weights(model, tmp_path / "weights")
    server = Server(tmp_path / "weights")
    yield server, model, tmp_path / "weights"
    server.stop()


def test_completions_are_prompt_major_with_their_seeds(world):
    """Catches seeds that go to other rows, a lost EOS or log-probability, and limits that are not passed on."""
    server, model, _ = world
    sampler = ServerSampler(server.url, model, [EOS])
    completions = sampler.generate([[5, 6], [7]], 3, 9, 0.7, [10, 11, 12, 13, 14, 15], top_p=0.9)
    assert [c.ids for c in completions] == [[5, 10, EOS], [5, 11], [5, 12, EOS], [7, 13], [7, 14, EOS], [7, 15]]
    assert [c.finish_reason for c in completions] == ["stop", "length"] * 1 + ["stop", "length", "stop", "length"]
    assert completions[0].logprobs == [0.0, -0.5, -1.0]
    asked = [body for path, body in server.requests if path == "/v1/completions"]
    assert len(asked) == 6 and all((body["max_tokens"], body["temperature"], body["top_p"]) == (9, 0.7, 0.9) for body in asked)
    assert all(body["stop_token_ids"] == [EOS] and body["return_token_ids"] and body["logprobs"] == 0 for body in asked)


def test_weights_are_written_before_the_server_reads_them(world):
    """Catches a server that is told to reload what is not there yet, a cache of prompts that is kept, and a head that stays tied."""
    server, model, folder = world
    sampler = ServerSampler(server.url, model, [EOS])
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1.0)
    server.requests.clear()
    sampler.load_weights(model)
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(saved[name], model.lm_head.weight) for name in ("lm_head.weight", "model.embed_tokens.weight"))
    assert server.requests == [("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}),
                               ("/reset_prefix_cache", {})]  # fmt: skip
    assert not list(folder.glob("*.tmp"))


@pytest.fixture
def nccl(monkeypatch):
    """vLLM's side of a transfer from GPU to GPU, which cannot be run here: what it is given, and what it is told to send."""
    seen = []

    class Engine:
        @classmethod
        def trainer_init(cls, meeting, client, source):
            seen.append(("meet", meeting, client))
            return cls()

        def send_weights(self):
            moved = [(name, tuple(weight.shape), weight.dtype) for name, weight in self.source]
            assert moved == [(part.name, part.shape, part.dtype) for part in self.source.metadata()]
            seen.append(("send", dict(self.source)))

    modules = {"base": dict(ParamMeta=namedtuple("ParamMeta", "name dtype shape"), WeightSource=object),
               "clients": dict(HTTPVLLMWeightSyncClient=lambda url: url),
               "nccl_engine": dict(NCCLTrainerInitInfo=lambda *place, rank: (*place, rank),
                                   NCCLTrainerWeightTransferEngine=Engine)}  # fmt: skip
    modules = {f"distributed.weight_transfer.{name}": content for name, content in modules.items()}
    modules["utils.network_utils"] = dict(get_ip=lambda: "here", get_open_port=lambda: 4321)
    for name, content in modules.items():
        monkeypatch.setitem(sys.modules, f"vllm.{name}", SimpleNamespace(**content))
    for name in ("vllm", "vllm.distributed", "vllm.distributed.weight_transfer", "vllm.utils"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(rollout_vllm, "dtype_name", lambda: "float32")
    move = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *where, **how: tensor if where == ("cuda",) else move(tensor, *where, **how))
    return seen


def test_weights_from_gpu_to_gpu(world, nccl):
    """Catches a group of another size than trainer and workers, a tied head that is left out, and a cache of prompts that is kept."""
    server, model, _ = world
    server.answers["/server_info"]["vllm_config"]["weight_transfer_config"] = {"backend": "nccl"}
    sampler = ServerSampler(server.url, model, [EOS])
    for _ in range(2):
        with torch.no_grad():
            model.get_input_embeddings().weight.add_(1.0)
        sampler.load_weights(model)
        server.answers["/weight_info"] = {"weight_version": sampler.sent}
    assert [what for what, *_ in nccl] == ["meet", "send", "send"]
    assert nccl[0][1:] == (("here", 4321, 4, 0), server.url.rstrip("/"))
    sent = nccl[-1][1]
    assert all(torch.equal(sent[name], model.lm_head.weight) for name in ("lm_head.weight", "model.embed_tokens.weight"))
    assert [path for path, _ in server.requests if path == "/reset_prefix_cache"] == ["/reset_prefix_cache"] * 2
    assert not any(path == "/collective_rpc" for path, _ in server.requests)


def test_a_restart_that_loses_sent_weights_ends_the_run(world, nccl):
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


def test_requests_wait_for_a_server_that_restarts(world):
    """Catches a run that ends, or a completion that is lost, when connections are cut and refused for a while."""
    server, model, _ = world
    sampler = ServerSampler(server.url, model, [EOS])
    server.fails = 2
    assert [c.ids for c in sampler.generate([[5]], 2, 9, 1.0, [1, 2])] == [[5, 1], [5, 2, EOS]]
    server.stop()
    threading.Timer(1.0, server.start).start()
    assert [c.ids for c in sampler.generate([[5]], 2, 9, 1.0, [3, 4])] == [[5, 3], [5, 4, EOS]]


def test_a_server_that_stays_away_ends_the_run(world, monkeypatch):
    """Catches a run that hangs for ever, and one that ends without saying how it goes on."""
    server, model, _ = world
    sampler = ServerSampler(server.url, model, [EOS])
    monkeypatch.setattr(rollout_vllm, "PATIENCE", 0.2)
    server.fails = 10**6
    with pytest.raises(SystemExit, match="no answer for 0.2 s .* --resume goes on"):
        sampler.generate([[5]], 1, 9, 1.0, [1])


@pytest.mark.parametrize("path, answer, message", [
    ("/version", {"version": "0.33.1"}, "vLLM 0.33.1 is not supported, 0.32.x is"),
    ("/v1/models", {"data": [{"id": "name", "root": "meta-llama/Somewhere"}]}, "no folder that is seen here"),
    ("/server_info", {"vllm_config": {"model_config": {"logprobs_mode": "raw_logprobs"}}}, "without --logprobs-mode processed_logprobs"),
    ("/server_info", None, "VLLM_SERVER_DEV_MODE=1"),
])  # fmt: skip
def test_servers_that_are_refused(world, path, answer, message):
    """Catches a server with other log-probabilities, another version, or without the interface that takes weights."""
    server, model, _ = world
    server.answers[path] = answer
    with pytest.raises(SystemExit, match=message):
        ServerSampler(server.url, model, [EOS])


@pytest.mark.parametrize("name, value, message", [
    ("hidden_size", 48, "hidden_size is 48, not 32"), ("tie_word_embeddings", True, "is tied to the embeddings")])  # fmt: skip
def test_other_models_are_refused(world, name, value, message):
    """Catches weights that are pushed into a model of another shape, or whose head would stay as it was."""
    server, model, folder = world
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(SystemExit, match=message):
        ServerSampler(server.url, model, [EOS])


def test_a_cache_that_is_not_emptied_ends_the_run(world):
    """Catches completions that begin with keys and values of older weights."""
    server, model, _ = world
    sampler = ServerSampler(server.url, model, [EOS])
    server.answers["/reset_prefix_cache"] = {"success": False}
    with pytest.raises(SystemExit, match="could not be emptied"):
        sampler.load_weights(model)
