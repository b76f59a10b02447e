"""Rows a second and peak memory of prefix tuning on a GPT-2-small shape: ours, ours with shared sources, PEFT's.

    python benchmarks/train_throughput.py --threads 2 --record benchmarks/records/DATE_train_throughput
    python benchmarks/train_throughput.py --device cuda

Real E2E rows (needs FOREWORD_DATA), GPT-2's tokenizer, random weights, the same prefix in both. The contenders take
turns batch by batch in one process; each batch counts with its fastest of `--repeats` passes. PEFT gets what a plain
loop gives it: rows padded on the right, labels -100. Peak memory is each contender's own, in a process of its own,
above what that process held before its first step (so without model and libraries, with gradients and AdamW state).
The ceiling is the rate of this machine's best of three matrix products of the model's shapes, measured in this run;
the floating-point operations are counted by PyTorch, CPU attention left out.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from peft_loop import Contender, Ours, Peft, gradient_difference
from torch.utils.flop_counter import FlopCounterMode
from workload import Clock, E2ERows, gpt2_small, peak_bytes, reset_peak

CONTENDERS = ("peft", "ours", "ours, shared sources")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10, help="rows a batch")
    parser.add_argument("--record", type=Path, help="write FILE.json and FILE.txt")
    parser.add_argument("--memory-of", choices=CONTENDERS, help="only print this contender's peak bytes")
    return parser.parse_args()


def make(name: str, dtype: str, device: str, data: E2ERows) -> Contender:
    model = gpt2_small(dtype, device)
    return Peft(model, data) if name == "peft" else Ours(model, data, share=name != "ours")


def batches_for(name: str, data: E2ERows, count: int, rows: int) -> list[list]:
    return data.batches(count, rows, grouped=name.endswith("sources"))


def measure(dtype: str, args: argparse.Namespace, data: E2ERows) -> dict[str, list[float]]:
    """Return each contender's fastest seconds for each batch."""
    contenders = {name: make(name, dtype, args.device, data) for name in CONTENDERS}
    plans = {name: batches_for(name, data, args.batches, args.rows) for name in CONTENDERS}
    for name, contender in contenders.items():  # warm-up
        contender.step(plans[name][0])
    seconds = {name: [float("inf")] * args.batches for name in CONTENDERS}
    for turn in range(args.repeats * args.batches):
        for name, contender in contenders.items():
            at = turn % args.batches
            with Clock(args.device) as clock:
                contender.step(plans[name][at])
            seconds[name][at] = min(seconds[name][at], clock.seconds)
    return seconds


def count_flops(dtype: str, args: argparse.Namespace, data: E2ERows) -> dict[str, float]:
    """Return each contender's floating-point operations over all batches."""
    flops = {}
    for name in CONTENDERS:
        contender, counter = make(name, dtype, args.device, data), FlopCounterMode(display=False)
        with counter:
            for batch in batches_for(name, data, args.batches, args.rows):
                contender.step(batch)
        flops[name] = float(counter.get_total_flops())
    return flops


def ceiling(dtype: str, device: str) -> float:
    """Return the best rate, in operations a second, of the model's three kinds of matrix product."""
    best = 0.0
    for rows, inner, outer in ((2048, 768, 3072), (2048, 3072, 768), (2048, 768, 16384)):
        a, b = (torch.randn(shape, device=device).to(getattr(torch, dtype)) for shape in ((rows, inner), (inner, outer)))
        for _ in range(8):
            with Clock(device) as clock:
                a @ b
            best = max(best, 2 * rows * inner * outer / clock.seconds)
    return best


def peak_memory(name: str, dtype: str, args: argparse.Namespace) -> int:
    """Return a contender's peak bytes, measured in a process of its own."""
    options = ["--device", args.device, "--threads", str(args.threads), "--dtypes", dtype, "--rows", str(args.rows)]
    command = [sys.executable, __file__, "--memory-of", name, "--batches", str(args.batches), *options]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(args: argparse.Namespace, data: E2ERows) -> None:
    contender = make(args.memory_of, args.dtypes[0], args.device, data)
    batches = batches_for(args.memory_of, data, args.batches, args.rows)
    before = reset_peak(args.device)
    for batch in batches:
        contender.step(batch)
    print(peak_bytes(args.device) - before)


def results(dtype: str, args: argparse.Namespace, data: E2ERows) -> list[dict]:
    seconds, flops, limit = measure(dtype, args, data), count_flops(dtype, args, data), ceiling(dtype, args.device)
    memory = {name: peak_memory(name, dtype, args) for name in CONTENDERS}
    return [
        {
            "dtype": dtype,
            "contender": name,
            "rows_per_sec": args.batches * args.rows / sum(seconds[name]),
            "speed_ratio": sum(seconds["peft"]) / sum(seconds[name]),
            "peak_bytes": memory[name],
            "memory_ratio": memory[name] / memory["peft"],
            "flops": flops[name],
            "of_ceiling": flops[name] / sum(seconds[name]) / limit,
            "ceiling_flops_per_sec": limit,
        }
        for name in CONTENDERS
    ]


def table(rows: list[dict]) -> str:
    head = f"{'dtype':9} {'contender':21} {'rows/s':>8} {'ratio':>6} {'peak MB':>8} {'ratio':>6} {'GFLOP/row':>9} {'of ceiling':>10}"
    body = (
        f"{r['dtype']:9} {r['contender']:21} {r['rows_per_sec']:8.2f} {r['speed_ratio']:6.2f} {r['peak_bytes'] / 1e6:8.0f}"
        f" {r['memory_ratio']:6.2f} {r['flops'] / r['rows'] / 1e9:9.1f} {r['of_ceiling']:10.0%}"
        for r in rows
    )
    return "\n".join([head, *body])


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    data = E2ERows.load()
    if args.memory_of:
        return print_peak(args, data)
