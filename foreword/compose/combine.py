"""Prompts made of prompts: several one after another, or the mean of several in weight space.

Concatenated prefixes are what several texts would be if each had been read alone and all were then kept in front: the
text sees all of them, none of them sees another. The keys and values of each move behind those before it: on models
with rotary positions their keys are turned by the shift (`turns`), so that distances inside the prefix and to the text
are those of real positions. Learned positions (GPT-2, OPT) are part of what a prefix learned; there keys stay.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.errors import PromptError
from foreword.prompts.bank import Site, States
from foreword.prompts.inject import Recorder, activate
from foreword.prompts.soft_prompt import SoftPrompt, compile_prompt, make_prompt
from foreword.prompts.spec import InitSpec, PromptSpec
from foreword.shapes import Float

PROBES = 512
"""Tokens from which a shift's effect on keys is read."""
FITS = {torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Largest relative error of a shift that is a turn where the dtype is coarse; absolute positions leave 0.5."""
FITS_FINELY = 1e-3
"""The same in float32."""


def concatenate(prompts: Sequence[SoftPrompt], backbone: Backbone) -> SoftPrompt:
    """Return one prompt that stands for several, in order: of several tasks, or of the parts of one.

    Soft tokens of one placement are put one after another and read as one text, each seeing those before it.
    Everything else that leads the text becomes one prefix: see the module's text.

    Args:
        prompts: at least one, learned on this backbone; a decoder's may be of several kinds and lengths.
        backbone: what they were learned on.

    Raises:
        PromptError: a prompt that does not lead the text among others, prefixes at different layers or window rules,
            or text formats that differ.
    """
    _check(prompts, backbone, "concatenate")
    joins = {prompt.spec.kind for prompt in prompts} == {"prompt"} and _same(prompts, "placement")
    for number, prompt in enumerate(() if joins else prompts):
        _check_leads(prompt, backbone, number)
    if not _same(prompts, "window"):
        raise PromptError("prompts differ in prompt.window; concatenate those of one rule")
    if joins:
        return _join_embeddings(prompts, backbone)
    return _join_prefixes(prompts, backbone)


def average(prompts: Sequence[SoftPrompt], weights: Sequence[float] | None = None) -> SoftPrompt:
    """Return the weighted mean of prompts of one task in weight space, MLPs folded first.

    Args:
        prompts: at least one, of one kind, length, placement and layers.
        weights: one positive or zero number a prompt, scaled to sum to one; None takes all alike.

    Raises:
        PromptError: prompts of different forms, or weights that cannot be scaled.
    """
    if not prompts:
        raise PromptError("nothing to average; give at least one prompt")
    given = [1.0] * len(prompts) if weights is None else list(weights)
    if len(given) != len(prompts) or min(given) < 0 or not 0 < sum(given) < math.inf:
        raise PromptError(f"weights = {given} must be {len(prompts)} finite numbers from 0, not all zero")
    first = prompts[0]
    for number, prompt in enumerate(prompts):
        if differing := _differences(first, prompt):
            raise PromptError(f"prompt {number} differs from prompt 0 in {', '.join(differing)}; only equals average")
    mean = first.fold()
    with torch.no_grad():
        for name in mean.tables:
            values = [w * prompt.table(name).double() for w, prompt in zip(given, prompts, strict=True)]
            mean.tables[name].set((torch.stack(values).sum(0) / sum(given)).float())
    return _made(mean, first, f"mean of {len(prompts)} prompts")


def _differences(one: SoftPrompt, other: SoftPrompt) -> list[str]:
    """Return the names of what must agree for a mean to make sense, and does not."""
    fields = ("kind", "length", "placement", "window")
    found = [name for name in fields if getattr(one.spec, name) != getattr(other.spec, name)]
    found += ["layers"] if one.sites != other.sites else []
    strangers = one.geometry is not other.geometry and _widths(one) != _widths(other)
    known = None not in (one.fingerprint, other.fingerprint)  # PEFT's files have none
    found += ["backbone"] if strangers or (known and one.fingerprint != other.fingerprint) else []
    return found + (["text format"] if one.format != other.format else [])


def _widths(prompt: SoftPrompt) -> tuple[object, ...]:
    embed = prompt.geometry.embed_width if "embedding" in prompt.tables else None  # PEFT's prefixes do not tell it
    return embed, *(prompt.geometry.sites[site].widths for site in prompt.sites)


def _check(prompts: Sequence[SoftPrompt], backbone: Backbone, verb: str) -> None:
    if not prompts:
        raise PromptError(f"nothing to {verb}; give at least one prompt")
    for prompt in prompts:
        prompt.check_backbone(backbone)
    if len({prompt.format for prompt in prompts}) > 1:
        names = ", ".join(repr(prompt.format) for prompt in prompts)
        raise PromptError(f"the prompts' text formats differ ({names}); {verb} prompts of one format")


def _check_leads(prompt: SoftPrompt, backbone: Backbone, number: int) -> None:
    spec = prompt.spec
    if spec.kind == "prefix":
        return
    if backbone.is_encoder_decoder or not spec.is_leading:
        where = "an encoder" if backbone.is_encoder_decoder else f"placement {spec.placement!r}"
        raise PromptError(f"prompt {number} is a {spec.kind} in {where}, which is no prefix; give prefixes alone")
    if spec.placement == "after_bos":
        raise PromptError(f"prompt {number} carries the BOS token (after_bos), which cannot stand among other prefixes")


def _same(prompts: Sequence[SoftPrompt], field: str) -> bool:
    return len({getattr(prompt.spec, field) for prompt in prompts}) == 1


def _join_embeddings(prompts: Sequence[SoftPrompt], backbone: Backbone) -> SoftPrompt:
    with torch.no_grad():
        rows = torch.cat([prompt.table("embedding") for prompt in prompts])
    spec = dataclasses.replace(prompts[0].spec, length=len(rows), reparam="none", dropout=0.0, init=InitSpec())
    joined = make_prompt(spec, backbone)
    joined.tables["embedding"].set(rows)
    return _made(joined, prompts[0], f"{len(prompts)} prompts one after another")


@torch.no_grad()
def _join_prefixes(prompts: Sequence[SoftPrompt], backbone: Backbone) -> SoftPrompt:
    parts, shift, moved = [compile_prompt(prompt, backbone) for prompt in prompts], 0, []
    for part in parts:
        moved.append(shifted(part.states, shift, backbone))
        shift += part.length
    sites = list(moved[0])
    if any(set(states) != set(sites) for states in moved):
        raise PromptError("the prefixes do not stand at the same stacks and layers; give prefixes of one form")
    whole = {site: tuple(torch.cat([states[site][i] for states in moved], 1) for i in (0, 1)) for site in sites}
    stacks = tuple(stack for stack in backbone.geometry.stacks if any(site[0] == stack for site in sites))
    layers = tuple(sorted({layer for _, layer in sites}))
    spec = PromptSpec(length=shift, stacks=stacks, layers=layers, window=prompts[0].spec.window)
    joined = make_prompt(spec, backbone)
    if set(joined.sites) != set(sites):
        raise PromptError("the prefixes stand at different layers in different stacks; give prefixes of one form")
    for stack in joined.tables:
        joined.tables[stack].set(joined.flat_from_states(whole, stack))
    return _made(joined, prompts[0], f"{len(prompts)} prefixes one after another")


def _made(prompt: SoftPrompt, like: SoftPrompt, how: str) -> SoftPrompt:
    prompt.format, prompt.fingerprint = like.format, like.fingerprint
    prompt.meta = {"source": like.meta.get("source"), "recipe": {"made": how}}
    return prompt.eval()


def shifted(states: States, shift: int, backbone: Backbone) -> States:
    """Return keys and values as they would be `shift` positions later; see `turns`."""
    if not shift or backbone.is_encoder_decoder:  # T5's bias is zero for a prefix, BART's positions are in the text
        return states
    found = turns(backbone, shift)
    return {
        site: ((key.float() @ found[site].to(key.device)).to(key.dtype) if site in found else key, value)
        for site, (key, value) in states.items()
    }


@torch.no_grad()
def turns(backbone: Backbone, shift: int) -> dict[Site, Float[Tensor, "D D"]]:
    """Return what moving `shift` positions later does to a site's keys, as an orthogonal matrix on their last axis.

    No position code is named: each of a few hundred tokens runs alone at position 0 and at `shift`, and the matrix is
    the orthogonal one that takes the first keys to the second (Procrustes; Schönemann 1966). Where no such matrix
    exists, because positions are added to the embeddings, the site is left out.
    """
    count = min(backbone.model.get_input_embeddings().weight.shape[0], PROBES)
    ids = torch.arange(count, device=backbone.device)
    here, there = (_keys_at(backbone, ids, position) for position in (0, shift))
    found = {}
    for site in here:
        before, after = here[site].double(), there[site].double()
        left, _, right = torch.linalg.svd(before.T @ after)
        turn = left @ right
        if float((before @ turn - after).norm() / after.norm()) < FITS.get(backbone.dtype, FITS_FINELY):
            found[site] = turn.float()
    return found


def _keys_at(backbone: Backbone, ids: Tensor, position: int) -> dict[Site, Float[Tensor, "M D"]]:
    """Return the keys that single tokens leave at every site when they stand at a position."""
    recorder = Recorder()
    at = torch.full((len(ids), 1), position, device=ids.device)
    inputs = {"input_ids": ids[:, None], "attention_mask": torch.ones_like(at), "position_ids": at}
    with activate(recorder):
        backbone.model.base_model(**inputs, use_cache=False)
    return {site: key.transpose(1, 2).flatten(0, 2) for site, (key, _) in recorder.states.items()}


__all__ = ["average", "concatenate", "shifted", "turns"]
