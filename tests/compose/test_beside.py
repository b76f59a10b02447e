"""A prompt beside a LoRA adapter in one batch: every row as alone, and the model the frozen one afterwards."""

import pytest
import torch
from backbones import make
from members import TEXTS, drawn, mixed
from safetensors.torch import load_file, save_file

from foreword.baselines.lora import Lora, LoraSpec
from foreword.compose.beside import adapters_of, attach_lora, generate_beside
from foreword.errors import ArtifactError, PromptError
from foreword.generate import generate
from foreword.prompts.spec import PromptSpec

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT calls it
TARGETS = {"llama": ["q_proj", "v_proj"], "qwen3": ["q_proj", "v_proj", "down_proj"], "t5": ["q", "v"]}


def saved_lora(folder, name, seed):
    """Return a directory with a LoRA adapter, drawn large enough to change what comes out."""
    torch.manual_seed(seed)
    task = "SEQ_2_SEQ_LM" if name == "t5" else "CAUSAL_LM"
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS[name], task_type=task)
    model = peft.get_peft_model(make(name).model, config)
    for path, parameter in model.named_parameters():
        if "lora_B" in path:
            parameter.data.normal_(0, 0.5)
    model.save_pretrained(folder / str(seed))
    return folder / str(seed)


def alone(folder, name, text, prompt, **options):
    """Generate one row with PEFT's own model around the weights (merged), the prompt ours."""
    backbone = make(name)
    if folder is not None:
        attach_lora(backbone, folder, "only")
        return generate_beside(backbone, [text], [prompt], ["only"], **options)[0]
    return generate(backbone, [text], [prompt], **options)[0]


@pytest.mark.parametrize("name", list(TARGETS))
@pytest.mark.parametrize("beams", [1, 2])
def test_a_mixed_batch_is_the_single_runs(name, beams, tmp_path):
    backbone, options = make(name), {"max_new_tokens": 8, "num_beams": beams}
    before = backbone.model.get_input_embeddings().weight.clone()
    bare = generate(backbone, TEXTS, **options)
    folders = {"one": saved_lora(tmp_path, name, 1), "two": saved_lora(tmp_path, name, 2)}
    for key, folder in folders.items():
        attach_lora(backbone, folder, key)
    assert adapters_of(backbone) == ["one", "two"]
    assert generate(backbone, TEXTS, **options) == bare  # attached is not active

    prefix, infix_or_suffix = mixed(backbone)[1], mixed(backbone)[4]
    prompts = [prefix, None, prefix, infix_or_suffix, None]
    adapters = ["one", "two", None, "one", None]
    found = generate_beside(backbone, TEXTS, prompts, adapters, **options)
    for text, prompt, key, output in zip(TEXTS, prompts, adapters, found, strict=True):
        assert output == alone(folders.get(key), name, text, prompt, **options)
    assert found[4] == bare[4]
    assert generate(backbone, TEXTS, **options) == bare
    assert torch.equal(backbone.model.get_input_embeddings().weight, before)
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_an_adapter_acts_as_in_peft_itself(tmp_path):
    """Our batch against PEFT's merged weights, where no hook and no adapter is left."""
    folder, backbone = saved_lora(tmp_path, "llama", 3), make("llama")
    attach_lora(backbone, folder, "a")
    ours = generate_beside(backbone, TEXTS, None, ["a"] * len(TEXTS), max_new_tokens=8)
    merged = make("llama")
    merged.model = peft.PeftModel.from_pretrained(merged.model, folder).merge_and_unload()
    assert ours == generate(merged, TEXTS, max_new_tokens=8)
    assert ours != generate(make("llama"), TEXTS, max_new_tokens=8)


def test_faults_are_named(tmp_path):
    backbone = make("llama")
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        attach_lora(backbone, tmp_path / "nothing", "a")
    attach_lora(backbone, saved_lora(tmp_path, "llama", 1), "first")
    with pytest.raises(ArtifactError, match="is taken"):
        attach_lora(backbone, tmp_path / "1", "first")
    with pytest.raises(PromptError, match="did you mean 'first'"):
        generate_beside(backbone, ["a"], None, ["frist"])
    with pytest.raises(PromptError, match="1 texts but 0 adapters"):
        generate_beside(backbone, ["a"], drawn(backbone, PromptSpec(length=2)))


@pytest.mark.parametrize("damage", ["cut", "nan"])
def test_a_damaged_adapter_leaves_nothing_attached(tmp_path, damage):
    backbone, folder = make("llama"), saved_lora(tmp_path, "llama", 1)
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(whole[: len(whole) // 2])
    else:
        tensors = load_file(weights)
        next(iter(tensors.values())).view(-1)[0] = float("nan")
        save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ArtifactError):
        attach_lora(backbone, folder, "a")
    assert adapters_of(backbone) == []
    weights.write_bytes(whole)
    attach_lora(backbone, folder, "a")  # the name is free for the mended file


def test_an_adapter_of_another_backbone_is_refused(tmp_path):
    learned = Lora(LoraSpec(targets=("q_proj",)), make("llama"), 0)
    folder = learned.save(tmp_path / "lora")
    attach_lora(make("llama"), folder, "a")
    with pytest.raises(ArtifactError, match="learned on another backbone"):
        attach_lora(make("llama", seed=1), folder, "a")
