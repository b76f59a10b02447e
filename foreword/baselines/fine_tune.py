"""Full fine-tuning: every weight of the backbone trains. The yardstick, in the same job as soft prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.errors import BackboneError


@dataclass(frozen=True)
class FineTuneSpec:
    """How a backbone is fine-tuned; `dropout` runs the model's own (GPT-2's is 0.1), as Li & Liang's code does."""

    dropout: bool = True


class FineTune:
    """A learner whose trainable parameters are the backbone's own weights.

    It thaws the backbone it is given: load one for this run alone.
    """

    is_prompt = False
    prompt = None

    def __init__(self, spec: FineTuneSpec, backbone: Backbone, seed: int) -> None:
        """Thaw the backbone and seed its dropout, which draws from PyTorch's global generator.

        Raises:
            BackboneError: the weights are quantised or not float32, so small updates would be lost.
        """
        if backbone.dtype != torch.float32 or getattr(backbone.model, "quantization_method", None):
            raise BackboneError(
                f"method 'fine_tune' trains weights held in {backbone.dtype}, where small updates are lost; "
                "set backbone.dtype to float32 and no quantization"
            )
        self.spec = spec
        self.backbone = backbone
        for parameter in backbone.model.parameters():
            parameter.requires_grad_(True)
        torch.manual_seed(seed)
        self.training(True)

    def parameters(self) -> dict[str, Tensor]:
        """Return every weight by name; tied weights appear once."""
        return dict(self.backbone.model.named_parameters())

    def prompts(self, count: int) -> Sequence[None]:
        """Return no prompt for each of `count` rows."""
        return [None] * count

    def training(self, on: bool) -> None:
        """Switch the model's dropout on or off."""
        self.backbone.model.train(on and self.spec.dropout)

    def random_state(self) -> dict[str, Tensor]:
        """Return the state of PyTorch's generators, which dropout draws from."""
        state = {"cpu": torch.get_rng_state()}
        if self.backbone.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.backbone.device)
        return state

    def load_random_state(self, state: Mapping[str, Tensor]) -> None:
        """Go to a saved state of the generators."""
        torch.set_rng_state(state["cpu"].cpu())
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"].cpu(), self.backbone.device)

    def save(self, directory: Path, **_: Any) -> Path:
        """Write the model and its tokenizer as an ordinary Transformers directory and return it."""
        self.training(False)
        self.backbone.model.save_pretrained(directory)
        self.backbone.tokenizer.save_pretrained(directory)
        return directory
