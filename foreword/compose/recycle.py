"""Prompt recycling: a prompt of one model made into a prompt of another without any training (Lester et al. 2022).

Embedding prompts go through the linear map between the two vocabularies' embeddings. Writing a soft token as the
least-norm combination of source embeddings and taking the same combination of target embeddings (their "lin-comb") is
the same map: p (Es'Es)^-1 Es' Et either way. Prefixes go through one map a layer between the two models' keys and
values of the same text (`compose.activations`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.compose.activations import carried_format, fit_states, map_prefix
from foreword.compose.least_squares import LinearMap, fit_linear
from foreword.errors import ConfigError, PromptError
from foreword.prompts.soft_prompt import SoftPrompt, make_prompt
from foreword.shapes import Int


@dataclass(frozen=True, eq=False)
class Recycled:
    """A recycled prompt, and what its map was made of.

    Attributes:
        prompt: for the target backbone.
        points: shared tokens (embeddings) or aligned text positions (keys and values).
        error: relative error of the map on those; the mean over layers for a prefix.
    """

    prompt: SoftPrompt
    points: int
    error: float


def recycle(
    prompt: SoftPrompt,
    source: Backbone,
    target: Backbone,
    *,
    texts: Sequence[str] = (),
    top_tokens: int | None = None,
    intercept: bool = False,
    ridge: float | None = None,
) -> Recycled:
    """Return a prompt of `source` as a prompt of `target`.

    Args:
        prompt: a `prompt` (input embeddings), or a `prefix`.
        source: the backbone that it was learned on.
        target: the backbone that it shall serve.
        texts: for a prefix: any plain text that both models read; it need not have to do with the task.
        top_tokens: for a prompt: use the first this many shared tokens (in the source's order of ids) only.
        intercept: for a prompt: fit a bias too.
        ridge: penalty of the least squares; None takes 0 for a prompt and 1e-3 for a prefix.

    Raises:
        PromptError: the prompt is not of `source`, is an infix, or the two models share nothing to align by.
    """
    prompt.check_backbone(source)
    if prompt.spec.kind == "infix":
        raise PromptError("an infix has embeddings and offsets inside a text; recycle a prompt or a prefix")
    if prompt.spec.kind == "prefix":
        maps = fit_states(source, target, texts, ridge=1e-3 if ridge is None else ridge)
        made = map_prefix(prompt, target, maps)
        return Recycled(made, maps.points, maps.error)
    mine, theirs = shared_tokens(source, target, top_tokens)
    found = embedding_map(source, target, mine, theirs, intercept=intercept, ridge=ridge or 0.0)
    made = make_prompt(prompt.fold().spec, target)
    made.tables["embedding"].set(found(prompt.table("embedding").detach()).to(target.device))
    made.format = carried_format(prompt, target)
    return Recycled(made, len(mine), found.error)


def embedding_map(
    source: Backbone,
    target: Backbone,
    source_ids: Int[Tensor, " N"],
    target_ids: Int[Tensor, " N"],
    *,
    intercept: bool = False,
    ridge: float = 0.0,
) -> LinearMap:
    """Return the least-squares map from the source's embeddings of some tokens to the target's of the same tokens."""
    with torch.no_grad():
        mine = source.embed(source_ids.to(source.device))
        theirs = target.embed(target_ids.to(target.device))
    return fit_linear(mine, theirs, intercept=intercept, ridge=ridge)


def shared_tokens(
    source: Backbone, target: Backbone, top: int | None = None
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Return the ids of the tokens that both vocabularies have, in the source's and in the target's numbers.

    Special tokens are left out; GPT-2's and SentencePiece's signs for a leading space count as one.

    Args:
        source: whose order of ids counts.
        target: the other model.
        top: at most this many.

    Raises:
        PromptError: no token is shared.
    """
    if top is not None and top < 1:
        raise ConfigError(f"top_tokens = {top} leaves no token to align by; give at least 1")
    mine, theirs = _surfaces(source), _surfaces(target)
    both = [text for text in mine if text in theirs][:top]
    if not both:
        raise PromptError(f"{source.source!r} and {target.source!r} share no token, so no map can be fitted")
    return torch.tensor([mine[text] for text in both]), torch.tensor([theirs[text] for text in both])


def _surfaces(backbone: Backbone) -> dict[str, int]:
    """Return token text to id, in order of ids; ids without an embedding are left out."""
    rows = backbone.model.get_input_embeddings().weight.shape[0]
    special = set(backbone.tokenizer.all_special_tokens)
    items = sorted(backbone.tokenizer.get_vocab().items(), key=lambda item: item[1])
    return {text.replace("Ġ", "▁"): number for text, number in items if text not in special and number < rows}


__all__ = ["Recycled", "carried_format", "embedding_map", "recycle", "shared_tokens"]
