"""The comparison of methods: runs recipes over seeds and prints what each scores and what it costs.

    python benchmarks/method_table.py recipes/e2e_*.yaml --seeds 3 --workers 2 --metrics bleu --record RECORD.json

Options and runs are those of recipe_table.py (a finished run is not run again), so the two commands share their work.

A score is the mean over seeds with its 95 % interval (Student's t). Trained parameters are what the optimiser moved
(behind a reparametrisation that is more than what is kept); stored bytes are what must be kept beside the backbone to
use the result; peak memory is the high-water mark of the training process; time is the training's wall clock, loading
not included. Costs are the median over seeds. Runs that share a machine (`--workers`) disturb each other's
time, not their memory.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev

from recipe_table import make_parser, run_and_score

from foreword.baselines.methods import stored_bytes
from foreword.data.files import write_atomic
from foreword.train.record import ARTIFACT, TIMES


@dataclass(frozen=True)
class Cost:
    """What one run took: parameters moved, bytes kept, peak bytes of its process (and of its device), seconds."""

    trained: int
    stored_bytes: int
    peak_bytes: int
    seconds: float
    device_peak_bytes: int | None = None


def read_cost(run: Path) -> Cost | None:
    """Return a finished run's cost, over all its processes; None for runs of versions that did not write it."""
    rows = [json.loads(line) for line in (run / TIMES).read_text(encoding="utf-8").splitlines()]
    ends = [row for row in rows if "trained" in row]
    if not ends:
        return None
    return Cost(
        ends[-1]["trained"],
        stored_bytes(run / ARTIFACT),
        max(row["peak_bytes"] for row in ends),
        process_seconds(rows),
        ends[-1].get("device_peak_bytes"),
    )


def process_seconds(rows: list[dict[str, float]]) -> float:
    """Return the sum of each process's last second: the clock starts anew where a run was resumed."""
    clock = [row["seconds"] for row in rows]
    return sum(now for now, after in zip(clock, [*clock[1:], 0.0], strict=True) if after < now)


def interval(values: list[float], level: float = 0.95) -> tuple[float, float] | None:
    """Return Student's interval of the mean over seeds, None for a single seed."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return mean(values) - half, mean(values) + half


def summarise(scores: list[dict[str, float]], costs: list[Cost], metrics: list[str]) -> dict[str, object]:
    """Return one line of the table as figures."""
    line: dict[str, object] = {"seeds": len(scores)}
    for name in metrics:
        values = [run[name] for run in scores if name in run]
        line[name] = {"mean": mean(values), "interval": interval(values), "values": values} if values else None
    line["runs"] = [asdict(cost) for cost in costs]
    names = ("trained", "stored_bytes", "peak_bytes", "seconds")
    return line | {name: median(getattr(cost, name) for cost in costs) if costs else None for name in names}


def markdown(lines: dict[str, dict[str, object]], metrics: list[str]) -> str:
    """Return the table for people."""
    heads = ["recipe", "seeds", *metrics, "trained", "stored bytes", "peak MiB", "training s"]
    rows = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, line in lines.items():
        cells = [name, str(line["seeds"]), *(cell(line[metric]) for metric in metrics)]
        scales = {"trained": 1, "stored_bytes": 1, "peak_bytes": 2**20, "seconds": 1}
        cells += ["–" if line[key] is None else f"{line[key] / scale:,.0f}" for key, scale in scales.items()]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def cell(score: dict[str, object] | None) -> str:
    if score is None:
        return "–"
    around = "" if score["interval"] is None else " [{:.4f}, {:.4f}]".format(*score["interval"])
    return f"{score['mean']:.4f}{around}"


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--metrics", nargs="+", help="scores to show; all without it")
    return parser.parse_args()


def main() -> None:
    options = parse()
    results = run_and_score(options)
    found = {name: scores for name, scores in results.items() if scores}
    metrics = options.metrics or list(dict.fromkeys(m for runs in found.values() for run in runs for m in run))
    lines = {}
    for name, scores in found.items():
        seeds = [options.runs / f"{name}-seed{seed}" for seed in range(options.seeds)]
        done = [run for run in seeds if (run / options.split / "predictions.jsonl").is_file()]
        costs = [cost for run in done if (cost := read_cost(run)) is not None]
        lines[name] = summarise(scores, costs, metrics)
    print(markdown(lines, metrics))
    if options.record:
        write_atomic(options.record, json.dumps(lines, indent=1) + "\n")
    print(json.dumps({"benchmark": "method_table", "lines": {name: line["seeds"] for name, line in lines.items()}}))


if __name__ == "__main__":
    main()
