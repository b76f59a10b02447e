"""What serving benchmarks serve: GPT-2 small's shape with random weights, and requests of random tokens."""

import random
from dataclasses import dataclass, field

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel


def gpt2_model(dtype: str, device: str, layers: int) -> PreTrainedModel:
    """Return GPT-2 small's shape (12 layers: 124 M parameters) with random weights and no dropout."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return GPT2LMHeadModel(config).to(device, getattr(torch, dtype))


@dataclass
class Workload:
    """Requests of 8 to 32 tokens, all with `new_tokens` to make; prefixes of 10, 20, 50 and 100 tokens in turn."""

    requests: int
    new_tokens: int
    lengths: tuple[int, ...] = (10, 20, 50, 100)
    seed: int = 0
    texts: list[tuple[int, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        dice = random.Random(self.seed)
        self.texts = [tuple(dice.choices(range(1000, 50000), k=dice.randint(8, 32))) for _ in range(self.requests)]
