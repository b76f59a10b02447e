"""From records to the rows of a search: what is read, what is wanted, and which words would give the answer away."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from foreword.backbone import Backbone
from foreword.baselines.autoprompt.reader import TriggerExample
from foreword.baselines.autoprompt.spec import AutoPromptSpec
from foreword.baselines.autoprompt.template import Writer
from foreword.baselines.autoprompt.words import word_id
from foreword.data.examples import encode_target
from foreword.data.records import Record, split_targets
from foreword.errors import ConfigError, DataError, nearest


@dataclass(frozen=True)
class RowMaker:
    """Makes rows of records.

    Attributes:
        backbone: the frozen model.
        writer: puts sources into the template.
        labels: the labels that answers are read as; empty where targets are scored as they are written.
        max_target: tokens that a written target is cut to.
    """

    backbone: Backbone
    writer: Writer
    labels: tuple[str, ...] = ()
    max_target: int | None = None

    def rows(self, records: Iterable[Record]) -> list[TriggerExample]:
        """Return one row for each target of each record.

        Raises:
            DataError: a target that is no label.
            ConfigError: a target that a masked model cannot answer in one token.
        """
        return [self._row(record) for record in split_targets(records)]

    def _row(self, record: Record) -> TriggerExample:
        (target,) = record.targets
        ids = self.writer.write(record.source)
        if self.labels:
            if target not in self.labels:
                raise DataError(f"record {record.id!r}: target {target!r} is no label{nearest(target, self.labels)}")
            return TriggerExample(ids, (0,), target)
        return TriggerExample(ids, self._target(target))

    def _target(self, text: str) -> tuple[int, ...]:
        if self.writer.form is None:
            return (word_id(self.backbone.tokenizer, text, "a masked model's target"),)
        return encode_target(self.backbone.tokenizer, text, self.writer.form, self.max_target)


def label_names(spec: AutoPromptSpec, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels that answers are read as, in order; none where targets are scored as they are written.

    Args:
        spec: of the search.
        labels: the task's own.

    Raises:
        ConfigError: the spec's labels are not the task's, or the task has none to find words for.
    """
    if spec.label_search is not None and not labels:
        raise ConfigError("autoprompt.label_search needs a task with labels; leave it out for written targets")
    if spec.labels is None:
        return tuple(labels) if spec.label_search is not None else ()
    for name in spec.labels:
        if labels and name not in labels:
            raise ConfigError(f"autoprompt.labels has {name!r}, no label of the task{nearest(name, labels)}")
    missing = [label for label in labels if label not in spec.labels]
    if missing:
        raise ConfigError(f"autoprompt.labels has no words for {missing[0]!r}; give every label its words")
    return tuple(labels or spec.labels)


def giveaways(rows: Sequence[TriggerExample], few: bool) -> set[int]:
    """Return the ids of wanted answers that must not become trigger words: gold objects and written labels.

    Args:
        rows: the training rows.
        few: whether targets are a closed set (a task with labels, or a masked model's words); words of free text are
            not left out, for hardly any word would stay.
    """
    return {token for row in rows if row.label is None for token in row.target} if few else set()
