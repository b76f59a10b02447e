"""The search before the runs that count: the same number of trials for every cell, chosen between on dev alone."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foreword.data.files import write_atomic
from foreword.errors import ConfigError, DataError
from foreword.experiments.grid.address import Contents
from foreword.experiments.grid.check import refuse_reported_dev, refuse_test_selection
from foreword.experiments.grid.spec import Grid, Point, axes_of, cell_of, combinations, configure
from foreword.experiments.grid.state import Row, first_state, read_json
from foreword.experiments.grid.work import TRAINED, Piece, folder_of

Cell = tuple[tuple[str, str], ...]
Chosen = dict[Cell, dict[str, Any]]
CHOICES = "search.json"


@dataclass(frozen=True)
class Trial:
    """One trial of a search.

    Attributes:
        cell: whose settings it tries.
        settings: what it tried.
        value: its best dev value; None where it failed or has not run.
        address: of its run.
        metric: what the value is of: `loss` is best when least, a score when greatest.
    """

    cell: Cell
    settings: dict[str, Any]
    value: float | None
    address: str
    metric: str = "loss"


def plan_trials(grid: Grid, contents: Contents, retry: bool = False) -> list[Row]:
    """Return a row for every trial, which runs at the first seed and subset of its cell and is scored on nothing.

    Raises:
        ConfigError: a method has no space of its own, or one too small for the budget that all have; a trial would
            select on what is reported; or the trials of one cell are judged by several scores.
    """
    spaces = draw_trials(grid)
    rows = []
    for labels, settings in _first_of_each_cell(grid):
        metrics = set()
        for extra in spaces[labels[grid.search.axis]]:
            point = Point(labels, configure(grid, {**settings, **extra}))
            refuse_test_selection(grid, point.config)
            refuse_reported_dev(grid, point.config, contents)
            piece = Piece(contents.run(point.config), point.config, {})
            rows.append(Row(piece, point, *first_state(grid.store, piece, retry), tried=extra))
            metrics.add(point.config.dev.metric)
        if len(metrics) > 1:
            raise ConfigError(f"the trials of {labels} are judged by several dev.metric, {sorted(metrics)}; give one")
    return rows


def read_trials(grid: Grid, rows: Sequence[Row]) -> list[Trial]:
    """Return the trials of rows that `plan_trials` made, with what they have left on disk."""
    trials = []
    for row in rows:
        facts = read_json(folder_of(grid.store, row.piece.address) / TRAINED)
        value, by = (facts["best_dev"] if facts else None), row.piece.config.dev.metric
        trials.append(Trial(cell_of(grid, row.point.labels), row.tried, value, row.piece.address, by))
    return trials


def search(
    grid: Grid, contents: Contents, finish: Callable[[list[Row]], None], retry: bool = False
) -> tuple[list[Row], list[Trial]]:
    """Run every cell's trials, which are scored on dev alone, and return their rows and what came out.

    Raises:
        ConfigError: see `plan_trials`.
    """
    rows = plan_trials(grid, contents, retry)
    finish(rows)
    return rows, read_trials(grid, rows)


def draw_trials(grid: Grid) -> dict[str, list[dict[str, Any]]]:
    """Return `budget` settings for each value of the search's axis, drawn from its space without replacement.

    Raises:
        ConfigError: a value has no space, or one too small for the budget that all have.
    """
    wanted = grid.search
    drawn = {}
    for value in axes_of(grid)[wanted.axis]:
        if value.label not in wanted.spaces:
            raise ConfigError(f"search.spaces has none for {value.label!r}; every method gets the same budget")
        space = wanted.spaces[value.label]
        total = int(np.prod([len(values) for values in space.values()]))
        if total < wanted.budget:
            raise ConfigError(
                f"search.spaces.{value.label} has {total} combinations for budget = {wanted.budget}; add values: "
                "every method gets the same budget"
            )
        rng = np.random.Generator(np.random.PCG64(wanted.seed))
        picked = sorted(rng.choice(total, size=wanted.budget, replace=False))
        drawn[value.label] = [_combination(space, int(number)) for number in picked]
    return drawn


def _combination(space: Mapping[str, Sequence[Any]], number: int) -> dict[str, Any]:
    settings = {}
    for name, values in space.items():
        number, place = divmod(number, len(values))
        settings[name] = values[place]
    return settings


def _first_of_each_cell(grid: Grid) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Return the first combination of each cell; trials run at its seed and subset."""
    found: dict[Cell, tuple[dict[str, str], dict[str, Any]]] = {}
    for labels, settings in combinations(grid):
        found.setdefault(cell_of(grid, labels), (labels, settings))
    return list(found.values())


def choose(trials: Sequence[Trial]) -> Chosen:
    """Return each cell's settings with the best dev value; nothing else is looked at.

    Raises:
        DataError: all trials of a cell failed, are missing or have a dev value that is not finite.
    """
    cells: dict[Cell, list[Trial]] = {}
    for trial in trials:
        cells.setdefault(trial.cell, []).append(trial)
    chosen = {}
    for cell, mine in cells.items():
        worked = [trial for trial in mine if trial.value is not None and math.isfinite(trial.value)]
        if not worked:
            raise DataError(
                f"all trials of {dict(cell)} failed, have not run or have no finite dev value; see their failure.json "
                "and --retry, and lower learning rates"
            )
        least = worked[0].metric == "loss"
        best = (min if least else max)(worked, key=lambda trial: trial.value)
        chosen[cell] = best.settings
    return chosen


def write_trials(folder: Path, trials: Sequence[Trial]) -> None:
    """Write the trials of a search beside the page; what an earlier grid without one finds there is taken away."""
    if not trials:
        (folder / CHOICES).unlink(missing_ok=True)
        return
    rows = [{**dataclasses.asdict(trial), "cell": dict(trial.cell)} for trial in trials]
    write_atomic(folder / CHOICES, json.dumps(rows, indent=2, sort_keys=True) + "\n")
