"""A grid's page: what was asked, what came out with its uncertainty, how it was made; CSV and SVG files beside it."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foreword.backbone import load_tokenizer
from foreword.config import dump_yaml
from foreword.data.examples import get_format
from foreword.errors import ForewordError
from foreword.evaluate.across import Slope
from foreword.evaluate.stats import Difference, Interval
from foreword.experiments import report as page
from foreword.experiments.data_page import check_task, data_blocks
from foreword.experiments.grid.compare import compare, gap_slopes, seen_minus_unseen
from foreword.experiments.grid.drive import Ran
from foreword.experiments.grid.examples import example_blocks
from foreword.experiments.grid.making import cost_blocks, made_blocks
from foreword.experiments.grid.results import (
    Results,
    Score,
    average,
    cell_name,
    floor_name,
    read_results,
    tidy_rows,
    write_csv,
)
from foreword.experiments.grid.search import write_trials
from foreword.experiments.grid.spec import Grid, axes_of, points
from foreword.experiments.svg import write_svg
from foreword.tasks import get_task
from foreword.tasks.scores import LOWER_IS_BETTER
from foreword.tasks.view import SIGN, split_name

SHOWN_CURVES = 12
DIGITS = 3


def write_page(ran: Ran, folder: str | Path, command: Sequence[str] = ()) -> Path:
    """Write a grid's page and what belongs to it, and return the page's path.

    `report.html`, `results.csv` (a row a run, target and score), `grid.yaml` (everything written out), `plots/*.svg`
    and, after a search, `search.json`.

    Args:
        ran: from `run_grid`.
        folder: where to write.
        command: the words that made it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    results = read_results(ran.grid, ran.rows)
    report = grid_report(ran, results, command)
    write_csv(folder / "results.csv", *tidy_rows(results))
    dump_yaml(ran.grid, folder / "grid.yaml")
    write_trials(folder, ran.trials)
    plots = [block for section in report.sections for block in section.blocks if isinstance(block, page.Plot)]
    written = [write_svg(folder / "plots" / f"{number:02}.svg", plot) for number, plot in enumerate(plots, start=1)]
    for old in set((folder / "plots").glob("[0-9][0-9].svg")) - set(written):  # of an earlier page with more plots
        old.unlink()
    return page.write_report(folder / "report.html", report)


def grid_report(ran: Ran, results: Results, command: Sequence[str] = ()) -> page.Report:
    """Return a grid's report."""
    grid = ran.grid
    parts: list[tuple[str, Callable[[], list[page.Block]]]] = [
        ("Results", lambda: _results(ran, results)),
        ("Plots", lambda: _plots(results)),
        ("Comparisons", lambda: _comparisons(results)),
        ("Seen and unseen", lambda: _gap(results)),
        ("Domain shift", lambda: _shift(results)),
        ("Learning curves", lambda: _curves(results)),
        ("Time, size and convergence", lambda: cost_blocks(results)),
        ("Outputs side by side", lambda: example_blocks(results)),
        ("The search", lambda: _search(ran)),
        ("Data checks", lambda: _data(grid)),
        ("What failed", lambda: _failures(ran)),
        ("How this was made", lambda: made_blocks(ran, results, command)),
    ]
    sections = [page.Section(title, blocks) for title, make in parts if (blocks := make())]
    return page.Report(title=grid.title or grid.name, summary=_summary(grid), sections=sections)


def _summary(grid: Grid) -> str:
    return " ".join(part for part in (grid.question.strip(), grid.page.notes.strip()) if part) or (
        f"The grid {grid.name}: {', '.join(f'{name} ({len(v)})' for name, v in axes_of(grid).items())}."
    )


def estimate(interval: Interval | Difference | Slope | None, runs: int = 2) -> page.Estimate | float | None:
    """Return an interval as a cell of a table: the bare number where one run, or equal ones in a fit, give none."""
    if interval is None or runs < 2 or math.isnan(interval.low):
        return None if interval is None else interval.value
    return page.Estimate(interval.value, interval.low, interval.high)


def _axes_shown(grid: Grid) -> list[str]:
    return [axis for axis in grid.axes if axis not in grid.page.over]


