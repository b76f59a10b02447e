"""Views of a task: part of its training data (low data, few examples a label), or its labels in other words.

A view is written behind the task's name, so that it works wherever a task is named, and a run directory says it all:
`e2e@size=100,draw=3,dev=0.3`, `sst2@per_label=16`, `own.yaml@size=50`.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foreword.config import build, check_least
from foreword.data.records import Record
from foreword.errors import ConfigError, DataError, nearest
from foreword.tasks.task import Task

SIGN = "@"


@dataclass(frozen=True)
class View:
    """Which part of a task's training split is to be had; `dev` is then drawn from the training split too.

    Attributes:
        size: training records; None keeps them all.
        per_label: training records of each label (few-shot); instead of `size`.
        draw: which of the random subsets. One draw's smaller sizes are parts of its larger ones.
        dev: dev records as a share of the training records (Li & Liang, A.2: 0.3), at least one.
    """

    size: int | None = None
    per_label: int | None = None
    draw: int = 0
    dev: float = 0.3

    def __post_init__(self) -> None:
        if (self.size is None) == (self.per_label is None):
            raise ConfigError(f"view size = {self.size} and per_label = {self.per_label}: give one of them")
        count = self.size if self.size is not None else self.per_label
        if count < 1 or not 0 < self.dev <= 1:
            raise ConfigError(f"view of {count} records with dev = {self.dev}: give at least 1 record and 0 < dev <= 1")
        check_least("view draw", self.draw, 0)


def split_name(name: str) -> tuple[str, View | None]:
    """Return the task's own name and the view behind it, as in `e2e@size=100,draw=3`; None without one.

    Raises:
        ConfigError: a part is not `field=number`, or a field is unknown.
    """
    plain, sign, text = name.partition(SIGN)
    if not sign:
        return name, None
    tree: dict[str, Any] = {}
    for part in text.split(","):
        field, _, value = part.partition("=")
        try:
            tree[field] = _number(value)
        except ValueError:
            raise ConfigError(f"task {name!r}: {part!r} is not field=number, as in e2e@size=100,draw=3") from None
    return plain, build(View, tree, f"view of {plain}")


def _number(text: str) -> float:
    """Return a whole number where the text is one; `1e-05` and `1.0` are none."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def view_name(task: str, fields: Mapping[str, Any]) -> str:
    """Return a task's name with a view behind it, its fields in a fixed order; None is as good as not given.

    Raises:
        ConfigError: `fields` are no mapping, or one of them is no field of a view.
    """
    known = [field.name for field in dataclasses.fields(View)]
    if not isinstance(fields, Mapping):
        raise ConfigError(f"view = {fields!r} must be a mapping of fields, as in {{size: 100, draw: 3}}")
    for name in fields:
        if name not in known:
            raise ConfigError(f"unknown field 'view.{name}'{nearest(name, known)}")
    given = [f"{f.name}={fields[f.name]}" for f in dataclasses.fields(View) if fields.get(f.name) is not None]
    return f"{task}{SIGN}{','.join(given)}" if given else task


def viewed(task: Task, view: View) -> Task:
    """Return the task with `train` and `dev` drawn from its training split, disjoint in their sources; the other
    splits stay whole. So neither the task's own dev split nor its test split is looked at before they are scored.
    """

    def load(split: str) -> list[Record]:
        if split not in ("train", "dev"):
            return task.loader(split)
        train, dev = draw(task.loader("train"), view, task.name)
        return train if split == "train" else dev

    name = view_name(task.name, dataclasses.asdict(view))
    splits = tuple(dict.fromkeys(("train", "dev", *task.splits)))
    return dataclasses.replace(task, name=name, loader=load, splits=splits)


def draw(records: Sequence[Record], view: View, name: str = "") -> tuple[list[Record], list[Record]]:
    """Return the view's training and dev records, in the order they were drawn.

    Training records come from the front of one random order of all records and dev records from its end.

    Raises:
        DataError: there are not enough records.
    """
    rng = np.random.Generator(np.random.PCG64(view.draw))
    order = [records[i] for i in rng.permutation(len(records))]
    train = order[: view.size] if view.size is not None else _few(order, view.per_label)
    wanted = max(1, round(view.dev * len(train)))
    known = {record.source for record in train}
    dev = [record for record in reversed(order) if record.source not in known][:wanted]
    if (view.size is not None and len(train) < view.size) or len(dev) < wanted:
        raise DataError(
            f"task {name!r} has {len(records)} training records, too few for {len(train)} and {wanted} dev records "
            "with other sources; ask for fewer"
        )
    return train, dev


def _few(order: Sequence[Record], per_label: int) -> list[Record]:
    """Return the first `per_label` records of each label."""
    seen: Counter[str] = Counter()
    kept = []
    for record in order:
        label = record.targets[0]
        if seen[label] < per_label:
            seen[label] += 1
            kept.append(record)
    if short := {label: count for label, count in seen.items() if count < per_label}:
        raise DataError(f"labels with fewer than per_label = {per_label} training records: {short}; ask for fewer")
    return kept


def relabelled(task: Task, words: Mapping[str, str]) -> Task:
    """Return the task with its label words replaced, part by part: `{"equivalent": "duplicate"}` turns MRPC's
    not_equivalent into QQP's not_duplicate, so that a prompt learned on one is scored on the other. Scoring against
    renamed labels equals renaming the predictions (Lester et al.'s code) as long as no two labels become one.

    Raises:
        ConfigError: the task has no labels, no label changes, or two become equal.
    """

    def rename(text: str) -> str:
        for old, new in words.items():
            text = text.replace(old, new)
        return text

    labels = tuple(map(rename, task.labels))
    if not task.labels or labels == task.labels or len(set(labels)) < len(labels):
        raise ConfigError(f"relabel {dict(words)} turns the labels {task.labels} of task {task.name!r} into {labels}")

    def load(split: str) -> list[Record]:
        records = task.loader(split)
        return [dataclasses.replace(record, targets=tuple(map(rename, record.targets))) for record in records]

    return dataclasses.replace(task, loader=load, labels=labels)
