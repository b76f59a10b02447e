"""Law 4: padding (left, right, extra) and the order of rows change no row's logits, loss or greedy text."""

import random

import pytest
from lawbook import (
    DECODERS,
    FAMILIES,
    all_prompts,
    difference,
    packed_logits,
    padded_logits,
    random_rows,
    row_logits,
    text_of,
)

from foreword.generate.offline import generate


def mixed(backbone, name, seed=0, targets=()):
    """Return a batch with every kind of prompt, lengths drawn at random."""
    prompts = list(all_prompts(backbone, name).values())
    lengths = random.Random(seed).choices(range(3, 50), k=len(prompts))
    return random_rows(lengths, seed, targets), prompts


@pytest.mark.parametrize("name", DECODERS)
def test_packed_left_and_right_agree(name, backbone_of, measure):
    backbone = backbone_of(name)
    rows, prompts = mixed(backbone, name)
    packed = packed_logits(backbone, rows, prompts)
    for side in ("left", "right"):
        measure(f"4 padding {side}", name, difference(padded_logits(backbone, rows, prompts, side), packed))


@pytest.mark.parametrize("name", FAMILIES)
def test_extra_padding_changes_nothing(name, backbone_of, measure):
    backbone = backbone_of(name)
    rows, prompts = mixed(backbone, name, seed=1, targets=(5,))
    longer = [*rows, *random_rows([90], 7, targets=(20,))]
    plain = padded_logits(backbone, rows, prompts)
    extra = padded_logits(backbone, longer, [*prompts, None])[:-1]
    measure("4 padding extra", name, difference(extra, plain))


@pytest.mark.parametrize("name", FAMILIES)
def test_order_of_rows_changes_nothing(name, backbone_of, measure):
    backbone = backbone_of(name)
    rows, prompts = mixed(backbone, name, seed=2, targets=(6,))
    order = random.Random(3).sample(range(len(rows)), len(rows))
    shuffled = row_logits(backbone, [rows[i] for i in order], [prompts[i] for i in order])
    plain = row_logits(backbone, rows, prompts)
    measure("4 row order", name, difference(shuffled, [plain[i] for i in order]))


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_text_does_not_depend_on_order_or_padding(name, backbone_of):
    backbone = backbone_of(name)
    rows, prompts = mixed(backbone, name, seed=4)
    texts = [text_of(backbone, [i for i in row.source if i > 3]) for row in rows]
    plain = generate(backbone, texts, prompts, max_new_tokens=6)
    assert len(set(plain)) > len(plain) // 2, "the texts should differ, or the comparison says nothing"
    order = random.Random(5).sample(range(len(rows)), len(rows))
    moved = generate(backbone, [texts[i] for i in order], [prompts[i] for i in order], max_new_tokens=6)
    assert moved == [plain[i] for i in order]
    padded = generate(backbone, [*texts, "x" * 80], [*prompts, None], max_new_tokens=6)
    assert padded[:-1] == plain
