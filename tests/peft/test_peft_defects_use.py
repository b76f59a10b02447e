"""The defects D8 to D17 of PEFT 0.21, in using a prompt (see test_peft_defects.py): ours does it right."""

import peft
import pytest
import torch
import transformers as tf
from backbones import VOCAB, make
from peers import (
    HARMLESS,
    ROWS,
    TEXTS,
    fresh_peft,
    gap,
    made,
    note,
    peft_generate,
    peft_logits,
    plain_copy,
    saved_peft,
    tried,
)

from foreword.generate import logits
from foreword.generate.offline import generate_ids, make_rows
from foreword.prompts.batch import Row, pack, realise_all
from foreword.prompts.inject import activate
from foreword.prompts.padded import pad
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.train.loss import target_loss

pytestmark = [pytest.mark.filterwarnings(message) for message in HARMLESS]
NEW_LEN = 8
FIXED_LEN = {"max_new_tokens": NEW_LEN, "min_new_tokens": NEW_LEN}
PREFIX, PROMPT = PromptSpec(length=5), PromptSpec(kind="prompt", length=4)
SUFFIX, INFIX = PromptSpec(kind="prompt", length=4, placement="suffix"), PromptSpec(kind="infix", length=4)


@pytest.mark.parametrize("spec", [PREFIX, PROMPT, SUFFIX, INFIX], ids=["prefix", "prompt", "suffix", "infix"])
def test_d8_logits_are_those_of_the_text(backbone_of, measure, spec):
    backbone = backbone_of("llama")
    prompt = made(backbone, spec)
    rows, _ = make_rows(backbone, TEXTS, prompt)
    out = logits(backbone, TEXTS, prompt)
    assert [tuple(item.shape) for item in out] == [(len(row.source), VOCAB) for row in rows]
    batch = pack(backbone, ROWS, realise_all(backbone, [prompt] * len(ROWS)))
    with activate(batch.injection), torch.no_grad():
        kept = backbone.model(**batch.inputs, logits_to_keep=batch.predict_at, use_cache=False).logits[0]
    assert len(kept) == sum(len(target) for row in ROWS for target in row.targets)
    theirs = fresh_peft(backbone, "prompt")
    note(f"D8 PEFT, prompt of 5, text of 3: {tried(lambda: theirs(input_ids=torch.full((1, 3), 9)).logits.shape)}")


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_d9_classifying_does_not_depend_on_padding(backbone_of, measure, family):
    """A class is a verbalizer's likelihood after the text, the same for a row alone, padded left or padded right."""
    backbone = backbone_of(family)
    prompt, labels = made(backbone, PROMPT), ((20, 2), (21, 2), (22, 23, 2))
    rows = [Row(tuple(range(5 + i, 5 + i + length)), labels) for i, length in enumerate((2, 31, 9))]
    together = target_loss(backbone, rows, [prompt] * 3).per_target
    alone = torch.cat([target_loss(backbone, [row], [prompt]).per_target for row in rows])
    measure("D9 class scores", family, gap([together], [alone]))
    last = {}
    for side in ("left", "right"):
        batch = pad(backbone, rows, realise_all(backbone, [prompt] * 3), side=side)
        with activate(batch.injection), torch.no_grad():
            out = backbone.model(**batch.inputs, use_cache=False).logits
        last[side] = [row[mask][-1] for row, mask in zip(out, batch.text, strict=True)]
    measure("D9 padding sides", family, gap(last["left"], last["right"]))


@pytest.mark.filterwarnings("ignore:Passing `pad_token_id`")
def test_d9_note_on_peft(backbone_of):
    torch.manual_seed(0)
    config = plain_copy(backbone_of("llama")).config
    config.num_labels, config.pad_token_id = 2, 0
    model = tf.LlamaForSequenceClassification(config).eval()
    theirs = peft.get_peft_model(model, peft.PromptTuningConfig("SEQ_CLS", num_virtual_tokens=4)).eval()
    ids = torch.tensor([[9, 10, 11]])
    padded = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], 1)
    with torch.no_grad():
        base = gap([model(input_ids=ids).logits], [model(input_ids=padded, attention_mask=(padded > 0).long()).logits])
        out = tried(lambda: gap(
            [theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits],
            [theirs(input_ids=padded, attention_mask=(padded > 0).long()).logits],
        ))  # fmt: skip
    note(f"D9 PEFT, class logits with and without right padding differ by {out}; the base model's by {base:.1e}")
    assert base < 1e-5


