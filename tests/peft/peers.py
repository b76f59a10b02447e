"""PEFT beside us: the same frozen weights twice, once as Transformers ships them (for PEFT) and once with ours."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import peft
import torch
import transformers as tf
from torch import Tensor

from foreword.backbone import Backbone
from foreword.prompts.batch import Row
from foreword.prompts.soft_prompt import SoftPrompt, make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.train.loss import target_loss

ROWS = [Row((9, 10, 11, 12), ((20, 21, 2), (30, 2))), Row((40, 41), ((50, 51, 52, 53, 2),)), Row((60,), ((61, 2),))]
TEXTS = ["abc", "xyz 123 q", "K", "a row that is longer than the window of 32 tokens"]

# What PEFT and Transformers say on every use of these methods, and that does not matter here.
HARMLESS = (
    "ignore:Position ids are not supported for parameter efficient tuning:UserWarning",
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning",
)


def plain_copy(backbone: Backbone) -> tf.PreTrainedModel:
    """Return a model with the same weights that never saw Foreword's attention or hooks."""
    config = copy.deepcopy(backbone.model.config)
    config._attn_implementation = "sdpa"
    model = type(backbone.model)(config)
    model.load_state_dict(backbone.model.state_dict())
    model.generation_config = copy.deepcopy(backbone.model.generation_config)
    return model.eval().requires_grad_(False)


def peft_config(kind: str, length: int, task: str = "CAUSAL_LM") -> peft.PromptLearningConfig:
    """Return the configuration of one of PEFT's kinds."""
    common = {"task_type": task, "num_virtual_tokens": length}
    return {
        "prefix": lambda: peft.PrefixTuningConfig(**common),
        "projected": lambda: peft.PrefixTuningConfig(**common, prefix_projection=True, encoder_hidden_size=24),
        "prompt": lambda: peft.PromptTuningConfig(**common),
        "p_tuning": lambda: peft.PromptEncoderConfig(**common, encoder_hidden_size=24),
        "cartridge": lambda: peft.CartridgeConfig(**common),
    }[kind]()


def fresh_peft(
    backbone: Backbone,
    kind: str,
    length: int = 5,
    seed: int = 0,
    task: str = "CAUSAL_LM",
    submodules: int | None = None,
) -> peft.PeftModel:
    """Return a PEFT model with a random prompt."""
    torch.manual_seed(seed)
    config = peft_config(kind, length, task)
    config.num_transformer_submodules = submodules
    model = peft.get_peft_model(plain_copy(backbone), config)
    if kind == "cartridge":  # starts at zero
        for parameter in model.prompt_encoder.parameters():
            parameter.data.normal_()
    return model.eval()


def saved_peft(backbone: Backbone, kind: str, directory: Path, **options: object) -> peft.PeftModel:
    """Return a PEFT model with a random prompt that was saved to `directory`."""
    model = fresh_peft(backbone, kind, **options)
    model.save_pretrained(directory, save_embedding_layers=False)
    return model


def load_peft(backbone: Backbone, directory: Path) -> peft.PeftModel:
    """Return PEFT's own reading of a directory."""
    return peft.PeftModel.from_pretrained(plain_copy(backbone), directory).eval()


@torch.no_grad()
def peft_logits(model: peft.PeftModel, ids: Sequence[int]) -> Tensor:
    """Return [T, V] logits of one unpadded row; PEFT's are longer for prompts, so the last T are taken."""
    tokens = torch.tensor([ids])
    return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, -len(ids) :]


@torch.no_grad()
def peft_loss(model: peft.PeftModel, ids: Sequence[int]) -> float:
    """Return PEFT's mean loss over the tokens of one unpadded row after the first."""
    tokens = torch.tensor([ids])
    labels = tokens.clone()
    labels[0, 0] = -100
    return model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=labels).loss.item()


@torch.no_grad()
def peft_generate(model: peft.PeftModel, ids: Sequence[int], new_len: int) -> list[int]:
    """Return the new ids of one unpadded row, greedy."""
    tokens = torch.tensor([ids])
    out = model.generate(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new_len, do_sample=False
    )[0].tolist()
    return out[len(ids) :] if out[: len(ids)] == list(ids) else out


def note(text: str) -> None:
    """Print a fact about PEFT for whoever runs the tests with -s; nothing depends on it."""
    print(f"note: {text}")


def made(backbone: Backbone, spec: PromptSpec, seed: int = 0) -> SoftPrompt:
    """Return a prompt with random values that move a random backbone's logits."""
    prompt, generator = make_prompt(spec, backbone), torch.Generator().manual_seed(seed)
    for table in prompt.tables.values():
        table.draw(generator)
        table.set(torch.randn(table().shape, generator=generator))
    return prompt


def gap(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the largest absolute difference."""
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


def gradients(backbone: Backbone, prompt: SoftPrompt, rows: Sequence[Row]) -> list[Tensor]:
    """Return the gradient of the mean loss over target tokens for every parameter of the prompt."""
    prompt.zero_grad()
    loss = target_loss(backbone, rows, [prompt] * len(rows))
    (loss.sum / loss.num_tokens).backward()
    return [parameter.grad.clone() for parameter in prompt.parameters()]


def tried(act: Callable[[], object]) -> str:
    """Return what an action gives, or the error it ends in, as one line for `note`."""
    try:
        return str(act())
    except Exception as error:  # whatever PEFT does is only reported
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