def _results(ran: Ran, results: Results) -> list[page.Block]:
    if not results.scores:
        return [page.Prose("No run of this grid has been scored yet.")]
    blocks: list[page.Block] = [_highlights(ran, results)]
    asked = results.grid.page.metric
    if asked is not None and results.metric != asked:
        skipped = {f"{name}: {why}" for score in results.scores for name, why in score.skipped.items()}
        why = "".join(f" Left out: {text}." for text in sorted(skipped))
        blocks.append(page.Prose(f"{asked} was asked for and is in no score; {results.metric} stands for it.{why}"))
    return blocks + [_score_table(results, target) for target in results.targets if results.cells(target)]


def _highlights(ran: Ran, results: Results) -> page.Highlights:
    runs = {row.piece.address for row in ran.rows if row.point is not None and row.state in ("done", "found")}
    failed = {row.piece.address for row in ran.rows if row.state == "failed"}
    told = f"{len(failed)} failed" if failed else "none failed"
    if lost := {row.piece.address for row in ran.tried if row.state == "failed"}:
        told += f"; trials of the search: {len(lost)} failed"
    items: list[tuple[str, ...]] = [(f"{len(runs)}", "runs", told)]
    for target in results.targets:
        means = {cell: found for cell, scores in results.cells(target).items()
                 if (found := average(scores, results.metric)) is not None}
        if means:
            pick = min if results.lower_is_better else max
            cell = pick(means, key=lambda cell: means[cell].value)
            items.append((f"{means[cell].value:.{DIGITS}f}", f"best {results.metric} on {target}: {cell_name(cell)}"))
    return page.Highlights(items)


def _score_table(results: Results, target: str) -> page.Table:
    axes, cells = _axes_shown(results.grid), results.cells(target)
    first = next(iter(cells.values()))[0]
    names = list(dict.fromkeys(name for scores in cells.values() for score in scores for name in score.metrics))
    has_illegal = first.illegal is not None
    rows: list[list[Any]] = []
    for floor in results.floors:
        if floor.target == target:
            name = floor_name(floor, results.floors)
            rows.append(_row([name, *[None] * (len(axes) - 1)], [floor], names, has_illegal))
    for cell, scores in cells.items():
        rows.append(_row([dict(cell)[axis] for axis in axes] or ["the run"], scores, names, has_illegal))
    best = {name: "min" if name in LOWER_IS_BETTER else "max" for name in names}
    return page.Table(
        [*(axes or [""]), "runs", *names, *(["illegal outputs"] if has_illegal else []), "empty outputs"],
        rows,
        caption=(
            f"Scores on {target} ({_records(cells.values())}): mean over runs with the 95 % t interval over them (of "
            "several subsets, over these); where there is one run, its bootstrap interval over records. Untouched: the "
            "backbone with the same input, no prompt."
        ),
        best=best,
        digits=DIGITS,
    )


def _records(cells: Iterable[Sequence[Score]]) -> str:
    """Return how many records were scored: of each task apart where runs have their own."""
    counts = {(score.task.partition(SIGN)[0], score.n): None for scores in cells for score in scores}
    if len(counts) == 1:
        return f"{next(iter(counts))[1]:,} records"
    return ", ".join(f"{n:,} records of {task}" for task, n in counts)


def _row(labels: Sequence[str | None], scores: Sequence[Score], names: Sequence[str], has_illegal: bool) -> list[Any]:
    illegal = [sum(s.illegal or 0.0 for s in scores) / len(scores)] if has_illegal else []
    empty = sum(score.empty for score in scores) / len(scores)
    return [*labels, len(scores), *(_mean(scores, name) for name in names), *illegal, empty]


def _mean(scores: Sequence[Score], name: str) -> page.Estimate | float | None:
    """Return a score's mean over runs as a cell; one run without a bootstrap interval is a bare number."""
    runs = 2 if scores and name in scores[0].intervals else len(scores)
    return estimate(average(scores, name), runs)


