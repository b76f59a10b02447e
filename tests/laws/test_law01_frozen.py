"""Law 1: frozen means frozen. The backbone's digest is the same before and after training; no gradient on it."""

import pytest
import torch
from lawbook import FAMILIES, copy_of, random_ids, specs

from foreword.data.examples import Example
from foreword.generate.offline import generate
from foreword.train.job import train_prompt


def examples(count=6):
    return [Example(random_ids(4 + i, i), (*random_ids(3 + i % 3, 90 + i), 2)) for i in range(count)]


@pytest.mark.parametrize("name", FAMILIES)
def test_training_leaves_the_backbone_as_it_was(name, backbone_of):
    backbone = copy_of(backbone_of(name))
    before = backbone.state_digest()
    modes = {path: module.training for path, module in backbone.model.named_modules()}
    for kind in list(specs(name))[:7:3]:
        train_prompt(backbone, examples(), specs(name)[kind], dev=examples(2), steps=2)
    generate(backbone, ["abc", "defgh"], None, max_new_tokens=2)
    assert backbone.state_digest() == before == backbone_of(name).state_digest()
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())
    assert {path: module.training for path, module in backbone.model.named_modules()} == modes


def test_the_digest_sees_one_bit(backbone_of):
    backbone = copy_of(backbone_of("gpt2"))
    before = backbone.state_digest()
    weight = backbone.model.transformer.h[2].mlp.c_fc.weight
    with torch.no_grad():
        weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(9.0))
    assert backbone.state_digest() != before
