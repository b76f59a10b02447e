import random

import pytest
import torch

from foreword.pretrain.models import build_model
from foreword.pretrain.probe import Prefix, ProbeConfig, Task, bleu, logits_of, probe_examples, run_probe
from foreword.pretrain.tokenizer import load_tokenizer


@pytest.mark.parametrize("family", ["decoder", "t5"])
def test_the_probe_runs_and_leaves_the_model_alone(packed, family: str):
    tokenizer = load_tokenizer(packed / "tokenizer")
    model = build_model(family, "tiny", len(tokenizer), 256, 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = run_probe(model, tokenizer, ProbeConfig(steps=4, batch=2, virtual_tokens=3, test=2))
    assert set(scores) == {f"{k}_{s}" for k in ("prefix", "fine_tune") for s in ("loss", "copied", "bleu")}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_prefix_of_real_text_is_that_text(packed):
    tokenizer = load_tokenizer(packed / "tokenizer")
    model = build_model("decoder", "tiny", len(tokenizer), 256, 0).eval()
    start = torch.tensor(tokenizer("the bridge over the field")["input_ids"])
    source, mask, target = Task(tokenizer, True, torch.device("cpu")).tensors(probe_examples(random.Random(0), 1))
    with torch.no_grad():
        by_prefix = logits_of(model, Prefix(model, 5, start), source, target, mask)
        as_text = model(torch.cat([start[None, :5], source, target[:, :-1]], dim=1)).logits[
            :, 5 + source.shape[1] - 1 :
        ]
    torch.testing.assert_close(by_prefix, as_text, rtol=1e-4, atol=1e-5)


def test_bleu_of_equal_and_unequal_texts():
    assert bleu(["a b c d e."], ["a b c d e."]) == pytest.approx(100)
    assert bleu(["v w x y z"], ["a b c d e"]) == 0
