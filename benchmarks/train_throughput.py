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
from contenders import Contender, E2ERows, Ours, Peft, gradient_difference
from meters import Clock, machine, matmul_ceiling, peak_bytes, reset_peak
from torch.utils.flop_counter import FlopCounterMode
from workload import gpt2_model

from foreword.data.examples import Example

CONTENDERS = ("peft", "ours", "ours, shared sources")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10, help="rows a batch")
    parser.add_argument("--layers", type=int, default=12, help="fewer for a trial of the script itself")
    parser.add_argument("--record", type=Path, help="write FILE.json and FILE.txt")
    parser.add_argument("--memory-of", choices=CONTENDERS, help="only print this contender's peak bytes")
    return parser.parse_args()


def make(name: str, dtype: str, args: argparse.Namespace, data: E2ERows) -> Contender:
    model = gpt2_model(dtype, args.device, args.layers)
    return Peft(model, data) if name == "peft" else Ours(model, data, share=name.endswith("sources"))


def batches_for(name: str, args: argparse.Namespace, data: E2ERows) -> list[list[Example]]:
    return data.batches(args.batches, args.rows, grouped=name.endswith("sources"))


def measure(dtype: str, args: argparse.Namespace, data: E2ERows) -> dict[str, list[float]]:
    """Return each contender's fastest seconds for each batch."""
    contenders = {name: make(name, dtype, args, data) for name in CONTENDERS}
    plans = {name: batches_for(name, args, data) for name in CONTENDERS}
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
        contender, counter = make(name, dtype, args, data), FlopCounterMode(display=False)
        with counter:
            for batch in batches_for(name, args, data):
                contender.step(batch)
        flops[name] = float(counter.get_total_flops())
    return flops


def peak_memory(name: str, dtype: str, args: argparse.Namespace) -> int:
    """Return a contender's peak bytes, measured in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name, "--dtypes", dtype, "--device", args.device]
    for option in ("threads", "rows", "batches", "layers"):
        command += [f"--{option}", str(getattr(args, option))]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(args: argparse.Namespace, data: E2ERows) -> None:
    contender = make(args.memory_of, args.dtypes[0], args, data)
    batches = batches_for(args.memory_of, args, data)
    before = reset_peak(args.device)
    for batch in batches:
        contender.step(batch)
    print(peak_bytes(args.device) - before)


def results(dtype: str, args: argparse.Namespace, data: E2ERows) -> list[dict]:
    seconds, flops = measure(dtype, args, data), count_flops(dtype, args, data)
    limit = matmul_ceiling(dtype, args.device)
    memory = {name: peak_memory(name, dtype, args) for name in CONTENDERS}
    return [
        {
            "dtype": dtype,
            "contender": name,
            "rows_per_sec": args.batches * args.rows / sum(seconds[name]),
            "speed_ratio": sum(seconds["peft"]) / sum(seconds[name]),
            "peak_bytes": memory[name],
            "memory_ratio": memory[name] / memory["peft"],
            "flops_per_row": flops[name] / args.batches / args.rows,
            "of_ceiling": flops[name] / sum(seconds[name]) / limit,
            "ceiling_flops_per_sec": limit,
        }
        for name in CONTENDERS
    ]


def table(rows: list[dict]) -> str:
    head = ("dtype", "contender", "rows/s", "ratio", "peak MB", "ratio", "GFLOP/row", "of ceiling")
    lines = ["{:9} {:20} {:>8} {:>6} {:>8} {:>6} {:>10} {:>11}".format(*head)]
    for r in rows:
        speed = f"{r['dtype']:9} {r['contender']:20} {r['rows_per_sec']:8.2f} {r['speed_ratio']:6.2f}"
        memory = f"{r['peak_bytes'] / 1e6:8.0f} {r['memory_ratio']:6.2f}"
        lines.append(f"{speed} {memory} {r['flops_per_row'] / 1e9:10.1f} {r['of_ceiling']:11.0%}")
    return "\n".join(lines)


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    data = E2ERows.load()
    if args.memory_of:
        return print_peak(args, data)
    rows = [row for dtype in args.dtypes for row in results(dtype, args, data)]
    model = gpt2_model("float32", args.device, args.layers)
    first = {name: batches_for(name, args, data)[0] for name in CONTENDERS[1:]}
    gradient = {name: gradient_difference(model, data, batch, name) for name, batch in first.items()}
    notes = [f"float32 gradient of {name}: differs from PEFT's by {value:.1e}" for name, value in gradient.items()]
    print(text := "\n".join([table(rows), *notes]))
    config = {key: value for key, value in vars(args).items() if key not in ("record", "memory_of")}
    print(line := json.dumps({"config": config, "machine": machine(args.device), "rows": rows, "gradient": gradient}))
    if args.record:
        args.record.parent.mkdir(parents=True, exist_ok=True)
        args.record.with_suffix(".txt").write_text(text + "\n")
        args.record.with_suffix(".json").write_text(line + "\n")


if __name__ == "__main__":
    main()
