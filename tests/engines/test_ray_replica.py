"""A replica without Ray: what it makes of its settings, how its answers are labelled, its health and its end."""

import asyncio
import json
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from stub_vllm import StubVllm, exact

from foreword.artifact import save_prompt
from foreword.engines.ray_replica import Labelled, Replica
from foreword.engines.ray_settings import RayGatewayConfig, RayServeConfig
from foreword.errors import ConfigError
from foreword.generate import generate
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.serve.engine import Engine
from foreword.serve.tenants import Keyring

TEXT = "the quick brown fox"


@pytest.fixture
def prompt(backbone, tmp_path):
    import torch

    made, draw = make_prompt(PromptSpec(length=5), backbone), torch.Generator().manual_seed(3)
    for table in made.tables.values():
        table.set(torch.randn(table().shape, generator=draw))
    save_prompt(made, tmp_path / "store" / "p5", backbone)
    return made


@pytest.fixture(autouse=True)
def _in_a_replica(monkeypatch):
    """Stand in for the one thing that a replica asks of Ray: its own name."""
    ray = ModuleType("ray")
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="abc123"))
    ray.serve = SimpleNamespace(get_replica_context=lambda: context)
    monkeypatch.setitem(sys.modules, "ray", ray)


def ask(client, **options):
    body = {"model": "p5", "prompt": TEXT, "max_tokens": 12, "temperature": 0, **options}
    return client.post("/v1/completions", json=body, headers={"x-request-id": "from-the-proxy"})


@pytest.mark.parametrize("kind", ["engine", "gateway"])
def test_a_replica_answers_as_a_server_does_and_its_end_stops_its_engine(backbone, prompt, tmp_path, kind, capsys):
    right = generate(backbone, [TEXT], [prompt], max_new_tokens=12)[0]
    stub = StubVllm(exact(backbone, tmp_path / "store" / ".prefixes"))
    options = {"backbone": backbone.source, "store": str(tmp_path / "store")}
    config = RayServeConfig(**options) if kind == "engine" else RayGatewayConfig(**options, vllm=(stub.url,))
    replica = Replica(config)
    assert isinstance(replica._service.engine, Engine) == (kind == "engine")
    with TestClient(replica.__serve_build_asgi_app__()) as client:
        answer = ask(client)
        assert answer.json()["choices"][0]["text"] == right
        assert answer.headers["x-foreword-replica"] == "abc123"
        assert "x-request-id" not in answer.headers  # the proxy adds the one that it gave
        lines = [line for line in ask(client, stream=True).text.split("\n\n") if line.startswith("data: {")]
        assert "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines) == right
        replica.check_health()
    stub.close()
    with pytest.raises(RuntimeError, match="the engine is stopped"):
        replica.check_health()
    logged = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [e["replica"] for e in logged if e["event"].startswith("replica")] == ["abc123", "abc123"]
    assert {e["request_id"] for e in logged if e["event"] == "request"} == {"from-the-proxy"}
    assert not replica._watch._thread.is_alive()


def test_a_replica_that_others_can_reach_needs_keys_or_open(backbone, tmp_path):
    config = RayServeConfig(backbone.source, str(tmp_path), host="0.0.0.0")
    with pytest.raises(ConfigError, match="say open=true"):
        Replica(config)
    Keyring(tmp_path).add("ann")
    made = Replica(config)
    made._close()


def test_a_starting_replica_spares_another_one_s_upload(backbone, tmp_path):
    upload = tmp_path / ".incoming.now"
    upload.mkdir()
    made = Replica(RayServeConfig(backbone.source, str(tmp_path)))
    made._close()
    assert upload.is_dir() and upload.stat().st_mtime > time.time() - 3600


@pytest.mark.parametrize(("given", "kept"), [(b"a-b_c9", False), (b"x y\n", True), (b"", True), (b"z" * 65, True)])
def test_an_odd_request_id_of_a_client_goes_nowhere(given, kept):
    seen, sent = {}, []

    async def inner(scope, receive, send):
        seen.update(scope.get("state", {}))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"ours")]})

    async def send(message):
        sent.append(message)

    asyncio.run(Labelled(inner, "r1")({"type": "http", "headers": [(b"x-request-id", given)]}, None, send))
    headers = sent[0]["headers"]
    assert ((b"x-request-id", b"ours") in headers) == kept and (b"x-foreword-replica", b"r1") in headers
    assert ("request_id" in seen) != kept
