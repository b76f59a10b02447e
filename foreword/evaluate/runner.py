"""Scores of a task's outputs: metrics with intervals, illegal outputs, forgetting; written as deterministic files."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from foreword.config import check_seed
from foreword.data.files import write_atomic, write_jsonl
from foreword.data.records import Record, digest
from foreword.errors import DataError
from foreword.evaluate.metrics import check_metrics, illegal_rate, statistics
from foreword.evaluate.stats import Interval, bootstrap
from foreword.tasks.task import Task

Generate = Callable[[list[str]], list[str]]
"""From source texts to output texts, one each, in order; the caller closes over backbone, prompt and limits."""

Loss = Callable[[list[str]], float]
"""From texts to their mean loss in nats per token, without any soft prompt."""


@dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Attributes:
        task, split: what was scored.
        n: instances.
        metrics: score name to value.
        intervals: score name to its bootstrap interval.
        illegal: share of outputs that are no label; None for free text.
        empty: share of outputs that were empty before the task's stand-in replaced them.
        skipped: metric name to the reason why it could not be computed.
        data_digest: sha256 of the records.
    """

    task: str
    split: str
    n: int
    metrics: dict[str, float]
    intervals: dict[str, Interval] = field(default_factory=dict)
    illegal: float | None = None
    empty: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)
    data_digest: str = ""


@dataclass(frozen=True)
class Forgetting:
    """Loss in nats per token on unrelated text, without the prompt, before and after; `unchanged` means to the bit."""

    before: float
    after: float

    @property
    def unchanged(self) -> bool:
        """Return whether the two losses are equal to the last bit."""
        return self.before == self.after


def evaluate_outputs(
    task: Task,
    records: Sequence[Record],
    predictions: Sequence[str],
    split: str = "",
    resamples: int = 1000,
    seed: int = 0,
) -> Scores:
    """Return the scores of predictions, one per record, by the task's metrics.

    Args:
        resamples: bootstrap resamples of instances; 0 leaves the intervals out.
        seed: of the resampling.

    Raises:
        DataError: the counts differ, or there is nothing to score.
        ConfigError: the task names an unknown metric.
    """
    outputs = [text if text.strip() else task.generation.empty_output for text in predictions]
    references = [list(record.targets) for record in records]
    keys = [record.meta.get("score", {}) for record in records]
    tables, skipped = statistics(task.metrics, outputs, references, task.labels, keys)
    rng = np.random.Generator(np.random.PCG64(seed))
    intervals: dict[str, Interval] = {}
    metrics: dict[str, float] = {}
    for table in tables.values():
        found = bootstrap(table, rng, resamples) if resamples else {}
        metrics |= {name: value.value for name, value in found.items()} or table.scores()
        intervals |= found
    for found in (metrics, intervals):
        found.pop("illegal", None)  # reported apart, once
    return Scores(
        task=task.name,
        split=split,
        n=len(records),
        metrics=metrics,
        intervals=intervals,
        illegal=illegal_rate(outputs, task.labels),
        empty=float(np.mean([not text.strip() for text in predictions])),
        skipped=skipped,
        data_digest=digest(records),
    )


def evaluate(
    generate: Generate,
    task: Task,
    split: str,
    limit: int | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> tuple[Scores, list[dict[str, object]]]:
    """Return the scores of a generating function on a split, and the rows for `predictions.jsonl`.

    Args:
        limit: score this many records, drawn without replacement by `seed` (in file order); None scores all.

    Raises:
        DataError: the split cannot be loaded, or `generate` gave another number of texts.
        ConfigError: the task names an unknown metric (said before anything is generated).
    """
    check_metrics(task.metrics)
    records = sample(task.load(split), limit, seed)
    predictions = generate([record.source for record in records])
    if len(predictions) != len(records):
        raise DataError(
            f"the generator gave {len(predictions)} texts for {len(records)} sources; it must give one each"
        )
    scores = evaluate_outputs(task, records, predictions, split, resamples, seed)
    return scores, prediction_rows(records, predictions)


def sample(records: Sequence[Record], limit: int | None, seed: int) -> list[Record]:
    """Return at most `limit` records, drawn by seed and kept in their order (so neighbours stay comparable)."""
    check_seed(seed)
    if limit is None or limit >= len(records):
        return list(records)
    if limit < 1:
        raise DataError(f"limit = {limit} leaves nothing to score; give a number from 1")
    rng = np.random.Generator(np.random.PCG64(seed))
    return [records[i] for i in sorted(rng.choice(len(records), size=limit, replace=False))]


def prediction_rows(records: Sequence[Record], predictions: Sequence[str]) -> list[dict[str, object]]:
    """Return what `predictions.jsonl` holds: id, source, targets, prediction, and what the metric needs beside them."""
    return [
        {"id": record.id, "source": record.source, "targets": list(record.targets), "prediction": text}
        | ({"score": record.meta["score"]} if "score" in record.meta else {})
        for record, text in zip(records, predictions, strict=True)
    ]


def check_forgetting(before: Loss, after: Loss, texts: Sequence[str]) -> Forgetting:
    """Return the loss on unrelated text with no prompt, before and after training: equal, as the model is frozen.

    Args:
        before, after: the loss of the untouched backbone, and of the one that trained or carries the prompt.
        texts: text that has nothing to do with the task.

    Raises:
        DataError: no text, or a loss that is not a finite number.
    """
    if not texts:
        raise DataError("the forgetting check needs text; give at least one")
    losses = [float(loss(list(texts))) for loss in (before, after)]
    if not all(map(math.isfinite, losses)):
        raise DataError(f"the forgetting check met losses {losses}; the text is empty or the model is broken")
    return Forgetting(*losses)


def scores_json(scores: Scores, extra: dict[str, object] | None = None) -> str:
    """Return scores as JSON: sorted keys, no time stamps, the same bytes for the same scores."""
    return json.dumps({**asdict(scores), **(extra or {})}, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def write_scores(
    folder: str | Path,
    scores: Scores,
    rows: Sequence[dict[str, object]] = (),
    extra: dict[str, object] | None = None,
) -> Path:
    """Write `scores.json` (and `predictions.jsonl` beside it when there are rows), each in one atomic step.

    Returns:
        The path of `scores.json`.
    """
    folder = Path(folder)
    if rows:
        write_jsonl(folder / "predictions.jsonl", rows)
    write_atomic(folder / "scores.json", scores_json(scores, extra))
    return folder / "scores.json"
