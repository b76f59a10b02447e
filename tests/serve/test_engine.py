"""The engine: every answer equals its own single run, whatever its neighbours do; nothing accepted is lost."""

import asyncio
import random
import threading
import time
from contextlib import suppress

import pytest
import torch
from serving import alone, differ, drawn, many_forewords, other, random_text_ids, saved

from foreword.errors import BackboneError
from foreword.generate.offline import generate, generate_ids
from foreword.prompts.batch import Row
from foreword.prompts.spec import PromptSpec
from foreword.serve.capacity import Capacity
from foreword.serve.engine import Engine
from foreword.serve.pool import Pool
from foreword.serve.request import EngineStopped, QueueFull, Request, RequestError, Sampling, UnknownForeword

SMALL = Capacity(rows=12, step_tokens=64)


@pytest.fixture
def gpt2(backbone_of):
    return backbone_of("gpt2")


def mixed_run(backbone, folder, requests, forewords, seed=0, swaps=4, aborts=8):
    """Serve `requests` mixed requests arriving at random, with aborts and hot swaps; return (ours, theirs) pairs."""
    dice, run_alone = random.Random(seed), alone(backbone)
    prompts = many_forewords(backbone, forewords)
    pool = Pool(backbone, budget_bytes=1 << 30)
    for name, path in saved(prompts, backbone, folder / "store").items():
        pool.register(name, path)
    by_version = {pool.info(name).version: prompt for name, prompt in prompts.items()}
    names = [*prompts, None]
    swapping = set(dice.sample(range(requests), swaps))
    aborting = set(dice.sample(range(requests), aborts))
    kept = []
    with Engine(backbone, pool, SMALL) as engine:
        for number in range(requests):
            name = names[number % len(names)] if number < len(names) else dice.choice(names)
            if number in swapping and name is not None:
                new = other(prompts[name], backbone, 1000 + number)
                swapped = saved({f"{name}-{number}": new}, backbone, folder / "store")
                by_version[pool.register(name, next(iter(swapped.values()))).version] = new
            new_tokens = dice.randint(1, 24)
            request = Request(random_text_ids(dice, 60), name, max_tokens=new_tokens, tenant=str(number % 3))
            ticket = engine.submit(request)
            if number in aborting:
                threading.Timer(dice.random() * 0.2, engine.cancel, (ticket,)).start()
            kept.append((number, ticket))
            if dice.random() < 0.3:
                time.sleep(dice.random() * 0.02)
        answers = [(number, ticket, ticket.result(240)[0]) for number, ticket in kept]
        assert engine.drain(10)
        stats = engine.stats()
    assert stats.running_rows == stats.queued_rows == 0 and stats.cache_bytes == 0
    assert all(pool.info(name).rows == 0 for name in pool.names())
    pool.close()
    pairs, whole = [], 0
    for number, ticket, answer in answers:
        assert answer.error is None
        request, prompt = ticket.request, by_version.get(ticket.version)
        assert (ticket.version is None) == (request.foreword is None) or answer.finish_reason == "cancelled"
        if answer.finish_reason == "cancelled":
            assert number in aborting
            if answer.token_ids:
                theirs = run_alone(request.prompt, prompt, request.max_tokens)
                pairs.append((answer.token_ids, theirs[: len(answer.token_ids)]))
            continue
        whole += 1
        pairs.append((answer.token_ids, run_alone(request.prompt, prompt, request.max_tokens)))
    assert whole >= requests - aborts
    return pairs


def test_120_mixed_requests_with_33_forewords_equal_their_single_runs(gpt2, tmp_path):
    pairs = mixed_run(gpt2, tmp_path, requests=120, forewords=33)
    assert differ(pairs) == []
    assert len(pairs) >= 112


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_500_mixed_requests_equal_their_single_runs(backbone_of, tmp_path, family):
    assert differ(mixed_run(backbone_of(family), tmp_path, 500, 40, swaps=20, aborts=50)) == []


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "opt", "pythia", "t5", "bart"])
def test_every_family_serves_exactly(backbone_of, tmp_path, family):
    backbone = backbone_of(family)
    assert differ(mixed_run(backbone, tmp_path, requests=16, forewords=10, swaps=2, aborts=2)) == []


def test_a_model_outside_the_attention_interface_is_refused_by_name(backbone_of):
    with pytest.raises(BackboneError, match="Bloom"):
        Engine(backbone_of("bloom"))


