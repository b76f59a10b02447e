"""What a grid is: a base recipe, axes that vary it, what every run is scored on, and what the page shows.

For example:

    base: {task: e2e, backbone: {source: foreword-decoder-6m}, steps: 1000}
    axes:
      length: {field: prompt.length, values: [1, 10, 20]}      # one field
      method:                                                  # named groups of fields
        prefix: {prompt.kind: prefix, optim.lr: 0.1}
        fine_tune: {method: fine_tune, optim.lr: 5.0e-4}
      seed: [0, 1, 2]                                          # a field of that name
"""

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from foreword.config import build, check_least, check_seed, put
from foreword.errors import ConfigError
from foreword.tasks.view import view_name
from foreword.train.run_config import RunConfig, resolve


@dataclass(frozen=True)
class Target:
    """One thing that every run is scored on.

    Attributes:
        task: None takes the run's own.
        split: of that task.
        relabel: words of the task's labels that are written otherwise, as in `{equivalent: duplicate}`, for runs that
            were trained on another task; a run of this very task has learned its words as they are.
        label: its name in tables; None makes one.
    """

    task: str | None = None
    split: str = "test"
    relabel: dict[str, str] = field(default_factory=dict)
    label: str | None = None

    def __post_init__(self) -> None:
        if self.relabel and self.task is None:
            raise ConfigError(
                f"scoring.targets: relabel = {self.relabel} of split {self.split!r} names no task; name the one whose "
                "labels are written otherwise for runs of other tasks"
            )

    @property
    def name(self) -> str:
        """For tables: `test`, `mrpc dev`."""
        return self.label or (self.split if self.task is None else f"{self.task} {self.split}")


@dataclass(frozen=True)
class Scoring:
    """How every run is scored.

    Attributes:
        targets: what is scored on.
        metrics: instead of the tasks' own.
        limit: this many records of each split, drawn by `seed`.
        num_beams, max_new_tokens: instead of the tasks' own (smaller ones save time; the page says so).
        batch_size: rows generated at once.
        resamples: of the bootstrap intervals.
        seed: of the sampling of records and the bootstrap.
        untouched: also score each backbone without any prompt.
    """

    targets: tuple[Target, ...] = (Target(),)
    metrics: tuple[str, ...] = ()
    limit: int | None = None
    num_beams: int | None = None
    max_new_tokens: int | None = None
    batch_size: int = 32
    resamples: int = 1000
    seed: int = 0
    untouched: bool = True

    def __post_init__(self) -> None:
        for name in ("limit", "num_beams", "max_new_tokens", "batch_size"):
            check_least(f"scoring.{name}", getattr(self, name), 1)
        check_least("scoring.resamples", self.resamples, 0)
        check_seed(self.seed, "scoring.seed")


@dataclass(frozen=True)
class Search:
    """A hyper-parameter search before the runs that count: the same number of trials for every method, on dev only.

    Attributes:
        budget: trials of each cell.
        spaces: for each value of `axis`, from dotted field to the values to try; as many combinations as `budget` are
            drawn from it without replacement.
        axis: the axis whose values have spaces of their own.
        seed: of the draw.
    """

    budget: int
    spaces: dict[str, dict[str, list[Any]]]
    axis: str = "method"
    seed: int = 0

    def __post_init__(self) -> None:
        check_least("search.budget", self.budget, 1)
        check_seed(self.seed, "search.seed")


@dataclass(frozen=True)
class Page:
    """What the page shows.

    Attributes:
        metric: the headline score's name, as in BLEU; None takes the first.
        over: axes that are averaged over: repetitions.
        x: the axis drawn from left to right; None draws no plot of it.
        log_x: on a logarithmic axis.
        baseline: one axis and one of its values, which the other values are compared with.
        slope: fit the difference from the baseline against log10 of `x`.
        gap: two targets' names; the page shows the first's score minus the second's (extrapolation).
        shift: the axis whose values are the domains trained on (domain shift); the targets are those tested on.
        examples: records shown side by side.
        notes: a paragraph on how the grid was made smaller, or what to look for.
    """

    metric: str | None = None
    over: tuple[str, ...] = ("seed", "draw")
    x: str | None = None
    log_x: bool = False
    baseline: dict[str, str] = field(default_factory=dict)
    slope: bool = False
    gap: tuple[str, str] | None = None
    shift: str | None = None
    examples: int = 4
    notes: str = ""

    def __post_init__(self) -> None:
        check_least("page.examples", self.examples, 0)
        if len(self.baseline) > 1:
            raise ConfigError(f"page.baseline = {self.baseline} names {len(self.baseline)} axes; give one of them")