def _plots(results: Results) -> list[page.Block]:
    grid = results.grid
    if grid.page.x is None or not results.scores:
        return []
    places = {value.label: value.x for value in axes_of(grid)[grid.page.x]}
    if any(x is None for x in places.values()):
        places = {label: float(number) for number, label in enumerate(places, start=1)}
    return [plot for target in results.targets if (plot := _plot(results, target, places)) is not None]


def _plot(results: Results, target: str, places: dict[str, float]) -> page.Plot | None:
    series: dict[str, list[tuple[float, float]]] = {}
    bands: dict[str, list[tuple[float, float, float]]] = {}
    for cell, scores in results.cells(target).items():
        found = average(scores, results.metric)
        rest = tuple((axis, label) for axis, label in cell if axis != results.grid.page.x)
        if found is not None:
            x, name = places[dict(cell)[results.grid.page.x]], cell_name(rest) if rest else results.metric
            series.setdefault(name, []).append((x, found.value))
            bands.setdefault(name, []).append((x, found.low, found.high))
    if not series:
        return None
    log = results.grid.page.log_x and all(x > 0 for x in places.values())
    numbered = "" if any(value.x is not None for value in axes_of(results.grid)[results.grid.page.x]) else (
        "; " + ", ".join(f"{x:.0f} is {label}" for label, x in places.items())
    )
    return page.Plot(
        {name: sorted(points) for name, points in series.items()}, results.grid.page.x, results.metric,
        caption=f"{results.metric} on {target}; the bands are the intervals of the table{numbered}.",
        log_x=log, bands={name: sorted(points) for name, points in bands.items()},
    )


def _comparisons(results: Results) -> list[page.Block]:
    found = compare(results)
    if not found:
        return []
    axes = _axes_shown(results.grid)
    (axis, base), *_ = results.grid.page.baseline.items()
    rows = []
    for row in found:
        outputs = row.outputs
        rows.append((
            *(dict(row.cell)[name] for name in axes), row.target, row.units,
            estimate(row.runs, row.units), row.runs.p_value, row.corrected, estimate(outputs),
            outputs.p_value if outputs is not None else None, row.outputs_corrected,
        ))
    columns = (*axes, "target", "pairs", "difference over runs", "p, sign flips", "Holm over runs",
               "difference over records", "p, randomised", "Holm over records")
    blocks: list[page.Block] = [page.Table(
        columns, rows, digits=dict.fromkeys(columns, 3),
        caption=(
            f"{results.metric} minus that of {axis} {base} with the same other labels. Over runs: mean over pairs with "
            "the same seed (of subsets, over pairs of these), t interval, exact sign-flip test (with n pairs p is at "
            "least 2 / 2ⁿ). Over records: paired bootstrap interval and approximate randomisation on the test records; "
            f"that tells of other records, not of other seeds. Holm: p corrected for the {len(found)} comparisons here."
        ),
    )]
    slopes = [
        (s.label, s.target, estimate(s.slope), None if math.isnan(s.slope.p_value) else s.slope.p_value, s.slope.n)
        for s in gap_slopes(results)
    ]
    if slopes:
        blocks.append(page.Table(
            (axis, "target", f"slope per tenfold {results.grid.page.x}", "p", "points"), slopes, digits=4,
            caption=(
                f"Gap to {base} over log10 of {results.grid.page.x}: least squares over pairs of runs, t interval; of "
                "subsets the mean of their slopes."
            ),
        ))
    return blocks


def _gap(results: Results) -> list[page.Block]:
    axes = _axes_shown(results.grid)
    rows = [
        (*(dict(cell)[axis] for axis in axes), runs, estimate(gap, runs))
        for cell, gap, runs in seen_minus_unseen(results)
    ]
    if not rows:
        return []
    seen, unseen = results.grid.page.gap
    columns = (*axes, "runs", f"{results.metric}: {seen} − {unseen}")
    caption = "What a run loses on categories it was not trained on; mean over runs, t interval. Smaller is better."
    return [page.Table(columns, rows, caption=caption, best={columns[-1]: "min"}, digits=DIGITS)]


