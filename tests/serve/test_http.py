"""OpenAI's HTTP face, with the official client and with raw requests, on an engine that answers by rule."""

import json
import socket

import httpx
import openai
import pytest
import torch
from backbones import make
from fake_engine import FakeEngine, FakePool
from http_kit import PLAIN, save, serving, wait_for

from foreword.serve.ask import chosen
from foreword.serve.capacity import Capacity
from foreword.serve.check import check_request
from foreword.serve.protocol import CompletionRequest
from foreword.serve.request import Request
from foreword.serve.sampling import Sampler

JSON = {"Content-Type": "application/json"}
FOREWORDS = ("alpha", "beta", "gamma")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    backbone, store = make("llama"), tmp_path_factory.mktemp("store")
    for seed, name in enumerate(FOREWORDS):
        save(backbone, store / name, seed=seed)
    with serving(backbone, store, FakeEngine(backbone, token_sec=0.002), FakePool()) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def text_of(chunks) -> str:
    return "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)


def test_models_are_the_backbone_and_the_forewords(client):
    assert [m.id for m in client.models.list()] == [PLAIN, *FOREWORDS]
    assert client.models.retrieve("beta").owned_by == "operator"


def test_each_foreword_answers_as_itself(client):
    texts = {name: client.completions.create(model=name, prompt="abc").choices[0].text for name in (PLAIN, *FOREWORDS)}
    assert len(set(texts.values())) == 4


def test_a_stream_adds_up_to_the_whole_answer(client):
    options = {"model": "alpha", "prompt": "abc", "max_tokens": 20}
    whole = client.completions.create(**options)
    pieces = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert text_of(pieces) == whole.choices[0].text
    assert pieces[-1].usage == whole.usage and not pieces[-1].choices
    assert [p.choices[0].finish_reason for p in pieces[:-1]] == [None] * 19 + ["length"]
    assert whole.usage.completion_tokens == 20 and whole.usage.prompt_tokens == 3


