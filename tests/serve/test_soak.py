"""Clients that ask, leave and rewrite forewords at random, on a pool too small for them: no wrong answer, no leak."""

import collections
import concurrent.futures
import gc
import json
import os
import random
import time

import httpx
import pytest
from backbones import make
from http_kit import PLAIN, save, serving, wait_for

from foreword.serve.engine import Engine
from foreword.serve.pool import Pool
from foreword.serve.request import Ticket
from foreword.serve.watch import Watch

SECONDS = float(os.environ.get("FOREWORD_SOAK", "10"))
NAMES = [f"f{i}" for i in range(16)]


def ask(http: httpx.Client, name: str, **options) -> str:
    body = {"model": name, "prompt": "abc", "max_tokens": 30, "temperature": 0, **options}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    if not options.get("stream"):
        return answer.json()["choices"][0]["text"]
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


def leave(http: httpx.Client, name: str) -> None:
    body = {"model": name, "prompt": "abc", "max_tokens": 300, "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())


def tickets() -> list[Ticket]:
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) is Ticket]


@pytest.mark.slow
def test_clients_that_ask_leave_and_rewrite_get_right_answers_and_leak_nothing(tmp_path):
    backbone, earlier = make("llama"), tickets()  # of other tests in this process
    for i, name in enumerate(NAMES):
        save(backbone, tmp_path / name, length=1 + 3 * i, seed=i)
    pool = Pool(backbone, budget_bytes=60_000)  # holds some three of the sixteen
    engine = Engine(backbone, pool).start()
    with serving(backbone, tmp_path, engine, pool) as running:
        watch = Watch(running.service, 0.5)
        watch.start()
        with running.client() as http:
            wanted = {name: ask(http, name) for name in [*NAMES, PLAIN]}
        handles, end = len(os.listdir("/proc/self/fd")), time.monotonic() + SECONDS

        def work(seed: int) -> collections.Counter:
            draw, seen = random.Random(seed), collections.Counter()
            while time.monotonic() < end:
                number = draw.randrange(len(NAMES))
                kind = draw.choices(["left", "stream", "whole", "rewrite"], [5, 5, 9, 1])[0]
                with running.client() as http:
                    if kind == "left":
                        leave(http, NAMES[number])
                    elif kind == "rewrite":
                        save(backbone, tmp_path / NAMES[number], length=1 + 3 * number, seed=number)
                    else:
                        assert ask(http, NAMES[number], stream=kind == "stream") == wanted[NAMES[number]]
                seen[kind] += 1
            return seen

        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            seen = sum(threads.map(work, range(8)), collections.Counter())
        wait_for(lambda: engine.stats().running_rows == engine.stats().queued_rows == 0)
        wait_for(lambda: len(os.listdir("/proc/self/fd")) <= handles + 1)
        watch.stop()
        assert pool.stats().resident_bytes <= 60_000 and pool.stats().evictions > 0
        assert running.service.limits.rows_of(running.service.keyring.who(None)) == 0
        assert not [ticket for ticket in tickets() if not any(ticket is other for other in earlier)]
        assert all(seen[kind] for kind in ("left", "stream", "whole", "rewrite")), seen
    pool.close()
