"""What metrics call their scores, so that a misspelt one is known before anything is trained or scored."""

from collections.abc import Iterable

from foreword.tasks.scores import SCORE_NAMES

LOWER_IS_BETTER = ("TER", "loss")


def score_names(metrics: Iterable[str]) -> list[str]:
    """Return the names of all scores of some metrics, each once."""
    return list(dict.fromkeys(name for metric in metrics for name in SCORE_NAMES[metric]))
