"""The E2E challenge's METEOR, ROUGE_L and CIDEr: captioning scorers on PTB tokens (RECIPES 5.1)."""

from collections.abc import Sequence

from foreword.data.extras import load_extra
from foreword.evaluate.metrics.java import meteor_rows, meteor_scores, ptb_tokens
from foreword.evaluate.metrics.statistics import References, Statistics, Texts, mean_of


def tokenised(predictions: Texts, references: References) -> tuple[list[str], list[list[str]]]:
    """Return predictions and references as PTB tokens, in one run of the tokenizer."""
    lines = iter(ptb_tokens([*predictions, *(text for texts in references for text in texts)]))
    return [next(lines) for _ in predictions], [[next(lines) for _ in texts] for texts in references]


def e2e_meteor(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return METEOR 1.5 in 0..1 on PTB tokens, aggregated over the corpus."""
    return meteor_statistics(*tokenised(predictions, references))


def meteor_statistics(outputs: Texts, references: References) -> Statistics:
    """Return METEOR 1.5 of texts as they are; the program itself normalises punctuation and case."""
    return Statistics(meteor_rows(outputs, references), lambda sums: {"METEOR": meteor_scores(sums)})


def e2e_rouge_l(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return the captioning ROUGE_L in 0..1: best precision and best recall over references, beta 1.2, mean."""
    scorer = load_extra("pycocoevalcap.rouge.rouge", "ROUGE_L").Rouge()
    outputs, texts = tokenised(predictions, references)
    return mean_of("ROUGE_L", [scorer.calc_score([out], refs) for out, refs in zip(outputs, texts, strict=True)])


def e2e_cider(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return CIDEr-D (0..10). Document frequencies come from this set's references; a resample keeps them."""
    scorer = load_extra("pycocoevalcap.cider.cider_scorer", "CIDEr").CiderScorer()
    for output, texts in zip(*tokenised(predictions, references), strict=True):
        scorer += (output, texts)
    scorer.compute_doc_freq()
    return mean_of("CIDEr", scorer.compute_cider())
