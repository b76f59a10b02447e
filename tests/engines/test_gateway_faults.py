"""The gateway under faults of its own: a disk, a text, its thread; and what streams and seeds may hold."""

import asyncio
import contextlib
import json

import httpx
import pytest
from stub_vllm import StubVllm, counting

from foreword.engines.prefix_shelf import PrefixShelf
from foreword.engines.remote import RemoteEngine
from foreword.engines.upstreams import Upstreams
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.serve.pool import Pool
from foreword.serve.request import EngineStopped, Request, RequestError, Sampling

THREAD_ENDS = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@contextlib.contextmanager
def running(backbone, folder, stub):
    """An engine over one server, with one foreword in its pool."""
    pool = Pool(backbone)
    pool.register("a", make_prompt(PromptSpec(length=3), backbone))
    made = RemoteEngine(backbone, pool, PrefixShelf(folder, backbone), Upstreams([stub.url])).start()
    try:
        yield made
    finally:
        made.stop()
        pool.close()
        stub.close()


def broken(*_):
    raise OSError(116, "Stale file handle", "/srv/prefixes/a")


def test_a_fault_of_the_shelf_s_disk_ends_its_row_without_telling_a_path(backbone, tmp_path, monkeypatch):
    with running(backbone, tmp_path, StubVllm(counting)) as engine:
        find = engine._find_prefix
        monkeypatch.setattr(engine, "_find_prefix", broken)
        ill = engine.submit(Request((5, 6, 7), "a", 4)).result(20)[0]
        assert (ill.finish_reason, ill.error) == ("error", "OSError: Stale file handle")
        assert engine.submit(Request((5, 6, 7), None, 4)).result(20)[0].finish_reason == "length"
        monkeypatch.setattr(engine, "_find_prefix", find)
        assert engine.submit(Request((5, 6, 7), "a", 4)).result(20)[0].finish_reason == "length"


def test_a_fault_before_the_server_is_asked_is_an_error_too(backbone, tmp_path, monkeypatch):
    with running(backbone, tmp_path, StubVllm(counting)) as engine:
        monkeypatch.setattr(engine, "_scope_of", broken)
        ill = engine.submit(Request((5, 6, 7), None, 4)).result(20)[0]
        assert (ill.finish_reason, ill.error) == ("error", "OSError: Stale file handle")


@THREAD_ENDS
def test_what_ends_the_gateway_s_thread_ends_all_rows_and_its_state_tells(backbone, tmp_path, monkeypatch):
    stub = StubVllm(counting)
    stub.token_sec = 0.05
    with running(backbone, tmp_path, stub) as engine:
        first = engine.submit(Request((50,), None, 400, n=2))
        next(iter(first))
        monkeypatch.setattr(engine, "_pump", broken)
        second = engine.submit(Request((50,), None, 4, deadline_sec=0.5))
        for answer in (*first.result(20), *second.result(20)):
            assert (answer.finish_reason, answer.error) == ("error", "the engine failed: OSError: Stale file handle")
        assert engine.stats().state == "stopped"
        with pytest.raises(EngineStopped):
            engine.submit(Request((50,)))
    assert [piece.finish_reason for piece in first].count(None) == len(list(first)) - 2  # each row ended once


@THREAD_ENDS
def test_an_engine_that_cannot_start_says_so_and_does_not_hang(backbone, tmp_path, monkeypatch):
    upstreams = Upstreams(["http://127.0.0.1:9"])
    monkeypatch.setattr(httpx, "AsyncClient", broken)
    engine = RemoteEngine(backbone, Pool(backbone), PrefixShelf(tmp_path, backbone), upstreams)
    with pytest.raises(EngineStopped, match="could not start"):
        engine.start()
    engine.stop()


def test_a_text_with_a_token_that_the_model_does_not_know_is_refused(tmp_path):
    from backbones import make

    backbone = make("llama")  # its tokenizer is changed
    backbone.tokenizer.add_tokens(["<extra>", "<ex2>"])
    with (running(backbone, tmp_path, StubVllm(counting)) as engine,
          pytest.raises(RequestError, match="'<ex2>' with id 100")):
        engine.submit(Request("a<ex2>", None, 4))


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_line_separators_inside_a_text_do_not_end_an_event(size):
    events = [{"choices": [{"text": f"a{mark}b", "token_ids": [number], "finish_reason": None}]}
              for number, mark in enumerate("\u2028\u2029\u0085\x0b\x0c\x1cé𝄞")]
    data = "".join(f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events) + "data: [DONE]"

    async def parts():
        whole = data.encode()
        for at in range(0, len(whole), size):
            yield whole[at : at + size]

    async def read():
        upstreams = Upstreams(["http://host:1"])
        async with upstreams:
            await upstreams._client.aclose()
            answer = httpx.MockTransport(lambda _: httpx.Response(200, content=parts()))
            upstreams._client = httpx.AsyncClient(transport=answer)
            return [chunk.tokens async for chunk in upstreams.stream(None, {"prompt": [1]})]

    assert asyncio.run(read()) == [(number,) for number in range(8)]


@pytest.mark.parametrize(("seed", "sent"), [(5, [5, 6, 7]), (2**63 - 2, [2**63 - 2, 2**63 - 1, 0]),
                                            (-1, [2**63 - 1, 0, 1])])
def test_seeds_stay_within_what_vllm_takes(backbone, tmp_path, seed, sent):
    stub = StubVllm(counting)
    with running(backbone, tmp_path, stub) as engine:
        engine.submit(Request((50,), None, 2, Sampling(temperature=1.0, seed=seed), n=3)).result(20)
    assert sorted(body["seed"] for body in stub.bodies) == sorted(sent)
