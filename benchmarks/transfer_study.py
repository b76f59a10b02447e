"""Do soft prompts transfer? Across tasks, across models; what helped and what did not. On real data, resumable.

    python benchmarks/transfer_study.py --backbone foreword-decoder-6m --pair OTHER foreword-decoder-6m \
        --pair foreword-decoder-6m OTHER --out runs/transfer_study

It trains a prompt for every task and seed, then: every prompt on every task without training; similarities of the
prompts and whether they predict that; training from the most similar prompt, a mixture, an oracle's and a control's
choice against the plain start; and for each pair of models recycling and projectors, judged on tasks that no
projector has seen. Finished pieces in `--out` are not made again, so the command can be repeated after a stop.
Ends with `summary.json`, `summary.md` and `summary.html`.
"""

import argparse
import os
import time
from pathlib import Path

import torch
import transfer_models
import transfer_tasks
from transfer_report import correlation_lines, family_lines, model_lines, start_lines, write_summary
from transfer_runs import FAMILIES, Settings, Study, label

from foreword.errors import nearest

TASKS = ("e2e", "webnlg", "rnnlg_restaurant", "rnnlg_hotel", "sst2", "mrpc", "rte", "aeslc")
PARTS = ("tasks", "models")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="foreword-decoder-6m", help="the model of the part on tasks")
    parser.add_argument("--pair", nargs=2, action="append", default=[], metavar=("SOURCE", "TARGET"), dest="pairs")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--held-inside", nargs="*", default=["rnnlg_hotel", "mrpc"],
                        help="tasks no projector sees, of families that it sees")
    parser.add_argument("--held-outside", nargs="*", default=["aeslc"], help="tasks no projector sees the family of")
    parser.add_argument("--kind", choices=("prompt", "prefix"), default="prompt")
    numbers = {"length": 20, "steps": 400, "every": 20, "rows": 16, "limit": 5000, "dev-limit": 100, "generate": 100,
               "max-source": 192, "seeds": 3, "query-steps": 40, "projector-steps": 400}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, help="default: 0.3 (Adafactor) for a prompt, 0.1 (AdamW) for a prefix")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/transfer_study"))
    return parser.parse_args()


def settings(args: argparse.Namespace) -> Settings:
    """Return the study's settings, or stop over a task that is none of its tasks."""
    for name in (*args.tasks, *args.held_inside, *args.held_outside):
        if name not in FAMILIES or name not in args.tasks:
            raise SystemExit(f"{name!r} is none of the study's tasks{nearest(name, args.tasks)}")
    if len(args.tasks) < 3:
        raise SystemExit(f"{len(args.tasks)} tasks have no ranking of sources; give at least 3")
    chosen = {key: value for key, value in vars(args).items() if key in Settings.__dataclass_fields__}
    found = Settings(**{**chosen, "lr": args.lr or {"prompt": 0.3, "prefix": 0.1}[args.kind]})
    if args.pairs and not found.training_tasks:
        raise SystemExit("every task is held out, so no projector can be trained; hold out fewer")
    return found


def tasks_part(study: Study) -> dict[str, list]:
    """Return the summary's parts on tasks."""
    s = study.settings
    seeds, cells, relatives = range(s.seeds), [], []
    for seed in seeds:
        relatives.append(transfer_tasks.matrix(study, seed).relative().tolist())
        cells.append(transfer_tasks.correlations(study, seed))
    starts = [(task, transfer_tasks.starts(study, task, seed)) for seed in seeds for task in s.tasks]
    return {
        "families": family_lines(relatives, s.tasks), "correlations": correlation_lines(cells),
        "starts": start_lines(starts),
    }


def models_part(study: Study) -> dict[str, list]:
    """Return the summary's parts on pairs of models."""
    transfer_models.prepare(study)
    cells, starts = {}, {}
    for pair, task, seed in transfer_models.everything(study):
        name = f"{label(pair[0])} to {label(pair[1])}"
        cells[f"{name}/{task}-s{seed}"] = transfer_models.transfer(study, pair, task, seed)
        started = transfer_models.starts(study, pair, task, seed)
        starts.setdefault(name, []).append((task, started))
        starts.setdefault("all pairs", []).append((f"{name}/{task}", started))
    lines = [{"pair": name, **line} for name, found in starts.items() for line in start_lines(found)]
    return {"models": model_lines(cells, study.settings), "model_starts": lines}


def main() -> None:
    args = parse()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(args.threads)
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - began:7.0f} s  {line}", flush=True)

    study = Study(settings(args), args.out, args.device, tell)
    study.begin()
    summary = {"families": [], "correlations": [], "starts": [], "models": [], "model_starts": []}
    summary |= tasks_part(study) if "tasks" in args.parts else {}
    summary |= models_part(study) if "models" in args.parts else {}
    page = write_summary(study, summary)
    print((args.out / "summary.md").read_text(encoding="utf-8"))
    print(f"written to {page}")


if __name__ == "__main__":
    main()
