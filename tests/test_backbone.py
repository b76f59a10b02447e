"""Backbones: geometry read from the model itself, other families, refusals that name them, fingerprints, loading."""

import copy
import json

import pytest
import torch
import transformers as tf
from backbones import COMMON, DECODERS, ENCODER_DECODERS, FAMILIES, OUTSIDERS, VOCAB, make, tokenizer

from foreword.backbone import load_backbone, wrap_backbone
from foreword.errors import BackboneError, PromptError
from foreword.frozen import fuse_activations
from foreword.generate.offline import generate_ids, logits
from foreword.geometry import SiteShape
from foreword.prompts.batch import Row, pack
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.train.loss import target_loss

SHAPES = {
    "gpt2": SiteShape(4, 16, 16), "llama": SiteShape(2, 16, 16), "mistral": SiteShape(2, 16, 16, 32),
    "qwen3": SiteShape(2, 24, 24), "gemma3": SiteShape(2, 24, 24, 32), "opt": SiteShape(4, 16, 16),
    "pythia": SiteShape(4, 16, 16), "phi3": SiteShape(2, 16, 16), "t5": SiteShape(4, 24, 24),
    "t5_square": SiteShape(4, 16, 16), "bart": SiteShape(4, 16, 16),
}


def small(cls, **fields):
    return cls(**{**COMMON, "num_key_value_heads": 2, **fields})


