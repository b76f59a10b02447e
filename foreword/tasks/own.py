"""A user's own task: files or a hub data set and two templates, described in ten lines of YAML."""

import string
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foreword.config import build, check_least, load_yaml
from foreword.data.checks import folded
from foreword.data.files import filled, pick, read_hub, read_rows, some_rows, texts
from foreword.data.records import Record
from foreword.errors import ConfigError, DataError, nearest
from foreword.tasks.scores import GROUP_METRICS, METRICS, check_labels
from foreword.tasks.task import GenerationLimits, Task


@dataclass(frozen=True)
class OwnTask:
    """What a task file says.

    Attributes:
        name: the task's name in reports.
        source, target: templates such as `"{question} context: {passage}"`, over the columns of the files.
        train, dev, test: JSONL, JSON, CSV, TSV or Parquet files, relative to the YAML file; with `hub`, splits of it.
        hub: id of a Hugging Face data set (or a folder that `datasets` reads); `hub_config` and `hub_revision` of it.
        holdout: share of the training rows that becomes `dev`, and again `test`, where those are not given; rows of one
            source stay together, case and white space aside.
        metrics: names in `foreword.evaluate.metrics.METRICS`, at least one, no two with a score of the same name.
        label_words: for a classification, from the file's label values to the words the model is to write; values with
            the same word are one label.
        generation: decoding limits.
        max_source, max_target: truncation in tokens, at least 1 and 2 (one token and EOS); None keeps everything.
    """

    name: str
    source: str
    target: str
    metrics: tuple[str, ...]
    train: str | None = None
    dev: str | None = None
    test: str | None = None
    hub: str | None = None
    hub_config: str | None = None
    hub_revision: str | None = None
    holdout: float | None = None
    label_words: dict[str, str] = field(default_factory=dict)
    generation: GenerationLimits = field(default_factory=GenerationLimits)
    licence: str = ""
    id: str | None = None
    max_source: int | None = None
    max_target: int | None = None

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ConfigError(f"metrics = [] of task {self.name!r} scores nothing; give at least one, as exact_match")
        for name in self.metrics:
            _check_metric(name)
        check_labels(self.metrics, list(dict.fromkeys(self.label_words.values())), self.name)
        for value, word in self.label_words.items():
            if not word.strip():
                raise ConfigError(f"label_words.{value} = {word!r} is empty; give the word that the model is to write")
        for name, least in (("max_source", 1), ("max_target", 2)):
            check_least(name, getattr(self, name), least)


def _check_metric(name: str) -> None:
    """Check that a metric exists and fits rows of a file."""
    if name in GROUP_METRICS:
        raise ConfigError(f"metrics: {name!r} needs what only its own task keeps of a row; take exact_match")
    if name not in METRICS:
        raise ConfigError(f"metrics: unknown metric {name!r}{nearest(name, METRICS)}")


def task_from_yaml(path: str | Path) -> Task:
    """Return the task that a YAML file describes; see `OwnTask` for its fields.

    Raises:
        ConfigError: an unknown or missing field, a bad template, metric or limit, no split.
    """
    return own_task(build(OwnTask, load_yaml(path)), Path(path).parent)


def own_task(own: OwnTask, folder: str | Path = ".") -> Task:
    """Return the task of a description; its files are relative to `folder` and read when a split is loaded."""
    files = {split: getattr(own, split) for split in ("train", "dev", "test") if getattr(own, split)}
    if not files:
        raise ConfigError(f"task {own.name!r} names no file; give at least one of train, dev, test")
    columns(own.source, "source")
    columns(own.target, "target")

    def load(split: str) -> list[Record]:
        if own.hub is not None:
            where, rows = own.hub, read_hub(own.hub, files[split], own.hub_config, own.hub_revision)
        else:
            file = Path(folder) / files[split]
            where, rows = str(file), read_rows(file)
        return [_record(row, f"{where!r} row {number}", number, own) for number, row in some_rows(rows, where)]

    if own.holdout is not None:
        load, files = _held_out(own, load, files)
    return Task(
        name=own.name,
        loader=load,
        metrics=own.metrics,
        generation=own.generation,
        splits=tuple(files),
        labels=tuple(dict.fromkeys(own.label_words.values())),
        template=f"{own.source} -> {own.target}",
        licence=own.licence,
        max_source=own.max_source,
        max_target=own.max_target,
    )


def _held_out(
    own: OwnTask, load: Callable[[str], list[Record]], files: dict[str, str]
) -> tuple[Callable[[str], list[Record]], dict[str, str]]:
    """Return a loader that also cuts the missing ones of dev and test from the training rows, and all its splits."""
    missing = [split for split in ("dev", "test") if split not in files]
    if "train" not in files or not missing or not 0 < own.holdout * len(missing) < 1:
        raise ConfigError(
            f"holdout = {own.holdout} cuts {missing or 'nothing'} from train of task {own.name!r}; give train, leave "
            "dev or test out, and a share that leaves something to learn from"
        )

    def cut(split: str) -> list[Record]:
        if split in files and split != "train":
            return load(split)
        records = load("train")
        sources = list(dict.fromkeys(folded(record.source) for record in records))
        order = [sources[i] for i in np.random.Generator(np.random.PCG64(0)).permutation(len(sources))]
        size = max(1, round(own.holdout * len(sources)))
        parts = {name: set(order[size * k : size * (k + 1)]) for k, name in enumerate(missing)}
        parts["train"] = set(order[size * len(missing) :])
        return [record for record in records if folded(record.source) in parts[split]]

    return cut, {split: files.get(split, files["train"]) for split in ("train", "dev", "test")}


def columns(template: str, where: str) -> list[str]:
    """Return the column names in a template, in order.

    Raises:
        ConfigError: the braces do not match, nothing is filled in, or a column is to be formatted.
    """
    try:
        fields = [field for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise ConfigError(f"{where} = {template!r}: {error}; write a literal brace twice") from None
    for _, name, spec, conversion in fields:
        if spec or conversion:
            extra = (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise ConfigError(
                f"{where} = {template!r} has {extra!r} behind column {name!r}; columns are filled in as they are, so "
                "leave it out (and rename a column whose own name has such a mark)"
            )
    names = [name for _, name, _, _ in fields]
    if not names or not all(names):
        raise ConfigError(f"{where} = {template!r} fills in no column; write a column's name in braces")
    return names


def fill(template: str, row: dict[str, Any], where: str) -> str:
    """Return the template with the row's columns in it.

    Raises:
        DataError: the row lacks a column (names the nearest), or has nothing or no text in it.
    """
    pieces = []
    for literal, name, _, _ in string.Formatter().parse(template):
        pieces.append(literal)
        if name is not None:
            pieces.append(filled(pick(row, name, where), where, name))
    return "".join(pieces)


def _record(row: dict[str, Any], where: str, number: int, own: OwnTask) -> Record:
    names = columns(own.target, "target")
    if own.target == f"{{{names[0]}}}":  # a bare column may hold a list: several references
        targets = texts(pick(row, names[0], where), where, names[0])
    else:
        targets = texts(fill(own.target, row, where), where, own.target)
    key = str(number) if own.id is None else filled(pick(row, own.id, where), where, own.id)
    return Record(fill(own.source, row, where), tuple(_word(t, own, where) for t in targets), key)


def _word(target: str, own: OwnTask, where: str) -> str:
    if not own.label_words:
        return target
    if target not in own.label_words:
        raise DataError(f"{where}: label {target!r} has no label word{nearest(target, own.label_words)}")
    return own.label_words[target]
