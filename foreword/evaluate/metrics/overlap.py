"""ROUGE-1/2/L through rouge-score (RECIPES 5.3), plain BLEU and chrF through sacrebleu."""

from collections.abc import Sequence

import numpy as np

from foreword.data.extras import load_extra
from foreword.evaluate.metrics.statistics import References, Statistics, Texts, mean_of

BOOTSTRAP = 1000  # rouge-score's BootstrapAggregator
KINDS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


def bleu(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return BLEU in 0..1 as sacrebleu's default has it: cased, 13a tokens, exponential smoothing.

    For a user's own task; `e2e_bleu` and `webnlg_bleu` are the challenges'.
    """
    scorer = load_extra("sacrebleu.metrics", "BLEU").BLEU(effective_order=True)  # the counts do not depend on it
    scores = [scorer.sentence_score(text, list(texts)) for text, texts in zip(predictions, references, strict=True)]
    rows = [[score.sys_len, score.ref_len, *score.counts, *score.totals] for score in scores]

    def one(row: np.ndarray) -> float:
        sizes = [int(number) for number in row]
        return scorer.compute_bleu(sizes[2:6], sizes[6:], sizes[0], sizes[1], smooth_method="exp").score / 100

    return Statistics(np.array(rows, dtype=np.float64), lambda sums: {"BLEU": np.array([one(row) for row in sums])})


def rouge(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return ROUGE-1, -2 and -L F in 0..1: stemmed, best reference, mean over instances (not rougeLsum)."""
    values = rouge_values(predictions, references)
    table = np.concatenate([values, np.ones((len(values), 1))], axis=1)
    return Statistics(table, lambda sums: {name: sums[:, i] / sums[:, 3] for i, name in enumerate(KINDS.values())})


def rouge_lsum(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return ROUGE-Lsum F in 0..1: sentences, one a line, are matched apart (See et al.'s way, for CNN/DailyMail)."""
    scorer = load_extra("rouge_score.rouge_scorer", "ROUGE").RougeScorer(["rougeLsum"], use_stemmer=True)
    pairs = zip(predictions, references, strict=True)
    return mean_of("ROUGE-Lsum", [scorer.score_multi(list(t), text)["rougeLsum"].fmeasure for text, t in pairs])


def rouge_values(predictions: Texts, references: References) -> np.ndarray:
    """Return each instance's ROUGE-1, -2 and -L F in 0..1, [N, 3]."""
    scorer = load_extra("rouge_score.rouge_scorer", "ROUGE").RougeScorer(list(KINDS), use_stemmer=True)
    pairs = zip(predictions, references, strict=True)
    tables = [scorer.score_multi(list(texts), text) for text, texts in pairs]
    return np.array([[table[kind].fmeasure for kind in KINDS] for table in tables])


def rouge_as_published(
    predictions: Texts, references: References, batch_rows: int, rng: np.random.Generator
) -> dict[str, float]:
    """Return ROUGE as Prefix-Tuning's code reports it: the bootstrap median of each batch, averaged over batches.

    The last, shorter batch weighs as much as the others, and the value moves with `rng`: for comparison only.
    """
    values = rouge_values(predictions, references)
    batches = [values[k : k + batch_rows] for k in range(0, len(values), batch_rows)]
    draws = [rng.integers(0, len(batch), (BOOTSTRAP, len(batch))) for batch in batches]
    medians = [np.median(batch[draw].mean(1), axis=0) for batch, draw in zip(batches, draws, strict=True)]
    return dict(zip(KINDS.values(), map(float, np.mean(medians, axis=0)), strict=True))


def chrf(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return chrF2 in 0..1 (sacrebleu's default: character order 6, no words, beta 2)."""
    scorer = load_extra("sacrebleu.metrics", "chrF").CHRF()

    def row(text: str, texts: Sequence[str]) -> list[int]:
        return scorer._extract_corpus_statistics([text], [[t] for t in texts])[0]  # no public way to the counts

    def finish(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"chrF": np.array([scorer._compute_score_from_stats(list(line)).score / 100 for line in sums])}

    rows = [row(text, texts) for text, texts in zip(predictions, references, strict=True)]
    return Statistics(np.array(rows, dtype=np.float64), finish)
