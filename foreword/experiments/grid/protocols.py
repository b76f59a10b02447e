"""The papers' protocols as named axes and scoring, so that a grid says `protocol: {name: low_data}` and no more.

A protocol only writes axes, scoring and page settings that a grid could write out itself; what the grid gives wins.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.config import build, load_yaml, override
from foreword.errors import ConfigError, DataError, nearest
from foreword.experiments.grid.check import check_grid
from foreword.experiments.grid.spec import Grid, Page, Scoring, Target
from foreword.tasks import get_task


@dataclass(frozen=True)
class LowData:
    """Li & Liang 2021, section 6.3 and A.2: sizes x random subsets x seeds, dev a share of the training size.

    Attributes:
        sizes: training records.
        subsets: random subsets of each size.
        seeds: training seeds of each subset.
        dev: dev records as a share of the size, drawn from the training split too.
        report: split of the whole task that is scored. Their code reports the validation file, which stays unseen here.
    """

    sizes: tuple[int, ...] = (50, 100, 200, 500)
    subsets: int = 5
    seeds: int = 2
    dev: float = 0.3
    report: str = "dev"


@dataclass(frozen=True)
class FewShot:
    """So many records of each label, random subsets, seeds."""

    per_label: tuple[int, ...] = (1, 4, 16)
    subsets: int = 5
    seeds: int = 1
    dev: float = 1.0
    report: str = "test"


@dataclass(frozen=True)
class Extrapolation:
    """Train on seen categories or topics, score seen, unseen and all apart (Li & Liang 2021, section 6.4)."""

    seen: str = "test_seen"
    unseen: str = "test_unseen"
    all: str = "test"
    seeds: int = 3


@dataclass(frozen=True)
class DomainShift:
    """Train on each domain, score on every domain; the diagonal is the in-domain control (Lester et al. 2021, 5).

    Attributes:
        tasks: the domains, each a task; trained on in turn and tested on.
        only_tested: further tasks that are tested on and never trained on.
        split: scored.
        relabel: from a tested task to the words of its labels that are written otherwise for runs of other tasks.
        seeds: training seeds.
    """

    tasks: tuple[str, ...]
    only_tested: tuple[str, ...] = ()
    split: str = "test"
    relabel: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    seeds: int = 3


def low_data(grid: Grid, form: LowData) -> Grid:
    """Return the grid with axes size, draw and seed on views of the base's task."""
    axes = {
        "size": {"field": "view.size", "values": list(form.sizes)},
        "draw": {"field": "view.draw", "values": list(range(form.subsets))},
        "seed": list(range(form.seeds)),
    }
    return _with(grid, axes, [Target(_base_task(grid), form.report)], {"view": {"dev": form.dev}}, x="size", log_x=True)


def few_shot(grid: Grid, form: FewShot) -> Grid:
    """Return the grid with axes shots, draw and seed on views of the base's task."""
    axes = {
        "shots": {"field": "view.per_label", "values": list(form.per_label)},
        "draw": {"field": "view.draw", "values": list(range(form.subsets))},
        "seed": list(range(form.seeds)),
    }
    return _with(grid, axes, [Target(_base_task(grid), form.report)], {"view": {"dev": form.dev}}, x="shots")


def extrapolation(grid: Grid, form: Extrapolation) -> Grid:
    """Return the grid scored on seen, unseen and all; the page shows the gap."""
    targets = [Target(None, split) for split in dict.fromkeys((form.seen, form.unseen, form.all))]
    return _with(grid, {"seed": list(range(form.seeds))}, targets, {}, gap=(form.seen, form.unseen))


def domain_shift(grid: Grid, form: DomainShift) -> Grid:
    """Return the grid with the axis trained_on, scored on every domain; labels are remapped where the tasks differ."""
    axes = {"trained_on": {task: {"task": task} for task in form.tasks}, "seed": list(range(form.seeds))}
    targets = [Target(task, form.split, form.relabel.get(task, {})) for task in (*form.tasks, *form.only_tested)]
    return _with(grid, axes, targets, {}, shift="trained_on")


FORMS: dict[str, tuple[type, Callable[[Grid, Any], Grid]]] = {
    "low_data": (LowData, low_data),
    "few_shot": (FewShot, few_shot),
    "extrapolation": (Extrapolation, extrapolation),
    "domain_shift": (DomainShift, domain_shift),
}


