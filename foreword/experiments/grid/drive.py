"""A grid from its YAML to its page: plan, skip what is done, run the rest anywhere, choose on dev, tell it all.

load_grid → plan → search (dev only) → run → page
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foreword.data.files import write_atomic
from foreword.errors import ConfigError, DataError, nearest
from foreword.experiments.grid.address import Contents
from foreword.experiments.grid.live import Board
from foreword.experiments.grid.pools import Event, check_places, in_process, in_workers, on_ray
from foreword.experiments.grid.spec import Grid, Point, axes_of, cell_of, combinations, configure, points
from foreword.experiments.grid.state import Row, first_state, headline, read_json
from foreword.experiments.grid.work import TRAINED, Job, Piece, folder_of

Chosen = dict[tuple[tuple[str, str], ...], dict[str, Any]]
CHOICES = "search.json"


@dataclass(frozen=True)
class Trial:
    """One trial of a search: its cell, what it tried, its dev value (None where it failed) and its address."""

    cell: tuple[tuple[str, str], ...]
    settings: dict[str, Any]
    value: float | None
    address: str


@dataclass
class Ran:
    """A grid that has been run.

    Attributes:
        grid: with its protocol written out.
        rows: one a piece, untouched backbones last.
        trials: of the search.
        seconds: wall-clock of this call.
    """

    grid: Grid
    rows: list[Row]
    trials: list[Trial] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failed(self) -> list[Row]:
        """The pieces that failed."""
        return [row for row in self.rows if row.state == "failed"]


def run_grid(
    grid: Grid,
    *,
    workers: int = 0,
    ray: str | None = None,
    retry: bool = False,
    tell: Callable[[str], None] | None = None,
    only_read: bool = False,
) -> Ran:
    """Run what is missing of a grid and return all of it.

    Args:
        grid: from `load_grid`.
        workers: local worker processes; 0 runs everything in this process.
        ray: address of a Ray cluster, `local` for one of this machine alone; None does without Ray.
        retry: try again what failed earlier.
        tell: is called with a line for each thing that happens; None shows a live table on a terminal.
        only_read: run nothing, take what is there.

    Raises:
        ConfigError: the grid cannot work.
        DataError: its data cannot be loaded.
        MissingExtraError: Ray is asked for and not installed.
    """
    check_places(workers, ray)
    started = time.monotonic()
    contents = Contents()

    def finish(rows: list[Row]) -> None:
        if not only_read:
            _run(grid, rows, workers, ray, tell)

    trials = search(grid, contents, finish, retry) if grid.search is not None else []
    chosen = choose(grid, trials)
    rows = plan(grid, points(grid, chosen), contents, retry)
    finish(rows)
    return Ran(grid, rows, trials, time.monotonic() - started)


def plan(grid: Grid, wanted: Sequence[Point], contents: Contents, retry: bool = False) -> list[Row]:
    """Return a row for each point and each untouched backbone, with what is already on disk."""
    rows = []
    for point in wanted:
        address = contents.run(point.config)
        targets = {contents.score(address, point.config, grid.scoring, t): t for t in grid.scoring.targets}
        rows.append(_row(grid, Piece(address, point.config, targets), point, retry))
    if grid.scoring.untouched:
        pieces = {}
        for point in wanted:
            piece = _untouched(grid, point, contents)
            pieces.setdefault((piece.address, *piece.targets), piece)
        rows += [_row(grid, piece, None, retry) for piece in pieces.values()]
    return rows


def _untouched(grid: Grid, point: Point, contents: Contents) -> Piece:
    backbone = contents.backbone(point.config.backbone)
    own = point.config.data
    address = f"untouched-{backbone[:12]}-{own.format or 'default'}-{own.max_source or 'whole'}".replace("/", "-")
    targets = {contents.score(address, point.config, grid.scoring, t): t for t in grid.scoring.targets}
    return Piece(address, point.config, targets, trains=False)


def _row(grid: Grid, piece: Piece, point: Point | None, retry: bool) -> Row:
    return Row(piece, point, *first_state(grid.store, piece, retry))


def _run(
    grid: Grid, rows: list[Row], workers: int, ray: str | None, tell: Callable[[str], None] | None
) -> None:
    """Run the waiting rows and keep every row's state true meanwhile."""
    waiting: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.state == "waiting":  # two points may be one run, as fine-tuning at several prompt lengths
            waiting.setdefault((row.piece.address, *sorted(row.piece.targets)), []).append(row)
    jobs = make_jobs(grid, [same[0].piece for same in waiting.values()])
    members = [[row for row in rows if row.piece in job.pieces] for job in jobs]
    with Board(grid, rows, tell) as board:
        for event in _events(jobs, workers, ray):
            if event.number >= 0:
                _note(grid, event, members[event.number], board)
            board.refresh()


