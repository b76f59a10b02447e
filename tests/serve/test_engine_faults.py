"""The engine under faults: numbers that overflow, memory that runs out, a thread that ends. Nobody waits in vain."""

import gc
import time
import weakref

import pytest
import torch
from http_kit import save, wait_for
from serving import alone, drawn

from foreword.prompts.spec import PromptSpec
from foreword.serve import cache as cache_module
from foreword.serve.app import make_app
from foreword.serve.catalog import Catalog
from foreword.serve.engine import Engine
from foreword.serve.pool import Pool
from foreword.serve.request import EngineStopped, Request, RequestError, Sampling
from foreword.serve.service import Service
from foreword.serve.tenants import Keyring, Tenant
from foreword.serve.watch import Watch

THREAD_ENDS = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
"""A fault that ends the engine's thread is also told on stderr, as Python does it."""


@pytest.fixture
def llama(backbone_of):
    return backbone_of("llama")


def hostile(backbone):
    """Return a foreword whose numbers are all finite and overflow in attention."""
    prompt = drawn(backbone, PromptSpec(length=2), 0)
    with torch.no_grad():
        for table in prompt.tables.values():
            table.set(torch.full_like(table(), 3e38))
    return prompt


def test_a_foreword_that_overflows_ends_its_own_rows_and_leaves_nothing_to_those_after(llama):
    pool = Pool(llama)
    pool.register("x", hostile(llama))
    short, long = tuple(range(4, 10)), tuple(range(4, 24))
    with Engine(llama, pool) as engine:
        stays = engine.submit(Request((5, 6, 7), max_tokens=28, ignore_eos=True))  # its shelf is not given up
        for sampling in (Sampling(), Sampling(temperature=1.0), Sampling(repetition_penalty=1.5)):
            ill = engine.submit(Request(long, "x", max_tokens=8, ignore_eos=True, sampling=sampling)).result(30)[0]
            assert ill.finish_reason == "error" and not ill.token_ids
            assert "not finite" in ill.error and "foreword" in ill.error
        # The short one has the ill one's place, beside a longer one: what it has not reached enters with weight 0.
        pair = [engine.submit(Request(ids, max_tokens=8, logprobs=0)) for ids in (short, long)]
        answers = [ticket.result(30)[0] for ticket in pair]
        assert stays.result(30)[0].error is None
    pool.close()
    for ids, answer in zip((short, long), answers, strict=True):
        assert list(answer.token_ids) == alone(llama)(ids, None, 8)
        assert all(entry.logprob > -100 for entry in answer.logprobs)


def test_a_row_whose_scores_are_not_finite_ends_and_its_neighbours_go_on(llama, monkeypatch):
    with Engine(llama) as engine:
        step = engine._runner.step

        def spoilt():
            rows, logits = step()
            logits = logits.clone()
            for number, row in enumerate(rows):
                if row.request.tenant:
                    logits[number, 7] = float(row.request.tenant)
            return rows, logits

        monkeypatch.setattr(engine._runner, "step", spoilt)
        tickets = {tenant: engine.submit(Request((5, 6, 7), max_tokens=6, tenant=tenant, ignore_eos=True))
                   for tenant in ("", "nan", "inf", "-inf")}
        answers = {tenant: ticket.result(30)[0] for tenant, ticket in tickets.items()}
    assert {tenant for tenant, answer in answers.items() if answer.finish_reason == "error"} == {"nan", "inf"}
    wanted = alone(llama)((5, 6, 7), None, 6)
    assert list(answers[""].token_ids)[: len(wanted)] == wanted
    assert len(answers["-inf"].token_ids) == 6  # a token that is ruled out is no fault


