"""A task whose best trigger is known: the targets are what the model itself says when it reads a secret trigger.

Targets are sampled from p(target | source, secret). By Gibbs' inequality no trigger has a lower expected loss than the
secret, so a search can be held to a known answer: how much of the loss it recovers, and which words.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from foreword.baselines.autoprompt.masked import MaskedBackbone
from foreword.baselines.autoprompt.reader import Reader, TriggerExample
from foreword.baselines.autoprompt.search import measure
from foreword.errors import ConfigError
from foreword.shapes import Bool, Tensor


@dataclass(frozen=True)
class Recovery:
    """What a search found of a planted trigger; losses in nats a row.

    Attributes:
        first: loss of the trigger that the search started from.
        secret: loss of the planted trigger.
        found: loss of the trigger that was found.
        in_place: share of the secret's words found in their own slots.
        anywhere: share of the secret's words found in any slot.
    """

    first: float
    secret: float
    found: float
    in_place: float
    anywhere: float

    @property
    def share(self) -> float:
        """How much of the way from the first trigger's loss to the secret's was gone; 1 is all of it."""
        return (self.first - self.found) / (self.first - self.secret)


def draw_secret(allowed: Bool[Tensor, " V"], slots: int, generator: torch.Generator) -> tuple[int, ...]:
    """Return `slots` different allowed words."""
    words = allowed.cpu().nonzero()[:, 0]
    return tuple(words[torch.randperm(len(words), generator=generator)[:slots]].tolist())


@torch.no_grad()
def plant(
    reader: Reader,
    examples: Sequence[TriggerExample],
    secret: Sequence[int],
    new_len: int,
    generator: torch.Generator,
    rows: int = 32,
) -> list[TriggerExample]:
    """Return the rows with `new_len` sampled target tokens each: what the model says when it reads the secret.

    Args:
        reader: the frozen model, without label words.
        examples: rows; their targets are not looked at.
        secret: one id for each slot.
        new_len: tokens of each target; 1 for a masked model.
        generator: of the sampling, on the CPU.
        rows: rows of one pass.

    Raises:
        ConfigError: more than one token from a masked model.
    """
    if isinstance(reader.backbone, MaskedBackbone) and new_len != 1:
        raise ConfigError(f"new_len = {new_len}: a masked model answers one token; set it to 1")
    planted: list[TriggerExample] = []
    for start in range(0, len(examples), rows):
        batch = [dataclasses.replace(example, target=(0,)) for example in examples[start : start + rows]]
        for _ in range(new_len):
            chances = reader.next_logits(batch, secret).float().softmax(-1).cpu()
            drawn = torch.multinomial(chances, 1, generator=generator)[:, 0].tolist()
            batch = [_extended(example, token) for example, token in zip(batch, drawn, strict=True)]
        planted += [dataclasses.replace(example, target=example.target[:-1]) for example in batch]
    return planted


def _extended(example: TriggerExample, token: int) -> TriggerExample:
    """Return the row with a sampled token for its placeholder, and the next placeholder."""
    return dataclasses.replace(example, target=(*example.target[:-1], token, 0))


def recover(
    reader: Reader,
    examples: Sequence[TriggerExample],
    secret: tuple[int, ...],
    first: tuple[int, ...],
    found: tuple[int, ...],
    rows: int = 32,
) -> Recovery:
    """Return how much of a secret was found, measured on rows that the search has not seen."""
    losses = [measure(reader, examples, trigger, rows).loss for trigger in (first, secret, found)]
    in_place = sum(mine == theirs for mine, theirs in zip(found, secret, strict=True)) / len(secret)
    return Recovery(*losses, in_place, len(set(secret) & set(found)) / len(set(secret)))
