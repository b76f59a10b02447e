"""Ten thousand forewords in a store, room for 256 in memory, clients for half an hour: hits, cold prompts, memory.

    python benchmarks/serve_soak.py --minutes 30 --record benchmarks/records/DATE_serve_soak

Starts `foreword serve` as a process of its own and asks over HTTP. Clients draw forewords from the first nine tenths of
the store, the n-th with probability ~ 1/n. From the last tenth each foreword is asked for once, so those requests are
cold for certain: their time against that of a foreword just used is what loading costs a client. Some forewords are
controls: every answer must equal the one they gave alone on the calm server. Memory (resident set), open files and
threads are read from the kernel through the whole run; the pool's hits and bytes from `/metrics`.
"""

import argparse
import itertools
import json
import random
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from live_server import Server, figures, fill, start
from meters import machine

from foreword.backbone import load_backbone

TEXT = "name : The Blue Heron | kind : pub | price : cheap"
CONTROLS = 32
SAMPLE_SEC = 5.0


def ask(http: httpx.Client, number: int, tokens: int) -> tuple[str, float]:
    """Return a foreword's answer and the seconds it took."""
    body = {"model": f"f{number}", "prompt": TEXT, "max_tokens": tokens, "temperature": 0}
    begin = time.perf_counter()
    answer = http.post("/v1/completions", json=body)
    if answer.status_code != 200:
        raise SystemExit(f"f{number}: {answer.status_code} {answer.text[:300]}")
    return answer.json()["choices"][0]["text"], time.perf_counter() - begin


class Crowd:
    """The clients, and what they saw."""

    def __init__(self, args: argparse.Namespace, url: str) -> None:
        self.args, self.url = args, url
        self.common = args.forewords * 9 // 10
        self.totals = list(itertools.accumulate(1 / (n + 1) for n in range(self.common)))
        self.cold = iter(range(self.common, args.forewords))
        # Controls are spread over the ranks, so that some are nearly always in memory and some nearly never.
        self.controls = sorted({int(self.common ** (n / CONTROLS)) for n in range(CONTROLS)})
        self.lock = threading.Lock()
        self.answers = self.wrong = 0
        self.cold_sec: list[float] = []
        self.warm_sec: list[float] = []
        with httpx.Client(base_url=url, timeout=60) as http:
            self.wanted = {n: ask(http, n, args.new_tokens)[0] for n in self.controls}

    def work(self, seed: int, end: float) -> None:
        """Ask until the time is over."""
        draw = random.Random(seed)
        with httpx.Client(base_url=self.url, timeout=60) as http:
            while time.perf_counter() < end:
                if draw.random() < 0.02:
                    self._measure_cold(http)
                elif draw.random() < 0.1:
                    number = draw.choice(self.controls)
                    self._count(ask(http, number, self.args.new_tokens)[0] != self.wanted[number])
                else:
                    number = draw.choices(range(self.common), cum_weights=self.totals)[0]
                    ask(http, number, self.args.new_tokens)
                    self._count(False)

    def _measure_cold(self, http: httpx.Client) -> None:
        with self.lock:
            number = next(self.cold, None)
        if number is None:
            return
        cold, warm = ask(http, number, 1)[1], ask(http, number, 1)[1]
        with self.lock:
            self.answers += 2
            self.cold_sec.append(cold)
            self.warm_sec.append(warm)

    def _count(self, wrong: bool) -> None:
        with self.lock:
            self.answers += 1
            self.wrong += wrong


def spread(seconds: list[float]) -> dict[str, float]:
    """Return count, median, 99th percentile and the largest, in milliseconds."""
    if len(seconds) < 2:
        raise SystemExit(f"{len(seconds)} cold requests are too few: give --minutes or --forewords more")
    parts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"count": len(seconds), "p50_ms": 1e3 * parts[49], "p99_ms": 1e3 * parts[98], "max_ms": 1e3 * max(seconds)}


def soak(args: argparse.Namespace, server: Server, idle_sec: float = 3.0) -> dict:
    """Let the clients ask, and return the figures."""
    crowd = Crowd(args, server.url)
    begin = time.perf_counter()
    end = begin + 60 * args.minutes
    with httpx.Client(base_url=server.url, timeout=60) as http, ThreadPoolExecutor(args.clients) as threads:
        before = figures(http)
        running = [threads.submit(crowd.work, seed, end) for seed in range(args.clients)]
        while time.perf_counter() < end:
            server.sample(http, begin)
            time.sleep(SAMPLE_SEC)
        for one in running:
            one.result()
        time.sleep(idle_sec)
        server.sample(http, begin)
    last, lines = server.samples[-1], server.samples
    hits, misses = (last[f"pool_{kind}_total"] - before[f"pool_{kind}_total"] for kind in ("hits", "misses"))
    fifth = max(1, len(lines) // 5)
    return {
        "answers": crowd.answers,
        "wrong": crowd.wrong,
        "answers_per_sec": crowd.answers / (60 * args.minutes),
        "hit_ratio": hits / (hits + misses),
        "most_resident": max(line["pool_resident"] for line in lines),
        "most_resident_bytes": max(line["pool_resident_bytes"] for line in lines),
        "budget_bytes": last["pool_budget_bytes"],
        "evictions": last["pool_evictions_total"],
        "cold": spread(crowd.cold_sec),
        "just_used": spread(crowd.warm_sec),
        "rss_mib": {
            "start": lines[0]["rss_mib"],
            "second_fifth": statistics.mean(line["rss_mib"] for line in lines[fifth : 2 * fifth] or lines),
            "last_fifth": statistics.mean(line["rss_mib"] for line in lines[-fifth:]),
            "most": max(line["rss_mib"] for line in lines),
        },
        "files": {"start": lines[0]["files"], "end": last["files"]},
        "threads": {"start": lines[0]["threads"], "end": last["threads"]},
        "rows_left": last["engine_running_rows"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="foreword-decoder-6m")
    parser.add_argument("--forewords", type=int, default=10_000)
    parser.add_argument("--resident", type=int, default=256)
    parser.add_argument("--length", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        each = fill(Path(folder), load_backbone(args.backbone), args.forewords, args.length)
        seconds = time.perf_counter() - begin
        print(f"{args.forewords:,} forewords of {each:,} bytes written in {seconds:.0f} s", flush=True)
        server = start(args, Path(folder), args.resident * each)
        try:
            found = soak(args, server)
        finally:
            server.process.terminate()
            code = server.process.wait(60)
    settings = {name: value for name, value in vars(args).items() if name != "record"}
    record = {"machine": machine("cpu"), "settings": settings, "bytes_each": each, "exit_code": code, **found}
    text = json.dumps(record, indent=2)
    print(text)
    if args.record:
        args.record.with_suffix(".json").write_text(json.dumps({**record, "samples": server.samples}) + "\n")
        args.record.with_suffix(".txt").write_text(text + "\n")


if __name__ == "__main__":
    main()