def _shift(results: Results) -> list[page.Block]:
    axis = results.grid.page.shift
    if axis is None or not results.scores:
        return []
    cells = {target: results.cells(target) for target in results.targets}
    order = list(dict.fromkeys(cell for found in cells.values() for cell in found))
    axes = _axes_shown(results.grid)
    rows = [
        (*(dict(cell)[name] for name in axes),
         *(_mean(cells[target].get(cell, []), results.metric) for target in results.targets))
        for cell in order
    ]
    caption = (
        f"{results.metric}: rows were trained on the domain under {axis}, columns are what they were tested on. Where "
        "both are the same domain is the control: compare methods across domains only where they agree there."
    )
    return [page.Table((*axes, *results.targets), rows, caption=caption, digits=DIGITS)]


def _curves(results: Results) -> list[page.Block]:
    shown = [t for t in results.trainings if t.dev]
    seen: set[tuple[tuple[str, str], ...]] = set()
    first = []
    for training in shown:  # one run a cell: the others are in the store
        cell = tuple((a, label) for a, label in training.labels.items() if a not in results.grid.page.over)
        if cell not in seen:
            seen.add(cell)
            first.append((cell_name(cell), training))
    if not first:
        return []
    kept = first[:SHOWN_CURVES]
    left = f" The first {SHOWN_CURVES} of {len(first)} cells." if len(first) > SHOWN_CURVES else ""
    dev = {name: training.dev for name, training in kept}
    loss = {name: page.smoothed(training.loss) for name, training in kept if training.loss}
    plots: list[page.Block] = [page.Plot(dev, "step", "deciding dev value", caption=f"One run a cell.{left}")]
    if loss:
        caption = "Training loss in nats per target token, running mean of 20 steps."
        plots.append(page.Plot(loss, "step", "training loss", caption=caption))
    return plots


def _search(ran: Ran) -> list[page.Block]:
    if not ran.trials:
        return []
    rows = [
        (cell_name(trial.cell), ", ".join(f"{k} {v}" for k, v in trial.settings.items()), trial.value, trial.address)
        for trial in ran.trials
    ]
    caption = (
        f"{ran.grid.search.budget} trials for every cell, chosen by their best dev value alone; no trial was scored on "
        "a test split. A dash is a trial that failed."
    )
    return [page.Table(("cell", "settings", "dev", "run"), rows, caption=caption, digits=4)]


def _data(grid: Grid) -> list[page.Block]:
    """Return the checks of every task that is trained on or scored, parts of one task once.

    Lengths are in tokens of the first run's backbone; what is cut, is cut by the limits of the first run on that task.
    """
    configs = [point.config for point in points(grid)]
    held, blocks, tokenizer, two_parts = configs[0].backbone, [], None, False
    try:
        tokenizer, two_parts = load_tokenizer(
            held.source, trust_remote_code=held.trust_remote_code, revision=held.revision
        )
        blocks.append(page.Prose(f"Lengths in tokens of {Path(held.source).name}."))
    except ForewordError as error:
        blocks.append(page.Prose(f"Lengths in words: {error}"))
    for name in sorted({split_name(name)[0] for name in _tasks(grid)}):
        own = next((config for config in configs if split_name(config.task)[0] == name), configs[0])
        try:
            task = get_task(name)
            source, target = own.data.limits(task.max_source, task.max_target)
            task = replace(task, max_source=source, max_target=target)
            form = get_format(own.data.format, two_parts) if tokenizer is not None else None
            blocks += data_blocks(name, check_task(task, tokenizer=tokenizer, form=form))
        except ForewordError as error:
            blocks.append(page.Prose(f"The data of {name} could not be checked: {error}"))
    return blocks


def _tasks(grid: Grid) -> list[str]:
    trained = [point.config.task for point in points(grid)]
    return list(dict.fromkeys([*trained, *(target.task for target in grid.scoring.targets if target.task)]))


def _failures(ran: Ran) -> list[page.Block]:
    items = [("fail", row.title, f"{row.piece.address}: {row.detail}") for row in ran.failed]
    waiting = [row for row in (*ran.tried, *ran.rows) if row.state in ("waiting", "running")]
    items += [("warn", row.title, f"{row.piece.address}: not run yet. {row.detail}") for row in waiting]
    return [page.Findings(items, caption="Runs without a result, and why.")] if items else []
