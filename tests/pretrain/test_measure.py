import math

import numpy as np
import pytest
import torch

from foreword.pretrain.measure import Ruler
from foreword.pretrain.models import build_model
from foreword.pretrain.objectives import random_spans_noise_mask, span_corruption_lengths
from foreword.pretrain.tokenizer import byte_lengths, load_tokenizer


def test_span_bits_are_of_the_masked_text_alone(packed):
    """A model that thinks all V tokens alike spends log2 V bits on each masked token, and no other counts."""
    tokenizer = load_tokenizer(packed / "tokenizer")
    vocabulary = len(tokenizer)
    stream = np.random.default_rng(1).integers(2, vocabulary - 100, 400).astype(np.uint16)
    model = build_model("t5", "tiny", vocabulary, 64, seed=0)
    with torch.no_grad():
        model.shared.weight.zero_()
        found = Ruler(tokenizer, {}, context=64).span_bits_per_byte(model, stream, tokens=400)

    raw = span_corruption_lengths(64)[0]
    rows = stream[: len(stream) // raw * raw].reshape(-1, raw)
    rng, lengths = np.random.default_rng(0), byte_lengths(tokenizer)
    masked = np.concatenate([row[random_spans_noise_mask(rng, raw)] for row in rows.astype(np.int64)])
    ends = len(rows)  # the end of each row's targets is a token of no bytes
    assert found == pytest.approx(math.log2(vocabulary) * (len(masked) + ends) / lengths[masked].sum(), rel=1e-5)
