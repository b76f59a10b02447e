"""Adapters after Lin et al. 2020: a small residual bottleneck behind every block of the frozen model."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foreword.artifact.directory import MANIFEST
from foreword.artifact.format import REFETCH
from foreword.backbone import Backbone
from foreword.baselines.model_learner import ModelLearner, begin_change
from foreword.baselines.saved import SavedBaseline, check_belongs, read_changes, write_tensors
from foreword.config import build
from foreword.errors import ArtifactError, BackboneError, ConfigError
from foreword.geometry import blocks
from foreword.shapes import Float


@dataclass(frozen=True)
class AdapterSpec:
    """How large the adapters are.

    Attributes:
        bottleneck: width b; None takes the one whose number of parameters is nearest to
        times: this many times
        match_prefix: the numbers that a prefix of this many virtual tokens stores.
        dropout: run the model's own dropout while training.

    Li & Liang compare b = 6 (their 0.1 % of GPT-2 medium) and b = 224 (3 %), so `times` is 1 or 30.
    """

    bottleneck: int | None = None
    match_prefix: int = 5
    times: float = 1.0
    dropout: bool = True

    def __post_init__(self) -> None:
        for name in ("bottleneck", "match_prefix", "times"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"adapter.{name} = {value!r} must be positive and finite")

    @property
    def title(self) -> str:
        """A short name."""
        if self.bottleneck is not None:
            return f"adapter{self.bottleneck}"
        return f"adapter-{self.times:g}x-prefix{self.match_prefix}"


class Bottleneck(nn.Module):
    """LN -> Linear(E, b) -> ReLU -> Linear(b, E), added to its input (Lin et al. 2020, RECIPES 1.7)."""

    def __init__(self, width: int, bottleneck: int, generator: torch.Generator) -> None:
        """Draw the first layer as PyTorch's Linear does and zero the last, so that the block starts as the identity.

        Args:
            width: of the model, E.
            bottleneck: b.
            generator: on the CPU; what the first layer is drawn from.
        """
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        bound = width**-0.5
        for tensor in (self.down.weight, self.down.bias):
            nn.init.uniform_(tensor, -bound, bound, generator=generator)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Float[Tensor, "*B T E"]) -> Float[Tensor, "*B T E"]:
        """Return hidden states of the same shape and dtype; the adapter itself computes in float32."""
        return hidden + self.up(F.relu(self.down(self.norm(hidden.float())))).to(hidden.dtype)


class Adapter(ModelLearner):
    """A learner whose trainable parameters are adapters behind every block (of both stacks, where there are two)."""

    def __init__(self, spec: AdapterSpec, backbone: Backbone, seed: int) -> None:
        """Insert fresh adapters.

        Raises:
            BackboneError: no blocks are found in the model.
        """
        self.spec = dataclasses.replace(spec, bottleneck=spec.bottleneck or matching_bottleneck(backbone, spec))
        self.adapters = insert_adapters(backbone, self.spec.bottleneck, torch.Generator().manual_seed(seed))
        super().__init__(backbone, dict(self.adapters.named_parameters()), seed, spec.dropout)

    def save(self, directory: Path, **facts: Any) -> Path:
        """Write the adapters and nothing else, and return the directory."""
        return write_tensors(directory, self.backbone, "adapter", self.spec, self.parameters(), facts)


def adapter_size(width: int, num_blocks: int, bottleneck: int) -> int:
    """Return how many parameters adapters have: b = 6 and 224 give 0.369 M and 11.09 M on GPT-2 medium."""
    return num_blocks * (2 * width + (width + 1) * bottleneck + (bottleneck + 1) * width)


def prefix_size(backbone: Backbone, length: int) -> int:
    """Return how many numbers a prefix of `length` virtual tokens stores at all of the backbone's sites."""
    return length * sum(shape.width for shape in backbone.geometry.sites.values())


def matching_bottleneck(backbone: Backbone, spec: AdapterSpec) -> int:
    """Return the bottleneck (at least 1) whose parameters are nearest in number to `times` a prefix's."""
    count, width = len(_blocks(backbone)), _width(backbone)
    wanted = spec.times * prefix_size(backbone, spec.match_prefix)
    low = max(1, int((wanted / count - 3 * width) // (2 * width + 1)))
    return min((low, low + 1), key=lambda b: abs(adapter_size(width, count, b) - wanted))


def insert_adapters(backbone: Backbone, bottleneck: int, generator: torch.Generator) -> nn.ModuleDict:
    """Return fresh adapters by number of their block; from now on each takes its block's output.

    They hang on forward hooks, outside the model, whose own parameters and names stay as they are.

    Raises:
        BackboneError: no blocks are found, or the backbone has been changed already.
    """
    found = _blocks(backbone)
    begin_change(backbone, "adapter")
    made = [Bottleneck(_width(backbone), bottleneck, generator).to(backbone.device) for _ in found]
    for block, adapter in zip(found, made, strict=True):
        block.register_forward_hook(_hook(adapter))
    return nn.ModuleDict({f"block{number}": adapter for number, adapter in enumerate(made)})


def _hook(adapter: Bottleneck) -> Callable[[nn.Module, Any, Any], Any]:
    """Return a hook that passes a block's hidden states through its adapter; some blocks return a tuple."""

    def apply(_: nn.Module, __: Any, output: Any) -> Any:
        return (adapter(output[0]), *output[1:]) if isinstance(output, tuple) else adapter(output)

    return apply


def _blocks(backbone: Backbone) -> list[nn.Module]:
    found = blocks(backbone.model)
    if not found:
        raise BackboneError(
            f"no blocks with attention are found in {type(backbone.model).__name__}, so adapters have no place; "
            "use method 'lora' or 'fine_tune'"
        )
    return found


def _width(backbone: Backbone) -> int:
    config = backbone.model.config.get_text_config(decoder=True)
    return config.hidden_size


def load_adapter(directory: Path, saved: SavedBaseline, backbone: Backbone) -> None:
    """Insert saved adapters into a fresh copy of the backbone that they were learned on.

    Raises:
        ArtifactError: damaged, or learned on another backbone.
    """
    check_belongs(saved, backbone)
    spec = build(AdapterSpec, saved.spec)
    if spec.bottleneck is None:
        raise ArtifactError(f"{directory / MANIFEST}: spec.bottleneck is missing; {REFETCH}")
    adapters = insert_adapters(backbone, spec.bottleneck, torch.Generator().manual_seed(0))
    adapters.load_state_dict(read_changes(directory, saved, dict(adapters.named_parameters())))
    adapters.requires_grad_(False)
