"""What the model learns from a row of tokens: causal, span corruption (T5's), prefix-LM (Lester et al.).

Span corruption restates `t5.data.preprocessors` (google-research/text-to-text-transfer-transformer) in NumPy:
`random_spans_helper`, `random_spans_noise_mask`, `noise_span_to_unique_sentinel`, with 15 % noise and mean span 3.
"""

import numpy as np

NOISE_DENSITY, MEAN_SPAN = 0.15, 3.0  # Raffel et al. 2020, section 3.1.4


def span_corruption_lengths(
    inputs_length: int, density: float = NOISE_DENSITY, mean_span: float = MEAN_SPAN
) -> tuple[int, int]:
    """Return (raw tokens, target tokens) such that the corrupted inputs have exactly `inputs_length` tokens at most.

    `random_spans_helper`: both sides carry one sentinel a span and one end of sequence; 512 gives (568, 114).
    """

    def lengths(raw: int) -> tuple[int, int]:
        noise = round(raw * density)
        spans = round(noise / mean_span)
        return raw - noise + spans + 1, noise + spans + 1

    raw = inputs_length - 1
    while lengths(raw + 1)[0] <= inputs_length:
        raw += 1
    return raw, lengths(raw)[1]


def random_spans_noise_mask(
    rng: np.random.Generator, length: int, density: float = NOISE_DENSITY, mean_span: float = MEAN_SPAN
) -> np.ndarray:
    """Return bool `[length]`, True where a token is noise; spans alternate, the first is not noise, the last is."""
    total = max(length, 2)
    noise = min(max(round(total * density), 1), total - 1)
    spans = max(round(noise / mean_span), 1)
    noise_lengths = _random_segmentation(rng, noise, spans)
    kept_lengths = _random_segmentation(rng, total - noise, spans)
    interleaved = np.stack([kept_lengths, noise_lengths], axis=1).reshape(-1)
    return np.repeat(np.arange(2 * spans) % 2 == 1, interleaved)[:length]


def _random_segmentation(rng: np.random.Generator, items: int, segments: int) -> np.ndarray:
    """Return int `[segments]`, positive lengths that add up to `items`, uniform over all such splits."""
    starts = rng.permutation(np.arange(items - 1) < segments - 1)
    return np.bincount(np.cumsum(np.concatenate([[False], starts])), minlength=segments)


def spans_to_sentinels(tokens: np.ndarray, mask: np.ndarray, first_sentinel: int) -> np.ndarray:
    """Return the tokens with each run of True replaced by one sentinel: `first_sentinel`, then the ids below it."""
    before = np.concatenate([[False], mask[:-1]])
    opens, inside = mask & ~before, mask & before
    return np.where(opens, first_sentinel + 1 - np.cumsum(opens), tokens)[~inside]


def span_corruption(
    tokens: np.ndarray, mask: np.ndarray, first_sentinel: int, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (inputs, targets): noise spans become sentinels in the inputs, the rest does in the targets; both end."""
    inputs = spans_to_sentinels(tokens, mask, first_sentinel)
    targets = spans_to_sentinels(tokens, ~mask, first_sentinel)
    return np.append(inputs, end), np.append(targets, end)


def prepend_sentinel(targets: np.ndarray, first_sentinel: int) -> np.ndarray:
    """Return downstream targets with a sentinel in front: Lester et al.'s "span corruption + sentinel" ablation.

    It changes the downstream task, not pretraining: a T5 that never saw a target without a leading sentinel is
    asked for one that looks like its pretraining (2021, section 3.2).
    """
    return np.concatenate([[first_sentinel], targets])


def prefix_lm_split(rng: np.random.Generator, length: int, multiple: int = 1) -> int:
    """Return how many tokens the encoder gets: uniform in [1, length - 1] (T5's `random_prefix_noise_mask`).

    With `multiple` > 1 the split is rounded to it, so that a compiled model meets few shapes.
    """
    split = int(rng.integers(1, length))
    return min(max(round(split / multiple), 1) * multiple, length - 1)


def shift_right(targets: np.ndarray, start: int) -> np.ndarray:
    """Return `[B, T]` decoder inputs: `start`, then the targets without their last token."""
    return np.concatenate([np.full_like(targets[:, :1], start), targets[:, :-1]], axis=1)
