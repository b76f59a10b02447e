"""A grid from its YAML to its page: plan, skip what is done, run the rest anywhere, choose on dev, tell it all.

load_grid → plan → search (dev only) → plan → run → page
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from foreword.errors import DataError
from foreword.experiments.grid.address import Contents
from foreword.experiments.grid.check import refuse_reported_dev
from foreword.experiments.grid.live import Board
from foreword.experiments.grid.pools import Event, check_places, in_process, in_workers, on_ray
from foreword.experiments.grid.search import Trial, choose, plan_trials, read_trials, search
from foreword.experiments.grid.spec import Grid, Point, points
from foreword.experiments.grid.state import Row, first_state, headline, lacks
from foreword.experiments.grid.work import Job, Piece, failure_of, is_done


@dataclass
class Ran:
    """A grid that has been run.

    Attributes:
        grid: with its protocol written out.
        rows: one a piece, untouched backbones last.
        trials: of the search.
        seconds: wall-clock of this call.
        tried: a row a trial.
    """

    grid: Grid
    rows: list[Row]
    trials: list[Trial] = field(default_factory=list)
    seconds: float = 0.0
    tried: list[Row] = field(default_factory=list)

    @property
    def failed(self) -> list[Row]:
        """The pieces that failed, trials of the search first."""
        return [row for row in (*self.tried, *self.rows) if row.state == "failed"]


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
        retry: try again what failed earlier, and the metrics that could not be computed.
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
            _run(grid, rows, workers, ray, tell, retry)

    tried: list[Row] = []
    trials: list[Trial] = []
    rows = plan(grid, points(grid), contents, retry)  # what is wrong with the data is said before the search
    if grid.search is not None:
        tried, trials = search(grid, contents, finish, retry)
        rows = plan(grid, points(grid, choose(trials)), contents, retry)
    finish(rows)
    return Ran(grid, rows, trials, time.monotonic() - started, tried)


def overview(grid: Grid, retry: bool = False) -> tuple[list[Row], bool]:
    """Return a row for each trial, run and untouched backbone as they stand, and whether those are all of them: what
    the runs are is not known before every trial of a search has ended, well in one of each cell or more.

    Raises:
        ConfigError: the grid cannot work.
        DataError: its data cannot be loaded.
    """
    contents = Contents()
    rows = plan(grid, points(grid), contents, retry)
    if grid.search is None:
        return rows, True
    tried = plan_trials(grid, contents, retry)
    try:
        chosen = choose(read_trials(grid, tried))
    except DataError:  # a cell has no trial that worked
        return tried, False
    if any(row.state == "waiting" for row in tried):
        return tried, False
    return [*tried, *plan(grid, points(grid, chosen), contents, retry)], True


def plan(grid: Grid, wanted: Sequence[Point], contents: Contents, retry: bool = False) -> list[Row]:
    """Return a row for each point and each untouched backbone, with what is already on disk.

    Raises:
        ConfigError: a run would select on what it reports.
        DataError: the data of a run cannot be loaded.
    """
    rows = []
    for point in wanted:
        refuse_reported_dev(grid, point.config, contents)
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
    address = contents.untouched(point.config)
    targets = {contents.score(address, point.config, grid.scoring, t): t for t in grid.scoring.targets}
    return Piece(address, point.config, targets, trains=False)


def _row(grid: Grid, piece: Piece, point: Point | None, retry: bool) -> Row:
    return Row(piece, point, *first_state(grid.store, piece, retry))


def _run(
    grid: Grid, rows: list[Row], workers: int, ray: str | None, tell: Callable[[str], None] | None, retry: bool
) -> None:
    """Run the waiting rows and keep every row's state true meanwhile."""
    waiting: dict[str, list[Row]] = {}
    for row in rows:
        if row.state == "waiting":  # two points may be one run, as fine-tuning at several prompt lengths
            waiting.setdefault(row.piece.address, []).append(row)
    jobs = make_jobs(grid, [row.piece for same in waiting.values() for row in same], retry)
    members = [[row for piece in job.pieces for row in waiting[piece.address]] for job in jobs]
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
            outcome, piece = ended[row.piece.address], row.piece
            # What failed may be the scoring that another row of the same run asked for.
            another = failure_of(grid.store, piece) is None and is_done(grid.store, piece)
            if outcome.state == "done" or another:
                told = headline(grid.store, piece, grid.page.metric), lacks(grid.store, piece)
                row.state, row.detail = "done", "; ".join(filter(None, told))
            else:
                row.state, row.detail = outcome.state, outcome.reason
        board.say(row)


def make_jobs(grid: Grid, pieces: Sequence[Piece], retry: bool = False) -> list[Job]:
    """Return the jobs of pieces: gangs of those that can train in one pass, the others alone.

    Args:
        grid: whose pieces they are.
        pieces: those of one address, which are one run, become one.
        retry: compute again the metrics that were left out.
    """
    groups: dict[str, list[Piece]] = {}
    for number, piece in enumerate(_one_each(pieces)):
        config = piece.config
        alone = grid.gang < 2 or not piece.trains or config.method != "prompt"
        # A score that decides the best step is computed for one task; the dev loss is each member's own.
        task = "" if config.dev.metric == "loss" else f"{config.task} {config.data}"
        groups.setdefault(str(number) if alone else f"{config.backbone} {config.dev.metric} {task}", []).append(piece)
    jobs = []
    for group in groups.values():
        for start in range(0, len(group), max(1, grid.gang)):
            members = tuple(group[start : start + max(1, grid.gang)])
            jobs.append(Job(members, grid.store, grid.scoring, grid.threads, retry))
    return jobs


def _one_each(pieces: Sequence[Piece]) -> list[Piece]:
    """Return one piece an address, with the targets of all that have it, each on the task that it was planned for."""
    found: dict[str, Piece] = {}
    for piece in pieces:
        first = found.setdefault(piece.address, piece)
        new = {name: target for name, target in piece.targets.items() if name not in first.targets}
        if new:
            tasks = first.tasks | dict.fromkeys(new, piece.config.task)
            found[piece.address] = replace(first, targets=first.targets | new, tasks=tasks)
    return list(found.values())
