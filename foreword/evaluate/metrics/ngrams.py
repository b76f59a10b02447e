"""BLEU and NIST, as the E2E challenge's scorer (pymteval) and Moses' multi-bleu.perl count them (RECIPES 5.1, 5.2)."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from foreword.data.extras import load_extra
from foreword.evaluate.metrics.statistics import References, Statistics, Texts

Tokens = list[str]
BLEU_ORDER, NIST_ORDER = 4, 5
NIST_BETA = -math.log(0.5) / math.log(1.5) ** 2  # outputs of 2/3 the reference length keep half the score
TINY, SMALL = 1e-15, 1e-9  # pymteval's stand-ins for zero matches and zero lengths


def ngram_counts(tokens: Tokens, n: int) -> Counter[tuple[str, ...]]:
    """Return how often each n-gram occurs."""
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


def clipped(output: Tokens, references: Sequence[Tokens], n: int) -> Counter[tuple[str, ...]]:
    """Return the output's n-grams, each counted at most as often as in the reference that has most of it."""
    most: Counter[tuple[str, ...]] = Counter()
    for tokens in references:
        most |= ngram_counts(tokens, n)
    return ngram_counts(output, n) & most


def e2e_bleu(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return BLEU in 0..1 on lower-cased text with mteval-13a tokens; sacrebleu's own value except on outputs of
    fewer than four tokens, where the official scorer counts negative n-gram totals, and so do we.
    """
    return _bleu(predictions, references, tokenizer_13a())


def multi_bleu(predictions: Texts, references: References, split: Callable[[str], Tokens]) -> Statistics:
    """Return BLEU in 0..1 as multi-bleu.perl: tokens by `split`, no smoothing, totals never negative."""
    return _bleu(predictions, references, split, smooth=False)


def e2e_nist(predictions: Texts, references: References, labels: Sequence[str] = ()) -> Statistics:
    """Return NIST (order 5) on lower-cased 13a tokens.

    Information weights come from all references of the set; a resample keeps them.
    """
    tokenize = tokenizer_13a()
    outputs = [tokenize(text) for text in predictions]
    corpus = [[tokenize(text) for text in texts] for texts in references]
    info = _information(corpus)
    rows = [_nist_row(output, texts, info) for output, texts in zip(outputs, corpus, strict=True)]
    return Statistics(np.array(rows, dtype=np.float64), _nist_score)


def tokenizer_13a() -> Callable[[str], Tokens]:
    """Return the function from a text to its lower-cased mteval-13a tokens; an empty text is one empty token."""
    module = load_extra("sacrebleu.tokenizers.tokenizer_13a", "the 13a tokenizer of BLEU and NIST")
    tokenize = module.Tokenizer13a()
    return lambda text: tokenize(text.strip().lower()).split(" ")


def _bleu(
    predictions: Texts, references: References, split: Callable[[str], Tokens], smooth: bool = True
) -> Statistics:
    rows = []
    for output, texts in zip(map(split, predictions), references, strict=True):
        tokens = [split(text) for text in texts]
        lengths = [len(output) - n if smooth else max(0, len(output) - n) for n in range(BLEU_ORDER)]
        hits = [clipped(output, tokens, n).total() for n in range(1, BLEU_ORDER + 1)]
        rows.append([closest_length(output, tokens), *lengths, *hits])
    return Statistics(np.array(rows, dtype=np.float64), partial(_bleu_score, smooth=smooth))


def closest_length(output: Tokens, references: Sequence[Tokens]) -> int:
    """Return the length of the reference closest in length to the output, the shorter of two."""
    return min((abs(len(tokens) - len(output)), len(tokens)) for tokens in references)[1]


def _bleu_score(sums: np.ndarray, smooth: bool) -> dict[str, np.ndarray]:
    reference, lengths, hits = sums[:, 0], sums[:, 1 : 1 + BLEU_ORDER], sums[:, 1 + BLEU_ORDER :]
    precision = np.maximum(hits, TINY) / np.maximum(lengths, SMALL)
    geometric = np.exp(np.log(precision).sum(1) / BLEU_ORDER)
    brevity = np.exp(np.minimum(0.0, 1.0 - reference / np.maximum(lengths[:, 0], 1e-5)))
    score = brevity * geometric
    return {"BLEU": score if smooth else np.where(hits.min(1) > 0, score, 0.0)}


def _information(corpus: Sequence[Sequence[Tokens]]) -> dict[tuple[str, ...], float]:
    """Return log2(count of the n-gram without its last word / count of the n-gram), over all references."""
    counts: Counter[tuple[str, ...]] = Counter()
    for texts in corpus:
        for tokens in texts:
            counts[()] += len(tokens)
            for n in range(1, NIST_ORDER + 1):
                counts.update(ngram_counts(tokens, n))
    return {ngram: math.log2(counts[ngram[:-1]] / count) for ngram, count in counts.items() if ngram}


def _nist_row(output: Tokens, texts: Sequence[Tokens], info: dict[tuple[str, ...], float]) -> list[float]:
    gains = [
        sum(info[ngram] * count for ngram, count in clipped(output, texts, n).items()) for n in range(1, NIST_ORDER + 1)
    ]
    lengths = [len(output) - n for n in range(NIST_ORDER)]
    return [sum(map(len, texts)) / len(texts), *lengths, *gains]


def _nist_score(sums: np.ndarray) -> dict[str, np.ndarray]:
    reference, lengths, gains = sums[:, 0], sums[:, 1 : 1 + NIST_ORDER], sums[:, 1 + NIST_ORDER :]
    terms = np.divide(gains, lengths, out=np.zeros_like(gains), where=lengths != 0)
    ratio = np.clip(lengths[:, 0] / reference, 1e-300, 1.0)
    return {"NIST": np.exp(-NIST_BETA * np.log(ratio) ** 2) * terms.sum(1)}