def gpt_oss():
    return tf.GptOssForCausalLM(
        small(
            tf.GptOssConfig, head_dim=16, num_local_experts=2, num_experts_per_tok=1, sliding_window=8,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    )


def deepseek():
    return tf.DeepseekV3ForCausalLM(
        small(
            tf.DeepseekV3Config, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
            qk_nope_head_dim=8, v_head_dim=12, n_routed_experts=2, num_experts_per_tok=1, n_group=1, topk_group=1,
            moe_intermediate_size=32, first_k_dense_replace=1,
        )
    )


ALSO_INSIDE = {
    "gemma2": lambda: tf.Gemma2ForCausalLM(small(tf.Gemma2Config, head_dim=16, sliding_window=8)),
    "gpt_oss": gpt_oss,
    "deepseek": deepseek,
    "cohere2": lambda: tf.Cohere2ForCausalLM(small(tf.Cohere2Config, sliding_window=8)),
    "mixtral": lambda: tf.MixtralForCausalLM(small(tf.MixtralConfig, num_local_experts=2)),
    "stablelm": lambda: tf.StableLmForCausalLM(small(tf.StableLmConfig)),
}
"""Soft-capped scores, attention sinks, keys wider than values, experts: what the ten families do not have."""


def lfm2():
    return tf.Lfm2ForCausalLM(small(tf.Lfm2Config, layer_types=["conv", "full_attention", "conv"]))


def falcon_h1():
    return tf.FalconH1ForCausalLM(
        small(
            tf.FalconH1Config, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1, mamba_d_state=8,
            mamba_chunk_size=16,
        )
    )


def llama4():
    return tf.Llama4ForCausalLM(
        small(tf.Llama4TextConfig, head_dim=16, num_local_experts=2, intermediate_size_mlp=64, attention_chunk_size=8)
    )


ALSO_OUTSIDE = {"lfm2": lfm2, "falcon_h1": falcon_h1, "llama4": llama4}
"""Models that use the interface, but whose tokens also meet by convolution, recurrence, or in chunks."""

TEXT = tuple(range(20, 41))


def other(maker):
    torch.manual_seed(0)
    model = maker().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    return model


@torch.no_grad()
def stock_logits(model, *, ids=None, embeds=None):
    return model(input_ids=ids, inputs_embeds=embeds, use_cache=False).logits[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_geometry_is_that_of_the_model(name, backbone_of):
    geometry = backbone_of(name).geometry
    stacks = ("encoder", "decoder", "cross") if name in ENCODER_DECODERS else ("decoder",)
    assert set(geometry.stacks) == set(stacks)
    assert all(geometry.layers(stack) == [0, 1, 2] for stack in stacks)
    assert geometry.embed_width == 64 and geometry.is_encoder_decoder == (name in ENCODER_DECODERS)
    assert geometry.max_positions == (None if name.startswith("t5") else 512)
    expected = SHAPES[name]
    for (_, layer), shape in geometry.sites.items():
        full = name == "gemma3" and layer == 1
        assert shape == (SiteShape(expected.kv_heads, expected.key_width, expected.value_width) if full else expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_installing_changes_no_logit(name, backbone_of):
    """Without prompts, hooks and all, the model says to the last bit what Transformers' own SDPA says (T5: nearly)."""
    backbone = backbone_of(name)
    config = copy.deepcopy(backbone.model.config)
    config._attn_implementation = "sdpa"
    stock = type(backbone.model)(config).eval()
    fuse_activations(stock)  # tests/test_frozen.py says that this changes roundings only
    stock.load_state_dict(backbone.model.state_dict())
    inputs = {"input_ids": torch.tensor([TEXT]), "use_cache": False}
    if backbone.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[0, 5, 6]])
    with torch.no_grad():
        ours, theirs = backbone.model(**inputs).logits, stock(**inputs).logits
    if name.startswith("t5"):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(ours, theirs)


def inline(backbone, prompt, model):
    """Return logits behind the prompt's soft tokens, by hand, on a model that Foreword never touched."""
    with torch.no_grad():
        embeds = torch.cat([prompt.table("embedding"), backbone.embed(torch.tensor(TEXT))])[None]
    return stock_logits(model, embeds=embeds)[prompt.length :]


def soft(backbone):
    prompt = make_prompt(PromptSpec(kind="prompt", length=4), backbone)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        prompt.tables["embedding"].set(torch.randn(4, 64, generator=generator) * 0.06)
    return prompt


@pytest.mark.parametrize("name", [*ALSO_INSIDE, *ALSO_OUTSIDE])
def test_other_families_are_right_with_and_without_a_prompt(name):
    """Mixed with a bare row in one batch: equal to eager attention on an untouched model, whatever path is taken."""
    model = other({**ALSO_INSIDE, **ALSO_OUTSIDE}[name])
    untouched = copy.deepcopy(model)
    untouched.set_attn_implementation("eager")
    backbone = wrap_backbone(model, tokenizer(), source=name)
    assert bool(backbone.geometry.sites) == (name in ALSO_INSIDE)
    prompt, text = soft(backbone), backbone.tokenizer.decode(TEXT)
    bare, ours = logits(backbone, [text[:9], text], [None, prompt])
    torch.testing.assert_close(bare, stock_logits(untouched, ids=torch.tensor([TEXT[:9]])), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours, inline(backbone, prompt, untouched), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [*OUTSIDERS, *ALSO_OUTSIDE])
def test_outsiders_refuse_prefixes_by_name_and_take_prompts(name, backbone_of):
    backbone = backbone_of(name) if name in OUTSIDERS else wrap_backbone(other(ALSO_OUTSIDE[name]), tokenizer())
    for kind in ("prefix", "infix"):
        with pytest.raises(PromptError, match=f"{type(backbone.model).__name__} does not route .* use kind 'prompt'"):
            make_prompt(PromptSpec(kind=kind), backbone)
    rows = [Row(TEXT[:5], ((50, 51, 2), (52, 2))), Row(TEXT[:9], ((53, 54, 2), (55, 2))), Row(TEXT[:3], ((56, 2),))]
    with pytest.raises(PromptError, match="cannot be packed"):
        pack(backbone, rows, [None] * 3)
    for placement in ("start", "suffix"):
        prompt = make_prompt(PromptSpec(kind="prompt", length=4, placement=placement), backbone)
        with torch.no_grad():
            prompt.tables["embedding"].set(soft(backbone).table("embedding"))
        prompts = [prompt, None, prompt]
        together = target_loss(backbone, rows, prompts)
        apart = [
            target_loss(backbone, [Row(row.source, (target,))], [p]).per_target
            for row, p in zip(rows, prompts, strict=True)
            for target in row.targets
        ]
        torch.testing.assert_close(together.per_target, torch.cat(apart), atol=2e-5, rtol=1e-5)
        together.sum.backward()
        assert (prompt.tables["embedding"].weight.grad != 0).all()
        options = {"max_new_tokens": 4, "num_beams": 1, "do_sample": False}
        if name == "falcon_h1":  # Transformers itself does not generate from its embeddings
            with pytest.raises(PromptError, match="FalconH1ForCausalLM generates from token ids only"):
                generate_ids(backbone, rows, prompts, **options)
            continue
        alone = [generate_ids(backbone, [row], [p], **options)[0] for row, p in zip(rows, prompts, strict=True)]
        assert generate_ids(backbone, rows, prompts, **options) == alone


def test_outsiders_keep_their_own_attention():
    model = other(llama4)
    before = model.config._attn_implementation
    wrap_backbone(model, tokenizer())
    assert model.config._attn_implementation == before != "foreword"


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_backbone_saved_and_loaded_is_the_same(name, backbone_of, tmp_path):
    backbone = backbone_of(name)
    backbone.model.save_pretrained(tmp_path)
    backbone.tokenizer.save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path, device="cpu")
    assert loaded.geometry == backbone.geometry and loaded.state_digest() == backbone.state_digest()
    half = load_backbone(tmp_path, dtype="bfloat16", device="cpu")
    assert half.dtype == torch.bfloat16
    assert half.fingerprint == loaded.fingerprint, "the digest of the files does not depend on the dtype in memory"
    assert not any(p.requires_grad for p in loaded.model.parameters()) and not loaded.model.training


