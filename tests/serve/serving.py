"""What the serving tests share: forewords of every kind and length, requests, and the answer each should get alone."""

import dataclasses
import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from foreword.artifact import save_prompt
from foreword.backbone import Backbone
from foreword.generate.offline import generate_ids
from foreword.prompts.batch import Row
from foreword.prompts.soft_prompt import SoftPrompt, make_prompt
from foreword.prompts.spec import PromptSpec

KINDS = (
    {}, {"reparam": "mlp", "reparam_width": 8}, {"layers": (0, 2)}, {"window": "always"}, {"kind": "prompt"},
    {"kind": "prompt", "placement": "after_bos"}, {"kind": "prompt", "placement": "suffix"}, {"kind": "infix"},
)
SEQ2SEQ_KINDS = ({}, {"stacks": ("encoder",)}, {"stacks": ("cross",)}, {"kind": "prompt"},
                 {"kind": "prompt", "placement": "suffix"})


def drawn(backbone: Backbone, spec: PromptSpec, seed: int) -> SoftPrompt:
    """Return a prompt with values large enough to steer a random backbone."""
    import torch

    prompt = make_prompt(spec, backbone)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, table in prompt.tables.items():
            table.draw(generator)
            std = float(backbone.model.get_input_embeddings().weight.std()) if name == "embedding" else 1.0
            values = table()
            table.set(torch.randn(values.shape, generator=generator) * std)
    return prompt.eval()


def many_forewords(backbone: Backbone, count: int, longest: int = 200) -> dict[str, SoftPrompt]:
    """Return forewords of all kinds in turn, lengths from 1 to `longest`."""
    kinds = SEQ2SEQ_KINDS if backbone.is_encoder_decoder else KINDS
    made = {}
    for number in range(count):
        length = 1 + round((longest - 1) * (number / max(count - 1, 1)) ** 2)
        spec = PromptSpec(length=length, **kinds[number % len(kinds)])
        made[f"{spec.kind}-{number}"] = drawn(backbone, spec, number)
    return made


def saved(prompts: dict[str, SoftPrompt], backbone: Backbone, folder: Path) -> dict[str, Path]:
    """Return the prompts as artefacts on the disk."""
    return {name: save_prompt(prompt, folder / name, backbone) for name, prompt in prompts.items()}


def random_text_ids(generator: random.Random, longest: int) -> tuple[int, ...]:
    """Return ordinary token ids; sometimes with BOS before them."""
    lead = (1,) if generator.random() < 0.3 else ()
    return (*lead, *generator.choices(range(4, 98), k=generator.randint(1, longest)))


def alone(backbone: Backbone) -> Callable[[tuple[int, ...], SoftPrompt | None, int], list[int]]:
    """Return a function that gives a request's answer when it runs alone through Transformers' `generate`."""

    @functools.cache
    def run(ids: tuple[int, ...], prompt: SoftPrompt | None, new: int) -> list[int]:
        return generate_ids(backbone, [Row(ids)], [prompt], max_new_tokens=new)[0]

    return run


def differ(answers: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[int]:
    """Return the numbers of the answers that are not what they should be."""
    return [number for number, (ours, theirs) in enumerate(answers) if list(ours) != list(theirs)]


def other(prompt: SoftPrompt, backbone: Backbone, seed: int) -> SoftPrompt:
    """Return a prompt of the same form with other values."""
    return drawn(backbone, dataclasses.replace(prompt.spec), seed)
