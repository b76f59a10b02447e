"""Projectors: learned maps from one model's soft prompts to another's (Su et al. 2022, RECIPES 3.1).

    token   each virtual token alone: Linear(E_s, E_t), with an activation after it if asked
    flat    the whole prompt: Linear(P E_s, 768) -> LeakyReLU or tanh -> Linear(768, P E_t) -> LayerNorm(E_t) a token
    layers  a prefix: one linear map for each target layer, from the source layer at the same relative depth

Su et al.'s trainer uses LeakyReLU, the class they call the paper's uses tanh, and their second version has LeakyReLU
without LayerNorm at learning rate 0.1; which one made the published numbers cannot be told, so each is an option.
How they are trained is in `compose.projector_training`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from foreword.backbone import Backbone
from foreword.compose.activations import match_sites
from foreword.compose.least_squares import LinearMap
from foreword.compose.recycle import carried_format
from foreword.errors import ConfigError, PromptError
from foreword.geometry import Geometry
from foreword.prompts.bank import Site
from foreword.prompts.soft_prompt import SoftPrompt, make_prompt
from foreword.shapes import Float

EMBEDDING = "embedding"


@dataclass(frozen=True)
class ProjectorSpec:
    """A projector's form.

    Attributes:
        kind: see the module's head; `token` and `flat` are for prompts, `layers` for prefixes.
        activation: after the hidden layer of `flat`; after the map of `token`, where `none` leaves it linear.
        hidden: width of `flat`'s hidden layer.
        layer_norm: end `flat` with a LayerNorm over each token.
    """

    kind: Literal["token", "flat", "layers"] = "token"
    activation: Literal["none", "leaky_relu", "tanh"] = "none"
    hidden: int = 768
    layer_norm: bool = True

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ConfigError(f"projector.hidden = {self.hidden!r} must be at least 1")
        if self.kind == "flat" and self.activation == "none":
            raise ConfigError("projector.activation = 'none' makes 'flat' linear; give leaky_relu or tanh")
        if self.kind == "layers" and self.activation != "none":
            raise ConfigError(f"projector.activation = {self.activation!r} is not for kind 'layers'; leave it out")


class TokenMap(nn.Module):
    """Linear(W_s, W_t) on each row, then the activation."""

    def __init__(self, source_width: int, target_width: int, activation: str = "none") -> None:
        super().__init__()
        self.linear = nn.Linear(source_width, target_width)
        self.activation = _activation(activation)

    def forward(self, table: Float[Tensor, "P S"]) -> Float[Tensor, "P T"]:
        """Return the mapped rows."""
        return self.activation(self.linear(table))

    @torch.no_grad()
    def set(self, found: LinearMap) -> None:
        """Take a fitted map's weights."""
        self.linear.weight.copy_(found.weight.T)
        self.linear.bias.copy_(found.bias)

    @torch.no_grad()
    def set_identity(self) -> None:
        """Become the identity.

        Raises:
            ConfigError: the widths differ, or an activation follows.
        """
        if self.linear.in_features != self.linear.out_features or not isinstance(self.activation, nn.Identity):
            raise ConfigError(
                f"a map from {self.linear.in_features} to {self.linear.out_features} numbers with "
                f"{type(self.activation).__name__} after it cannot be the identity"
            )
        self.linear.weight.copy_(torch.eye(self.linear.in_features))
        self.linear.bias.zero_()


class FlatMap(nn.Module):
    """The whole table through one hidden layer."""

    def __init__(self, length: int, source_width: int, target_width: int, spec: ProjectorSpec) -> None:
        super().__init__()
        self.inner = nn.Linear(length * source_width, spec.hidden)
        self.activation = _activation(spec.activation)
        self.outer = nn.Linear(spec.hidden, length * target_width)
        self.norm = nn.LayerNorm(target_width) if spec.layer_norm else nn.Identity()

    def forward(self, table: Float[Tensor, "P S"]) -> Float[Tensor, "P T"]:
        """Return the mapped table.

        Raises:
            PromptError: the table has another length than the projector was made for.
        """
        if table.numel() != self.inner.in_features:
            want = self.inner.in_features // table.shape[1]
            raise PromptError(f"this projector takes prompts of length {want}, not {len(table)}; use kind 'token'")
        flat = self.outer(self.activation(self.inner(table.flatten())))
        return self.norm(flat.view(len(table), -1))


class LayersMap(nn.Module):
    """One linear map for each target site of a stack; rows hold the sites one after another, as prefixes do."""

    def __init__(self, source_widths: dict[Site, int], pairs: list[tuple[Site, Site, int]]) -> None:
        """Make undrawn maps.

        Args:
            source_widths: numbers of each source site, in the order of its table.
            pairs: target site, its source site, and the target site's numbers.
        """
        super().__init__()
        self.source_widths = source_widths
        self.pairs = pairs
        self.linears = nn.ModuleList(nn.Linear(source_widths[source], width) for _, source, width in pairs)

    def forward(self, table: Float[Tensor, "P S"]) -> Float[Tensor, "P T"]:
        """Return the mapped rows."""
        pieces = dict(zip(self.source_widths, table.split(list(self.source_widths.values()), 1), strict=True))
        made = [linear(pieces[site]) for linear, (_, site, _) in zip(self.linears, self.pairs, strict=True)]
        return torch.cat(made, 1)

    @torch.no_grad()
    def set(self, maps: dict[Site, LinearMap]) -> None:
        """Take fitted maps by target site (`activations.fit_states`)."""
        for linear, (site, _, _) in zip(self.linears, self.pairs, strict=True):
            linear.weight.copy_(maps[site].weight.T)
            linear.bias.copy_(maps[site].bias)


