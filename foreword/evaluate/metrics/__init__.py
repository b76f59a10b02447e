"""Metrics by name. Each is one function of predictions and references; optional libraries load when it is called.

Every score is a fraction (BLEU 0.72, not 72), except NIST (bits), CIDEr (0..10) and TER (edits per word, 0 is best).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from foreword.errors import ConfigError, MissingExtraError, nearest
from foreword.evaluate.metrics.answers import multirc, squad, wsc_referent
from foreword.evaluate.metrics.captions import e2e_cider, e2e_meteor, e2e_rouge_l
from foreword.evaluate.metrics.labels import accuracy, exact_match, f1, illegal_rate, macro_f1, t5_f1
from foreword.evaluate.metrics.learned import bert_score, bleurt
from foreword.evaluate.metrics.ngrams import e2e_bleu, e2e_nist
from foreword.evaluate.metrics.overlap import bleu, chrf, rouge, rouge_lsum
from foreword.evaluate.metrics.statistics import (
    GroupMetric,
    Metric,
    References,
    Statistics,
    Texts,
    check_keys,
    check_outputs,
)
from foreword.evaluate.metrics.triples import dart_bleu, dart_meteor, webnlg_bleu, webnlg_meteor, webnlg_ter
from foreword.tasks.scores import check_score_names

__all__ = ["METRICS", "STATISTICS", "Statistics", "check_metrics", "illegal_rate", "score", "statistics"]

STATISTICS: dict[str, Metric] = {
    "e2e_bleu": e2e_bleu,
    "e2e_nist": e2e_nist,
    "e2e_meteor": e2e_meteor,
    "e2e_rouge_l": e2e_rouge_l,
    "e2e_cider": e2e_cider,
    "webnlg_bleu": webnlg_bleu,
    "webnlg_meteor": webnlg_meteor,
    "webnlg_ter": webnlg_ter,
    "dart_bleu": dart_bleu,
    "dart_meteor": dart_meteor,
    "bleu": bleu,
    "rouge": rouge,
    "rouge_lsum": rouge_lsum,
    "chrf": chrf,
    "accuracy": accuracy,
    "f1": f1,
    "t5_f1": t5_f1,
    "macro_f1": macro_f1,
    "exact_match": exact_match,
    "squad": squad,
    "bert_score": bert_score,
    "bleurt": bleurt,
}

BY_GROUP: dict[str, GroupMetric] = {"multirc": multirc, "wsc_referent": wsc_referent}
"""Metrics that need of each instance what its record keeps in `meta["score"]` (its question, its label)."""


def _scores(metric: Metric, predictions: Texts, references: References, labels: Sequence[str] = ()) -> dict[str, float]:
    check_outputs(predictions, references)
    return metric(predictions, references, labels).scores()


METRICS: dict[str, Callable[..., dict[str, float]]] = {
    name: partial(_scores, metric) for name, metric in STATISTICS.items()
}
"""`METRICS[name](predictions, references)` gives the named scores; label metrics also take `labels`."""


def check_metrics(names: Iterable[str]) -> None:
    """Check that every name is a metric, before anything long is run.

    Raises:
        ConfigError: an unknown metric; names the nearest.
    """
    for name in names:
        if name not in STATISTICS and name not in BY_GROUP:
            raise ConfigError(f"unknown metric {name!r}{nearest(name, [*STATISTICS, *BY_GROUP])}")


def statistics(
    names: Sequence[str],
    predictions: Texts,
    references: References,
    labels: Sequence[str] = (),
    keys: Sequence[Mapping[str, Any]] = (),
) -> tuple[dict[str, Statistics], dict[str, str]]:
    """Return the statistics of each metric, and for those that miss Java or a library, why they were skipped.

    Args:
        names: metrics.
        predictions, references, labels: as in `Metric`.
        keys: for the metrics in `BY_GROUP`: what each instance's record keeps in `meta["score"]`.

    Raises:
        ConfigError: an unknown metric.
        DataError: nothing to score, or counts that differ.
    """
    check_metrics(names)
    check_outputs(predictions, references)
    found: dict[str, Statistics] = {}
    skipped: dict[str, str] = {}
    for name in names:
        try:
            if name in BY_GROUP:
                check_keys(name, keys, len(predictions))
                found[name] = BY_GROUP[name](predictions, references, keys)
            else:
                found[name] = STATISTICS[name](predictions, references, labels)
        except MissingExtraError as error:
            skipped[name] = str(error)
    return found, skipped


def score(
    names: Sequence[str], predictions: Texts, references: References, labels: Sequence[str] = ()
) -> tuple[dict[str, float], dict[str, str]]:
    """Return all scores in one mapping (BLEU, NIST, ...), and the skipped metrics with the reason.

    Raises:
        ConfigError: two metrics give a score of one name, of which the mapping could hold only one.
    """
    check_score_names(names)
    found, skipped = statistics(names, predictions, references, labels)
    return {key: value for table in found.values() for key, value in table.scores().items()}, skipped
