"""The gateway over HTTP, against servers that check the protocol and answer exactly, fail, stall or vanish."""

import collections
import concurrent.futures
import contextlib
import json
import signal
import subprocess
import sys
import time

import openai
import pytest
from backbones import make
from stub_vllm import StubVllm, counting, exact

from foreword.artifact import load_prompt, save_prompt
from foreword.cli import main
from foreword.engines.gateway import GatewayConfig
from foreword.engines.prefix_files import digest_of
from foreword.engines.prefix_shelf import PrefixShelf
from foreword.engines.remote import RemoteEngine
from foreword.engines.upstreams import Server, Upstreams
from foreword.engines.vllm_wire import UpstreamError, read_event, scope_of
from foreword.errors import BackboneError, ConfigError
from foreword.generate import generate
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.serve.capacity import Capacity
from foreword.serve.pool import Pool
from foreword.serve.request import Request, Sampling

KINDS = {
    "p1": {"length": 1}, "p9": {"length": 9}, "soft": {"kind": "prompt", "length": 4},
    "bos": {"kind": "prompt", "length": 3, "placement": "after_bos"}, "mid": {"kind": "infix", "length": 3},
    "tail": {"kind": "prompt", "length": 3, "placement": "suffix"},
}
TEXT = "the quick brown fox"
"""The HTTP face itself is tested in tests/serve; here is what changes with the engine behind it."""


@pytest.fixture(scope="module")
def store(backbone, tmp_path_factory):
    import torch

    folder = tmp_path_factory.mktemp("store")
    for seed, (name, spec) in enumerate(KINDS.items()):
        prompt, draw = make_prompt(PromptSpec(**spec), backbone), torch.Generator().manual_seed(seed)
        for table in prompt.tables.values():
            table.set(torch.randn(table().shape, generator=draw))
        save_prompt(prompt, folder / name, backbone)
    return folder


@contextlib.contextmanager
def running(backbone, folder, *stubs, store=None, **capacity):
    """An engine over servers, with the store's forewords in its pool."""
    pool = Pool(backbone)
    for path in sorted(store.iterdir()) if store else ():
        if path.name in KINDS:
            pool.register(path.name, path)
    shelf = PrefixShelf(folder, backbone)
    made = RemoteEngine(backbone, pool, shelf, Upstreams([s.url for s in stubs]), Capacity(**capacity)).start()
    try:
        yield made
    finally:
        made.stop()
        pool.close()
        for stub in stubs:
            stub.close()


@contextlib.contextmanager
def served(backbone, store, engine, **options):
    """The whole HTTP application around a remote engine."""
    from fastapi.testclient import TestClient

    from foreword.serve.app import make_app
    from foreword.serve.catalog import Catalog
    from foreword.serve.service import Service
    from foreword.serve.tenants import Keyring

    service = Service(backbone, engine, engine.pool, Catalog(store, "plain"), Keyring(store), "plain", **options)
    service.metrics.watch(engine, engine.pool)
    with TestClient(make_app(service)) as client:
        yield client


