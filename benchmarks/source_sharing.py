"""Time to equal dev loss with and without shared sources, at the same number of rows a step, on the real E2E set.

    python benchmarks/source_sharing.py --backbone foreword-decoder-6m --record benchmarks/records/DATE_source_sharing

Keeping N references of one source together makes a step cheaper but its rows less varied. Each setting trains with
the same learning rate, held constant, and the table gives the seconds until the dev loss that every one reached.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

import torch
from curves import Curve, e2e_rows, run_curve
from meters import machine

from foreword.backbone import load_backbone
from foreword.prompts.spec import PromptSpec
from foreword.train.optim import OptimConfig, ScheduleConfig
from foreword.train.run_config import Recipe, TrainBatch


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=32, help="rows a step")
    parser.add_argument("--per-source", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--reparam", choices=("mlp", "none"), default="mlp")
    parser.add_argument("--lr", type=float, help="the library's default where it is left out")
    parser.add_argument("--dev-sources", type=int, default=60)
    parser.add_argument("--record", type=Path)
    return parser.parse_args()


def recipe(args: argparse.Namespace, per_source: int | None, seed: int) -> Recipe:
    batch = TrainBatch(rows=args.rows, share_sources=per_source is not None, per_source=per_source or 0)
    return Recipe(
        prompt=PromptSpec(length=10, reparam=args.reparam),
        batch=batch,
        optim=OptimConfig(lr=args.lr),
        schedule=ScheduleConfig("constant"),
        steps=args.steps,
        seed=seed,
    )


def summary(name: str, curves: list[Curve], plain: list[Curve], goal: float) -> dict:
    """Return one line of the table: means over seeds, and the ratio of the plain runs' seconds to these."""
    last = [curve.points[-1] for curve in curves]
    to_goal, plain_to_goal = (mean(curve.seconds_to(goal) for curve in group) for group in (curves, plain))
    return {
        "setting": name,
        "rows_per_sec": mean(point.rows / point.seconds for point in last),
        "last_dev_loss": mean(point.dev_loss for point in last),
        "seconds_to_goal": to_goal,
        "sooner": plain_to_goal / to_goal,
    }


def table(lines: list[dict], goal: float) -> str:
    head = f"{'setting':24} {'rows/s':>7} {'last dev loss':>13} {f's to {goal:.3f}':>10} {'sooner':>7}"
    form = "{setting:24} {rows_per_sec:7.1f} {last_dev_loss:13.4f} {seconds_to_goal:10.1f} {sooner:6.2f}x"
    return "\n".join([head, *(form.format(**line) for line in lines)])


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    backbone = load_backbone(args.backbone, dtype=args.dtype, device=args.device)
    rows = e2e_rows(backbone, args.dev_sources)
    settings = {"rows drawn freely": None} | {f"up to {n} of a source": n for n in args.per_source}
    curves: dict[str, list[Curve]] = {name: [] for name in settings}
    for seed in range(args.seeds):
        for name, per_source in settings.items():
            curves[name].append(run_curve(name, backbone, rows, recipe(args, per_source, seed), args.every))
    goal = max(curve.least for group in curves.values() for curve in group)
    plain = next(iter(curves.values()))
    lines = [summary(name, group, plain, goal) for name, group in curves.items()]
    print(text := table(lines, goal))
    config = {key: value for key, value in vars(args).items() if key != "record"}
    everything = [curve.to_dict() for group in curves.values() for curve in group]
    print(line := json.dumps({"config": config, "machine": machine(args.device), "lines": lines, "curves": everything}))
    if args.record:
        args.record.parent.mkdir(parents=True, exist_ok=True)
        args.record.with_suffix(".txt").write_text(text + "\n")
        args.record.with_suffix(".json").write_text(line + "\n")


if __name__ == "__main__":
    main()
