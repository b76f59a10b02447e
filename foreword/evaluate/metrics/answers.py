"""Answers: SQuAD's F1 and EM, and SuperGLUE's odd rules for MultiRC and WSC, as T5 scores them (RECIPES 2.5)."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foreword.evaluate.metrics.statistics import References, Statistics, Texts, by_group

# T5 drops these before it compares referents.
DETERMINERS = frozenset((
    "a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our", "some", "that", "the", "their",
    "these", "this", "those", "which", "whose", "your",
))
POSITIVE = "True"


def normalise_answer(text: str) -> str:
    """Return an answer as SQuAD's scorer compares it: lower case, no punctuation, no articles, single spaces."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def answer_f1(prediction: str, answer: str) -> float:
    """Return the F1 in 0..1 of two normalised answers' words, each counted as often as it occurs."""
    ours, theirs = prediction.split(), answer.split()
    same = (Counter(ours) & Counter(theirs)).total()
    return 2 * same / (len(ours) + len(theirs)) if same else 0.0


def squad(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return F1 and EM in 0..1, each the best over the answers, mean over questions (SQuAD, MRQA, ReCoRD)."""
    rows = []
    for prediction, answers in zip(map(normalise_answer, predictions), references, strict=True):
        known = list(map(normalise_answer, answers))
        rows.append([max(answer_f1(prediction, answer) for answer in known), float(prediction in known), 1.0])
    return Statistics(np.array(rows), lambda sums: {"F1": sums[:, 0] / sums[:, 2], "EM": sums[:, 1] / sums[:, 2]})


def multirc(predictions: Texts, references: References, keys: Sequence[Mapping[str, Any]]) -> Statistics:
    """Return F1a over all answers and EM over questions, 0..1: a question counts when all its answers are right.

    An illegal output counts as the opposite of the true label in F1a, as in T5. Questions are what is resampled.
    `keys` give each answer's question as `group`.
    """
    said = [text.strip() for text in predictions]
    true = [texts[0].strip() == POSITIVE for texts in references]
    legal = {"True": True, "False": False}
    taken = [legal.get(text, not label) for text, label in zip(said, true, strict=True)]
    rows = np.array([[t and p, t, p, t != p] for t, p in zip(true, taken, strict=True)], dtype=np.float64)
    sums, _ = by_group(rows, [key["group"] for key in keys])
    table = np.column_stack([sums[:, :3], sums[:, 3] == 0, np.ones(len(sums))])
    return Statistics(table, _multirc_scores)


def _multirc_scores(sums: np.ndarray) -> dict[str, np.ndarray]:
    both = sums[:, 1] + sums[:, 2]
    f1 = np.divide(2 * sums[:, 0], both, out=np.zeros_like(both), where=both > 0)
    return {"F1a": f1, "EM": sums[:, 3] / sums[:, 4]}


def wsc_referent(predictions: Texts, references: References, keys: Sequence[Mapping[str, Any]]) -> Statistics:
    """Return accuracy in 0..1: whether the output names the candidate, against whether the candidate is the referent.

    The reference is the candidate's text, `keys` give its `label`. An empty output is wrong either way.
    """
    right = []
    for prediction, texts, key in zip(predictions, references, keys, strict=True):
        named = names_referent(prediction, texts[0])
        right.append(float(named is not None and named == bool(key["label"])))
    table = np.column_stack([right, np.ones(len(right))])
    return Statistics(table, lambda sums: {"accuracy": sums[:, 0] / sums[:, 1]})


def names_referent(prediction: str, candidate: str) -> bool | None:
    """Return whether the words of one are all among the words of the other, determiners and case aside.

    "Bob" does not name "Bob's hat": an apostrophe must be in both or in neither. None for an output without words.
    """
    ours, theirs = _referent_words(prediction), _referent_words(candidate)
    if not ours:
        return None
    if any("'" in word for word in ours) != any("'" in word for word in theirs):
        return False
    return ours <= theirs or theirs <= ours


def _referent_words(text: str) -> set[str]:
    return {word for word in text.lower().split() if word not in DETERMINERS}