def ask(client, model, prompt=TEXT, **options):
    body = {"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0, **options}
    return client.post("/v1/completions", json=body)


def offline(backbone, store, name, text=TEXT, tokens=12):
    prompt = load_prompt(store / name, backbone) if name else None
    return generate(backbone, [text], [prompt], max_new_tokens=tokens)[0]


def test_every_leading_foreword_answers_exactly_as_alone(backbone, store, tmp_path):
    stub = StubVllm(exact(backbone, tmp_path))
    with running(backbone, tmp_path, stub) as engine, served(backbone, store, engine) as client:
        for name in ("p1", "p9", "soft", "bos", None):
            answer = ask(client, name or "plain").json()
            assert answer["choices"][0]["text"] == offline(backbone, store, name)
            assert answer["usage"]["prompt_tokens"] == len(TEXT)  # one token a letter, and no placeholder
        pieces = [json.loads(line[6:]) for line in ask(client, "p9", stream=True).text.split("\n\n")
                  if line.startswith("data: {")]
        assert "".join(p["choices"][0]["text"] for p in pieces) == offline(backbone, store, "p9")
        assert pieces[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    salts = [digest_of(body.get("cache_salt")) for body in stub.bodies]
    assert len(set(salts)) == 5 and None in salts  # one file a foreword; the plain model has none
    assert all(body["stream"] and "stop" not in body for body in stub.bodies)


def test_a_foreword_that_does_not_lead_is_refused_by_name(backbone, store, tmp_path):
    with running(backbone, tmp_path, StubVllm(counting)) as engine, served(backbone, store, engine) as client:
        refused = ask(client, "mid")
        assert refused.status_code == 400 and "leading prompts only" in refused.json()["error"]["message"]
        first = ask(client, "tail")
        assert first.status_code == 500 and "inside the text" in first.json()["error"]["message"]
        assert ask(client, "tail").status_code == 400  # known by now
        assert ask(client, "nobody").status_code == 404


def test_tenants_and_a_foreword_stored_over_http(backbone, store, tmp_path):
    from foreword.serve.tenants import LOCAL, Keyring

    empty = tmp_path / "store"
    empty.mkdir()
    keys = [Keyring(empty).add("acme"), Keyring(empty).add("zeta")]
    stub = StubVllm(exact(backbone, tmp_path / "prefixes"))
    with running(backbone, tmp_path / "prefixes", stub) as engine, served(backbone, empty, engine) as client:
        engine._scope_of = lambda tenant: scope_of(tenant, LOCAL)
        mine, theirs = ({"Authorization": f"Bearer {key}"} for key in keys)
        files = [("files", (path.name, path.read_bytes())) for path in (store / "p9").iterdir()]
        made = client.post("/v1/forewords", data={"name": "own"}, files=files, headers=mine)
        assert made.status_code == 201
        body = {"model": "own", "prompt": TEXT, "max_tokens": 12, "temperature": 0}
        answer = client.post("/v1/completions", json=body, headers=mine)
        assert answer.json()["choices"][0]["text"] == offline(backbone, store, "p9")
        assert client.post("/v1/completions", json=body, headers=theirs).status_code == 404
        for headers in (mine, theirs):
            client.post("/v1/completions", json={**body, "model": "plain"}, headers=headers)
    scopes = {body["cache_salt"].rpartition(":")[2] for body in stub.bodies}
    assert scopes == {scope_of("acme", LOCAL), scope_of("zeta", LOCAL)} and "acme" not in str(stub.bodies)


def test_every_setting_reaches_the_server(backbone, tmp_path):
    stub = StubVllm(counting)
    sampling = Sampling(0.5, 7, 0.9, 0.1, 11, 0.2, 0.3, 1.1, {5: 2.0})
    with running(backbone, tmp_path, stub) as engine:
        request = Request((40, 41), None, 6, sampling, n=3, logprobs=1, min_tokens=2, ignore_eos=True)
        answers = engine.submit(request).result(30)
    assert sorted(body["seed"] for body in stub.bodies) == [11, 12, 13]  # answer i of n uses seed + i
    body = stub.bodies[0]
    assert (body["temperature"], body["top_k"], body["top_p"], body["min_p"]) == (0.5, 7, 0.9, 0.1)
    assert (body["presence_penalty"], body["frequency_penalty"], body["repetition_penalty"]) == (0.2, 0.3, 1.1)
    assert (body["logit_bias"], body["min_tokens"], body["ignore_eos"]) == ({"5": 2.0}, 2, True)
    assert body["prompt"] == [40, 41] and body["max_tokens"] == 6 and "cache_salt" not in body
    first = answers[0].logprobs[0]
    assert (first.logprob, first.top) == (-0.5, ((9, -0.25),))  # the likeliest, not the one vLLM lists first


def test_a_stop_string_ends_the_answer_here_and_there(backbone, tmp_path):
    stub = StubVllm(counting)
    stub.token_sec = 0.02
    with running(backbone, tmp_path, stub) as engine:
        free = engine.submit(Request((50,), None, 30)).result(30)[0]
        stop = free.text[4:6]
        answer = engine.submit(Request((50,), None, 300, stop=(stop,))).result(30)[0]
        assert (answer.text, answer.finish_reason, answer.stop) == (free.text[:4], "stop", stop)
        ended = engine.submit(Request((50,), None, 3)).result(30)[0]
        assert (len(ended.token_ids), ended.finish_reason) == (3, "length")
        wait_for(lambda: stub.left == 1)  # the server was told by the closed connection


def wait_for(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_cancelling_deadlines_and_stopping(backbone, tmp_path):
    stub = StubVllm(counting)
    stub.token_sec = 0.05
    with running(backbone, tmp_path, stub, rows=2) as engine:
        tickets = [engine.submit(Request((50 + i,), None, 400)) for i in range(4)]
        wait_for(lambda: engine.stats().running_rows == 2)
        assert engine.stats().queued_rows == 2
        for ticket in (tickets[0], tickets[3]):  # one runs, one waits
            engine.cancel(ticket)
            assert ticket.result(10)[0].finish_reason == "cancelled"
        late = engine.submit(Request((60,), None, 400, deadline_sec=0.1))
        assert late.result(10)[0].finish_reason == "deadline"
    assert all(ticket.result(1)[0].finish_reason == "cancelled" for ticket in tickets[1:3])
    wait_for(lambda: stub.left >= 2)
    assert engine.stats().running_rows == engine.stats().queued_rows == 0


def test_a_full_queue_and_a_stopped_engine_say_so(backbone, store, tmp_path):
    stub = StubVllm(counting)
    stub.token_sec = 0.05
    with running(backbone, tmp_path, stub, rows=1, queued=1) as engine, served(backbone, store, engine) as client:
        first = engine.submit(Request((50,), None, 400))
        wait_for(lambda: engine.stats().running_rows == 1)
        engine.submit(Request((50,), None, 400))
        refused = ask(client, "plain")
        assert refused.status_code == 429 and "Retry-After" in refused.headers
        engine.cancel(first)
        assert ask(client, "plain", prompt="x" * 600).status_code == 400


@pytest.mark.parametrize(("fault", "why"), [
    ("busy", "none of 1 vLLM servers takes requests now (Busy: status 503: max_model_len is 8)"),
    ("refuse", "vLLM refused the request (status 400: max_model_len is 8)"),
    ("error", "vLLM: Internal server error"), ("break", "vLLM server"),
])
def test_a_servers_fault_ends_the_answer_with_its_reason(backbone, tmp_path, fault, why):
    stub = StubVllm(counting)
    with running(backbone, tmp_path, stub) as engine:
        stub.fault = fault
        answer = engine.submit(Request((50,), None, 5)).result(30)[0]
        assert answer.finish_reason == "error" and why in answer.error
        stub.fault = None
        assert engine.submit(Request((50,), None, 5)).result(30)[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("state", ["gone", "busy"])
def test_when_no_server_takes_it_a_request_is_told_to_come_back(backbone, store, tmp_path, state, stream):
    stubs = [StubVllm(counting), StubVllm(counting)]
    for stub in stubs:
        stub.fault = "busy"
    with running(backbone, tmp_path, *stubs) as engine, served(backbone, store, engine) as client:
        if state == "gone":
            for stub in stubs:
                stub.close()
        refused = ask(client, "p9", stream=stream)
        assert refused.status_code == 503 and int(refused.headers["Retry-After"]) >= 1
        error = refused.json()["error"]
        assert error["type"] == "unavailable_error" and error["code"] == "unavailable" and error["param"] is None
        assert "none of 2 vLLM servers takes requests now" in error["message"]
        assert "foreword_clients_left_total 0.0" in client.get("/metrics").text  # nobody has left
        if state == "busy":
            for stub in stubs:
                stub.fault = None
            assert ask(client, "p9", stream=stream).status_code == 200


def test_a_fault_that_asking_again_does_not_mend_stays_a_500(backbone, store, tmp_path):
    stub = StubVllm(counting)
    with running(backbone, tmp_path, stub) as engine, served(backbone, store, engine) as client:
        for fault in ("refuse", "error", "break"):
            stub.fault = fault
            refused = ask(client, "plain")
            assert refused.status_code == 500 and "Retry-After" not in refused.headers
            assert refused.json()["error"]["code"] == "answer_failed"
        stub.fault = "break"  # the status of a stream is out with its first event: what comes later is an event
        assert '"answer_failed"' in ask(client, "plain", stream=True).text


def test_a_batch_waits_until_a_server_is_back(backbone, store, tmp_path):
    stub = StubVllm(counting)
    stub.fault = "busy"
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions",
            "body": {"model": "plain", "prompt": TEXT, "max_tokens": 3}}
    with running(backbone, tmp_path / "prefixes", stub) as engine, served(backbone, tmp_path, engine) as client:
        file = {"file": ("in.jsonl", json.dumps(line).encode())}
        file_id = client.post("/v1/files", files=file, data={"purpose": "batch"}).json()["id"]
        asked = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
        batch = client.post("/v1/batches", json=asked).json()
        wait_for(lambda: stub.bodies)
        stub.fault = None
        wait_for(lambda: client.get(f"/v1/batches/{batch['id']}").json()["status"] == "completed", 20)
        assert client.get(f"/v1/batches/{batch['id']}").json()["request_counts"]["completed"] == 1


def test_a_server_that_is_gone_or_full_passes_requests_on(backbone, tmp_path):
    gone, busy, good = StubVllm(counting), StubVllm(counting), StubVllm(counting)
    gone.close()
    busy.fault = "busy"
    with running(backbone, tmp_path, gone, busy, good) as engine:
        tickets = [engine.submit(Request((50 + i,), None, 4)) for i in range(9)]
        assert {ticket.result(30)[0].finish_reason for ticket in tickets} == {"length"}
    assert len(good.bodies) == 9


def test_a_prefix_stays_at_home_and_moves_on_only_when_its_home_is_overloaded():
    pool = Upstreams([f"http://host{i}:1" for i in range(4)])
    homes = {key: pool.order(key)[0] for key in map(str, range(400))}
    counts = collections.Counter(server.url for server in homes.values())
    assert min(counts.values()) > 60  # even, more or less
    assert all(pool.order(key)[0] is home for key, home in homes.items())
    left = Upstreams([server.url for server in pool.servers[1:]])
    stays = [left.order(key)[0].url == home.url for key, home in homes.items() if home is not pool.servers[0]]
    assert all(stays)  # a server that goes takes only its own prefixes with it
    homes["7"].rows = 10
    assert pool.order("7")[0] is not homes["7"] and pool.order("7")[0].rank("7") < homes["7"].rank("7")
    assert pool.order(None)[0].rows == 0
    homes["7"].rows, homes["7"].down_until_sec = 0, float("inf")
    assert pool.order("7")[-1] is homes["7"]


def test_requests_of_one_prefix_meet_on_one_server(backbone, store, tmp_path):
    stubs = [StubVllm(exact(backbone, tmp_path)) for _ in range(3)]
    with running(backbone, tmp_path, *stubs, store=store) as engine:
        for _ in range(4):
            for name in ("p1", "p9", "soft"):
                engine.submit(Request(TEXT, name, 4)).result(30)
    where = {}
    for number, stub in enumerate(stubs):
        for body in stub.bodies:
            where.setdefault(body["cache_salt"], set()).add(number)
    assert len(where) == 3 and all(len(found) == 1 for found in where.values())


def test_the_first_requests_of_a_foreword_write_it_once(backbone, store, tmp_path):
    stub = StubVllm(exact(backbone, tmp_path))
    with running(backbone, tmp_path, stub, store=store) as engine, concurrent.futures.ThreadPoolExecutor(8) as many:
        tickets = list(many.map(lambda _: engine.submit(Request(TEXT, "p9", 12)), range(8)))
        texts = {ticket.result(60)[0].text for ticket in tickets}
        assert texts == {offline(backbone, store, "p9")} and len(list(tmp_path.iterdir())) == 1
        assert tickets[0].virtual_tokens == 9 and tickets[0].version
        next(tmp_path.iterdir()).unlink()  # an operator's clean-up: it is written again
        assert engine.submit(Request(TEXT, "p9", 12)).result(60)[0].text in texts
    assert len({body["cache_salt"] for body in stub.bodies}) == 1


def test_the_command_serves_the_openai_client_unchanged(backbone, store, tmp_path):
    stub = StubVllm(exact(backbone, tmp_path))
    command = [sys.executable, "-m", "foreword", "gateway", "--store", store, "--backbone", backbone.source,
               "--prefixes", tmp_path, "--vllm", stub.url, "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            events = (json.loads(line) for line in process.stderr if line.startswith("{"))
            address = next(event["address"] for event in events if "address" in event)
            client = openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0)
            assert {made.id for made in client.models.list()} == {"plain", *KINDS}
            chat = client.chat.completions.create(
                model="p9", messages=[{"role": "user", "content": TEXT}], max_tokens=12, temperature=0
            )
            assert chat.choices[0].message.content == offline(backbone, store, "p9")
            stream = client.completions.create(
                model="p9", prompt=TEXT, max_tokens=12, temperature=0, stream=True,
                stream_options={"include_usage": True},
            )
            chunks = list(stream)
            assert "".join(c.choices[0].text for c in chunks if c.choices) == offline(backbone, store, "p9")
            assert chunks[-1].usage.prompt_tokens == len(TEXT)
            client.close()
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
            assert process.wait(30) == 0
        finally:
            process.kill()
            stub.close()


def test_events_that_are_not_vllms_are_errors():
    short = 'data: {"choices": [{"token_ids": [1], "logprobs": {"token_logprobs": []}}]}'
    for line in ('data: {"choices": [3]}', "data: {", "data: []", short):
        with pytest.raises(UpstreamError):
            read_event(line, 0)
    assert read_event(": a comment", None) is None and read_event("", None) is None


def test_bad_settings_are_refused(tmp_path, capsys):
    for urls in ((), ("ftp://x",), ("http://a:1", "http://a:1/v1/")):
        with pytest.raises(ConfigError):
            Upstreams(urls)
    assert Upstreams(["http://a:1/v1/"]).servers[0].url == Server("http://a:1").url
    with pytest.raises(ConfigError, match="--vllm"):
        GatewayConfig("b", "s")
    with pytest.raises(BackboneError, match="decoders"):
        RemoteEngine(make("t5"), Pool(make("t5")), None, Upstreams(["http://a:1"]))
    assert main(["gateway", "--store", str(tmp_path), "--backbone", "x"]) == 2
    assert "give --vllm" in capsys.readouterr().err
