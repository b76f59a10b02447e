"""What every baseline shares whose trainable parameters lie in the model itself."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.errors import BackboneError
from foreword.frozen import find_head


class ModelLearner(ABC):
    """A learner that changes the backbone it is given: load one for this run alone."""

    is_prompt = False
    prompt = None

    def __init__(self, backbone: Backbone, trainable: Mapping[str, Tensor], seed: int, dropout: bool) -> None:
        """Thaw `trainable` and seed dropout, which draws from PyTorch's global generator.

        Args:
            backbone: the model; whatever is not in `trainable` stays as it is.
            trainable: parameters by name.
            seed: of the dropout.
            dropout: run the model's own dropout while training.
        """
        self.backbone, self.dropout = backbone, dropout
        self._trainable = dict(trainable)
        find_head(backbone)  # probe it now: with dropout on, a resumed run would draw other random numbers
        for parameter in self._trainable.values():
            parameter.requires_grad_(True)
        torch.manual_seed(seed)
        self.training(True)

    def parameters(self) -> dict[str, Tensor]:
        """Return the trainable parameters by name, always in the same order; tied weights appear once."""
        return dict(self._trainable)

    def prompts(self, count: int) -> Sequence[None]:
        """Return no prompt for each of `count` rows."""
        return [None] * count

    def training(self, on: bool) -> None:
        """Switch the model's dropout on or off."""
        self.backbone.model.train(on and self.dropout)

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

    @abstractmethod
    def save(self, directory: Path, **facts: Any) -> Path:
        """Write what was learned and return its directory; `facts` (recipe, scores, data_digest) go with it."""


def begin_change(backbone: Backbone, method: str) -> None:
    """Note that `method` is about to change the backbone, after reading its fingerprint while it is untouched.

    Raises:
        BackboneError: another baseline has changed it already, so the two would add up in silence.
    """
    before = getattr(backbone.model, "foreword_changed_by", None)
    if before is not None:
        raise BackboneError(f"this backbone already carries {before!r}; load a fresh one for {method!r}")
    _ = backbone.fingerprint  # kept from here on
    backbone.model.foreword_changed_by = method


def require_float32(backbone: Backbone, method: str) -> None:
    """Raise where the model's own weights cannot take small updates.

    Raises:
        BackboneError: they are quantised or not float32.
    """
    if backbone.dtype != torch.float32 or getattr(backbone.model, "quantization_method", None):
        raise BackboneError(
            f"method {method!r} trains weights held in {backbone.dtype}, where small updates are lost; "
            "set backbone.dtype to float32 and no quantization"
        )
