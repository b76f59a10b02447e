"""Packing and padding, checked on layouts drawn at random against what each promises in words."""

import random

import pytest
import torch
from backbones import DECODERS

from foreword.errors import PromptError
from foreword.prompts.batch import INLINE, Row, make_injection, pack, place_inline, realise_all
from foreword.prompts.init import initialise
from foreword.prompts.padded import pad, pad_targets
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import PromptSpec

SPECS = (
    PromptSpec(length=3),
    PromptSpec(length=7),
    PromptSpec(kind="prompt", length=2, placement="after_bos"),
    PromptSpec(kind="prompt", length=4, placement="suffix"),
    PromptSpec(kind="infix", length=5),
)


def drawn_batch(backbone, seed):
    """Return rows of random lengths with none to four targets, and random prompts."""
    dice, prompts = random.Random(seed), []
    for spec in SPECS:
        prompts.append(make_prompt(spec, backbone))
        initialise(prompts[-1], backbone, torch.Generator().manual_seed(seed))
    rows, chosen = [], []
    for _ in range(dice.randint(1, 7)):
        source = [1] * dice.randint(0, 1) + dice.choices(range(4, 98), k=dice.randint(1, 12))
        targets = tuple(
            tuple(dice.choices(range(4, 98), k=dice.randint(1, 6))) for _ in range(dice.randint(0, 4))
        )
        rows.append(Row(tuple(source), targets, tail=dice.randint(0, min(2, len(source)))))
        chosen.append(dice.choice([None, *prompts]))
    return rows, realise_all(backbone, chosen)


@pytest.mark.parametrize("seed", range(12))
def test_a_packed_batch_reads_each_token_once_and_predicts_each_target_token_once(seed, backbone_of):
    backbone = backbone_of("llama")
    rows, realised = drawn_batch(backbone, seed)
    batch = pack(backbone, rows, realised)
    targets = [(number, target) for number, row in enumerate(rows) for target in row.targets]
    assert batch.labels.tolist() == [token for _, target in targets for token in target]
    assert batch.row_of_label.tolist() == [number for number, target in targets for _ in target]
    assert batch.target_of_label.tolist() == [i for i, (_, target) in enumerate(targets) for _ in target]
    placed = [place_inline(row.source, made, 1, row.tail)[0] for row, made in zip(rows, realised, strict=True)]
    total = sum(len(ids) + sum(len(t) - 1 for t in row.targets) for ids, row in zip(placed, rows, strict=True))
    assert batch.inputs["position_ids"].shape == (1, total)
    layout = batch.injection.layout
    assert torch.equal(layout.token_at.flatten()[layout.place_of_token], torch.arange(total))
    check_sight(batch, rows, placed)


def check_sight(batch, rows, placed):
    """Each token sees, in its own row: the source up to itself, and its own target up to itself; and itself only once.

    `position_ids` are text positions: source tokens count up, every target goes on where the source ends.
    """
    layout, at = batch.injection.layout, 0
    for row, ids in zip(rows, placed, strict=True):
        spans = [range(at, at + len(ids))]
        for target in row.targets:
            spans.append(range(spans[-1].stop, spans[-1].stop + len(target) - 1))
        for kind, span in enumerate(spans):
            for step, token in enumerate(span):
                expected = {*spans[0], *span} if kind else set(span)
                group, place = divmod(int(layout.place_of_token[token]), layout.token_at.shape[1])
                seen = layout.token_at[group][layout.mask[group, 0, place]].tolist()
                assert sorted(seen) == sorted(other for other in expected if other <= token)
                position = step + (len(ids) if kind else 0)
                assert batch.inputs["position_ids"][0, token] == position == layout.positions[group, place]
                assert layout.group_of_token[token] == group
        at = spans[-1].stop


