"""Tokens a second of mixed requests with many prefixes on a GPT-2-small shape: our engine and PEFT.

    python benchmarks/serve_throughput.py --threads 2 --record benchmarks/records/DATE_serve_throughput
    python benchmarks/serve_throughput.py --threads 2 --no-peft --record benchmarks/records/DATE_serve_of_none
    python benchmarks/serve_throughput.py --device cuda

Random weights, random token ids, greedy, no EOS. PEFT holds every adapter in one model and serves one at a time:
requests grouped by adapter, each group in batches of the best of `--peft-batches` (tried in this run). Both get all
requests at once. Contenders take turns, `--repeats` times, each round begun by another; the fastest turn counts. Our
engine also runs without any foreword, and with one prefix of 100 tokens shared by all rows; `--no-peft` times these
alone (minutes instead of an hour). The ceiling is the rate of this machine's best matrix products (as in
train_throughput), for the floating-point operations of the linear layers alone. Whether both made the same tokens is
told too.
"""

import argparse
import json
import math
import time
import warnings
from pathlib import Path

import torch
from meters import machine, matmul_ceiling
from peft_server import Peft
from servers import Ours, gpt2_backbone
from workload import Workload


def seconds(contender: Ours | Peft) -> float:
    start = time.perf_counter()
    contender.run()
    return time.perf_counter() - start


def race(contenders: dict[str, Ours | Peft], repeats: int) -> dict[str, float]:
    """Return each contender's fastest seconds; they take turns, and another one begins each round."""
    best, names = dict.fromkeys(contenders, float("inf")), list(contenders)
    for number in range(repeats):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            best[name] = min(best[name], seconds(contenders[name]))
    return best


def best_batch(peft: Peft, sizes: list[int]) -> int:
    """Return the batch size with which PEFT is fastest on this workload."""
    most = max(map(len, peft.groups))
    tried = {}
    for size in sorted({min(size, most) for size in sizes}):
        peft.batch = size
        tried[size] = seconds(peft)
    return min(tried, key=tried.get)


def measure(args: argparse.Namespace, count: int) -> dict:
    """Return the figures of one number of forewords."""
    work = Workload(args.requests, args.new_tokens)
    backbone = gpt2_backbone(args)
    ours, plain = Ours(args, work, count, work.lengths, backbone), Ours(args, work, 0, (), backbone)
    shared = Ours(args, work, 1, (100,), backbone)
    contenders: dict[str, Ours | Peft] = {"ours": ours, "plain": plain, "shared": shared}
    answers, beside_peft = ours.run(), {}
    plain.run(), shared.run()  # warm, as ours is now
    if not args.no_peft:
        contenders["peft"] = peft = Peft(args, work, ours.prompts)
        same = sum(a == b for a, b in zip(answers, peft.run(), strict=True))
        peft.batch = best_batch(peft, args.peft_batches)
        beside_peft = {"peft_batch": peft.batch, "same_answers_as_peft": same}
    best = race(contenders, args.repeats)
    if not args.no_peft:
        beside_peft["times_peft"] = best["peft"] / best["ours"]
    for engine in (ours, plain, shared):
        engine.close()
    tokens = args.requests * args.new_tokens
    linear = sum(p.numel() for n, p in ours.backbone.model.named_parameters() if p.dim() == 2 and "wpe" not in n)
    return {
        "forewords": count,
        "tok_per_sec": {name: tokens / value for name, value in best.items()},
        "of_no_foreword": best["plain"] / best["ours"],
        "cost_of_100_shared": best["shared"] / best["plain"],
        **beside_peft,
        "of_ceiling": 2 * linear * tokens / best["ours"] / matmul_ceiling("float32", args.device),
    }


def table(rows: list[dict]) -> str:
    head = ("forewords", "ours tok/s", "PEFT tok/s", "x PEFT", "of none", "100 shared", "PEFT batch", "same", "ceiling")
    lines = [" ".join(f"{name:>10}" for name in head)]
    for r in rows:
        figures = (
            str(r["forewords"]), f"{r['tok_per_sec']['ours']:.1f}", f"{r['tok_per_sec'].get('peft', math.nan):.1f}",
            f"{r.get('times_peft', math.nan):.2f}", f"{r['of_no_foreword']:.2f}", f"{r['cost_of_100_shared']:.2f}",
            str(r.get("peft_batch", "-")), str(r.get("same_answers_as_peft", "-")), f"{r['of_ceiling']:.0%}",
        )
        lines.append(" ".join(f"{figure:>10}" for figure in figures))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--forewords", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--layers", type=int, default=12, help="fewer for a trial of the script itself")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peft-batches", type=int, nargs="+", default=[8, 16, 32, 128])
    parser.add_argument("--no-peft", action="store_true", help="our engine alone: what forewords cost it")
    parser.add_argument("--record", type=Path, help="write FILE.json and FILE.txt")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*past_key_values.*")
    torch.set_num_threads(args.threads)
    rows = [measure(args, count) for count in args.forewords]
    print(text := table(rows))
    config = {key: value for key, value in vars(args).items() if key != "record"}
    print(line := json.dumps({"config": config, "machine": machine(args.device), "rows": rows}))
    if args.record:
        args.record.parent.mkdir(parents=True, exist_ok=True)
        args.record.with_suffix(".txt").write_text(text + "\n")
        args.record.with_suffix(".json").write_text(line + "\n")


if __name__ == "__main__":
    main()