MODES = {
    "cached": {},
    "static": {"cache_implementation": "static"},
    "prefill in chunks": {"prefill_chunk_size": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "assisted": {"assistant_model": "another model"},
}


@pytest.mark.parametrize("spec", [PREFIX, PROMPT], ids=["prefix", "prompt"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
@pytest.mark.filterwarnings("ignore:Passing `generation_config` together")
def test_d10_every_way_of_generating_gives_the_same_tokens(backbone_of, family, spec):
    backbone = backbone_of(family)
    prompt = made(backbone, spec)
    rows = [Row((5, 6, 7) * 4), Row((8, 9) * 4)]
    expected = generate_ids(backbone, rows, [prompt] * 2, use_cache=False, **FIXED_LEN)
    for mode, options in MODES.items():
        one_by_one = mode in ("prompt lookup", "assisted")  # Transformers takes one row there
        if mode == "assisted":
            options = {"assistant_model": plain_copy(make(family, seed=2))}
        chunks = [[row] for row in rows] if one_by_one else [rows]
        out = [ids for chunk in chunks
               for ids in generate_ids(backbone, chunk, [prompt] * len(chunk), **FIXED_LEN, **options)]  # fmt: skip
        assert out == expected, mode
    batch = pad(backbone, rows, realise_all(backbone, [prompt] * 2))
    embeds = {"inputs_embeds": backbone.embed(batch.inputs["input_ids"])}
    with activate(batch.injection), torch.no_grad():
        out = backbone.model.generate(
            **embeds, attention_mask=batch.inputs["attention_mask"], do_sample=False, **FIXED_LEN
        )
    assert out.tolist() == expected, "from input embeddings"


@pytest.mark.parametrize("spec", [PREFIX, PROMPT], ids=["prefix", "prompt"])
def test_d10_a_cache_is_used_again_in_the_next_turn(backbone_of, spec):
    backbone = backbone_of("llama")
    prompt, rows = made(backbone, spec), [Row((5, 6, 7) * 4), Row((8, 9) * 4)]
    batch, half = pad(backbone, rows, realise_all(backbone, [prompt] * 2)), {"max_new_tokens": 4, "min_new_tokens": 4}
    with activate(batch.injection), torch.no_grad():
        first = backbone.model.generate(**batch.inputs, do_sample=False, return_dict_in_generate=True, **half)
        ids = torch.cat([first.sequences, torch.tensor([[9, 8], [7, 6]])], 1)
        mask = torch.cat([batch.inputs["attention_mask"], torch.ones(2, 6, dtype=torch.long)], 1)
        again = backbone.model.generate(
            input_ids=ids, attention_mask=mask, past_key_values=first.past_key_values, do_sample=False, **half
        )
    whole = [Row(tuple(row[seen.bool()].tolist())) for row, seen in zip(ids, mask, strict=True)]
    assert again[:, -4:].tolist() == generate_ids(backbone, whole, [prompt] * 2, use_cache=False, **half)


def test_d10_note_on_peft(backbone_of):
    for kind in ("prefix", "prompt"):
        theirs = fresh_peft(backbone_of("llama"), kind)
        inputs = {"input_ids": torch.full((1, 6), 9), "attention_mask": torch.ones(1, 6, dtype=torch.long)}
        expected = peft_generate(theirs, [9] * 6, NEW_LEN)
        for mode, options in {**MODES, "no cache": {"use_cache": False}}.items():
            if mode != "assisted":
                said = tried(lambda o=options, t=theirs, e=expected, i=inputs: (
                    "right" if t.generate(**i, do_sample=False, max_new_tokens=NEW_LEN, **o)[0, -NEW_LEN:].tolist() == e
                    else "other tokens"
                ))  # fmt: skip
                note(f"D10 PEFT, {kind}, {mode}: {said}")
        assert len(expected) == NEW_LEN


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_d14_a_prompt_stands_where_it_is_put(backbone_of, measure, family):
    """Soft tokens with the embeddings of real tokens equal those tokens in that place of the text."""
    backbone = backbone_of(family)
    words, text, tail = (70, 71, 72), (1, 9, 10, 11), 1
    places = {"start": (*words, *text), "after_bos": (1, *words, *text[1:]), "suffix": (*text[:-1], *words, text[-1])}
    seen = {}
    for placement, whole in places.items():
        prompt = make_prompt(PromptSpec(kind="prompt", length=3, placement=placement), backbone)
        prompt.tables["embedding"].set(backbone.embed(torch.tensor(words)))
        ours = target_loss(backbone, [Row(text, ((20, 21, 2),), tail)], [prompt]).sum
        plain = target_loss(backbone, [Row(whole, ((20, 21, 2),))], [None]).sum
        measure("D14 placements", family, abs(ours - plain).item())
        seen[placement] = ours.item()
    infix = make_prompt(PromptSpec(kind="infix", length=3), backbone)
    infix.tables["embedding"].set(backbone.embed(torch.tensor(words)))  # its offset is zero: then it is plain text too
    ours = target_loss(backbone, [Row(text, ((20, 21, 2),), tail)], [infix]).sum
    assert abs(ours.item() - seen["suffix"]) <= 1e-5 * max(1.0, abs(seen["suffix"]))
    torch.nn.init.normal_(infix.tables["offset"].weight, generator=torch.Generator().manual_seed(0))
    seen["infix"] = target_loss(backbone, [Row(text, ((20, 21, 2),), tail)], [infix]).sum.item()
    assert len({round(value, 3) for value in seen.values()}) == 4, "the places make no difference"


@pytest.mark.parametrize("spec", [PREFIX, PROMPT], ids=["prefix", "prompt"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_d17_position_ids_count_so_that_rows_can_be_packed(backbone_of, measure, family, spec):
    backbone = backbone_of(family)
    prompt = made(backbone, spec)
    packed = target_loss(backbone, ROWS, [prompt] * len(ROWS)).per_target
    alone = torch.cat([target_loss(backbone, [row], [prompt]).per_target for row in ROWS])
    measure("D17 packed rows", family, gap([packed], [alone]))

    text = torch.tensor([[9, 10, 11, 12]])
    batch = pad(backbone, [Row(tuple(text[0].tolist()))], realise_all(backbone, [prompt]))
    outs = []
    for positions in (None, [[0, 1, 2, 3]], [[0, 1, 7, 8]]):
        given = {} if positions is None else {"position_ids": torch.tensor(positions)}
        with activate(batch.injection), torch.no_grad():
            outs.append(backbone.model(**batch.inputs, **given, use_cache=False).logits)
    assert gap(outs[0], outs[1]) == 0.0, "the positions that are the default change nothing"
    assert gap(outs[0], outs[2]) > 1e-3, "the user's positions were dropped"
    theirs = fresh_peft(backbone, "prompt")
    with torch.no_grad():
        change = tried(lambda: gap(*(theirs(input_ids=text, position_ids=torch.tensor([p])).logits
                                     for p in ([0, 1, 2, 3], [0, 1, 7, 8]))))  # fmt: skip
    note(f"D17 PEFT, other position_ids change the logits by {change}")


def test_the_comparisons_above_use_prompts_that_matter(backbone_of, tmp_path):
    backbone = backbone_of("llama")
    theirs = saved_peft(backbone, "prefix", tmp_path)
    ids = make_rows(backbone, TEXTS[:1], None)[0][0].source
    assert gap([logits(backbone, TEXTS[:1])[0]], [peft_logits(theirs, ids)]) > 1e-2
