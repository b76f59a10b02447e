"""Hooks for learned metrics: BERTScore through `bert-score`, BLEURT-style models through `evaluate`. Never needed.

They load a model of some hundred million parameters on first use, so no task names them; a user's own task may. Without
their library the runner reports them as skipped, with the reason.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from foreword.errors import MissingExtraError
from foreword.evaluate.metrics.statistics import References, Statistics, Texts, mean_of


def bert_score(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return the mean BERTScore F1 (Zhang et al. 2020), English, best of all references, not rescaled.

    Raises:
        MissingExtraError: `bert-score` is not installed.
    """
    scorer = _library("bert_score", "score", "bert-score")
    _, _, f1 = scorer.score(list(predictions), [list(texts) for texts in references], lang="en", verbose=False)
    return mean_of("BERTScore", [float(value) for value in f1])


def bleurt(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return the mean BLEURT (Sellam et al. 2020) by the default checkpoint of `evaluate`, best of all references.

    DART's own script uses a toy checkpoint and the first reference alone (RECIPES 5.2): those figures are not these.

    Raises:
        MissingExtraError: `evaluate` (with BLEURT) is not installed.
    """
    scorer = _library("evaluate", "load", "evaluate and bleurt").load("bleurt", module_type="metric")
    flat = [(text, reference) for text, texts in zip(predictions, references, strict=True) for reference in texts]
    found = scorer.compute(predictions=[text for text, _ in flat], references=[reference for _, reference in flat])
    values = iter(found["scores"])
    best = [max(next(values) for _ in texts) for texts in references]
    return mean_of("BLEURT", [float(np.float64(value)) for value in best])


def _library(module: str, function: str, packages: str) -> Any:
    """Return a library that has a function; a folder of the same name on the path is not it."""
    try:
        found = importlib.import_module(module)
    except ImportError:
        found = None
    if not hasattr(found, function):
        raise MissingExtraError(f"this learned metric needs {packages}: pip install {packages}")
    return found
