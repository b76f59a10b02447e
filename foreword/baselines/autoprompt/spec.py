"""How trigger words are searched: the constants of AutoPrompt's code (RECIPES 4), each a named option."""

import math
from dataclasses import dataclass, field
from typing import Literal

from foreword.errors import ConfigError

ITERATIONS = 100
"""Iterations where a recipe gives no `steps`."""

GRADIENT_COST = 3
"""Model evaluations that one row of a gradient pass counts as: its forward pass, and twice that for the backward."""


@dataclass(frozen=True)
class LabelSearch:
    """How label words are found before the triggers are (a linear probe on the head's input, read as words).

    Attributes:
        words: label words kept for each label.
        epochs: passes of the probe over the training rows.
        lr: Adam's learning rate.
        rows: rows of one step of Adam.
    """

    words: int = 3
    epochs: int = 10
    lr: float = 3e-4
    rows: int = 32

    def __post_init__(self) -> None:
        _positive("autoprompt.label_search", self, ("words", "epochs", "lr", "rows"))


@dataclass(frozen=True)
class AutoPromptSpec:
    """A search for trigger words.

    Attributes:
        template: text with one `{source}`, one `[T]` for each trigger word and, for a masked model, one `[P]` where it
            answers; the other models answer at the end. None takes three words behind the source. Without a
            `data.format`, a decoder's answer goes on the template's sentence (`bare`).
        strategy: `hotflip` takes the candidates that the gradient favours, `random` draws them, more of them, so that
            both spend the same number of model evaluations.
        candidates: words tried in one iteration.
        accumulation: batches of one gradient, and as many fresh ones to score candidates on.
        rows: rows of one batch.
        score: what a replacement must improve: `accuracy` or `loss`; None takes the paper's code's: accuracy where
            there are label words, else loss.
        labels: label to its label words, each one token; the probability of a label is the sum over its words. None
            searches them (`label_search`) or scores the targets as they are written.
        label_search: find label words with a linear probe; not beside `labels`.
        init: words to start from, one for each `[T]`; empty starts from mask tokens, without a mask token from "the".
        skip_capitalised: leave capitalised tokens out of the candidates, as the paper does to avoid proper names.
        readable: leave tokens out that are no text of their own: pieces of a character, control codes, white space.
        stall: stop after this many iterations in a row without a replacement; None goes on to the last.
    """

    template: str | None = None
    strategy: Literal["hotflip", "random"] = "hotflip"
    candidates: int = 10
    accumulation: int = 10
    rows: int = 32
    score: Literal["accuracy", "loss"] | None = None
    labels: dict[str, tuple[str, ...]] | None = None
    label_search: LabelSearch | None = None
    init: tuple[str, ...] = field(default_factory=tuple)
    skip_capitalised: bool = True
    readable: bool = True
    stall: int | None = None

    def __post_init__(self) -> None:
        _positive("autoprompt", self, ("candidates", "accumulation", "rows", "stall"))
        if self.labels is not None and self.label_search is not None:
            raise ConfigError("autoprompt.labels and autoprompt.label_search are both given; give one of them")
        if self.labels is not None:
            self._check_labels(self.labels)
        if self.score == "accuracy" and self.labels is None and self.label_search is None:
            raise ConfigError("autoprompt.score = 'accuracy' needs label words; give autoprompt.labels, or score loss")

    def _check_labels(self, labels: dict[str, tuple[str, ...]]) -> None:
        if len(labels) < 2 or not all(labels.values()):
            raise ConfigError(f"autoprompt.labels = {labels!r} must name two labels or more, each with a word or more")

    @property
    def title(self) -> str:
        """A short name."""
        return "autoprompt" if self.strategy == "hotflip" else "autoprompt-random"

    @property
    def tried(self) -> int:
        """Replacements that one iteration scores; random search gets what HotFlip spends on the gradient."""
        return self.candidates + (GRADIENT_COST if self.strategy == "random" else 0)

    @property
    def has_labels(self) -> bool:
        """Whether answers are read as label words."""
        return self.labels is not None or self.label_search is not None

    @property
    def deciding(self) -> Literal["accuracy", "loss"]:
        """What a replacement must improve."""
        return self.score or ("accuracy" if self.has_labels else "loss")


def _positive(where: str, spec: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(spec, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{where}.{name} = {value!r} must be positive and finite")
