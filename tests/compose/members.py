"""Members for the tests of ensembles and compositions: drawn prompts of mixed kinds and lengths, and texts."""

import torch

from foreword.prompts.soft_prompt import SoftPrompt, make_prompt
from foreword.prompts.spec import PromptSpec

TEXTS = ["abc", "name: x, food: pasta", "q", "the small boat left", "zz top"]

DECODER_KINDS = (
    PromptSpec(length=3),
    PromptSpec(length=11, reparam="mlp", reparam_width=24),
    PromptSpec(kind="prompt", length=4),
    PromptSpec(kind="prompt", length=3, placement="suffix"),
    PromptSpec(kind="infix", length=2),
)
SEQ2SEQ_KINDS = (
    PromptSpec(length=3),
    PromptSpec(length=5, stacks=("encoder",)),
    PromptSpec(length=4, stacks=("decoder", "cross"), layers=(0, 2)),
    PromptSpec(kind="prompt", length=6, reparam="mlp", reparam_width=24),
    PromptSpec(kind="prompt", length=2, placement="suffix"),
)


@torch.no_grad()
def drawn(backbone, spec, seed=0) -> SoftPrompt:
    """Return a prompt with values large enough to steer a random backbone."""
    prompt, generator = make_prompt(spec, backbone), torch.Generator().manual_seed(seed)
    for name, table in prompt.tables.items():
        table.draw(generator)
        std = float(backbone.model.get_input_embeddings().weight.std()) if name == "embedding" else 1.0
        table.set(torch.randn(table().shape, generator=generator) * std)
    return prompt.eval()


def mixed(backbone) -> list[SoftPrompt]:
    """Return one drawn prompt of every kind."""
    kinds = SEQ2SEQ_KINDS if backbone.is_encoder_decoder else DECODER_KINDS
    return [drawn(backbone, spec, seed) for seed, spec in enumerate(kinds)]


def several(backbone, count=3, **spec) -> list[SoftPrompt]:
    """Return prompts of one form and different values."""
    return [drawn(backbone, PromptSpec(**{"length": 4, **spec}), seed) for seed in range(count)]