def test_fingerprints_tell_config_tokenizer_and_weights_apart(backbone_of):
    mine, other_weights = backbone_of("llama"), make("llama", seed=1)
    differs = [part for part in mine.fingerprint if mine.fingerprint[part] != other_weights.fingerprint[part]]
    assert differs == ["weights"]
    changed = wrap_backbone(copy.deepcopy(mine.model), copy.deepcopy(mine.tokenizer))
    changed.tokenizer.add_tokens(["<new>"])
    changed.model.config.rms_norm_eps = 1e-3
    differs = [part for part in mine.fingerprint if mine.fingerprint[part] != changed.fingerprint[part]]
    assert differs == ["config", "tokenizer"]


def test_damaged_weights_are_refused(backbone_of):
    model = copy.deepcopy(backbone_of("gpt2").model)
    with torch.no_grad():
        model.transformer.h[1].ln_1.weight[3] = float("nan")
    with pytest.raises(BackboneError, match=r"transformer\.h\.1\.ln_1\.weight.*NaN"):
        wrap_backbone(model, tokenizer())


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("nowhere", {}, "neither a directory nor bundled"),
        ("./nowhere", {}, "is not a directory"),
        ("/no/such/place", {}, "is not a directory"),
        ("nowhere", {"dtype": "float23"}, "did you mean 'float32'"),
        pytest.param(
            "foreword-decoder-6m", {"device": "cuda:0"}, "device = 'cuda:0' needs a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
        ),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(source, options, said):
    with pytest.raises(BackboneError, match=said) as caught:
        load_backbone(source, **options)
    assert "\n" not in str(caught.value)


def test_a_directory_without_a_model_or_with_a_broken_one_is_refused(backbone_of, tmp_path):
    with pytest.raises(BackboneError, match=r"no config\.json"):
        load_backbone(tmp_path)
    backbone_of("llama").model.save_pretrained(tmp_path)
    backbone_of("llama").tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_backbone(tmp_path, device="cpu")


def test_weights_that_the_files_lack_are_refused(backbone_of, tmp_path):
    """Transformers would draw them at random, anew at each loading, under one and the same fingerprint."""
    backbone_of("llama").model.save_pretrained(tmp_path)
    backbone_of("llama").tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(BackboneError, match=r"lack 9 of its weights, 'model\.layers\.3\.") as caught:
        load_backbone(tmp_path, device="cpu")
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 63}))
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_backbone(tmp_path, device="cpu")


def test_a_model_that_reads_in_both_directions_is_refused():
    torch.manual_seed(0)
    fields = {name: COMMON[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")}
    config = tf.BertConfig(num_hidden_layers=2, **fields)
    with pytest.raises(BackboneError, match="BertLMHeadModel reads text in both directions"):
        wrap_backbone(tf.BertLMHeadModel(config), tokenizer())
    config.is_decoder = True
    assert len(wrap_backbone(tf.BertLMHeadModel(config), tokenizer()).geometry.sites) == 2


def test_a_composed_model_has_one_fingerprint_in_every_dtype_and_its_texts_limit(tmp_path):
    torch.manual_seed(0)
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    text = {**COMMON, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 24, "sliding_window": 32}
    config = tf.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=98, boi_token_index=97,
        eoi_token_index=96,
    )  # fmt: skip
    tf.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    full, half = (load_backbone(tmp_path, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert full.fingerprint == half.fingerprint
    assert full.geometry.max_positions == 512


def test_record_gives_keys_and_values_of_every_site_with_gradients(backbone_of):
    for name in DECODERS:
        backbone = backbone_of(name)
        embeds = torch.randn(5, 64, requires_grad=True)
        states = backbone.record(embeds=embeds)
        assert list(states) == list(backbone.geometry.sites)
        for site, (key, value) in states.items():
            shape = backbone.geometry.sites[site]
            assert key.shape == (shape.kv_heads, 5, shape.key_width)
            assert value.shape == (shape.kv_heads, 5, shape.value_width)
        sum(value.sum() for _, value in states.values()).backward()
        assert embeds.grad.abs().sum() > 0
    assert backbone.embed(torch.tensor([VOCAB - 1])).shape == (1, 64)