def test_a_text_with_a_token_that_the_model_does_not_know_is_refused(backbone_of):
    from backbones import make

    backbone = make("llama")  # its tokenizer is changed
    backbone.tokenizer.add_tokens(["<extra>", "<ex2>"])
    with Engine(backbone) as engine:
        neighbour = engine.submit(Request((5, 6, 7), max_tokens=40, ignore_eos=True))
        with pytest.raises(RequestError, match=r"'<ex2>' with id 100.*0 to 98") as refused:
            engine.submit(Request("a<ex2>", max_tokens=4))
        assert refused.value.field == "prompt"
        assert neighbour.result(30)[0].finish_reason == "length"


def test_memory_that_runs_out_for_one_row_s_place_ends_that_row_alone(llama, monkeypatch):
    class Scarce:
        @staticmethod
        def empty(*shape, **options):
            if shape[2] >= 256:  # the length of a shelf
                raise torch.OutOfMemoryError("no memory")
            return torch.zeros(*shape, **options)

        zeros = empty

    with Engine(llama) as engine:
        monkeypatch.setattr(cache_module, "torch", Scarce)
        small, large, next_one = (engine.submit(Request((5, 6, 7), max_tokens=n, ignore_eos=True, deadline_sec=30))
                                  for n in (20, 300, 20))
        assert large.result(30)[0].error == "OutOfMemoryError: no memory"
        assert [ticket.result(30)[0].finish_reason for ticket in (small, next_one)] == ["length"] * 2
        monkeypatch.undo()
        assert engine.submit(Request((5, 6, 7), max_tokens=300, ignore_eos=True)).result(60)[0].error is None
        assert engine.stats().state == "running"


def no_gpu_memory():
    raise torch.OutOfMemoryError("no memory")


@pytest.mark.parametrize("run_out", [no_gpu_memory, lambda: torch.empty(1 << 50)])
def test_rows_wait_while_memory_is_short_and_none_is_lost(llama, monkeypatch, run_out):
    pool = Pool(llama)
    pool.register("x", prompt := drawn(llama, PromptSpec(length=3), 0))
    with Engine(llama, pool) as engine:
        add, refused = engine._runner.add, []

        def short_of_memory(row):
            if len(engine._runner.rows) >= 2:
                refused.append(row)
                run_out()
            return add(row)

        monkeypatch.setattr(engine._runner, "add", short_of_memory)
        tickets = [engine.submit(Request((5, 6, 7), "x", max_tokens=n, ignore_eos=True)) for n in (9, 30, 4, 5, 6)]
        answers = [ticket.result(30)[0] for ticket in tickets]
        assert len(refused) > 3 and all(row.lease is None for row in refused)
        assert [len(answer.token_ids) for answer in answers] == [9, 30, 4, 5, 6]
    pool.unregister("x")
    assert pool.stats().resident_bytes == 0  # no lease is left
    pool.close()
    wanted = alone(llama)((5, 6, 7), prompt, 4)
    assert list(answers[2].token_ids)[: len(wanted)] == wanted


def test_a_disk_s_fault_ends_its_row_without_telling_a_path(llama, monkeypatch):
    pool = Pool(llama)
    pool.register("x", drawn(llama, PromptSpec(length=2), 0))
    with Engine(llama, pool) as engine:
        def stale(name):
            raise OSError(116, "Stale file handle", "/srv/store/x")

        monkeypatch.setattr(pool, "acquire", stale)
        assert engine.submit(Request((5, 6), "x", max_tokens=2)).result(30)[0].error == "OSError: Stale file handle"
        assert engine.submit(Request((5, 6), max_tokens=2)).result(30)[0].error is None
    pool.close()


