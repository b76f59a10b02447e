"""Prefixes across models: one linear map a layer from one model's keys and values to another's.

Both models read the same plain texts alone; wherever both have just read the same characters, their keys and values
are a pair. A target layer takes from the source layer at the same relative depth. Keys are as they enter the cache,
rotary embedding included, so a map learned over all positions of short texts carries an average rotation.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.backbone import Backbone, require_prefix
from foreword.compose.least_squares import LinearMap, fit_linear
from foreword.data.examples import get_format
from foreword.errors import PromptError
from foreword.prompts.bank import Site, States
from foreword.prompts.soft_prompt import SoftPrompt, make_prompt
from foreword.shapes import Float


@dataclass(frozen=True, eq=False)
class StateMaps:
    """Maps of keys and values by target site.

    Attributes:
        maps: from the source site's row (key, then value) to the target site's.
        source_of: the source site of each target site.
        points: text positions that the maps were fitted on.
    """

    maps: dict[Site, LinearMap]
    source_of: dict[Site, Site]
    points: int

    @property
    def error(self) -> float:
        """Mean relative error of the maps."""
        return sum(found.error for found in self.maps.values()) / len(self.maps)


def match_sites(source: Backbone, target: Backbone) -> dict[Site, Site]:
    """Return the source site for each target site: the same stack, the nearest relative depth.

    Raises:
        PromptError: the target has a stack that the source lacks.
    """
    if missing := set(target.geometry.stacks) - set(source.geometry.stacks):
        raise PromptError(
            f"{target.source!r} has attention of kind {sorted(missing)}, which {source.source!r} lacks; "
            "transfer a prompt of kind 'prompt' between models of different kinds"
        )
    matched = {}
    for stack in target.geometry.stacks:
        mine, theirs = source.geometry.layers(stack), target.geometry.layers(stack)
        for number, layer in enumerate(theirs):
            depth = number / max(1, len(theirs) - 1) * (len(mine) - 1)
            matched[stack, layer] = (stack, mine[int(depth + 0.5)])
    return matched


@torch.no_grad()
def fit_states(
    source: Backbone, target: Backbone, texts: Sequence[str], *, ridge: float = 1e-3, max_tokens: int = 64
) -> StateMaps:
    """Return the maps between two models' keys and values of the same texts.

    Args:
        source: the backbone that a prefix was learned on.
        target: the backbone that it shall serve.
        texts: plain texts.
        ridge: as in `fit_linear`.
        max_tokens: read at most this many tokens of each text: a prefix stands at the first positions.

    Raises:
        PromptError: a model takes no prefix, or the texts give no common position.
    """
    for backbone in (source, target):
        require_prefix(backbone)
    matched = match_sites(source, target)
    mine, theirs = [], []
    for text in texts:
        pairs = aligned_positions(source, target, text, max_tokens)
        if not pairs:
            continue
        at_mine, at_theirs = (torch.tensor(column) for column in zip(*pairs, strict=True))
        mine.append(_rows(source, text, max_tokens, at_mine))
        theirs.append(_rows(target, text, max_tokens, at_theirs))
    if not mine:
        raise PromptError("no text position is common to both models; give plain texts of some words each")
    maps = {
        site: fit_linear(
            torch.cat([rows[matched[site]] for rows in mine]), torch.cat([rows[site] for rows in theirs]),
            intercept=True, ridge=ridge,
        )
        for site in target.geometry.sites
    }
    points = sum(len(next(iter(rows.values()))) for rows in theirs)
    return StateMaps(maps, matched, points)


def aligned_positions(source: Backbone, target: Backbone, text: str, max_tokens: int) -> list[tuple[int, int]]:
    """Return (source position, target position) wherever both models have just read the same characters of a text."""
    mine, theirs = (_ends(backbone, text, max_tokens) for backbone in (source, target))
    places = {end: position for position, end in enumerate(theirs)}
    return [(position, places[end]) for position, end in enumerate(mine) if end in places]


def _ends(backbone: Backbone, text: str, max_tokens: int) -> list[int]:
    """Return the character at which each token of a text ends."""
    encoded = backbone.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [end for _, end in encoded["offset_mapping"][:max_tokens]]


def _rows(backbone: Backbone, text: str, max_tokens: int, at: Tensor) -> dict[Site, Float[Tensor, "N W"]]:
    ids = backbone.tokenizer(text, add_special_tokens=False).input_ids[:max_tokens]
    states: States = backbone.record(ids=torch.tensor(ids, device=backbone.device))
    return {site: torch.cat([t.transpose(0, 1).flatten(1) for t in pair], 1).cpu()[at] for site, pair in states.items()}


def map_prefix(prompt: SoftPrompt, target: Backbone, maps: StateMaps) -> SoftPrompt:
    """Return a prefix for the target: each of its layers mapped from the source layer that stands for it.

    Raises:
        PromptError: the prefix lacks a layer that the target needs.
    """
    made = make_prompt(dataclasses.replace(prompt.fold().spec, layers=None), target)
    rows = split_sites(prompt)
    if absent := {maps.source_of[site] for site in made.sites} - set(rows):
        raise PromptError(f"the prefix has no keys and values at {sorted(absent)}; recycle a prefix of all layers")
    for stack in made.tables:
        sites = [site for site in made.sites if site[0] == stack]
        table = torch.cat([maps.maps[site](rows[maps.source_of[site]]) for site in sites], 1)
        made.tables[stack].set(table.to(target.device))
    made.format = carried_format(prompt, target)
    return made


def carried_format(prompt: SoftPrompt, target: Backbone) -> str | None:
    """Return the text format for a prompt that goes to another model: its own, or the other kind of model's default."""
    if prompt.format is None:
        return None
    to_seq2seq = target.is_encoder_decoder
    return prompt.format if (prompt.format == "seq2seq") == to_seq2seq else get_format(None, to_seq2seq).name


@torch.no_grad()
def split_sites(prompt: SoftPrompt) -> dict[Site, Float[Tensor, "P W"]]:
    """Return a prefix's table rows (key, then value) by site."""
    pieces: dict[Site, Tensor] = {}
    for stack in prompt.tables:
        sites = [site for site in prompt.sites if site[0] == stack]
        widths = [prompt.geometry.sites[site].width for site in sites]
        pieces |= dict(zip(sites, prompt.table(stack).split(widths, 1), strict=True))
    return pieces