class Projector(nn.Module):
    """A map from prompts of one form on one backbone to prompts on another: one part a table.

    Attributes:
        spec: its form.
        parts: by table name.
    """

    def __init__(self, spec: ProjectorSpec, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.spec = spec
        self.parts = nn.ModuleDict(parts)
        self.takes: tuple[str, tuple[Site, ...]] | None = None

    def forward(self, tables: dict[str, Float[Tensor, "P S"]]) -> dict[str, Float[Tensor, "P T"]]:
        """Return the target's tables."""
        return {name: part(tables[name]) for name, part in self.parts.items()}


def make_projector(
    spec: ProjectorSpec, prompt: SoftPrompt, source: Backbone, target: Backbone, generator: torch.Generator
) -> Projector:
    """Return a freshly drawn projector for prompts like `prompt`.

    Linear layers are drawn as PyTorch draws them, from `generator`.

    Args:
        spec: its form.
        prompt: one of the source's prompts: its kind, length and stacks count.
        source: the backbone that prompts come from.
        target: the backbone that they go to.
        generator: CPU generator.

    Raises:
        PromptError: the form does not fit the prompt's kind, or the two models' stacks differ.
    """
    prompt.check_backbone(source)
    wanted = {"prompt": ("token", "flat"), "prefix": ("layers",)}.get(prompt.spec.kind, ())
    if spec.kind not in wanted:
        use = f"use {' or '.join(wanted)}" if wanted else "transfer a prompt or a prefix"
        raise PromptError(f"projector.kind = {spec.kind!r} does not fit a {prompt.spec.kind}; {use}")
    if spec.kind == "layers":
        projector = Projector(spec, _layer_parts(prompt, source, target))
    else:
        widths = source.geometry.embed_width, target.geometry.embed_width
        flat = spec.kind == "flat"
        part = FlatMap(prompt.length, *widths, spec) if flat else TokenMap(*widths, spec.activation)
        projector = Projector(spec, {EMBEDDING: part})
    projector.takes = (prompt.spec.kind, tuple(prompt.sites))
    _draw(projector, generator)
    return projector.to(target.device)


def check_takes(projector: Projector, prompt: SoftPrompt) -> None:
    """Raise unless a projector was made for prompts of this kind at these layers.

    Raises:
        PromptError: it names both.
    """
    if projector.takes is not None and projector.takes != (prompt.spec.kind, tuple(prompt.sites)):
        kind, sites = projector.takes
        raise PromptError(
            f"the projector is made for a {kind} at {len(sites)} sites, this prompt is a {prompt.spec.kind} at "
            f"{len(prompt.sites)}; give prompts of one kind at the same layers"
        )


def project(projector: Projector, prompt: SoftPrompt, target: Backbone) -> SoftPrompt:
    """Return a source prompt as a live prompt of the target: gradients of its loss flow into the projector.

    `fold()` it to get a prompt of plain tables, to save or to train further.

    Args:
        projector: made for prompts like this one.
        prompt: the source's.
        target: the backbone to project to.
    """
    check_takes(projector, prompt)
    spec = dataclasses.replace(prompt.spec, reparam="none", layers=None, dropout=0.0)
    made = make_prompt(spec, target)
    for name in made.tables:
        table = prompt.table(name).detach().to(target.device)
        made.tables[name] = ProjectedTable(projector.parts[name], table)
    made.format = carried_format(prompt, target)
    return made


class ProjectedTable(nn.Module):
    """A prompt's table that a projector makes from another model's table."""

    def __init__(self, part: nn.Module, source: Float[Tensor, "P S"]) -> None:
        super().__init__()
        self.part = part
        self.register_buffer("source", source, persistent=False)

    def forward(self) -> Float[Tensor, "P T"]:
        """Return the projected table."""
        return self.part(self.source)


def _layer_parts(prompt: SoftPrompt, source: Backbone, target: Backbone) -> dict[str, nn.Module]:
    """Return one `LayersMap` a stack."""
    matched, parts = match_sites(source, target), {}
    for stack in prompt.tables:
        widths = _widths(prompt.geometry, [site for site in prompt.sites if site[0] == stack])
        sites = [site for site in target.geometry.sites if site[0] == stack]
        if not sites:  # the target has no such stack
            continue
        if absent := {matched[site] for site in sites} - set(widths):
            raise PromptError(f"the prefix has no keys and values at {sorted(absent)}; project a prefix of all layers")
        pairs = [(site, matched[site], target.geometry.sites[site].width) for site in sites]
        parts[stack] = LayersMap(widths, pairs)
    return parts


def _widths(geometry: Geometry, sites: list[Site]) -> dict[Site, int]:
    return {site: geometry.sites[site].width for site in sites}


@torch.no_grad()
def _draw(projector: Projector, generator: torch.Generator) -> None:
    for layer in projector.modules():
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)


def _activation(name: str) -> nn.Module:
    return {"none": nn.Identity, "leaky_relu": nn.LeakyReLU, "tanh": nn.Tanh}[name]()
