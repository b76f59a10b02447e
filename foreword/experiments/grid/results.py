"""A grid's results as rows: one a run and target, read from the store; averages over repetitions; convergence.

Notation: a cell is a combination of labels on the axes that are not averaged over; its runs are its repetitions.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foreword.data.files import write_atomic
from foreword.evaluate.across import mean_interval
from foreword.evaluate.stats import Interval
from foreword.experiments.grid.address import answers_in_template, relabelling, untouched_words
from foreword.experiments.grid.spec import Grid, Target, cell_of
from foreword.experiments.grid.state import Row, read_json, read_jsonl
from foreword.experiments.grid.units import by_unit
from foreword.experiments.grid.work import RUN, SCORES, TRAINED, folder_of
from foreword.tasks.scores import LOWER_IS_BETTER
from foreword.train.record import METRICS, TIMES
from foreword.train.run_config import RunConfig

UNTOUCHED = "untouched"
Cell = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Score:
    """What one run scored on one target.

    Attributes:
        labels: of its point; empty for an untouched backbone.
        target: name.
        metrics, intervals: by score name.
        illegal, empty: shares of outputs; illegal is None for free text.
        n: instances.
        address: of the run.
        folder: where scores.json and predictions.jsonl lie.
        backbone: what it ran on.
        task: whose records they are, by the task's own name.
        trained_on: the run's task as its config names it.
        skipped: metrics that could not be computed, with the reason.
        reads: of an untouched backbone, what else decides its outputs, by name.
    """

    labels: dict[str, str]
    target: str
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    illegal: float | None
    empty: float
    n: int
    address: str
    folder: Path
    backbone: str
    task: str
    trained_on: str
    skipped: dict[str, str] = field(default_factory=dict)
    reads: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """How one run trained.

    Attributes:
        labels: of its point.
        facts: `trained.json`.
        loss: (step, training loss).
        dev: (step, deciding dev value).
        seconds: (step, seconds since the start), broken-off attempts included.
        tokens: target tokens it learned from; 0 where none are counted.
        address: of the run.
        dev_metric: what the deciding value is of.
        method: how it learned.
    """

    labels: dict[str, str]
    facts: dict[str, Any]
    loss: list[tuple[float, float]]
    dev: list[tuple[float, float]]
    seconds: list[tuple[float, float]]
    tokens: int
    address: str
    dev_metric: str = "loss"
    method: str = "prompt"


@dataclass(frozen=True)
class Results:
    """All scores and trainings of a grid that are on disk."""

    grid: Grid
    scores: list[Score] = field(default_factory=list)
    floors: list[Score] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The headline score's name: the one asked for, or the first where no run has it."""
        asked = self.grid.page.metric or ""
        if not self.scores or any(asked in score.metrics for score in self.scores):
            return asked
        return next((name for score in self.scores for name in score.metrics), "")

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller headline score is the better one."""
        return self.metric in LOWER_IS_BETTER

    @property
    def targets(self) -> list[str]:
        """Names of the targets, in the grid's order."""
        return [target.name for target in self.grid.scoring.targets]

    def cells(self, target: str) -> dict[Cell, list[Score]]:
        """Return the runs of each cell on one target."""
        found: dict[Cell, list[Score]] = {}
        for score in self.scores:
            if score.target == target:
                found.setdefault(cell_of(self.grid, score.labels), []).append(score)
        return found


def read_results(grid: Grid, rows: Sequence[Row]) -> Results:
    """Return what a grid's rows have left on disk."""
    results = Results(grid)
    for row in rows:
        folder = folder_of(grid.store, row.piece.address)
        facts = read_json(folder / TRAINED)
        if row.point is not None and facts is not None:
            results.trainings.append(_training(row, folder, facts))
        for address, target in row.piece.targets.items():
            found = read_json(folder / "scores" / address / SCORES)
            if found is not None:
                (results.floors if row.point is None else results.scores).append(
                    _score(row, target, folder / "scores" / address, found)
                )
    return results


def _score(row: Row, target: Target, folder: Path, found: dict[str, Any]) -> Score:
    intervals = {name: Interval(**values) for name, values in found["intervals"].items()}
    config, labels = row.piece.config, row.point.labels if row.point is not None else {}
    return Score(
        labels, target.name, found["metrics"], intervals, found["illegal"], found["empty"], found["n"],
        row.piece.address, folder, Path(config.backbone.source).name, found["task"], config.task,
        found.get("skipped", {}), _reads(config, target, found["task"]) if row.point is None else {},
    )


