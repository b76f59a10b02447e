"""Accuracy, F1 and exact match of generated label words; an illegal word is wrong, and reported apart (RECIPES 2.5)."""

from collections.abc import Sequence

import numpy as np

from foreword.errors import DataError
from foreword.evaluate.metrics.statistics import References, Statistics, Texts


def accuracy(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return accuracy and the rate of illegal outputs, both 0..1. Without labels, those of the references are legal."""
    return Statistics(_confusion(predictions, references, labels), _accuracy)


def f1(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return F1 in 0..1 of the last label, the positive class of a two-label task (T5 and GLUE: index 1)."""
    legal = _legal(references, labels)
    if len(legal) != 2:
        raise DataError(f"f1 needs two labels, not {legal}; use macro_f1, or name the two (the positive one last)")
    return Statistics(_confusion(predictions, references, labels), _f1)


def t5_f1(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return F1 in 0..1 of the last of two labels, an illegal output counting as the opposite of the true label.

    T5's `f1_score_with_invalid`, for MRPC and QQP: an illegal word on a negative instance is then a false positive,
    where `f1` leaves it out.
    """
    return Statistics(_two_by_three(predictions, references, labels), _t5_f1)


def _two_by_three(predictions: Texts, references: References, labels: Sequence[str]) -> np.ndarray:
    legal = _legal(references, labels)
    if len(legal) != 2:
        raise DataError(f"t5_f1 needs two labels, not {legal}; use macro_f1, or name the two (the positive one last)")
    return _confusion(predictions, references, labels)


def _t5_f1(sums: np.ndarray) -> dict[str, np.ndarray]:
    table = _square(sums)
    right = table[:, 1, 1]
    both = table[:, 1].sum(1) + right + table[:, 0, 1] + table[:, 0, 2]
    return {"F1": np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)}


def macro_f1(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return the mean over all labels of their F1, 0..1; a label that never occurs counts 0, as in scikit-learn."""
    return Statistics(_confusion(predictions, references, labels), _macro_f1)


def exact_match(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return the share of outputs equal to one of their references, white space at the ends aside."""
    hits = [text.strip() in {t.strip() for t in texts} for text, texts in zip(predictions, references, strict=True)]
    table = np.array([[hit, 1.0] for hit in hits])
    return Statistics(table, lambda sums: {"EM": sums[:, 0] / sums[:, 1]})


def _legal(references: References, labels: Sequence[str]) -> list[str]:
    return list(labels) or sorted({text.strip() for texts in references for text in texts})


def _confusion(predictions: Texts, references: References, labels: Sequence[str]) -> np.ndarray:
    """Return one-hot confusions [N, C * (C + 1)]: true label by predicted label, the last column illegal outputs."""
    legal = {label: i for i, label in enumerate(_legal(references, labels))}
    table = np.zeros((len(predictions), len(legal), len(legal) + 1))
    for n, (text, texts) in enumerate(zip(predictions, references, strict=True)):
        if texts[0].strip() not in legal:
            raise DataError(f"instance {n + 1}: reference {texts[0]!r} is none of the labels {list(legal)}")
        table[n, legal[texts[0].strip()], legal.get(text.strip(), len(legal))] = 1.0
    return table.reshape(len(predictions), -1)


def _square(sums: np.ndarray) -> np.ndarray:
    """Return [R, C * (C + 1)] sums as [R, C, C + 1]; C (C + 1) = K has one positive root."""
    classes = int((np.sqrt(1 + 4 * sums.shape[1]) - 1) / 2 + 0.5)
    return sums.reshape(len(sums), classes, classes + 1)


def _accuracy(sums: np.ndarray) -> dict[str, np.ndarray]:
    table = _square(sums)
    total = table.sum((1, 2))
    right = np.trace(table, axis1=1, axis2=2)
    return {"accuracy": right / total, "illegal": table[:, :, -1].sum(1) / total}


def _class_f1(sums: np.ndarray) -> np.ndarray:
    """Return each class's F1 [R, C] = 2 tp / (true + predicted), 0 where the class does not occur."""
    table = _square(sums)
    right = np.diagonal(table, axis1=1, axis2=2)
    both = table.sum(2) + table[:, :, :-1].sum(1)
    return np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)


def _f1(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {"F1": _class_f1(sums)[:, -1]}


def _macro_f1(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {"macro_F1": _class_f1(sums).mean(1)}


def illegal_rate(predictions: Texts, labels: Sequence[str]) -> float | None:
    """Return the share of outputs that are none of the labels, 0..1; None when the task has no labels."""
    if not labels:
        return None
    return float(np.mean([text.strip() not in labels for text in predictions]))
