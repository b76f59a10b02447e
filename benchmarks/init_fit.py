"""Initialising a prefix from real text behind an MLP: the original code's regression against exact least squares.

    python benchmarks/init_fit.py --backbone foreword-decoder-6m --record benchmarks/records/DATE_init_fit

Each start gets the same draw of P' and the MLP, the same training text and the same 200 steps on the real E2E set.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

import torch
from curves import Curve, e2e_rows, run_curve
from meters import machine

from foreword.backbone import load_backbone
from foreword.prompts.spec import InitSpec, PromptSpec
from foreword.train.run_config import Recipe, TrainBatch

STARTS = {
    "exact least squares": InitSpec("data", fit="exact"),
    "regression, 500 steps": InitSpec("data", fit="regression"),
    "no activations (MLP's draw)": InitSpec("normal"),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--length", type=int, default=10, help="virtual tokens")
    parser.add_argument("--width", type=int, default=512, help="of the MLP")
    parser.add_argument("--rows", type=int, default=10, help="rows a step")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--dev-sources", type=int, default=60)
    parser.add_argument("--record", type=Path)
    return parser.parse_args()


def recipe(args: argparse.Namespace, init: InitSpec, seed: int) -> Recipe:
    prompt = PromptSpec(length=args.length, reparam="mlp", reparam_width=args.width, init=init)
    return Recipe(prompt=prompt, batch=TrainBatch(rows=args.rows), steps=args.steps, seed=seed)


def summary(name: str, curves: list[Curve]) -> dict:
    return {
        "start": name,
        "fit_error": mean(curve.init_error for curve in curves),
        "init_seconds": mean(curve.init_seconds for curve in curves),
        "dev_loss_at_start": mean(curve.points[0].dev_loss for curve in curves),
        "dev_loss_at_end": mean(curve.points[-1].dev_loss for curve in curves),
    }


def table(lines: list[dict], steps: int) -> str:
    head = f"{'start':28} {'fit error':>10} {'seconds':>8} {'dev loss, step 0':>17} {f'step {steps}':>9}"
    form = "{start:28} {fit_error:10.2e} {init_seconds:8.2f} {dev_loss_at_start:17.4f} {dev_loss_at_end:9.4f}"
    return "\n".join([head, *(form.format(**line) for line in lines)])


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    backbone = load_backbone(args.backbone, dtype=args.dtype, device=args.device)
    rows = e2e_rows(backbone, args.dev_sources)
    every = max(1, args.steps // 4)
    curves = {
        name: [run_curve(name, backbone, rows, recipe(args, init, seed), every) for seed in range(args.seeds)]
        for name, init in STARTS.items()
    }
    lines = [summary(name, group) for name, group in curves.items()]
    print(text := table(lines, args.steps))
    config = {key: value for key, value in vars(args).items() if key != "record"}
    everything = [curve.to_dict() for group in curves.values() for curve in group]
    print(line := json.dumps({"config": config, "machine": machine(args.device), "lines": lines, "curves": everything}))
    if args.record:
        args.record.parent.mkdir(parents=True, exist_ok=True)
        args.record.with_suffix(".txt").write_text(text + "\n")
        args.record.with_suffix(".json").write_text(line + "\n")


if __name__ == "__main__":
    main()