@dataclass(frozen=True)
class When:
    """Fields that are set where a combination has these labels, beside what its axes set."""

    labels: dict[str, str]
    set: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """A grid of runs.

    Attributes:
        name: of its folder.
        title, question: head of its page.
        base: fields of a RunConfig that all runs share.
        axes: see the head of this module.
        skip: combinations that are left out, as mappings from axis to value.
        when: fields that depend on several axes at once, as the backbone does on size and adaptation.
        scoring, search, page: see there.
        protocol: named axes and scoring of the papers (see `foreword.experiments.grid.protocols`).
        threads: CPU threads of one run, the same wherever it runs, so that all ways of running give the same bits.
        gang: most runs that train in one pass over one backbone.
        store: folder of all runs, shared by grids: the same run is never made twice.
        reported_dev: why the split that selects is also reported (SuperGLUE has no other labels); else it is refused.
    """

    name: str
    base: dict[str, Any]
    axes: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    question: str = ""
    skip: tuple[dict[str, str], ...] = ()
    when: tuple[When, ...] = ()
    scoring: Scoring = field(default_factory=Scoring)
    search: Search | None = None
    page: Page = field(default_factory=Page)
    protocol: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    gang: int = 1
    store: str = "runs/store"
    reported_dev: str = ""

    def __post_init__(self) -> None:
        for name in ("threads", "gang"):
            check_least(name, getattr(self, name), 1)


@dataclass(frozen=True)
class Value:
    """One value of an axis: its label, the fields it sets, and a number to draw it at where there is one."""

    label: str
    settings: dict[str, Any]
    x: float | None = None


@dataclass(frozen=True)
class Point:
    """One run of a grid: its label on each axis, and its resolved config, the run directory left open."""

    labels: dict[str, str]
    config: RunConfig


def axis_values(name: str, axis: Any) -> list[Value]:
    """Return an axis' values.

    Raises:
        ConfigError: the axis is neither a list, nor `{field, values}`, nor labels with their fields; or it is empty.
    """
    if isinstance(axis, list):
        axis = {"field": name, "values": axis}
    if not isinstance(axis, Mapping) or not axis:
        raise ConfigError(f"axes.{name} = {axis!r} must be a list, {{field, values}}, or labels with their fields")
    if set(axis) == {"field", "values"}:
        values = axis["values"] if isinstance(axis["values"], list) else []
        found = [Value(_label(v), {axis["field"]: v}, _number(v)) for v in values]
    else:
        found = [_group(name, str(label), settings) for label, settings in axis.items()]
    labels = [value.label for value in found]
    if not found or len(set(labels)) < len(labels):
        raise ConfigError(f"axes.{name} has the values {labels}; give at least one, each once")
    return found


def _group(name: str, label: str, settings: Any) -> Value:
    if not isinstance(settings, Mapping):
        raise ConfigError(f"axes.{name}.{label} = {settings!r} must be a mapping of fields, as in {{prompt.length: 5}}")
    settings = dict(settings)
    return Value(label, settings, _number(settings.pop("x", label)))


def _label(value: Any) -> str:
    return "none" if value is None else str(value)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def axes_of(grid: Grid) -> dict[str, list[Value]]:
    """Return every axis with its values."""
    return {name: axis_values(name, axis) for name, axis in grid.axes.items()}


def points(grid: Grid, chosen: Mapping[tuple[tuple[str, str], ...], Mapping[str, Any]] | None = None) -> list[Point]:
    """Return all runs of a grid in order.

    Args:
        grid: the grid.
        chosen: from a cell (its labels) to fields that a search has chosen.
    """
    found = []
    for labels, settings in combinations(grid):
        extra = dict((chosen or {}).get(cell_of(grid, labels), {}))
        found.append(Point(labels, configure(grid, {**settings, **extra})))
    return found


def combinations(grid: Grid) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Return the labels and the settings of each combination of axis values that is not skipped."""
    axes = axes_of(grid)
    for values in itertools.product(*axes.values()):
        labels = {name: value.label for name, value in zip(axes, values, strict=True)}
        if any(matches(labels, pattern) for pattern in grid.skip):
            continue
        settings = {key: v for value in values for key, v in value.settings.items()}
        for rule in grid.when:
            if matches(labels, rule.labels):
                settings |= rule.set
        yield labels, settings


def matches(labels: Mapping[str, str], pattern: Mapping[str, str]) -> bool:
    """Return whether labels agree with a pattern of `skip` or `when` on every axis that it names."""
    return all(labels.get(axis) == str(label) for axis, label in pattern.items())


def cell_of(grid: Grid, labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return what identifies a run's cell: its labels on the axes that are not averaged over."""
    return tuple((axis, label) for axis, label in labels.items() if axis not in grid.page.over)


def configure(grid: Grid, settings: Mapping[str, Any]) -> RunConfig:
    """Return the resolved config of the base with settings; `view.*` fields become part of the task's name."""
    tree = copy.deepcopy(grid.base)
    for dotted, value in settings.items():
        put(tree, dotted, copy.deepcopy(value))  # a later setting may walk into this one, which is the grid's own
    view = tree.pop("view", {})
    if "task" not in tree:
        raise ConfigError("base.task is missing; name a task there, or in an axis")
    config = build(RunConfig, {"track": [], **tree, "task": view_name(tree["task"], view), "run_dir": "unset"})
    return resolve(config)
