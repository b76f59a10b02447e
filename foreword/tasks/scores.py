"""What each metric calls its scores, and which metrics may be asked for together: known before anything is scored.

The metrics themselves are in `foreword.evaluate`, which tasks cannot import.
"""

from collections.abc import Iterable, Sequence

from foreword.errors import ConfigError

# A test compares this with what the metrics return.
SCORE_NAMES: dict[str, tuple[str, ...]] = {
    "e2e_bleu": ("BLEU",),
    "e2e_nist": ("NIST",),
    "e2e_meteor": ("METEOR",),
    "e2e_rouge_l": ("ROUGE_L",),
    "e2e_cider": ("CIDEr",),
    "webnlg_bleu": ("BLEU",),
    "webnlg_meteor": ("METEOR",),
    "webnlg_ter": ("TER",),
    "dart_bleu": ("BLEU",),
    "dart_meteor": ("METEOR",),
    "bleu": ("BLEU",),
    "rouge": ("ROUGE-1", "ROUGE-2", "ROUGE-L"),
    "rouge_lsum": ("ROUGE-Lsum",),
    "chrf": ("chrF",),
    "accuracy": ("accuracy",),
    "f1": ("F1",),
    "t5_f1": ("F1",),
    "macro_f1": ("macro_F1",),
    "exact_match": ("EM",),
    "squad": ("F1", "EM"),
    "bert_score": ("BERTScore",),
    "bleurt": ("BLEURT",),
    "multirc": ("F1a", "EM"),
    "wsc_referent": ("accuracy",),
}

LOWER_IS_BETTER = ("TER", "loss")

# These need of each record what only their own task keeps of it.
GROUP_METRICS = frozenset(("multirc", "wsc_referent"))
METRICS = frozenset(SCORE_NAMES) - GROUP_METRICS
TWO_LABEL_METRICS = frozenset(("f1", "t5_f1"))
# Their value depends on which words are labels. Accuracy's does not: a right word is right whatever the others are.
LABEL_METRICS = TWO_LABEL_METRICS | {"macro_f1"}


def score_names(metrics: Iterable[str]) -> list[str]:
    """Return the names of all scores of some metrics, each once."""
    return list(dict.fromkeys(name for metric in metrics for name in SCORE_NAMES[metric]))


def check_score_names(metrics: Sequence[str]) -> None:
    """Check that no two metrics of one task give a score of the same name, of which only one could be shown.

    Raises:
        ConfigError: two do, or one is named twice.
    """
    owner: dict[str, str] = {}
    for metric in metrics:
        for name in SCORE_NAMES.get(metric, ()):
            if owner.get(name) == metric:
                raise ConfigError(f"metrics: {metric!r} is named twice; leave one out")
            if name in owner:
                raise ConfigError(
                    f"metrics: {owner[name]!r} and {metric!r} both give a score called {name!r}, of which only one "
                    "could be shown; leave one of the two out"
                )
            owner[name] = metric


def check_labels(metrics: Sequence[str], labels: Sequence[str], task: str) -> None:
    """Check that metrics over labels are told the labels of a task, as many as they need.

    Without, they would take the words of the records that happen to be scored, in the order of the alphabet.

    Raises:
        ConfigError: there are no labels, or not two where a metric needs two.
    """
    for name in metrics:
        if name in LABEL_METRICS and not labels:
            positive = " (the last is the positive one)" if name in TWO_LABEL_METRICS else ""
            raise ConfigError(
                f"metrics: {name!r} needs labels, and task {task!r} has no label_words; give them{positive}, or take "
                "accuracy or exact_match"
            )
        if name in TWO_LABEL_METRICS and len(labels) != 2:
            raise ConfigError(f"metrics: {name!r} needs two labels and label_words gives {len(labels)}; take macro_f1")
