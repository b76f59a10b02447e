"""The WebNLG and DART scorers: multi-bleu, METEOR and TER over three references (RECIPES 5.2)."""

import re
from collections.abc import Sequence

import numpy as np

from foreword.data.extras import load_extra
from foreword.evaluate.metrics.captions import meteor_statistics
from foreword.evaluate.metrics.ngrams import multi_bleu
from foreword.evaluate.metrics.statistics import References, Statistics, Texts

REFERENCES = 3  # the scorers read three reference files; a missing reference is an empty line, and is scored as one


def normalise(text: str) -> str:
    """Return the text as WebNLG's scripts do: split at non-word characters, one space between, ASCII, lower case."""
    unidecode = load_extra("unidecode", "WebNLG's normalisation").unidecode
    return unidecode(" ".join(" ".join(re.split(r"(\W)", text)).split())).lower()


def three(references: References) -> list[list[str]]:
    """Return each instance's first three references, filled up with empty ones."""
    return [[*texts, "", ""][:REFERENCES] for texts in references]


def webnlg_bleu(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return BLEU in 0..1 = multi-bleu.perl -lc on normalised text."""
    return multi_bleu(*_normalised(predictions, references), str.split)


def webnlg_meteor(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return METEOR 1.5 in 0..1 on normalised text, `-l en -norm -r 3`."""
    return meteor_statistics(*_normalised(predictions, references))


def webnlg_ter(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return TER (edits per reference word, 0 is best) on normalised text."""
    return ter(*_normalised(predictions, references))


def ter(outputs: Texts, references: References) -> Statistics:
    """Return TER over the mean length of the references that are not empty; within 1e-4 of tercom 0.7.25."""
    scorer = load_extra("sacrebleu.metrics", "TER").TER()
    scores = [
        scorer.sentence_score(output, [text for text in texts if text.strip()] or [""])
        for output, texts in zip(outputs, references, strict=True)
    ]
    values = np.array([[score.num_edits, score.ref_length] for score in scores], dtype=np.float64)
    return Statistics(values, lambda sums: {"TER": sums[:, 0] / sums[:, 1]})


def dart_bleu(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return BLEU in 0..1 = multi-bleu.perl, case-sensitive, on text already split by spaces."""
    return multi_bleu(predictions, three(references), str.split)


def dart_meteor(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return METEOR 1.5 in 0..1 on the text as it is, three references."""
    return meteor_statistics(predictions, three(references))


def _normalised(predictions: Texts, references: References) -> tuple[list[str], list[list[str]]]:
    return [normalise(t) for t in predictions], three([[normalise(t) for t in texts] for texts in references])
