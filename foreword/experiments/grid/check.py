"""What is wrong with a grid, said before anything is trained: names that are none, selection on what is reported."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from foreword.data.checks import Leak, find_leak
from foreword.data.records import Record
from foreword.errors import ConfigError, nearest
from foreword.evaluate.dev import check_dev_metric
from foreword.evaluate.metrics import BY_GROUP, check_metrics
from foreword.experiments.grid.address import Contents, relabelling
from foreword.experiments.grid.spec import Grid, Page, Value, axes_of, points
from foreword.tasks import TASKS, Task, get_task, relabelled
from foreword.tasks.scores import check_labels, check_score_names, score_names
from foreword.tasks.view import split_name
from foreword.train.run_config import RunConfig

Axes = Mapping[str, Sequence[Value]]


def check_grid(grid: Grid) -> None:
    """Check a grid before anything is run.

    Raises:
        ConfigError: an axis that is none, a name that stands for nothing, a point that is no valid run, or a run that
            would select on a test split.
        DataError: a task that is none.
    """
    axes = axes_of(grid)
    _check_page(grid.page, axes)
    _check_patterns(grid, axes)
    _check_search(grid, axes)
    check_metrics(grid.scoring.metrics)
    names = [target.name for target in grid.scoring.targets]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"scoring.targets has the targets {names}; give at least one, and each a label of its own")
    for name in grid.page.gap or ():
        if name not in names:
            raise ConfigError(f"page.gap names target {name!r}{nearest(name, names)}")
    found = points(grid)
    if not found:
        raise ConfigError("the grid has no run: every combination is skipped")
    configs = list({repr(point.config): point.config for point in found}.values())
    for config in configs:
        refuse_test_selection(grid, config)
    _check_scores(grid, configs)


def _check_page(page: Page, axes: Axes) -> None:
    """Check that what the page names is there, and that no axis is both averaged over and shown."""
    known = Page().over
    for name in page.over:
        if name not in axes and name not in known:
            raise ConfigError(f"page.over names axis {name!r}{nearest(name, axes)}")
    for what, names in (("x", [page.x]), ("shift", [page.shift]), ("baseline", page.baseline)):
        for name in names:
            if name is not None and name not in axes:
                raise ConfigError(f"page.{what} names axis {name!r}{nearest(name, axes)}")
            if name in page.over:
                raise ConfigError(f"page.{what} names axis {name!r}, which page.over averages over; take it out of one")
    for axis, label in page.baseline.items():
        _check_label("page.baseline", axis, label, axes)


def _check_patterns(grid: Grid, axes: Axes) -> None:
    for pattern in (*grid.skip, *(rule.labels for rule in grid.when)):
        for axis, label in pattern.items():
            if axis not in axes:
                raise ConfigError(f"skip or when names axis {axis!r}{nearest(axis, axes)}")
            _check_label("skip or when", axis, str(label), axes)


def _check_label(what: str, axis: str, label: str, axes: Axes) -> None:
    labels = [value.label for value in axes[axis]]
    if label not in labels:
        raise ConfigError(f"{what}: {axis} = {label!r} is no value of that axis{nearest(label, labels)}")


def _check_search(grid: Grid, axes: Axes) -> None:
    wanted = grid.search
    if wanted is None:
        return
    if wanted.axis not in axes:
        raise ConfigError(f"search.axis = {wanted.axis!r} is no axis{nearest(wanted.axis, axes)}")
    if wanted.axis in grid.page.over:
        raise ConfigError(f"search.axis = {wanted.axis!r} is averaged over by page.over; take it out of one of them")
    for label, space in wanted.spaces.items():
        _check_label("search.spaces", wanted.axis, label, axes)
        if "dev.metric" in space:
            raise ConfigError(f"search.spaces.{label} varies dev.metric, which decides between its trials; take it out")


def _check_scores(grid: Grid, configs: Sequence[RunConfig]) -> None:
    """Check that every metric can score its task under names of its own, and that the scores which decide or are
    shown are among them.
    """
    given = grid.scoring.metrics
    trained = {config.task: get_task(config.task) for config in configs}
    others = {target.task: get_task(target.task) for target in grid.scoring.targets if target.task is not None}
    own = trained if any(target.task is None for target in grid.scoring.targets) else {}
    for name, task in (trained | others).items():
        check_metrics(task.metrics)
        _check_groups(name, task, task.metrics)
    for name, task in (own | others).items():
        _check_groups(name, task, given)
        check_score_names(given or task.metrics)
        check_labels(given or task.metrics, task.labels, task.name)
    for config in configs:
        check_dev_metric(config, trained[config.task])
    scores = score_names(metric for task in (own | others).values() for metric in given or task.metrics)
    asked = grid.page.metric
    if asked is not None and asked not in scores:
        raise ConfigError(f"page.metric = {asked!r} is no score of this grid{nearest(asked, scores)}")


def _check_groups(name: str, task: Task, metrics: Iterable[str]) -> None:
    """Check that metrics over groups of records meet the task whose records tell their group."""
    own = TASKS.get(split_name(name)[0])
    for metric in metrics:
        if metric in BY_GROUP and (own is None or metric not in own.metrics):
            owner = next(known for known in TASKS if metric in TASKS[known].metrics)
            raise ConfigError(
                f"metrics: {metric!r} needs what only the records of task {owner!r} tell, and task {task.name!r} is "
                "scored too; take another metric, such as accuracy or exact_match"
            )


def selects(grid: Grid, config: RunConfig) -> bool:
    """Return whether anything is chosen by a run's dev split: its best step, or the grid's hyper-parameters."""
    return bool(config.dev.every) or grid.search is not None


def refuse_test_selection(grid: Grid, config: RunConfig) -> None:
    """Raise if a run would choose anything (its best step, its hyper-parameters) on a split that it reports, by name.

    Raises:
        ConfigError: `data.dev_split` is a test split, or is among the targets without a reason in `reported_dev`.
    """
    split = config.data.dev_split
    if selects(grid, config) and split.startswith("test"):
        raise ConfigError(f"data.dev_split = {split!r} would select on a test split; name a dev split")
    if grid.search is not None and not config.dev.every:
        raise ConfigError("search needs dev evaluations to choose by; set dev.every")
    same = [t for t in grid.scoring.targets if t.split == split and t.task in (None, config.task)]
    if selects(grid, config) and same and not grid.reported_dev:
        raise ConfigError(
            f"scoring.targets names split {split!r} of task {config.task!r}, which the runs select on; score another "
            "split, or say in reported_dev why it has to be"
        )


def refuse_reported_dev(grid: Grid, config: RunConfig, contents: Contents) -> None:
    """Raise if a run would select on a good part of what it reports, whatever the task and the split are called.

    Records count, be they in another order, of other ids, or among others: `Leak.is_substantial` says how many. A row
    or two that stand in both by nature, as in many published sets, are a warning of the data checks.

    Raises:
        ConfigError: a target's records are in the dev split, without a reason in `reported_dev`.
        DataError: the records cannot be loaded.
    """
    if not selects(grid, config) or grid.reported_dev:
        return
    split, limit = config.data.dev_split, config.data.dev_limit
    dev = (config.task, split, contents.split(get_task(config.task), config.task, split))
    for target in grid.scoring.targets:
        name = target.task or config.task
        reported = (name, target.split, contents.split(get_task(name), name, target.split))
        words = tuple(sorted(relabelling(config.task, target).items()))
        for part in dict.fromkeys((None, limit)):  # all of dev, and the part of it that decides
            leak = _leak(dev, part, reported, words)
            if leak.is_substantial:
                raise ConfigError(
                    f"scoring.targets: {leak.rows:,} of {leak.of:,} records of split {target.split!r} of task {name!r} "
                    f"(as {', '.join(leak.examples)}) are in split {split!r} of task {config.task!r}, which the runs "
                    f"select on: {leak.back:,} of {leak.known_of:,} records there; take them out of one of the two, "
                    "score other records, or say in reported_dev why it has to be these"
                )


@lru_cache(maxsize=64)  # a grid of a hundred runs has one or two pairs of splits
def _leak(
    dev: tuple[str, str, str], limit: int | None, reported: tuple[str, str, str], words: tuple[tuple[str, str], ...]
) -> Leak:
    """Return what the first `limit` dev records and the reported ones share.

    Args:
        dev, reported: task, split, and the digest of its records, by which a file that has changed is read again.
        limit: of dev records; None takes all.
        words: of the reported task's labels that the runs write otherwise.
    """
    return find_leak(dev[1], _records(dev)[:limit], reported[1], _records(reported, words))


@lru_cache(maxsize=2)  # the two at hand; the records of a grid's other splits would only take memory
def _records(of: tuple[str, str, str], words: tuple[tuple[str, str], ...] = ()) -> list[Record]:
    name, split, _ = of
    task = relabelled(get_task(name), dict(words)) if words else get_task(name)
    return task.load(split)