def test_targets_are_laid_out_with_their_row_or_apart_whichever_is_smaller(backbone_of):
    backbone = backbone_of("llama")
    targets = tuple((40 + n, 50, 51, 2) for n in range(5))
    for source_len, expected in ((3, (5, 6)), (60, (1, 75))):
        batch = pack(backbone, [Row(tuple(range(4, 4 + source_len)), targets)], [None])
        assert batch.injection.layout.token_at.shape == expected


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("seed", range(8))
def test_a_padded_batch_holds_each_row_once_with_its_soft_tokens(seed, side, backbone_of):
    backbone = backbone_of("llama")
    rows, realised = drawn_batch(backbone, 100 + seed)
    batch = pad(backbone, rows, realised, side=side)
    embeds = batch.inputs.get("inputs_embeds")
    ids = batch.inputs.get("input_ids")
    for number, (row, made) in enumerate(zip(rows, realised, strict=True)):
        placed, start = place_inline(row.source, made, 1, row.tail)
        mask = batch.inputs["attention_mask"][number].bool()
        assert mask.sum() == len(placed)
        edge = mask[0 if side == "right" else -1]
        assert edge and mask.long().diff().abs().sum() <= 1, "the padding is on one side"
        assert batch.text[number].sum() == sum(token != INLINE for token in placed)
        if ids is not None:
            assert ids[number][mask].tolist() == placed
            continue
        text = torch.tensor([token for token in placed if token != INLINE])
        assert torch.equal(embeds[number][batch.text[number]], backbone.embed(text))
        if start >= 0:
            soft = embeds[number][mask][start : start + made.inline.shape[0]]
            assert torch.equal(soft, made.inline.to(backbone.dtype))


@pytest.mark.parametrize("seed", range(5))
def test_padded_targets_start_with_the_start_token_and_label_every_token(seed, backbone_of):
    backbone = backbone_of("t5")
    dice = random.Random(seed)
    rows = [
        Row((5,), tuple(tuple(dice.choices(range(4, 98), k=dice.randint(1, 6))) for _ in range(dice.randint(1, 3))))
        for _ in range(4)
    ]
    inputs, labels, owner = pad_targets(backbone, rows)
    targets = [(number, target) for number, row in enumerate(rows) for target in row.targets]
    assert owner.tolist() == [number for number, _ in targets]
    for (_, target), read, label in zip(targets, inputs.tolist(), labels.tolist(), strict=True):
        assert [token for token in label if token >= 0] == list(target)
        assert read[: len(target)] == [0, *target[:-1]]


def test_a_bank_stores_each_prompt_once(backbone_of):
    backbone = backbone_of("gpt2")
    prompts = [make_prompt(PromptSpec(length=n), backbone) for n in (2, 5)]
    chosen = [prompts[0], None, prompts[1], prompts[0], prompts[0]]
    injection = make_injection(realise_all(backbone, chosen), backbone.device)
    assert len(injection.bank.prefixes) == 2
    assert injection.slots.tolist() == [0, -1, 1, 0, 0]
    assert injection.prompt_len.tolist() == [2, 0, 5, 2, 2]
    assert make_injection([None, None], backbone.device) is None


@pytest.mark.parametrize(
    ("where", "source", "tail", "expected"),
    [
        ("start", [1, 7, 8], 0, [-1, -1, 1, 7, 8]),
        ("after_bos", [1, 7, 8], 0, [1, -1, -1, 7, 8]),
        ("after_bos", [7, 8], 0, [-1, -1, 7, 8]),
        ("suffix", [1, 7, 8], 0, [1, 7, 8, -1, -1]),
        ("suffix", [1, 7, 8], 1, [1, 7, -1, -1, 8]),
        ("infix", [1, 7, 8], 2, [1, -1, -1, 7, 8]),
        ("suffix", [], 0, [-1, -1]),
    ],
)
def test_soft_tokens_go_where_they_are_placed(where, source, tail, expected):
    from foreword.prompts.soft_prompt import Realised

    ids, start = place_inline(source, Realised(inline=torch.zeros(2, 4), where=where), 1, tail)
    assert ids == expected and start == expected.index(-1)


@pytest.mark.parametrize("name", DECODERS)
def test_rows_that_are_too_long_or_empty_are_refused(name, backbone_of):
    backbone = backbone_of(name)
    prompt = make_prompt(PromptSpec(length=20), backbone)
    fits, long = Row((5,) * 480, ((6,) * 13,)), Row((5,) * 480, ((6,) * 14,))
    pack(backbone, [fits], realise_all(backbone, [prompt]))
    with pytest.raises(PromptError, match="take 513 positions, the backbone has 512"):
        pack(backbone, [long], realise_all(backbone, [prompt]))
    with pytest.raises(PromptError, match="take 513 positions"):
        pad(backbone, [Row((5,) * 480)], realise_all(backbone, [prompt]), new_len=13)
    for way in (pack, pad):
        with pytest.raises(PromptError, match="row 1 has no source token"):
            way(backbone, [Row((5,)), Row(())], [None, None])
