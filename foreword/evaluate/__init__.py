"""Scores: metrics equal to the official scorers', their intervals, and the runner that applies them to a task."""

from foreword.evaluate.metrics import METRICS, check_metrics, score
from foreword.evaluate.runner import (
    Forgetting,
    Scores,
    check_forgetting,
    evaluate,
    evaluate_outputs,
    scores_json,
    write_scores,
)
from foreword.evaluate.stats import (
    Difference,
    Interval,
    Spread,
    approximate_randomisation,
    bootstrap,
    paired_bootstrap,
    spread,
)

__all__ = [
    "METRICS",
    "Difference",
    "Forgetting",
    "Interval",
    "Scores",
    "Spread",
    "approximate_randomisation",
    "bootstrap",
    "check_forgetting",
    "check_metrics",
    "evaluate",
    "evaluate_outputs",
    "paired_bootstrap",
    "score",
    "scores_json",
    "spread",
    "write_scores",
]
