"""Each baseline trains exactly the parameters it claims: names, counts, and the paper's own numbers."""

import pytest
import torch
from backbones import FAMILIES, make
from toy import EXAMPLES, recipe

from foreword.baselines.adapter import Adapter, AdapterSpec, adapter_size, matching_bottleneck, prefix_size
from foreword.baselines.fine_tune import FineTune, FineTuneSpec
from foreword.baselines.lora import Lora, LoraSpec
from foreword.baselines.top_layers import TopLayers, TopLayersSpec, top_parameters
from foreword.errors import BackboneError, ConfigError
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.train.parallel import World
from foreword.train.run_config import TrainBatch
from foreword.train.step import Trainee, train_step

MAKERS = {
    "top_layers": lambda backbone: TopLayers(TopLayersSpec(layers=2), backbone, 0),
    "top_layers_embedding": lambda backbone: TopLayers(TopLayersSpec(layers=1, embedding=True), backbone, 0),
    "adapter": lambda backbone: Adapter(AdapterSpec(bottleneck=3), backbone, 0),
    "lora": lambda backbone: Lora(LoraSpec(rank=2, targets=("all-linear",)), backbone, 0),
}
# name of the last blocks and of the norm behind them, written down by hand
TOPS = {
    "gpt2": ("transformer.h.{}.", "transformer.ln_f."),
    "llama": ("model.layers.{}.", "model.norm."),
    "mistral": ("model.layers.{}.", "model.norm."),
    "qwen3": ("model.layers.{}.", "model.norm."),
    "gemma3": ("model.layers.{}.", "model.norm."),
    "opt": ("model.decoder.layers.{}.", "model.decoder.final_layer_norm."),
    "pythia": ("gpt_neox.layers.{}.", "gpt_neox.final_layer_norm."),
    "phi3": ("model.layers.{}.", "model.norm."),
    "t5": ("decoder.block.{}.", "decoder.final_layer_norm."),
    "t5_square": ("decoder.block.{}.", "decoder.final_layer_norm."),
    "bart": ("model.decoder.layers.{}.", None),  # a post-norm model has nothing behind its last block
}


def take_steps(backbone, learner, steps=2):
    settings = recipe(steps=steps, method="fine_tune", optim=recipe().optim, batch=TrainBatch(rows=8))
    trainee = Trainee(learner, EXAMPLES, settings, World())
    for _ in range(steps):
        train_step(backbone, [trainee], World())


def own_state(backbone):
    """The model's own tensors under their own names, whatever PEFT has put around them."""
    state = backbone.model.state_dict()
    return {name.replace(".base_layer", ""): t.clone() for name, t in state.items() if "lora_" not in name}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_top_is_the_last_blocks_and_the_norm_behind_them(family):
    backbone = make(family)
    block, norm = TOPS[family]
    wanted = [block.format(1), block.format(2), *([norm] if norm else [])]
    names = [name for name, _ in backbone.model.named_parameters() if name.startswith(tuple(wanted))]
    assert list(top_parameters(backbone, TopLayersSpec(layers=2))) == names
    assert len(names) > 10


@pytest.mark.parametrize("family", FAMILIES)
def test_the_second_definition_adds_the_output_embedding_and_nothing_else(family):
    backbone = make(family)
    without = set(top_parameters(backbone, TopLayersSpec(layers=2)))
    with_it = set(top_parameters(backbone, TopLayersSpec(layers=2, embedding=True)))
    (added,) = with_it - without
    assert without < with_it
    parameter = dict(backbone.model.named_parameters())[added]
    assert parameter is backbone.model.get_output_embeddings().weight
    if backbone.model.config.tie_word_embeddings:
        assert parameter is backbone.model.get_input_embeddings().weight