def _reads(config: RunConfig, target: Target, task: str) -> dict[str, str]:
    """Return what tells one untouched backbone's score from another's on the same target."""
    held, data = config.backbone, config.data
    renamed = "renamed" if relabelling(config.task, target) else "as they are"
    spec = config.autoprompt if answers_in_template(config) else None
    known = {
        "on": task, "labels": renamed, "words": untouched_words(config), "format": data.format,
        "max_source": data.max_source, "from": held.source, "dtype": held.dtype, "quantization": held.quantization,
        "revision": held.revision, "template": spec and (spec.template or "default"),
        "label words": spec and (f"of seed {config.seed}" if spec.label_search else spec.labels),
    }
    return {name: "none" if value is None else str(value) for name, value in known.items()}


def floor_name(floor: Score, floors: Sequence[Score]) -> str:
    """Return an untouched backbone's name, with what tells it from the other ones of its target."""
    others = [other for other in floors if other.target == floor.target]
    values = {name: {other.reads[name] for other in others} for name in floor.reads}
    if len(values.get("from", ())) == len({other.backbone for other in others}):
        values.pop("from", None)  # the backbone's name says it
    telling = [f"{name} {floor.reads[name]}" for name, found in values.items() if len(found) > 1]
    return f"{UNTOUCHED} {floor.backbone}" + (f" ({', '.join(telling)})" if telling else "")


def _training(row: Row, folder: Path, facts: dict[str, Any]) -> Training:
    metrics = read_jsonl(folder / RUN / METRICS)
    deciding = f"dev_{row.piece.config.dev.metric}"
    steps = [line for line in metrics if "loss" in line]
    return Training(
        labels=row.point.labels,
        facts=facts,
        loss=[(line["step"], line["loss"]) for line in steps],
        dev=[(line["step"], line[deciding]) for line in metrics if deciding in line],
        seconds=elapsed(read_jsonl(folder / RUN / TIMES)),
        tokens=sum(line.get("tokens", 0) for line in steps),
        address=row.piece.address,
        dev_metric=row.piece.config.dev.metric,
        method=facts.get("method", row.piece.config.method),
    )


def elapsed(times: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """Return (step, seconds so far): each attempt's clock starts at zero, so the attempts before are added."""
    before, last, found = 0.0, 0.0, []
    for line in times:
        if line["seconds"] < last:
            before += last
        last = line["seconds"]
        found.append((line["step"], before + last))
    return found


def cell_name(cell: Cell) -> str:
    """Return a cell in words."""
    return ", ".join(f"{axis} {label}" for axis, label in cell) or "the run"


def average(scores: Sequence[Score], metric: str) -> Interval | None:
    """Return a score's mean over runs with the t interval over them, or over subsets where there are several.

    A single run has its bootstrap interval. None where a run lacks the score: the mean of the others would stand beside
    the number of all runs.
    """
    if not scores or any(metric not in score.metrics for score in scores):
        return None
    found = mean_interval(by_unit([(score.labels, score.metrics[metric]) for score in scores]))
    return scores[0].intervals.get(metric, found) if len(scores) == 1 else found


def converged(training: Training, share: float = 0.99, loss: bool = True) -> tuple[float, float] | None:
    """Return the step and the seconds at which a run first had `share` of its own best dev value, or None without dev.

    A dev loss counts by how far it fell: `share` of the way from its first evaluation to its best one. A score counts
    as it is: `share` of the best. The first evaluation is after `dev.every` steps, so faster than that cannot be told.
    """
    if not training.dev:
        return None
    first, values = training.dev[0][1], [value for _, value in training.dev]
    best = min(values) if loss else max(values)
    goal = first + share * (best - first) if loss else share * best
    step = next(step for step, value in training.dev if (value <= goal if loss else value >= goal))
    seconds = [sec for at, sec in training.seconds if at <= step]
    return step, (seconds[-1] if seconds else math.nan)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write rows as CSV in one atomic step; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
    write_atomic(path, text.getvalue())


def tidy_rows(results: Results) -> tuple[list[str], list[list[Any]]]:
    """Return the header and rows of `results.csv`: one row a run, target and score; no clock, so that two ways of
    running the same grid give the same bytes.
    """
    axes = list(results.grid.axes)
    header = ["run", *axes, "backbone", "task", "target", "score", "value", "low", "high", "n"]
    rows = []
    for score in (*results.scores, *results.floors):
        labels = [score.labels.get(axis, UNTOUCHED if not score.labels else "") for axis in axes]
        shares = {"illegal": score.illegal, "empty": score.empty}
        values = {**score.metrics, **{name: share for name, share in shares.items() if share is not None}}
        for name, value in values.items():
            interval = score.intervals.get(name)
            limits = (interval.low, interval.high) if interval else (None, None)
            what = (score.backbone, score.task, score.target)
            rows.append([score.address, *labels, *what, name, value, *limits, score.n])
    return header, rows


def read_predictions(score: Score) -> list[dict[str, Any]]:
    """Return the outputs of a run on a target, with their sources and references."""
    path = score.folder / "predictions.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line] if path.is_file() else []
