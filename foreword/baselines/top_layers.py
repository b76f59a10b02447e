"""Li & Liang's FT-TOP2: the top blocks of the backbone train, with or without the tied embedding."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foreword.backbone import Backbone
from foreword.baselines.model_learner import ModelLearner, begin_change, require_float32
from foreword.baselines.saved import SavedBaseline, check_belongs, read_changes, write_tensors
from foreword.config import build
from foreword.errors import BackboneError, ConfigError
from foreword.geometry import blocks


@dataclass(frozen=True)
class TopLayersSpec:
    """Which part of the backbone trains.

    Attributes:
        layers: the last `layers` blocks of the decoder, and whatever normalises after them.
        embedding: train the output embedding too, which is the input embedding where the two are tied: Li & Liang's
            `top_layers=2` (76.7 M of GPT-2 medium, 21.6 %). False is their mode `22` (25.2 M, 7.1 %), the number that
            Hu et al. 2021 quote (RECIPES 1.7).
        dropout: run the model's own dropout while training.
    """

    layers: int = 2
    embedding: bool = False
    dropout: bool = True

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ConfigError(f"top_layers.layers = {self.layers!r} must be at least 1 block")

    @property
    def title(self) -> str:
        """A short name."""
        return f"top{self.layers}{'-embedding' if self.embedding else ''}"


class TopLayers(ModelLearner):
    """A learner whose trainable parameters are the top of the backbone."""

    def __init__(self, spec: TopLayersSpec, backbone: Backbone, seed: int) -> None:
        """Thaw the top and seed the model's dropout.

        Raises:
            BackboneError: weights that are not float32, or a model without that many blocks.
        """
        require_float32(backbone, "top_layers")
        trainable = top_parameters(backbone, spec)
        begin_change(backbone, "top_layers")
        self.spec = spec
        super().__init__(backbone, trainable, seed, spec.dropout)

    def save(self, directory: Path, **facts: Any) -> Path:
        """Write the parameters that train and nothing else, and return the directory."""
        return write_tensors(directory, self.backbone, "top_layers", self.spec, self.parameters(), facts)


def top_parameters(backbone: Backbone, spec: TopLayersSpec) -> dict[str, nn.Parameter]:
    """Return the parameters that `spec` names, by their names in the model and in its order.

    Raises:
        BackboneError: the model's blocks cannot be found, or it has fewer.
    """
    model = backbone.model
    found = blocks(model.get_decoder())
    if len(found) < spec.layers:
        raise BackboneError(
            f"top_layers.layers = {spec.layers} but {type(model).__name__} has {len(found)} decoder blocks that can be "
            "found; give fewer, or use method 'fine_tune'"
        )
    parts = [*found[-spec.layers :], *_after(backbone, found[-1])]
    chosen = {id(parameter) for part in parts for parameter in part.parameters()}
    head = model.get_output_embeddings()
    if head is not None:
        for parameter in head.parameters():
            (chosen.add if spec.embedding else chosen.discard)(id(parameter))
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in chosen}


@torch.no_grad()
def _after(backbone: Backbone, last: nn.Module) -> list[nn.Module]:
    """Return the decoder's parts that run after its last block (GPT-2's ln_f), seen in one probing forward pass.

    The order of registration does not tell: BART's embedding norm is registered after its blocks and runs first.
    """
    decoder = backbone.model.get_decoder()
    inside = {id(module) for block in blocks(decoder) for module in block.modules()}
    outside = [m for m in decoder.modules() if id(m) not in inside and next(m.parameters(False), None) is not None]
    seen: list[nn.Module] = []
    hooks = [module.register_forward_hook(lambda module, *_: seen.append(module)) for module in (*outside, last)]
    ids = torch.zeros(1, 2, dtype=torch.long, device=backbone.device)
    try:
        arguments = {"decoder_input_ids": ids} if backbone.is_encoder_decoder else {}
        backbone.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **arguments)
    finally:
        for hook in hooks:
            hook.remove()
    return seen[seen.index(last) + 1 :]


def load_top_layers(directory: Path, saved: SavedBaseline, backbone: Backbone) -> None:
    """Put saved parameters into a fresh copy of the backbone that they were learned on.

    Raises:
        ArtifactError: damaged, or learned on another backbone.
    """
    check_belongs(saved, backbone)
    parameters: dict[str, Tensor] = top_parameters(backbone, build(TopLayersSpec, saved.spec))
    tensors = read_changes(directory, saved, parameters)
    begin_change(backbone, "top_layers")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
