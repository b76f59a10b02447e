"""What a soft prompt is: its kind, length, placement, reparametrisation and initialisation. No tensors here."""

import math
from dataclasses import dataclass, field
from typing import Literal

from foreword.errors import ConfigError

Kind = Literal["prefix", "prompt", "infix"]
Stack = Literal["decoder", "encoder", "cross"]
InitName = Literal[
    "auto", "normal", "uniform", "uniform_positive", "vocabulary", "labels", "words", "activations", "data", "artifact"
]


@dataclass(frozen=True)
class InitSpec:
    """How a fresh prompt gets its first values (a named choice, printed in the log).

    Attributes:
        name: `normal` N(0, std); `uniform` U[-0.5, 0.5] (Lester et al., paper); `uniform_positive` U[0, 0.5)
            (their released code); `vocabulary` rows of the `top_tokens` most common tokens, without replacement;
            `labels` class-label embeddings, the rest from the vocabulary; `words` the input embeddings of `text`;
            `activations` the keys and values of `text` at every layer; `data` the keys and values of real training
            text; `artifact` another saved prompt. `auto` is `data` for prefixes when training text is at hand (else
            `activations` of a neutral phrase) and `vocabulary` for prompts and infixes.
        std: standard deviation of `normal`; None takes the embedding table's own.
        text: words for `words` and `activations`.
        labels: class labels for `labels`.
        artifact: directory for `artifact`.
        top_tokens: how many of the most common tokens `vocabulary` draws from.
        fit: under an MLP, how activations are put behind it: `exact` solves the last linear layer by least squares;
            `regression` is the original code's 500 Adam steps (RECIPES 1.4).
        fit_steps: steps of `regression`.
        fit_learning_rate: Adam's learning rate of `regression`.
    """

    name: InitName = "auto"
    std: float | None = None
    text: str | None = None
    labels: tuple[str, ...] = ()
    artifact: str | None = None
    top_tokens: int = 5000
    fit: Literal["exact", "regression"] = "exact"
    fit_steps: int = 500
    fit_learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        needs = {"words": "text", "activations": "text", "artifact": "artifact", "labels": "labels"}
        if self.name in needs and not getattr(self, needs[self.name]):
            raise ConfigError(f"init.{needs[self.name]} is empty; init.name = {self.name!r} needs it")
        for name in ("std", "fit_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"init.{name} = {value!r} must be positive and finite")
        if self.fit_steps < 0:
            raise ConfigError(f"init.fit_steps = {self.fit_steps!r} must not be negative")
        if self.top_tokens < 1:
            raise ConfigError(f"init.top_tokens = {self.top_tokens!r} must be at least 1")


@dataclass(frozen=True)
class PromptSpec:
    """One soft prompt's form.

    Attributes:
        kind: `prefix` keys and values at every layer (Li & Liang 2021); `prompt` input embeddings (Lester et al.
            2021; with `reparam: mlp` Li & Liang's embedding-only ablation); `infix` embeddings between source and
            target plus an offset on their keys and values at every layer (Li & Liang, section 7.3).
        length: virtual tokens P.
        stacks: for a prefix, which attentions get one; None means all that the backbone has.
        layers: for a prefix, which layers get one (0-based, in every stack); None means all.
        reparam: `mlp` is P' -> Linear -> tanh -> Linear, folded away after training; `none` trains directly.
        reparam_width: hidden width of the MLP (512 table-to-text, 800 summarisation in the paper's code).
        dropout: dropout on the prefix while training.
        placement: for a prompt, `start`, `after_bos` or `suffix` (after the text).
        window: on sliding-window attention, `model` hides a prefix position once it is out of the window, as any
            leading token; `always` keeps it visible.
        init: first values.
    """

    kind: Kind = "prefix"
    length: int = 10
    stacks: tuple[Stack, ...] | None = None
    layers: tuple[int, ...] | None = None
    reparam: Literal["mlp", "none"] = "none"
    reparam_width: int = 512
    dropout: float = 0.0
    placement: Literal["start", "after_bos", "suffix"] = "start"
    window: Literal["model", "always"] = "model"
    init: InitSpec = field(default_factory=InitSpec)

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"prompt.length = {self.length!r} must be at least 1 virtual token")
        if self.reparam_width < 1:
            raise ConfigError(f"prompt.reparam_width = {self.reparam_width!r} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"prompt.dropout = {self.dropout!r} must be in [0, 1)")
        if self.kind != "prefix" and (self.stacks is not None or self.layers is not None):
            raise ConfigError(f"prompt.stacks and prompt.layers are for kind 'prefix', not {self.kind!r}; remove them")
        if self.kind != "prompt" and self.placement != "start":
            raise ConfigError(
                f"prompt.placement = {self.placement!r} is for kind 'prompt', not {self.kind!r}; remove it"
            )
        if self.window == "always" and not self.is_leading:
            raise ConfigError(
                f"prompt.window = 'always' is for prompts that lead the text; a {self.kind} inside it is hidden by a "
                "sliding window as the text is; use 'model'"
            )
        if self.stacks is not None and not self.stacks:
            raise ConfigError("prompt.stacks is empty; name at least one of decoder, encoder, cross, or leave it out")
        if self.layers is not None and not self.layers:
            raise ConfigError("prompt.layers is empty; name at least one layer, from 0, or leave it out for all")

    @property
    def is_leading(self) -> bool:
        """True where the prompt stands before all text, so that on a decoder it compiles to a prefix."""
        return self.kind == "prefix" or (self.kind == "prompt" and self.placement != "suffix")
