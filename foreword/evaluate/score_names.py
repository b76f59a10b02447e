"""What each metric calls its scores, so that a misspelt one is known before anything is trained or scored."""

from collections.abc import Iterable

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


def score_names(metrics: Iterable[str]) -> list[str]:
    """Return the names of all scores of some metrics, each once."""
    return list(dict.fromkeys(name for metric in metrics for name in SCORE_NAMES[metric]))
