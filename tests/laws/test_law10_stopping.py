"""Law 10: every row can learn to stop. EOS is the last target token of every row, whatever is cut."""

import pytest
import torch
from backbones import tokenizer
from lawbook import DECODERS, FAMILIES, random_ids

from foreword.data.examples import FORMATS, Example, tokenise
from foreword.data.records import Record
from foreword.generate.offline import generate_ids
from foreword.prompts.batch import Row, pack, realise_all
from foreword.prompts.padded import pad_targets
from foreword.prompts.spec import PromptSpec
from foreword.train.job import train_prompt
from foreword.train.optim import OptimConfig
from foreword.train.step import make_pass

EOS = 2


@pytest.mark.parametrize("form", list(FORMATS))
@pytest.mark.parametrize("max_target", [None, 2, 3, 50])
def test_eos_ends_every_tokenised_target(form, max_target):
    records = [Record(f"source {i}", ("a" * (1 + i), "b c" * (9 - i))) for i in range(8)]
    rows = tokenise(records, tokenizer(), FORMATS[form], 3, max_target)
    assert len(rows.examples) == 16
    for row in rows.examples:
        assert row.target_ids[-1] == EOS and row.target_ids.count(EOS) == 1
        assert max_target is None or len(row.target_ids) <= max_target


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("share", [False, True])
def test_eos_is_a_label_of_every_target_that_a_pass_learns(name, share, backbone_of):
    backbone = backbone_of(name)
    sources = [random_ids(5, i // 3) for i in range(9)]
    examples = [Example(source, (*random_ids(1 + i, 40 + i), EOS)) for i, source in enumerate(sources)]
    drawn = make_pass(examples, range(9), share, 0)
    assert len(drawn.rows) == (3 if share else 9)
    if name in DECODERS:
        batch = pack(backbone, drawn.rows, realise_all(backbone, [None] * len(drawn.rows)))
        owners = batch.target_of_label[batch.labels == EOS].tolist()
    else:
        _, labels, _ = pad_targets(backbone, drawn.rows)
        owners = (labels == EOS).nonzero()[:, 0].tolist()
    assert sorted(owners) == list(range(9))


def test_a_trained_prompt_stops_where_its_targets_did(backbone_of):
    """Two lengths of target for two sources: after training, generation ends where EOS was taught."""
    backbone = backbone_of("gpt2")
    examples = [Example((10, 11), (20, 21, EOS)), Example((12, 13), (22, 23, 24, 25, EOS))]
    result = train_prompt(backbone, examples, PromptSpec(length=8), steps=150, optim=OptimConfig(lr=0.03))
    rows = [Row(example.source_ids) for example in examples]
    with torch.no_grad():
        made = generate_ids(backbone, rows, [result.prompt] * 2, max_new_tokens=12, num_beams=1, do_sample=False)
    assert [tuple(ids) for ids in made] == [example.target_ids for example in examples]
