"""Where virtual tokens and real ones can be compared: input embeddings, or the values of layer 0."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.prompts.attention import AttentionCall
from foreword.prompts.bank import Site
from foreword.prompts.inject import activate
from foreword.prompts.soft_prompt import SoftPrompt


@dataclass(frozen=True, eq=False)
class TokenSpace:
    """Where virtual tokens and real ones can be compared.

    Attributes:
        ours: [P, W] the prompt's vectors.
        table: [V, W] those of all vocabulary tokens.
        of: what the vectors are.
    """

    ours: Tensor
    table: Tensor
    of: str


@torch.no_grad()
def token_space(prompt: SoftPrompt, backbone: Backbone) -> TokenSpace | None:
    """Return a prompt's vectors beside the vocabulary's: input embeddings, or for a prefix the values of layer 0.

    None where nothing can be compared: a prefix that is not at layer 0, or in cross-attention alone.
    """
    if prompt.spec.kind != "prefix":
        table = backbone.embed(torch.arange(vocabulary_size(backbone), device=backbone.device)).float()
        return TokenSpace(prompt.table("embedding").float(), table, "input embeddings")
    states = prompt.realise(backbone).prefix.states
    site = next((s for s in states if s[1] == 0 and s[0] != "cross"), None)
    if site is None:
        return None
    ours = states[site][1].transpose(0, 1).flatten(1).float()
    table = _first_values(backbone, site)
    mean = table.mean(0)  # what all tokens share (a learned position, a bias) tells nothing
    return TokenSpace(ours - mean, table - mean, f"values at {site[0]} layer 0, mean removed")


def vocabulary_size(backbone: Backbone) -> int:
    """Return how many ids have a token; the embedding table may be padded beyond."""
    return min(backbone.model.get_input_embeddings().weight.shape[0], len(backbone.tokenizer))


class _Reached(Exception):
    """Ends a forward pass once the wanted site has been reached: later layers are not needed."""


@dataclass
class _ValuesAt:
    """Keeps the values [B, K, T, D] of one site and stops the forward pass there."""

    site: Site
    values: Tensor | None = None

    def for_forward(self, model: object, kwargs: dict[str, Any]) -> tuple["_ValuesAt", dict[str, Any]]:
        return self, kwargs

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        if call.site != self.site:
            return call.run()
        self.values = call.value
        raise _Reached


def _first_values(backbone: Backbone, site: Site) -> Tensor:
    """Return [V, K * D] values that each vocabulary token, alone, leaves at a site of layer 0."""
    parts = []
    for ids in torch.arange(vocabulary_size(backbone), device=backbone.device)[:, None].split(4096):
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        if backbone.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        probe = _ValuesAt(site)
        try:
            with activate(probe):
                backbone.model(**inputs)
        except _Reached:
            parts.append(probe.values[:, :, -1].flatten(1).float())
    return torch.cat(parts)
