"""Accuracy, F1 and exact match of generated label words; an illegal word is wrong, and reported apart (RECIPES 2.5)."""

from collections.abc import Collection, Sequence

import numpy as np

from foreword.errors import DataError
from foreword.evaluate.metrics.statistics import References, Statistics, Texts

# More different references than this are no labels. With label words given, there may be any number.
MOST_CLASSES = 1000


def accuracy(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return accuracy and the rate of illegal outputs, both 0..1. Without labels, the references' words are legal."""
    legal: Collection[str] = dict.fromkeys(labels) or {text.strip() for texts in references for text in texts}
    rows = []
    for number, (text, texts) in enumerate(zip(predictions, references, strict=True), start=1):
        _check_reference(number, texts[0], legal)
        rows.append([text.strip() == texts[0].strip(), text.strip() not in legal, 1.0])
    return Statistics(np.array(rows, dtype=np.float64), _accuracy)


def _accuracy(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {"accuracy": sums[:, 0] / sums[:, 2], "illegal": sums[:, 1] / sums[:, 2]}


def f1(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return F1 in 0..1 of the last label, the positive class of a two-label task (T5 and GLUE: index 1)."""
    return Statistics(_counts(predictions, references, _two("f1", references, labels)), _f1)


def t5_f1(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return F1 in 0..1 of the last of two labels, an illegal output counting as the opposite of the true label.

    T5's `f1_score_with_invalid`, for MRPC and QQP: an illegal word on a negative instance is then a false positive,
    where `f1` leaves it out.
    """
    return Statistics(_two_by_three(predictions, references, _two("t5_f1", references, labels)), _t5_f1)


def macro_f1(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return the mean over all labels of their F1, 0..1; a label that never occurs counts 0, as in scikit-learn."""
    return Statistics(_counts(predictions, references, _legal("macro_f1", references, labels)), _macro_f1)


def exact_match(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return the share of outputs equal to one of their references, white space at the ends aside."""
    hits = [text.strip() in {t.strip() for t in texts} for text, texts in zip(predictions, references, strict=True)]
    table = np.array([[hit, 1.0] for hit in hits])
    return Statistics(table, lambda sums: {"EM": sums[:, 0] / sums[:, 1]})


def _legal(name: str, references: References, labels: Sequence[str]) -> list[str]:
    """Return the labels, else the references' words in the order of the alphabet."""
    legal = list(labels) or sorted({text.strip() for texts in references for text in texts})
    if not labels and len(legal) > MOST_CLASSES:
        raise DataError(
            f"{name} without labels met {len(legal):,} different references, which are no labels; name the labels, or "
            "take accuracy or exact_match"
        )
    return legal


def _two(name: str, references: References, labels: Sequence[str]) -> list[str]:
    legal = _legal(name, references, labels)
    if len(legal) != 2:
        raise DataError(f"{name} needs two labels, not {legal}; use macro_f1, or name the two (the positive one last)")
    return legal


def _check_reference(number: int, reference: str, legal: Collection[str]) -> None:
    if reference.strip() not in legal:
        raise DataError(f"instance {number}: reference {reference!r} is none of the labels {list(legal)}")


def _counts(predictions: Texts, references: References, legal: Sequence[str]) -> np.ndarray:
    """Return [N, 2 C]: whether each class was rightly predicted, and how often it is the true or the predicted one."""
    place = {label: i for i, label in enumerate(legal)}
    table = np.zeros((len(predictions), 2, len(legal)))
    for n, (text, texts) in enumerate(zip(predictions, references, strict=True)):
        _check_reference(n + 1, texts[0], place)
        true, predicted = place[texts[0].strip()], place.get(text.strip())
        table[n, 0, true] = predicted == true
        table[n, 1, true] += 1.0
        if predicted is not None:
            table[n, 1, predicted] += 1.0
    return table.reshape(len(predictions), -1)


def _class_f1(sums: np.ndarray) -> np.ndarray:
    """Return each class's F1 [R, C] = 2 tp / (true + predicted), 0 where the class does not occur."""
    right, both = np.split(sums, 2, axis=1)
    return np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)


def _f1(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {"F1": _class_f1(sums)[:, -1]}


def _macro_f1(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {"macro_F1": _class_f1(sums).mean(1)}


def _two_by_three(predictions: Texts, references: References, legal: Sequence[str]) -> np.ndarray:
    """Return one-hot confusions [N, 2 * 3]: true label by predicted label, the last column illegal outputs."""
    place = {label: i for i, label in enumerate(legal)}
    table = np.zeros((len(predictions), 2, 3))
    for n, (text, texts) in enumerate(zip(predictions, references, strict=True)):
        _check_reference(n + 1, texts[0], place)
        table[n, place[texts[0].strip()], place.get(text.strip(), 2)] = 1.0
    return table.reshape(len(predictions), -1)


def _t5_f1(sums: np.ndarray) -> dict[str, np.ndarray]:
    table = sums.reshape(len(sums), 2, 3)
    right = table[:, 1, 1]
    both = table[:, 1].sum(1) + right + table[:, 0, 1] + table[:, 0, 2]
    return {"F1": np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)}


def illegal_rate(predictions: Texts, labels: Sequence[str]) -> float | None:
    """Return the share of outputs that are none of the labels, 0..1; None when the task has no labels."""
    if not labels:
        return None
    return float(np.mean([text.strip() not in labels for text in predictions]))