def apply_protocol(grid: Grid, keep_targets: bool = False) -> Grid:
    """Return the grid with its protocol written out; a grid without one as it is.

    Args:
        grid: as it was given.
        keep_targets: the grid names its targets itself, so the protocol's stay out, be they the same as by default.

    Raises:
        ConfigError: an unknown protocol or field.
    """
    fields = dict(grid.protocol)
    if not fields:
        return grid
    name = fields.pop("name", None)
    if name not in FORMS:
        raise ConfigError(f"protocol.name = {name!r} is unknown{nearest(name, FORMS)}")
    form, apply = FORMS[name]
    found = apply(grid, build(form, fields, f"protocol {name}"))
    if not keep_targets:
        return found
    names = {target.name for target in grid.scoring.targets}
    gap = found.page.gap if grid.page.gap or names >= set(found.page.gap or ()) else None  # not of targets left out
    return dataclasses.replace(found, scoring=grid.scoring, page=dataclasses.replace(found.page, gap=gap))


def load_grid(path: str | Path, changes: list[str] | None = None) -> Grid:
    """Return the grid in a YAML file, with dotted `field.path=value` changes, its protocol written out.

    Raises:
        ConfigError: an unknown field, an axis that is none, a point that is no valid run, or a run that would select
            on a test split.
        DataError: a task that is none.
    """
    tree = override(load_yaml(path), changes or [])
    grid = apply_protocol(build(Grid, tree), keep_targets="targets" in (tree.get("scoring") or {}))
    check_grid(grid)
    return grid


# What `foreword try` starts from: a short prefix, warm-up, a look at dev ten times, the best step kept.
TRIAL_STEPS = 200
TRIAL_BASE: dict[str, Any] = {
    "prompt": {"kind": "prefix", "length": 10, "reparam": "mlp"},
    "optim": {"lr": 5e-3},
    "schedule": {"warmup": 10},
    "batch": {"rows": 16},
    "steps": TRIAL_STEPS,
    "dev": {"every": 20},
}


def trial_of_task(name: str, backbone: str | None = None, changes: list[str] | None = None) -> Grid:
    """Return a grid of one run that learns a prefix on a task and scores it beside the untouched backbone.

    Args:
        name: of the task, or its YAML file.
        backbone: what it runs on; None takes the bundled one.
        changes: dotted fields of the run.

    Raises:
        ConfigError: a field that is wrong.
        DataError: no such task, or one without a train and a dev split.
    """
    task = get_task(name)
    splits = [split for split in ("train", "dev") if split not in task.splits]
    if splits:
        raise DataError(f"task {task.name!r} has no split {splits[0]!r}; name its file, or give holdout: 0.15")
    reported = "test" if "test" in task.splits else "dev"
    base = override({**TRIAL_BASE, "task": name, "backbone": {"source": backbone}}, changes or [])
    grid = Grid(
        name=Path(name).stem,
        base=base,
        title=f"A first prompt for {task.name}",
        question=f"What does one short run make of {task.name}: {task.template}?",
        scoring=Scoring(targets=(Target(None, reported),)),
        reported_dev="" if reported == "test" else "the task has no other split, so its scores are optimistic.",
    )
    check_grid(grid)
    return grid


def _base_task(grid: Grid) -> str:
    if "task" not in grid.base:
        raise ConfigError("base.task is missing; the protocol draws parts of one task")
    return grid.base["task"]


def _with(grid: Grid, axes: dict[str, Any], targets: list[Target], base: dict[str, Any], **page: Any) -> Grid:
    """Return the grid with a protocol's axes behind its own, and its targets and page where the grid says nothing."""
    scoring, shown = grid.scoring, grid.page
    if scoring.targets == Scoring().targets:
        scoring = dataclasses.replace(scoring, targets=tuple(targets))
    unset = {name: value for name, value in page.items() if getattr(shown, name) == getattr(Page(), name)}
    own = {name: axis for name, axis in axes.items() if name not in grid.axes}
    return dataclasses.replace(
        grid,
        base={**base, **grid.base},
        axes={**grid.axes, **own},
        scoring=scoring,
        page=dataclasses.replace(shown, **unset),
    )