def test_texts_take_the_foreword_s_format_and_streams_add_up_to_the_offline_text(gpt2):
    prompt = drawn(gpt2, PromptSpec(length=3), 1)
    prompt.format = "plain"
    suffix = drawn(gpt2, PromptSpec(kind="prompt", length=3, placement="suffix"), 2)
    suffix.format = "paper"
    pool = Pool(gpt2)
    pool.register("plain", prompt)
    pool.register("suffix", suffix)
    texts, names, prompts = ["ab c", "hello", "x y"], ["plain", None, "suffix"], [prompt, None, suffix]
    offline = [generate(gpt2, [t], [p], max_new_tokens=20)[0] for t, p in zip(texts, prompts, strict=True)]
    with Engine(gpt2, pool, SMALL) as engine:
        tickets = [engine.submit(Request(t, n, max_tokens=20)) for t, n in zip(texts, names, strict=True)]
        streamed = ["".join(piece.text for piece in ticket) for ticket in tickets]
    pool.close()
    assert streamed == offline
    assert any(offline)


def test_stop_strings_end_the_answer_before_them(gpt2):
    ids = tuple(range(10, 30))
    whole = generate_ids(gpt2, [Row(ids)], [None], max_new_tokens=24)[0]
    text = gpt2.tokenizer.decode(whole, skip_special_tokens=True)
    stop = text[7:10]
    with Engine(gpt2, capacity=SMALL) as engine:
        answer = engine.submit(Request(ids, max_tokens=24, stop=("never", stop))).result(60)[0]
        late = engine.submit(Request(ids, max_tokens=24, stop=(stop,), min_tokens=24)).result(60)[0]
    assert answer.text == text[: text.find(stop)]
    assert (answer.finish_reason, answer.stop) == ("stop", stop)
    assert len(answer.token_ids) < 24 == len(late.token_ids)


def test_sampled_answers_equal_the_single_run_with_their_seed(gpt2):
    ids, options = tuple(range(10, 30)), {"temperature": 1.5, "top_k": 30, "top_p": 0.9}
    with Engine(gpt2, capacity=SMALL) as engine:
        tickets = [
            engine.submit(Request(ids, max_tokens=12, n=2, sampling=Sampling(seed=seed, **options))) for seed in (5, 9)
        ]
        answers = [answer.token_ids for ticket in tickets for answer in ticket.result(60)]
    for seed, ours in zip((5, 6, 9, 10), answers, strict=True):
        theirs = generate_ids(gpt2, [Row(ids)], [None], max_new_tokens=12, do_sample=True, seed=seed, **options)[0]
        assert list(ours) == theirs
    assert len(set(answers)) > 1


def test_log_probabilities_are_the_model_s(gpt2):
    ids = tuple(range(10, 30))
    with Engine(gpt2, capacity=SMALL) as engine:
        answer = engine.submit(Request(ids, max_tokens=5, logprobs=3)).result(60)[0]
    with torch.no_grad():
        logits = gpt2.model(torch.tensor([[*ids, *answer.token_ids]])).logits[0, len(ids) - 1 : -1]
    told = logits.log_softmax(-1)
    for row, entry in zip(told, answer.logprobs, strict=True):
        assert entry.logprob == pytest.approx(float(row[entry.token]), abs=1e-4)
        assert [token for token, _ in entry.top] == row.topk(3).indices.tolist()
        assert entry.top[0] == (entry.token, entry.logprob)


def test_what_can_never_be_served_is_refused_at_once(gpt2):
    pool = Pool(gpt2)
    pool.register("tone", drawn(gpt2, PromptSpec(length=4), 0))
    with Engine(gpt2, pool, SMALL) as engine:
        for request, words in (
            (Request((5,) * 600), "positions"),
            (Request((5,) * 500, "tone", max_tokens=20), "leave 8"),
            (Request((5, 9999)), "9999"),
            (Request("a", max_tokens=0), "max_tokens = 0"),
            (Request("a", n=0), "n = 0"),
            (Request("a", stop=("",)), "stop"),
            (Request("a", sampling=Sampling(top_p=0.0)), "top_p = 0.0"),
            (Request("a", sampling=Sampling(temperature=float("nan"))), "temperature"),
        ):
            with pytest.raises(RequestError, match=words):
                engine.submit(request)
        with pytest.raises(UnknownForeword, match="did you mean 'tone'"):
            engine.submit(Request("a", "tonne"))
        assert "prompt has no token" in engine.submit(Request((), max_tokens=2)).result(30)[0].error
    pool.close()


def test_a_full_queue_says_when_to_come_back_and_a_stopped_engine_takes_nothing(gpt2):
    engine = Engine(gpt2, capacity=Capacity(rows=1, queued=3, queued_per_tenant=2))
    first = [engine.submit(Request((5, 6), max_tokens=3, tenant="a")) for _ in range(2)]
    with pytest.raises(QueueFull) as mine:
        engine.submit(Request((5, 6), tenant="a"))
    first.append(engine.submit(Request((5, 6), max_tokens=3, tenant="b")))
    with pytest.raises(QueueFull) as all_of_it:
        engine.submit(Request((5, 6), tenant="c"))
    assert mine.value.tenant_only and not all_of_it.value.tenant_only
    assert all_of_it.value.retry_after_sec >= 1
    with engine.start():
        assert engine.drain(60)
        with pytest.raises(EngineStopped, match="draining"):
            engine.submit(Request((5, 6)))
    assert [ticket.result(1)[0].finish_reason for ticket in first] == ["length"] * 3
    assert engine.stats().refused == 2