def test_several_prompts_and_answers_are_numbered_as_openai_numbers_them(client):
    made = client.completions.create(model="alpha", prompt=["abc", "xyz"], n=2, max_tokens=5)
    assert [c.index for c in made.choices] == [0, 1, 2, 3]
    alone = client.completions.create(model="alpha", prompt="xyz", n=2, max_tokens=5)
    assert [c.text for c in made.choices[2:]] == [c.text for c in alone.choices]
    streamed = dict.fromkeys(range(4), "")
    for chunk in client.completions.create(model="alpha", prompt=["abc", "xyz"], n=2, max_tokens=5, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert list(streamed.values()) == [c.text for c in made.choices]


def test_token_ids_and_echo(client):
    made = client.completions.create(model="alpha", prompt=[40, 41], max_tokens=4, echo=True)
    assert made.usage.prompt_tokens == 2 and len(made.choices[0].text) == 6
    streamed = client.completions.create(model="alpha", prompt=[40, 41], max_tokens=4, stream=True, echo=True)
    assert text_of(streamed) == made.choices[0].text


def test_logprobs_of_completions_and_chats(client):
    told = client.completions.create(model="alpha", prompt="abc", max_tokens=3, logprobs=2).choices[0]
    assert "".join(told.logprobs.tokens) == told.text and told.logprobs.token_logprobs == [-0.5] * 3
    assert told.logprobs.text_offset == [0, 1, 2] and all(len(top) == 2 for top in told.logprobs.top_logprobs)
    chat = client.chat.completions.create(
        model="alpha", messages=[{"role": "user", "content": "abc"}], max_tokens=3, logprobs=True, top_logprobs=2
    ).choices[0]
    assert [len(entry.top_logprobs) for entry in chat.logprobs.content] == [2, 2, 2]
    assert bytes(b for entry in chat.logprobs.content for b in entry.bytes).decode() == chat.message.content


def test_a_chat_of_one_message_is_the_foreword_s_input(client):
    chat = client.chat.completions.create(model="beta", messages=[{"role": "user", "content": "abc"}], max_tokens=9)
    plain = client.completions.create(model="beta", prompt="abc", max_tokens=9)
    assert chat.choices[0].message.content == plain.choices[0].text and chat.choices[0].message.role == "assistant"
    pieces = list(client.chat.completions.create(
        model="beta", messages=[{"role": "user", "content": [{"type": "text", "text": "abc"}]}],
        max_completion_tokens=9, stream=True,
    ))
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == plain.choices[0].text
    assert pieces[-1].choices[0].finish_reason == "length"


def test_an_answer_s_message_goes_back_into_the_chat_as_the_client_holds_it(client):
    turns = [{"role": "user", "content": "abc"}]
    said = client.chat.completions.create(model="beta", messages=turns, max_tokens=9).choices[0].message
    wanted = client.completions.create(model="beta", prompt=f"abc\n{said.content}\nmore", max_tokens=9).choices[0].text
    for form in (said, said.to_dict(), said.model_dump(), {**said.to_dict(), "tool_calls": [], "annotations": []}):
        again = [*turns, form, {"role": "user", "content": "more"}]
        made = client.chat.completions.create(model="beta", messages=again, max_tokens=9)
        assert made.choices[0].message.content == wanted
    assert "refusal" in said.to_dict() and {"tool_calls", "audio", "annotations"} <= said.model_dump().keys()


def test_fields_that_change_nothing_are_taken_as_null_and_refused_as_anything_else(server):
    chat = {"model": "beta", "messages": [{"role": "user", "content": "abc"}], "max_tokens": 3}
    with server.client() as http:
        for field in ("functions", "function_call", "reasoning_effort", "tools"):
            assert http.post("/v1/chat/completions", json={**chat, field: None}).status_code == 200, field
        others = {"functions": [{"name": "f"}], "reasoning_effort": "high", "function_call": {"name": "f"}}
        for field, value in others.items():
            refused = http.post("/v1/chat/completions", json={**chat, field: value})
            assert refused.status_code == 400 and refused.json()["error"]["param"].startswith(field), refused.text
        for field, value in (("refusal", "no"), ("tool_calls", [{"id": "1"}]), ("audio", {"id": "1"})):
            turn = {"role": "assistant", "content": "x", field: value}
            refused = http.post("/v1/chat/completions", json={**chat, "messages": [*chat["messages"], turn]})
            assert refused.status_code == 400, refused.text
            assert refused.json()["error"]["param"].startswith(f"messages.1.{field}"), refused.text


def test_a_top_p_of_0_is_the_likeliest_token_alone():
    asked = [CompletionRequest(model="m", prompt="a", top_p=value, seed=1) for value in (0, 0.0, 1)]
    settings = [chosen(one) for one in asked]
    for one in settings:
        check_request(Request("a", sampling=one), Capacity(), make("llama"))
    logits = torch.randn(50, 3000, generator=torch.Generator().manual_seed(0))
    greedy, free = logits.argmax(-1).tolist(), Sampler(settings[2], 1)
    for one in settings[:2]:
        sampler = Sampler(one, 1)
        assert [sampler.choose(row, (), ()) for row in logits] == greedy
    assert [free.choose(row, (), ()) for row in logits] != greedy


def test_the_async_client_and_many_at_once(server):
    import asyncio

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
            asked = [client.completions.create(model=name, prompt=str(i)) for i in range(8) for name in FOREWORDS]
            return [made.choices[0].text for made in await asyncio.gather(*asked)]

    assert len(set(asyncio.run(ask()))) == 24


def test_langchain_s_openai_classes(server):
    from langchain_openai import ChatOpenAI, OpenAI

    options = {"base_url": f"{server.url}/v1", "api_key": "x", "model": "alpha"}
    assert OpenAI(**options, max_tokens=6).invoke("abc")
    chat = ChatOpenAI(**options, max_tokens=6)
    assert chat.invoke("abc").content == "".join(piece.content for piece in chat.stream("abc")) != ""


BAD = [
    ({"model": "alpha"}, "prompt", "field 'prompt' is missing"),
    ({"model": "alpha", "prompt": "a", "temprature": 1}, "temprature", "did you mean 'temperature'"),
    ({"model": "alpha", "prompt": "a", "temperature": 3}, "temperature", "temperature = 3"),
    ({"model": "alpha", "prompt": "a", "temperature": "hot"}, "temperature", "'hot'"),
    ({"model": "alpha", "prompt": "a", "presence_penalty": False}, "presence_penalty", "must be a number"),
    ({"model": "alpha", "prompt": []}, "prompt", "at least one prompt"),
    ({"model": "alpha", "prompt": "a", "n": 0}, "n", "n = 0"),
    ({"model": "alpha", "prompt": "a", "stop": ["x"] * 17}, "stop", "17 stop strings"),
    ({"model": "alpha", "prompt": "a", "best_of": 3}, None, "best_of = 3"),
    ({"model": "alpha", "prompt": "a", "suffix": "b"}, "suffix", "not supported; leave it out"),
    ({"model": "alpha", "prompt": "a", "max_tokens": 10**5}, "max_tokens", "max_tokens = 100000"),
    ({"model": "alpha", "prompt": "a", "stream_options": {"include_usage": True}}, None, "stream = true"),
    ({"model": "alpha", "prompt": "a", "logit_bias": {"x": 1}}, "logit_bias", "token ids"),
    ({"model": "alpha", "prompt": ["a"] * 257}, "prompt", "257 texts"),
    ({"model": "alpha", "prompt": "\ud800"}, "prompt", "surrogate"),
]


@pytest.mark.parametrize(("body", "param", "words"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_a_bad_field_is_named_with_its_value_and_the_fix(server, body, param, words):
    with server.client() as http:
        answer = http.post("/v1/completions", content=json.dumps(body), headers=JSON)
    fault = answer.json()["error"]
    assert answer.status_code == 400 and words in fault["message"], fault
    assert fault["type"] == "invalid_request_error"
    assert param is None or fault["param"] == param, fault


def test_other_faults_have_openai_s_format_too(server):
    with server.client() as http:
        seen = {
            "not json": http.post("/v1/completions", content="{", headers=JSON),
            "content type": http.post("/v1/completions", content='{"model": "alpha", "prompt": "a"}'),
            "path": http.get("/v1/nothing"),
            "method": http.get("/v1/completions"),
            "model": http.post("/v1/completions", json={"model": "delta", "prompt": "a"}),
            "tools": http.post("/v1/chat/completions", json={
                "model": "alpha", "messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]}),
        }
    assert {name: answer.status_code for name, answer in seen.items()} == {
        "not json": 400, "content type": 400, "path": 404, "method": 405, "model": 404, "tools": 400}
    assert all(set(answer.json()["error"]) == {"message", "type", "param", "code"} for answer in seen.values())
    assert seen["model"].json()["error"]["code"] == "model_not_found"
    assert seen["method"].headers["allow"] == "POST"


def test_a_full_queue_is_429_with_retry_after(server):
    server.engine.full = True
    try:
        with server.client() as http:
            answer = http.post("/v1/completions", json={"model": "alpha", "prompt": "a"})
    finally:
        server.engine.full = False
    assert answer.status_code == 429 and answer.headers["retry-after"] == "3"
    assert answer.json()["error"]["code"] == "queue_full"


def test_a_deadline_is_504_and_in_a_stream_an_event(server, client):
    with server.client() as http:
        body = {"model": "alpha", "prompt": "a", "max_tokens": 4000, "deadline_sec": 0.05}
        answer = http.post("/v1/completions", json=body)
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline_passed"
        lines = http.post("/v1/completions", json={**body, "stream": True}).text.splitlines()
    assert "deadline_passed" in lines[-4] and lines[-2] == "data: [DONE]"
    with pytest.raises(openai.APIError, match="not finished in time"):
        list(client.completions.create(model="alpha", prompt="a", max_tokens=4000, stream=True,
                                       extra_body={"deadline_sec": 0.05}))


def test_an_answer_that_fails_says_so(server):
    server.engine.fail = "the foreword at " + str(server.service.store) + "/alpha is damaged"
    try:
        with server.client() as http:
            answer = http.post("/v1/completions", json={"model": "alpha", "prompt": "a"})
    finally:
        server.engine.fail = None
    assert answer.status_code == 500 and "store/alpha is damaged" in answer.json()["error"]["message"]
    assert str(server.service.store) not in answer.text


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(server, stream):
    body = json.dumps({"model": "alpha", "prompt": "a", "max_tokens": 4000, "stream": stream})
    address = httpx.URL(server.url)
    before = server.engine.finished.get("cancelled", 0)
    # a bare socket: it leaves when the test says so, not after a time that a busy machine may need to admit the row
    with socket.create_connection((address.host, address.port)) as line:
        head = f"Host: {address.host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        line.sendall(f"POST /v1/completions HTTP/1.1\r\n{head}\r\n\r\n{body}".encode())
        wait_for(lambda: server.engine.live)
        if stream:
            assert line.recv(15) == b"HTTP/1.1 200 OK"
    wait_for(lambda: server.engine.finished.get("cancelled", 0) == before + 1)
    assert not server.engine.live
    assert server.service.limits.rows_of(server.service.keyring.who(None)) == 0


def test_compare_streams_several_models_in_one_response(server):
    body = {"models": ["alpha", "beta", PLAIN], "prompt": "abc", "max_tokens": 6}
    texts = dict.fromkeys(body["models"], "")
    with server.client() as http:
        for line in http.post("/v1/compare", json=body).text.splitlines():
            if line.startswith("data: {"):
                piece = json.loads(line[6:])
                texts[piece["model"]] += piece["text"]
        for name, text in texts.items():
            whole = http.post("/v1/completions", json={"model": name, "prompt": "abc", "max_tokens": 6}).json()
            assert whole["choices"][0]["text"] == text


def test_health_readiness_metrics_and_status(server):
    with server.client() as http:
        http.post("/v1/completions", json={"model": "alpha", "prompt": "a"})
        assert http.get("/health").json() == {"status": "ok"} and http.get("/ready").status_code == 200
        figures = http.get("/metrics").text
        status = http.get("/v1/status").json()
    assert 'foreword_http_requests_total{route="/v1/completions",status="200"}' in figures
    assert "foreword_engine_made_tokens_total" in figures and "foreword_first_token_sec_bucket" in figures
    assert "alpha" not in figures
    assert status["model"] == PLAIN
    assert {"name": "alpha", "bytes": 1000, "pinned": False, "rows": 0} in status["pool"]["resident"]


def test_the_log_is_json_lines_without_prompts(server):
    with server.client() as http:
        answer = http.post("/v1/completions", json={"model": "alpha", "prompt": "secretsecret"})
        request_id = answer.headers["x-request-id"]

    def logged():
        rows = [json.loads(line) for line in server.logs.getvalue().splitlines() if line.endswith("}")]
        return [row for row in rows if row.get("request_id") == request_id]

    wait_for(logged)  # the line is written when the answer is on its way already
    row = logged()[0]
    assert (row["route"], row["status"], row["model"], row["prompt_tokens"]) == ("/v1/completions", 200, "alpha", 12)
    assert "secretsecret" not in server.logs.getvalue()
