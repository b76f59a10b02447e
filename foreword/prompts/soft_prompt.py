"""The soft prompt itself: a module with a spec, its tables, and the tensors that injection takes."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foreword.backbone import Backbone, require_prefix
from foreword.errors import PromptError, nearest
from foreword.geometry import Geometry
from foreword.prompts.bank import PrefixKV, Site, States
from foreword.prompts.spec import PromptSpec
from foreword.prompts.tables import DirectTable, MlpTable
from foreword.shapes import Float, SoftTokens


@dataclass(frozen=True, eq=False)
class Realised:
    """A prompt as one forward pass takes it.

    Attributes:
        prefix: keys and values in front of the text, or an infix's offsets; None for embeddings alone.
        inline: [P, E] input embeddings to be put among the text's own, or None.
        where: place of `inline`: `start`, `after_bos`, `suffix` or `infix`.
    """

    prefix: PrefixKV | None = None
    inline: SoftTokens | None = None
    where: str = "start"


class SoftPrompt(nn.Module):
    """A learned prompt for one backbone geometry.

    Tables, all float32 whatever the backbone computes in:
        prefix: one per stack, [P, W] with W the stack's numbers per virtual token; position p's row holds layer 0's
            key (K * D numbers), layer 0's value, layer 1's key, ... (PEFT's layout).
        prompt: `embedding` [P, E].
        infix: `embedding` [P, E] and `offset` [P, W] (Li & Liang 2021, section 7.3).

    Attributes:
        spec: what the prompt is.
        geometry: what it was made for.
        meta: recipe, scores and the like, carried by the artefact.
        format: name of the text format it was trained with (data.examples), or None for plain text.
        fingerprint: of the backbone it belongs to (Backbone.fingerprint), once saved or loaded; None before.
    """

    def __init__(self, spec: PromptSpec, geometry: Geometry) -> None:
        """Make an undrawn prompt; `foreword.prompts.init.initialise` gives it values.

        Raises:
            PromptError: the spec names a stack or layer that the geometry lacks.
        """
        super().__init__()
        self.spec = spec
        self.geometry = geometry
        self.meta: dict[str, Any] = {}
        self.format: str | None = None
        self.fingerprint: dict[str, str] | None = None
        self.sites = _chosen_sites(spec, geometry)
        self.tables = nn.ModuleDict({name: self._table(width) for name, width in self._widths().items()})
        self.dropout = nn.Dropout(spec.dropout)

    @property
    def length(self) -> int:
        """Virtual tokens P."""
        return self.spec.length

    @property
    def num_parameters(self) -> int:
        """Parameters in training (with the MLP, many more than are stored)."""
        return sum(p.numel() for p in self.parameters())

    @property
    def num_stored(self) -> int:
        """Numbers that serving needs: the folded tables."""
        return self.length * sum(self._widths().values())

    def table(self, name: str) -> Float[Tensor, "P W"]:
        """Return one table's values, made by its MLP if it has one."""
        return self.tables[name]()

    def realise(self, backbone: Backbone) -> Realised:
        """Return what a forward pass takes; gradients flow back to the tables.

        A leading prompt on a decoder becomes a prefix here (`compile_prompt`): its soft tokens run once for the
        whole batch, not once a row.

        Raises:
            PromptError: the prompt was learned on another backbone, or does not fit this one.
        """
        self.check_backbone(backbone)
        if self.spec.kind == "prefix":
            return Realised(prefix=self._prefix())
        inline = self.dropout(self.table("embedding"))
        if self.spec.kind == "infix":
            offsets = self._states("offset", self.sites)
            prefix = PrefixKV({}, 0, infix=offsets, infix_length=self.length)
            return Realised(prefix=prefix, inline=inline, where="infix")
        sharded = getattr(backbone.model, "foreword_sharded", False)  # backward cannot enter a sharded layer's inside
        if backbone.is_encoder_decoder or self.spec.placement == "suffix" or not backbone.geometry.sites or sharded:
            return Realised(inline=inline, where=self.spec.placement)
        return Realised(prefix=_compile(self, backbone, inline))

    def check_backbone(self, backbone: Backbone) -> None:
        """Raise unless the prompt belongs to this backbone: same widths and heads, same config, tokenizer and weights.

        Raises:
            PromptError: it names what differs.
        """
        if self.geometry is not backbone.geometry and not self._fits(backbone.geometry):
            raise PromptError(
                f"this prompt does not fit backbone {backbone.source!r}: its attention or embedding widths differ; "
                "load the backbone that the prompt was learned on"
            )
        if self.fingerprint is not None and self.fingerprint != backbone.fingerprint:
            parts = [part for part, digest in self.fingerprint.items() if backbone.fingerprint.get(part) != digest]
            raise PromptError(
                f"this prompt was learned on another backbone than {backbone.source!r} (differs in "
                f"{', '.join(parts)}); load the backbone that the prompt was learned on"
            )

    def _fits(self, geometry: Geometry) -> bool:
        """Whether every site that the prompt uses has the same widths; PEFT's files tell no more than those."""
        mine = [(site, self.geometry.sites[site].widths) for site in self.sites]
        theirs = [(site, geometry.sites[site].widths) for site in self.sites if site in geometry.sites]
        same_embeddings = "embedding" not in self.tables or self.geometry.embed_width == geometry.embed_width
        return mine == theirs and same_embeddings

    def fold(self) -> "SoftPrompt":
        """Return an equal prompt with every MLP folded into a plain table (the form that ships)."""
        folded = SoftPrompt(dataclasses.replace(self.spec, reparam="none"), self.geometry)
        with torch.no_grad():
            for name in self.tables:
                folded.tables[name].set(self.table(name))
        folded.meta, folded.format, folded.fingerprint = dict(self.meta), self.format, self.fingerprint
        return folded.to(next(self.parameters()).device)

    def flat_from_states(self, states: States, stack: str) -> Float[Tensor, "P W"]:
        """Return keys and values by site as one stack's [P, W] table."""
        rows = [t.transpose(0, 1).flatten(1) for site in self.sites if site[0] == stack for t in states[site]]
        return torch.cat(rows, 1).float()

    def _table(self, width: int) -> DirectTable | MlpTable:
        if self.spec.reparam == "none":
            return DirectTable(self.length, width)
        return MlpTable(self.length, width, self.geometry.embed_width, self.spec.reparam_width)

    def _widths(self) -> dict[str, int]:
        """Width W of each table by name."""
        if self.spec.kind == "prefix":
            stacks = dict.fromkeys(stack for stack, _ in self.sites)
            return {stack: self._stack_width(stack) for stack in stacks}
        widths = {"embedding": self.geometry.embed_width}
        if self.spec.kind == "infix":
            widths["offset"] = self._stack_width("decoder")
        return widths

    def _stack_width(self, stack: str) -> int:
        return sum(self.geometry.sites[site].width for site in self.sites if site[0] == stack)

    def _prefix(self) -> PrefixKV:
        states: States = {}
        for stack in self.tables:
            states |= self._states(stack, [site for site in self.sites if site[0] == stack])
        return PrefixKV(states, self.length, always_visible=self.spec.window == "always")

    def _states(self, table: str, sites: list[Site]) -> States:
        """Return a table's rows as keys and values [K, P, D] by site."""
        flat, states, at = self.dropout(self.table(table)), {}, 0
        for site in sites:
            shape = self.geometry.sites[site]
            pair = []
            for width in (shape.key_width, shape.value_width):
                columns = flat[:, at : at + shape.kv_heads * width]
                pair.append(columns.view(self.length, shape.kv_heads, width).transpose(0, 1))
                at += shape.kv_heads * width
            states[site] = (pair[0], pair[1])
        return states


def make_prompt(spec: PromptSpec, backbone: Backbone) -> SoftPrompt:
    """Return an undrawn prompt for a backbone, refusing what cannot work there.

    Raises:
        PromptError: prefixes cannot enter the model, or an infix is asked of an encoder-decoder.
    """
    if spec.kind != "prompt":
        require_prefix(backbone)
    if spec.kind == "infix" and backbone.is_encoder_decoder:
        raise PromptError("an infix stands between source and target of one sequence; an encoder-decoder has two")
    limit = backbone.geometry.max_positions
    takes_positions = spec.kind == "prompt" or not backbone.is_encoder_decoder
    if limit is not None and takes_positions and spec.length >= limit:
        raise PromptError(f"prompt.length = {spec.length} leaves no room for text: the backbone has {limit} positions")
    return SoftPrompt(spec, backbone.geometry).to(backbone.device)


def compile_prompt(prompt: SoftPrompt, backbone: Backbone) -> PrefixKV:
    """Return a leading prompt as the prefix that equals it exactly, ready to serve.

    On a causal model the keys and values of leading soft tokens do not depend on the text, so they can be computed
    once. An encoder is bidirectional: there the soft tokens see the text, and no such prefix exists.

    Raises:
        PromptError: the prompt does not lead (suffix, infix) or sits in an encoder.
    """
    if prompt.spec.kind != "prefix" and (not prompt.spec.is_leading or backbone.is_encoder_decoder):
        where = "an encoder" if backbone.is_encoder_decoder else f"placement {prompt.spec.placement!r}"
        raise PromptError(f"a {prompt.spec.kind} in {where} depends on the text, so it does not compile to a prefix")
    require_prefix(backbone)
    training = prompt.training
    try:
        with torch.no_grad():
            return prompt.eval().realise(backbone).prefix.detach()  # what is served has no dropout
    finally:
        prompt.train(training)


def _compile(prompt: SoftPrompt, backbone: Backbone, inline: SoftTokens) -> PrefixKV:
    """Return the keys and values that soft tokens [P, E] leave at every site, with gradients."""
    includes_bos = prompt.spec.placement == "after_bos"
    if includes_bos:
        bos = backbone.tokenizer.bos_token_id
        if bos is None:
            raise PromptError("prompt.placement = 'after_bos' needs a tokenizer with a BOS token; use 'start'")
        inline = torch.cat([backbone.embed(torch.tensor([bos], device=inline.device)).to(inline.dtype), inline])
    states = backbone.record(embeds=inline)
    always = prompt.spec.window == "always"
    return PrefixKV(states, inline.shape[0], always_visible=always, includes_bos=includes_bos)


def _chosen_sites(spec: PromptSpec, geometry: Geometry) -> list[Site]:
    """Return the sites that the spec asks for, in the geometry's order."""
    if spec.kind == "prompt":
        return []
    stacks = spec.stacks or geometry.stacks
    for stack in stacks:
        if stack not in geometry.stacks:
            raise PromptError(f"prompt.stacks names {stack!r}; the backbone lacks it{nearest(stack, geometry.stacks)}")
    layers = spec.layers
    if layers is not None and (bad := set(layers) - {layer for _, layer in geometry.sites}):
        last = max(layer for _, layer in geometry.sites)
        raise PromptError(f"prompt.layers names {sorted(bad)}, but the backbone's layers are 0 to {last}")
    return [site for site in geometry.sites if site[0] in stacks and (layers is None or site[1] in layers)]


__all__ = ["Realised", "SoftPrompt", "compile_prompt", "make_prompt"]
