"""A library of prompts: a folder of saved prompts by name, those most like a query, and mixtures of several (SPoT)."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from foreword.artifact import load_prompt
from foreword.artifact.directory import MANIFEST
from foreword.backbone import Backbone
from foreword.baselines.saved import is_baseline
from foreword.compose.neurons import neuron_activity, overlap
from foreword.compose.similarity import MEASURES, similarity
from foreword.errors import ArtifactError, ConfigError, PromptError, nearest
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.train.record import ARTIFACT

RANKINGS = (*MEASURES, "ON")
"""What prompts of a library can be ranked by: the measures on their numbers, and the overlap of activated neurons."""


def load_library(folder: str | Path, backbone: Backbone | None = None) -> dict[str, SoftPrompt]:
    """Return the prompts in a folder by name, in order of their names.

    Args:
        folder: holds saved prompts, or run directories of `foreword train`, one directory each; those of baselines, as
            of fine-tuning, are passed over.
        backbone: check each prompt against it at once.

    Raises:
        ArtifactError: no prompt there, or a damaged one.
        PromptError: a prompt does not belong to the backbone.
    """
    folder = Path(folder)
    places = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {place.name: inner for place in places for inner in (place, place / ARTIFACT) if _is_prompt(inner)}
    if not found:
        raise ArtifactError(f"library {str(folder)!r} holds no prompt; give a folder of saved prompts or of runs")
    return {name: load_prompt(place, backbone) for name, place in found.items()}


def _is_prompt(place: Path) -> bool:
    return (place / MANIFEST).is_file() and not is_baseline(place)


def rank_library(
    query: SoftPrompt,
    library: Mapping[str, SoftPrompt],
    measure: str = "C_avg",
    backbone: Backbone | None = None,
) -> list[tuple[str, float]]:
    """Return (name, similarity) of every prompt of a library, the most similar first; equal ones by name.

    In SPoT the query is an early checkpoint of the target's own prompt (its "task embedding").

    Args:
        query: the prompt to find neighbours of.
        library: prompts by name.
        measure: a name in `RANKINGS`.
        backbone: the frozen model; needed for `ON`.

    Raises:
        ConfigError: no such measure, or `ON` without a backbone.
        PromptError: a prompt cannot be compared with the query.
    """
    if measure not in RANKINGS:
        raise ConfigError(f"measure = {measure!r} is unknown{nearest(measure, RANKINGS)}")
    if measure == "ON":
        if backbone is None:
            raise ConfigError("measure = 'ON' reads the prompts with the model; give its backbone")
        mine = neuron_activity(backbone, query)
        scores = {name: overlap(mine, neuron_activity(backbone, prompt)) for name, prompt in library.items()}
    else:
        scores = {name: similarity(query, prompt, measure) for name, prompt in library.items()}
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def spot_weights(ranking: Sequence[tuple[str, float]], top: int = 3) -> dict[str, float]:
    """Return the weights of the `top` most similar prompts: their similarities divided by the sum (SPoT's mixture).

    Args:
        ranking: as `rank_library` returns it.
        top: how many prompts to mix; fewer where fewer are similar at all (above 0).

    Raises:
        ConfigError: `top` is below 1, or no similarity is above 0.
    """
    if top < 1:
        raise ConfigError(f"top = {top} mixes nothing; give at least 1")
    chosen = [(name, value) for name, value in ranking[:top] if value > 0]
    if not chosen:
        raise ConfigError("no prompt has a similarity above 0, so none can be weighted by it; give weights yourself")
    total = sum(value for _, value in chosen)
    return {name: value / total for name, value in chosen}


def mix_prompts(prompts: Sequence[SoftPrompt], weights: Sequence[float]) -> SoftPrompt:
    """Return the weighted sum of several prompts' tables, MLPs folded: what a new prompt can start from.

    Save it and name it in `prompt.init.artifact`, or hand it to `initialise(..., source=...)`. Sums are made in
    float64 and rounded once. Weights are taken as they are: they need not add up to 1.

    Args:
        prompts: of one kind and length on one backbone.
        weights: one a prompt.

    Raises:
        ConfigError: the counts differ, there is no prompt, or a weight is not finite.
        PromptError: the prompts differ in form or in backbone.
    """
    if not prompts or len(prompts) != len(weights):
        raise ConfigError(f"{len(prompts)} prompts and {len(weights)} weights; give one weight for each prompt")
    if not torch.isfinite(torch.tensor(list(weights), dtype=torch.float64)).all():
        raise ConfigError(f"weights = {list(weights)} must be finite numbers")
    for other in prompts[1:]:
        _check_alike(prompts[0], other)
    mixed = prompts[0].fold()
    mixed.spec = dataclasses.replace(mixed.spec, dropout=0.0)
    with torch.no_grad():
        for name in mixed.tables:
            parts = [weight * prompt.table(name).double() for weight, prompt in zip(weights, prompts, strict=True)]
            mixed.tables[name].set(sum(parts).float())
    mixed.fingerprint = next((prompt.fingerprint for prompt in prompts if prompt.fingerprint), None)
    mixed.meta = {key: value for key, value in mixed.meta.items() if key in ("source", "num_layers")}
    return mixed


def _check_alike(first: SoftPrompt, other: SoftPrompt) -> None:
    """Raise unless two prompts' tables can be added up to a prompt that means something."""
    mine, its = ({n: tuple(p.table(n).shape) for n in p.tables} for p in (first, other))
    if first.spec.kind != other.spec.kind or mine != its:
        raise PromptError(f"a {first.spec.kind} of tables {mine} and a {other.spec.kind} of {its} cannot be mixed")
    if first.sites != other.sites or first.spec.window != other.spec.window:
        raise PromptError("prompts that differ in layers, stacks or window cannot be mixed; give some of one form")
    if first.spec.placement != other.spec.placement:
        raise PromptError(f"prompts placed {first.spec.placement!r} and {other.spec.placement!r} cannot be mixed")
    if None not in (first.fingerprint, other.fingerprint) and first.fingerprint != other.fingerprint:
        raise PromptError("prompts learned on different backbones cannot be mixed; project or recycle one of them")
    if first.format != other.format:
        raise PromptError(f"prompts of text formats {first.format!r} and {other.format!r} cannot be mixed")