@THREAD_ENDS
@pytest.mark.parametrize("cleaning_fails", [False, True])
def test_what_ends_the_engine_s_thread_ends_all_rows_and_health_tells(llama, tmp_path, monkeypatch, cleaning_fails):
    from fastapi.testclient import TestClient

    pool = Pool(llama)
    pool.register("x", drawn(llama, PromptSpec(length=2), 0))
    engine = Engine(llama, pool).start()
    service = Service(llama, engine, pool, Catalog(tmp_path, "plain"), Keyring(tmp_path), "plain")
    with TestClient(make_app(service)) as client:
        assert client.get("/health").status_code == 200
        tickets = [engine.submit(Request((5, 6, 7), name, max_tokens=400, ignore_eos=True, n=2))
                   for name in ("x", None)]
        wait_for(lambda: engine.stats().running_rows == 4)

        def broken(*_):
            raise RuntimeError("CUDA error")

        if cleaning_fails:  # a GPU that is gone: no row can be moved any more
            monkeypatch.setattr(engine._runner, "drop", broken)
        monkeypatch.setattr(engine, "_end_unwanted", broken)
        answers = [answer for ticket in tickets for answer in ticket.result(10)]
        assert {a.finish_reason for a in answers} == {"error"}
        assert {a.error for a in answers} == {"the engine failed: RuntimeError: CUDA error"}
        assert engine.drain(1) and engine.stats().state == "stopped"
        with pytest.raises(EngineStopped):
            engine.submit(Request((5, 6), deadline_sec=1.0))
        told = client.get("/health")
        assert told.status_code == 500 and told.json()["error"]["code"] == "engine_stopped"
        assert client.get("/ready").status_code == 503
    engine.stop()
    assert all(ticket.result(1) for ticket in tickets)
    pool.close()


def test_a_pass_that_fails_ends_the_rows_of_its_own_cohort(backbone_of, monkeypatch):
    t5 = backbone_of("t5")
    with Engine(t5) as engine:
        first = engine.submit(Request((5, 6, 7), max_tokens=60, ignore_eos=True))
        wait_for(lambda: first.usage.completion > 0)
        encode = engine._runner._encode

        def full(rows):
            if rows[0].request.tenant:
                raise MemoryError("no memory")
            return encode(rows)

        monkeypatch.setattr(engine._runner, "_encode", full)
        second = engine.submit(Request((5, 6), max_tokens=4, tenant="a"))
        assert second.result(30)[0].error == "the step failed: MemoryError: no memory"
        whole = first.result(60)[0]
        assert whole.finish_reason == "length" and len(whole.token_ids) == 60
        third = engine.submit(Request((5, 6), max_tokens=4))
        assert list(third.result(30)[0].token_ids) == alone(t5)((5, 6), None, 4)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_row_that_has_ended_is_held_by_nothing_while_the_engine_rests(backbone_of, family):
    with Engine(backbone_of(family)) as engine:
        ticket = engine.submit(Request((5, 6, 7), max_tokens=3, ignore_eos=True))
        assert len(ticket.result(30)[0].token_ids) == 3
        gone = weakref.ref(ticket)
        del ticket
        wait_for(lambda: gc.collect() >= 0 and gone() is None)
        assert not getattr(engine._runner, "_cohorts", [])  # nor are an encoder-decoder's keys and values


def test_the_watch_leaves_a_foreword_that_becomes_known_while_it_looks(llama, tmp_path, monkeypatch):
    for name in ("old", "new"):
        save(llama, tmp_path / name)
    pool = Pool(llama)
    catalog = Catalog(tmp_path, "plain")
    service = Service(llama, None, pool, catalog, Keyring(tmp_path), "plain")
    old = service.find(Tenant(), "old")
    watch = Watch(service, 60)
    unchanged = catalog.unchanged

    def slow(entry):  # a request comes while the disk is looked at
        service.find(Tenant(), "new")
        return unchanged(entry)

    monkeypatch.setattr(catalog, "unchanged", slow)
    assert watch.look()[1] == []
    assert {entry.name for entry in service.known().values()} == {"old", "new"} and len(pool.names()) == 2
    monkeypatch.undo()
    time.sleep(0.01)
    save(llama, tmp_path / "old", length=4)
    assert watch.look()[1] == [old.id]
    pool.close()