@pytest.mark.parametrize("method", MAKERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_trains_moves_and_the_rest_is_bit_equal(family, method):
    backbone = make(family)
    before = own_state(backbone)
    learner = MAKERS[method](backbone)
    claimed = {name: p.detach().clone() for name, p in learner.parameters().items()}
    thawed = {id(p) for p in backbone.model.parameters() if p.requires_grad}
    thawed |= {id(p) for p in learner.adapters.parameters()} if method == "adapter" else set()
    assert thawed == {id(p) for p in learner.parameters().values()}
    take_steps(backbone, learner)
    after, moved = own_state(backbone), {}
    assert set(after) == set(before)
    parameters = {id(p) for p in learner.parameters().values()}
    tied = {name for name, tensor in backbone.model.state_dict(keep_vars=True).items() if id(tensor) in parameters}
    for name, tensor in before.items():
        moved[name] = not torch.equal(tensor, after[name])
        assert name in tied or not moved[name], name
    assert {name for name in tied if "lora_" not in name} == {name for name, did in moved.items() if did}
    for name, parameter in learner.parameters().items():
        assert not torch.equal(parameter, claimed[name]), name
        assert parameter.grad is None or parameter.requires_grad
    assert all(p.grad is None for p in backbone.model.parameters() if not p.requires_grad)


def test_top2_of_gpt2_medium_has_the_papers_two_sizes():
    block, width, vocabulary = 12 * 1024**2 + 13 * 1024, 1024, 50257
    small = make("gpt2")  # the same formula with 64 for 1024 and 99 for 50257
    tiny = 12 * 64**2 + 13 * 64
    for layers, embedding in ((1, False), (2, False), (2, True)):
        found = top_parameters(small, TopLayersSpec(layers=layers, embedding=embedding))
        assert sum(p.numel() for p in found.values()) == layers * tiny + 2 * 64 + embedding * 99 * 64
    assert round((2 * block + 2 * width) / 1e6, 1) == 25.2
    assert round((2 * block + 2 * width + vocabulary * width) / 1e6, 1) == 76.7


@pytest.mark.parametrize(("bottleneck", "millions"), [(6, 0.369), (224, 11.09)])
def test_adapters_on_gpt2_medium_have_the_papers_sizes(bottleneck, millions):
    assert adapter_size(1024, 24, bottleneck) / 1e6 == pytest.approx(millions, rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_stand_behind_every_block_and_count_what_the_formula_says(family):
    backbone = make(family)
    learner = Adapter(AdapterSpec(bottleneck=5), backbone, 0)
    blocks = 6 if backbone.is_encoder_decoder else 3
    assert len(learner.adapters) == blocks
    assert sum(p.numel() for p in learner.parameters().values()) == adapter_size(64, blocks, 5)
    names = {f"block{i}.{part}" for i in range(blocks) for part in ("norm.weight", "norm.bias")}
    linear = [f"{part}.{kind}" for part in ("down", "up") for kind in ("weight", "bias")]
    names |= {f"block{i}.{name}" for i in range(blocks) for name in linear}
    assert set(learner.parameters()) == names


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize(("length", "times"), [(10, 1.0), (10, 30.0), (7, 4.5)])
def test_the_matched_bottleneck_is_the_nearest_of_all(family, length, times):
    backbone = make(family)
    stored = make_prompt(PromptSpec(length=length), backbone).num_stored
    assert prefix_size(backbone, length) == stored
    blocks = 6 if backbone.is_encoder_decoder else 3
    off = {b: abs(adapter_size(64, blocks, b) - times * stored) for b in range(1, 1000)}
    spec = AdapterSpec(match_prefix=length, times=times)
    assert matching_bottleneck(backbone, spec) == min(off, key=off.get)
    assert Adapter(spec, backbone, 0).spec.bottleneck == min(off, key=off.get)


def test_lora_has_two_factors_for_each_query_and_value():
    learner = Lora(LoraSpec(rank=2), make("llama"), 0)
    kinds = {tuple(name.split(".")[-4:-1]) for name in learner.parameters()}
    assert kinds == {(proj, f"lora_{side}", "default") for proj in ("q_proj", "v_proj") for side in "AB"}
    assert sum(p.numel() for p in learner.parameters().values()) == 3 * 2 * ((64 + 64) + (64 + 32))


def test_fine_tuning_trains_everything_once():
    backbone = make("gpt2")  # tied
    learner = FineTune(FineTuneSpec(), backbone, 0)
    assert sum(p.numel() for p in learner.parameters().values()) == sum(p.numel() for p in backbone.model.parameters())


@pytest.mark.parametrize("method", MAKERS)
def test_a_second_baseline_on_the_same_model_is_refused(method):
    backbone = make("llama")
    Adapter(AdapterSpec(bottleneck=2), backbone, 0)
    with pytest.raises(BackboneError, match="already carries 'adapter'; load a fresh one"):
        MAKERS[method](backbone)


def test_bad_sizes_are_refused_by_name():
    for make_spec, words in (
        (lambda: TopLayersSpec(layers=0), r"top_layers\.layers = 0 must be at least 1"),
        (lambda: AdapterSpec(bottleneck=0), r"adapter\.bottleneck = 0 must be positive"),
        (lambda: AdapterSpec(times=-1.0), r"adapter\.times = -1\.0"),
        (lambda: LoraSpec(rank=0), r"lora\.rank = 0"),
        (lambda: LoraSpec(lora_dropout=1.0), r"lora\.lora_dropout = 1\.0"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_spec()
    with pytest.raises(BackboneError, match=r"layers = 4 but LlamaForCausalLM has 3 decoder blocks"):
        TopLayers(TopLayersSpec(layers=4), make("llama"), 0)
    with pytest.raises(BackboneError, match=r"lora\.targets = \['nothing'\]"):
        Lora(LoraSpec(targets=("nothing",)), make("llama"), 0)
    with pytest.raises(BackboneError, match=r"set backbone\.dtype to float32"):
        half = make("llama")
        half.model.to(torch.bfloat16)
        TopLayers(TopLayersSpec(), half, 0)


@pytest.mark.parametrize("family", ["bloom", "mamba"])
def test_models_without_known_blocks_are_refused_where_blocks_are_needed(family):
    with pytest.raises(BackboneError, match="0 decoder blocks"):
        TopLayers(TopLayersSpec(), make(family), 0)
    with pytest.raises(BackboneError, match="adapters have no place"):
        Adapter(AdapterSpec(bottleneck=2), make(family), 0)
