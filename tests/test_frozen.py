"""Speed-ups of a frozen model change no state, no digest, and no number beyond rounding."""

import copy

import pytest
import torch
from transformers.activations import ACT2FN

from foreword.frozen import Head, find_head, fuse_activations
from foreword.prompts.batch import Row
from foreword.prompts.init import draw_undirected
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.train.loss import target_loss
from tests.backbones import gpt2, make


def test_tanh_gelus_are_fused_and_nothing_else():
    names = ["gelu_new", "gelu_fast", "gelu", "silu", "relu", "quick_gelu"]
    model = torch.nn.ModuleDict({name: ACT2FN[name] for name in names})
    assert fuse_activations(model) == 2
    fused = [name for name in names if isinstance(model[name], torch.nn.GELU) and model[name].approximate == "tanh"]
    assert fused == ["gelu_new", "gelu_fast"]


def test_fusing_keeps_state_and_output():
    torch.manual_seed(0)
    stock = gpt2().eval().double()
    fused = copy.deepcopy(stock)
    assert fuse_activations(fused) == fused.config.n_layer
    assert list(fused.state_dict()) == list(stock.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(fused.state_dict().values(), stock.state_dict().values(), strict=True))
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(fused(ids).logits, stock(ids).logits, rtol=1e-12, atol=1e-12)


def test_a_loaded_backbone_is_fused_under_an_unchanged_digest():
    backbone = make("gpt2")
    assert fuse_activations(backbone.model) == 0
    digest, activation = backbone.state_digest(), backbone.model.transformer.h[0].mlp.act
    assert isinstance(activation, torch.nn.GELU)
    backbone.model.transformer.h[0].mlp.act = ACT2FN["gelu_new"]
    assert backbone.state_digest() == digest


@pytest.mark.parametrize(
    ("family", "scale"), [("gpt2", 1.0), ("llama", 1.0), ("gemma3", 1.0), ("bart", 1.0), ("t5", 0.125)]
)
def test_the_head_is_read_from_what_the_model_does(family, scale):
    head = find_head(make(family))
    assert (head.scale, head.softcap) == (scale, None)


def test_soft_caps_and_biases_after_the_head_are_found():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from foreword.backbone import wrap_backbone
    from tests.backbones import tokenizer

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Gemma2Config(**sizes, num_key_value_heads=1, head_dim=16, vocab_size=99, final_logit_softcapping=2.0)
    head = find_head(wrap_backbone(Gemma2ForCausalLM(config), tokenizer()))
    assert isinstance(head, Head) and head.softcap == 2.0
    bart = make("bart")
    bart.model.final_logits_bias.normal_()
    bias = find_head(bart).extra_bias
    torch.testing.assert_close(bias, bart.model.final_logits_bias[0], rtol=1e-4, atol=1e-4)


def test_bfloat16_training_on_a_cpu_is_as_exact_as_stock_attention(monkeypatch):
    from foreword.prompts.attention import AttentionCall

    def gradient(dtype, stock):
        with monkeypatch.context() as patch:
            if stock:
                patch.setattr(AttentionCall, "_is_slow_in_sdpa", lambda call: False)
            backbone = make("qwen3")
            backbone.model.to(dtype)
            prompt = make_prompt(PromptSpec(length=4), backbone)
            draw_undirected(prompt, torch.Generator().manual_seed(0))
            rows = [Row(tuple(range(5, 5 + n)), (tuple(range(40, 40 + n)),)) for n in (3, 9, 14)]
            target_loss(backbone, rows, [prompt] * 3).sum.backward()
            return torch.cat([parameter.grad.flatten() for parameter in prompt.parameters()])

    exact = gradient(torch.float32, True)
    stock, ours = ((gradient(torch.bfloat16, stock) - exact).norm() / exact.norm() for stock in (True, False))
    assert 0 < ours < 1.25 * stock