def test_deadlines_cancellation_and_stop_end_rows_truthfully(gpt2):
    with Engine(gpt2, capacity=Capacity(rows=1)) as engine:
        long = engine.submit(Request((5, 6), max_tokens=400, ignore_eos=True))
        late = engine.submit(Request((5, 6), deadline_sec=0.05))
        gone = engine.submit(Request((5, 6)))
        engine.cancel(gone)
        assert gone.result(30)[0].finish_reason == "cancelled"
        assert late.result(30)[0].finish_reason == "deadline"
        engine.cancel(long)
        answer = long.result(30)[0]
        assert answer.finish_reason == "cancelled" and len(answer.token_ids) < 400
        left = engine.submit(Request((5, 6), max_tokens=400, ignore_eos=True))
    assert left.result(1)[0].finish_reason == "cancelled"


def test_a_step_that_fails_ends_its_rows_and_no_others(gpt2, monkeypatch):
    with Engine(gpt2, capacity=SMALL) as engine:
        def broken(*_: object, **__: object) -> None:
            raise MemoryError("no memory")

        monkeypatch.setattr(engine._runner, "step", broken)
        assert "MemoryError: no memory" in engine.submit(Request((5, 6))).result(30)[0].error
        monkeypatch.undo()
        assert engine.submit(Request((5, 6), max_tokens=2)).result(30)[0].finish_reason in ("length", "stop")


def test_pieces_reach_threads_and_event_loops_alike(gpt2):
    async def read(ticket):
        return [piece async for piece in ticket]

    with Engine(gpt2, capacity=SMALL) as engine:
        ticket = engine.submit(Request((5, 6, 7), max_tokens=6, n=2, ignore_eos=True))
        in_loop = asyncio.run(read(ticket))
        assert in_loop == list(ticket)
    assert sum(len(piece.token_ids) for piece in in_loop) == ticket.usage.completion == 12
    assert [piece.finish_reason for piece in in_loop].count("length") == 2
    assert ticket.first_token_sec is not None and ticket.finished_sec >= ticket.first_token_sec


def test_batch_work_waits_for_room_and_keeps_its_order(gpt2):
    run_alone = alone(gpt2)
    requests = [Request(tuple(range(5, 6 + n)), max_tokens=3) for n in range(12)]
    with Engine(gpt2, capacity=Capacity(rows=4, queued=2)) as engine:
        answers = engine.generate(requests)
    pairs = [(a[0].token_ids, run_alone(r.prompt, None, 3)) for a, r in zip(answers, requests, strict=True)]
    assert differ(pairs) == []


def test_a_damaged_foreword_ends_its_own_request_only(gpt2, tmp_path):
    prompts = many_forewords(gpt2, 2)
    paths = saved(prompts, gpt2, tmp_path)
    pool = Pool(gpt2)
    (name, path), (bad, broken) = paths.items()
    pool.register(name, path)
    pool.register(bad, broken)
    weights = broken / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4:] = b"\x00\x00\xc0\x7f"  # the last number becomes NaN
    weights.write_bytes(bytes(data))
    with Engine(gpt2, pool, SMALL) as engine:
        tickets = [engine.submit(Request((5, 6), n, max_tokens=4)) for n in (bad, name)]
        ill, well = (ticket.result(60)[0] for ticket in tickets)
    pool.close()
    assert ill.finish_reason == "error" and "NaN" in ill.error
    assert list(well.token_ids) == alone(gpt2)((5, 6), prompts[name], 4)


def test_a_row_or_listener_that_fails_harms_no_other(gpt2):
    def leave(piece):
        raise RuntimeError("the loop is closed")

    with Engine(gpt2, capacity=SMALL) as engine:
        tickets = [engine.submit(Request((5, 6, n), max_tokens=6)) for n in range(7, 10)]
        with suppress(RuntimeError):  # it is the caller's where a piece is there already
            tickets[0].listen(leave)
        broken = engine.submit(Request((5, 6), max_tokens=9))
        broken.request.__dict__["logprobs"] = "many"  # a fault inside handing out
        answers = [ticket.result(30)[0] for ticket in tickets]
        assert broken.result(30)[0].finish_reason == "error"
    wanted = [alone(gpt2)((5, 6, n), None, 6) for n in range(7, 10)]
    assert differ([(answer.token_ids, ids) for answer, ids in zip(answers, wanted, strict=True)]) == []
