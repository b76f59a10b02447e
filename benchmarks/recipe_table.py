"""Runs recipes over seeds in worker processes, evaluates each run's test set, and prints the table for the README.

    python benchmarks/recipe_table.py recipes/e2e_prefix5.yaml recipes/e2e_prompt20.yaml --seeds 3 --workers 2

A run that is finished is not run again, so the command can be repeated after a stop; `--score` only re-scores the
predictions that are there (on a machine with Java, after the runs were made on one without).
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from foreword.config import load_yaml
from foreword.data.files import write_atomic
from foreword.data.records import Record
from foreword.evaluate.runner import Scores, evaluate_outputs, write_scores
from foreword.tasks import Task, get_task


def make_parser(description: str | None = __doc__) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="field.path=value")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/table"))
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--no-untouched", action="store_true", help="leave the untouched backbone's row out")
    parser.add_argument("--score", action="store_true", help="only score predictions that are there")
    parser.add_argument("--resamples", type=int, default=1000, help="of the intervals in each run's scores.json")
    parser.add_argument("--record", type=Path, help="write the table's figures there as JSON")
    return parser


def run_one(recipe: Path, seed: int, options: argparse.Namespace) -> str:
    """Train one recipe with one seed and write its predictions; return a line for the log."""
    run = options.runs / f"{recipe.stem}-seed{seed}"
    if (run / options.split / "predictions.jsonl").is_file():
        return f"{run.name}: already done"
    foreword = [sys.executable, "-m", "foreword"]
    log = (options.runs / f"{run.name}.log").open("a")
    steps = [
        [*foreword, "train", str(recipe), f"seed={seed}", f"run_dir={run}", *options.set],
        [
            *foreword,
            "evaluate",
            str(run),
            "--split",
            options.split,
            "--batch-size",
            str(options.batch_size),
            "--resamples",
            "0",
            "--out",
            str(run / options.split),
            *untouched(recipe, seed, options),
            *limit(options),
        ],
    ]
    if (run / "config.yaml").is_file():
        steps[0] = [*foreword, "train", "--resume", str(run)]
    for step in steps:
        if code := subprocess.run(step, stdout=log, stderr=subprocess.STDOUT, check=False).returncode:
            return f"{run.name}: {' '.join(step[3:5])} failed with exit code {code}, see {log.name}"
    return f"{run.name}: done"


def untouched(recipe: Path, seed: int, options: argparse.Namespace) -> list[str]:
    """Score the untouched backbone once, beside the first recipe's first seed: it is the same for all."""
    wanted = (recipe, seed) == (options.recipes[0], 0) and not options.no_untouched
    return [] if wanted else ["--no-untouched"]


def limit(options: argparse.Namespace) -> list[str]:
    return ["--limit", str(options.limit)] if options.limit else []


def score(recipe: Path, options: argparse.Namespace) -> list[dict[str, float]]:
    """Return the scores of every seed of a recipe, computed anew from its predictions and written beside them."""
    found = []
    for seed in range(options.seeds):
        folder = options.runs / f"{recipe.stem}-seed{seed}" / options.split
        if not (folder / "predictions.jsonl").is_file():
            continue
        task = get_task(load_yaml(recipe)["task"])
        rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
        by_id = {record.id: record for record in task.load(options.split)}
        scores = score_rows(task, rows, by_id, options.split, options.resamples)
        old = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        write_scores(folder, scores, extra={key: old[key] for key in ("subject", "forgetting", "others")})
        found.append(scores.metrics | parts(task, rows, options.split))
    return found


def score_rows(
    task: Task, rows: list[dict[str, Any]], by_id: dict[str, Record], split: str, resamples: int = 1000
) -> Scores:
    """Return the scores of prediction rows, whose records are looked up by id."""
    records, outputs = [by_id[row["id"]] for row in rows], [row["prediction"] for row in rows]
    return evaluate_outputs(task, records, outputs, split, resamples)


def parts(task: Task, rows: list[dict[str, Any]], split: str) -> dict[str, float]:
    """Return the scores on splits that are part of this one: WebNLG's `test_seen` and `test_unseen` of `test`."""
    found = {}
    for part in (name for name in task.splits if name.startswith(f"{split}_")):
        by_id = {record.id: record for record in task.load(part)}
        scores = score_rows(task, [row for row in rows if row["id"] in by_id], by_id, part, resamples=0)
        found |= {f"{name} {part.removeprefix(f'{split}_')}": value for name, value in scores.metrics.items()}
    return found


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Return a Markdown table: mean ± standard deviation over seeds."""
    names = list(dict.fromkeys(name for runs in results.values() for run in runs for name in run))
    lines = ["| recipe | seeds | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for recipe, runs in results.items():
        cells = []
        for name in names:
            values = [run[name] for run in runs if name in run]
            spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.4f}{spread}" if values else "–")
        lines.append(f"| {recipe} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run_and_score(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Run what is not there yet; return each recipe's scores, one entry a seed."""
    options.runs.mkdir(parents=True, exist_ok=True)
    jobs = [(recipe, seed) for seed in range(options.seeds) for recipe in options.recipes]
    if not options.score:
        with ThreadPoolExecutor(options.workers) as pool:
            for line in pool.map(lambda job: run_one(*job, options), jobs):
                print(line, flush=True)
    results = {recipe.stem: score(recipe, options) for recipe in options.recipes}
    return untouched_scores(options) | results


def untouched_scores(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Return the untouched backbone's scores, which stand beside the first recipe's first seed."""
    found = options.runs / f"{options.recipes[0].stem}-seed0" / options.split / "scores.json"
    others = json.loads(found.read_text(encoding="utf-8"))["others"] if found.is_file() else {}
    return {"untouched": [others["untouched"]["metrics"]]} if "untouched" in others else {}


def main() -> None:
    options = make_parser().parse_args()
    results = run_and_score(options)
    print(table(results))
    if options.record:
        write_atomic(options.record, json.dumps(results, indent=1) + "\n")
    print(json.dumps({"benchmark": "recipe_table", "runs": {name: len(runs) for name, runs in results.items()}}))


if __name__ == "__main__":
    main()