def _events(jobs: Sequence[Job], workers: int, ray: str | None) -> Iterator[Event]:
    if not jobs:
        return iter(())
    if ray is not None:
        return on_ray(jobs, ray)
    return in_workers(jobs, workers) if workers else in_process(jobs)


def _note(grid: Grid, event: Event, rows: Sequence[Row], board: Board) -> None:
    """Write an event into the rows it is about."""
    ended = {outcome.address: outcome for outcome in event.outcomes}
    for row in rows:
        if event.kind == "started":
            row.state, row.detail = "running", ""
        elif event.kind == "lost":
            row.state, row.detail = "waiting", f"{event.detail}; again"
        elif event.kind == "ended":
            outcome = ended[row.piece.address]
            row.state = outcome.state
            row.detail = outcome.reason or headline(grid.store, row.piece, grid.page.metric)
        board.say(row)


def make_jobs(grid: Grid, pieces: Sequence[Piece]) -> list[Job]:
    """Return the jobs of pieces: gangs of those that can train in one pass, the others alone."""
    groups: dict[str, list[Piece]] = {}
    for number, piece in enumerate(pieces):
        config = piece.config
        alone = grid.gang < 2 or not piece.trains or config.method != "prompt"
        # A score that decides the best step is computed for one task; the dev loss is each member's own.
        task = "" if config.dev.metric == "loss" else f"{config.task} {config.data}"
        groups.setdefault(str(number) if alone else f"{config.backbone} {config.dev.metric} {task}", []).append(piece)
    jobs = []
    for group in groups.values():
        for start in range(0, len(group), max(1, grid.gang)):
            members = tuple(group[start : start + max(1, grid.gang)])
            jobs.append(Job(members, grid.store, grid.scoring, grid.threads))
    return jobs


def search(
    grid: Grid, contents: Contents, finish: Callable[[list[Row]], None], retry: bool = False
) -> list[Trial]:
    """Run every cell's trials, which are scored on dev alone, and return them.

    Raises:
        ConfigError: a method has no space of its own, or one too small for the budget that all have.
    """
    spaces = _draw_trials(grid)
    rows, tried = [], []
    for labels, settings in _first_of_each_cell(grid):
        for extra in spaces[labels[grid.search.axis]]:
            point = Point(labels, configure(grid, {**settings, **extra}))
            rows.append(_row(grid, Piece(contents.run(point.config), point.config, {}), point, retry))
            tried.append((cell_of(grid, labels), extra))
    finish(rows)
    trials = []
    for row, (cell, extra) in zip(rows, tried, strict=True):
        facts = read_json(folder_of(grid.store, row.piece.address) / TRAINED)
        trials.append(Trial(cell, extra, facts["best_dev"] if facts else None, row.piece.address))
    return trials


def _draw_trials(grid: Grid) -> dict[str, list[dict[str, Any]]]:
    """Return `budget` settings for each value of the search's axis, drawn from its space without replacement."""
    wanted = grid.search
    axes = axes_of(grid)
    if wanted.axis not in axes:
        raise ConfigError(f"search.axis = {wanted.axis!r} is no axis{nearest(wanted.axis, axes)}")
    drawn = {}
    for value in axes[wanted.axis]:
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
    found: dict[tuple[tuple[str, str], ...], tuple[dict[str, str], dict[str, Any]]] = {}
    for labels, settings in combinations(grid):
        found.setdefault(cell_of(grid, labels), (labels, settings))
    return list(found.values())


def choose(grid: Grid, trials: Sequence[Trial]) -> Chosen:
    """Return each cell's settings with the best dev value; nothing else is looked at.

    Raises:
        DataError: all trials of a cell failed or are missing.
    """
    cells: dict[tuple[tuple[str, str], ...], list[Trial]] = {}
    for trial in trials:
        cells.setdefault(trial.cell, []).append(trial)
    chosen = {}
    for cell, mine in cells.items():
        worked = [trial for trial in mine if trial.value is not None]
        if not worked:
            raise DataError(f"all trials of {dict(cell)} failed or have not run; see their failure.json and --retry")
        least = grid.base.get("dev", {}).get("metric", "loss") == "loss"
        best = (min if least else max)(worked, key=lambda trial: trial.value)
        chosen[cell] = best.settings
    return chosen


def write_trials(folder: Path, trials: Sequence[Trial]) -> None:
    """Write the trials of a search beside the page."""
    rows = [{**dataclasses.asdict(trial), "cell": dict(trial.cell)} for trial in trials]
    write_atomic(folder / CHOICES, json.dumps(rows, indent=2, sort_keys=True) + "\n")
