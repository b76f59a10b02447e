"""The search: one iteration replaces at most one trigger word, by one that lowers the loss on fresh rows (RECIPES 4).

An iteration draws rows, takes the gradient at one slot, ranks every word by the first-order change of the loss that
it promises (HotFlip, Ebrahimi et al. 2018), draws fresh rows, and scores the current word and the best candidates on
them. The best candidate replaces the word only if it is strictly better. All draws follow from (seed, iteration).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from foreword.baselines.autoprompt.reader import Reader, TriggerExample
from foreword.baselines.autoprompt.spec import GRADIENT_COST, AutoPromptSpec
from foreword.shapes import Bool, Float


@dataclass(frozen=True)
class Figures:
    """How a trigger does on some rows: mean loss in nats a row, and accuracy (None without label words)."""

    loss: float
    accuracy: float | None = None

    def better_than(self, other: "Figures", by: Literal["accuracy", "loss"]) -> bool:
        """Return whether this is strictly better."""
        return self.loss < other.loss if by == "loss" else self.accuracy > other.accuracy


@dataclass(frozen=True)
class Flip:
    """What one iteration did.

    Attributes:
        trigger: the trigger words after it.
        slot: which word it looked at.
        tried: candidates, best promise first.
        token: the best candidate.
        before: the trigger's figures on the fresh rows.
        best: the best candidate's.
        accepted: whether it replaced the word.
        evaluations: forward passes of one row, a backward pass counted as two.
    """

    trigger: tuple[int, ...]
    slot: int
    tried: tuple[int, ...]
    token: int
    before: Figures
    best: Figures
    accepted: bool
    evaluations: int

    @property
    def after(self) -> Figures:
        """The figures of `trigger` on the fresh rows."""
        return self.best if self.accepted else self.before


@dataclass(eq=False)
class Search:
    """A search over one reader and its training rows.

    Attributes:
        reader: the frozen model with its label words.
        examples: training rows.
        spec: constants.
        allowed: [V] which ids may become trigger words.
        seed: of all draws.
    """

    reader: Reader
    examples: Sequence[TriggerExample]
    spec: AutoPromptSpec
    allowed: Bool[Tensor, " V"]
    seed: int

    def __post_init__(self) -> None:
        self.embeddings = self.reader.embeddings()
        self.allowed = self.allowed.to(self.embeddings.device)

    def step(self, trigger: tuple[int, ...], iteration: int) -> Flip:
        """Return what one iteration makes of a trigger.

        Args:
            trigger: K ids.
            iteration: its number, which with the seed decides all draws.
        """
        rng = np.random.Generator(np.random.PCG64([self.seed, iteration]))
        slot = int(rng.integers(len(trigger)))
        first, fresh = self._draw(rng)
        if self.spec.strategy == "hotflip":
            _, gradient = mean_gradient(self.reader, first, trigger, self.spec.rows)
            promise = first_order(gradient[slot], self.embeddings, trigger[slot])
            tried = best_candidates(promise, self.allowed, trigger[slot], self.spec.tried)
        else:
            tried = random_candidates(rng, self.allowed, trigger[slot], self.spec.tried)
        before = measure(self.reader, fresh, trigger, self.spec.rows)
        scored = [measure(self.reader, fresh, _put(trigger, slot, word), self.spec.rows) for word in tried]
        place = _best(scored, self.spec.deciding)
        accepted = scored[place].better_than(before, self.spec.deciding)
        spent = len(fresh) * (1 + len(tried)) + (GRADIENT_COST * len(first) if self.spec.strategy == "hotflip" else 0)
        chosen = _put(trigger, slot, tried[place]) if accepted else trigger
        return Flip(chosen, slot, tuple(tried), tried[place], before, scored[place], accepted, spent)

    def _draw(self, rng: np.random.Generator) -> tuple[list[TriggerExample], list[TriggerExample]]:
        """Return the rows of the gradient and fresh ones to score on; they share rows only where data is short."""
        size = min(self.spec.rows * self.spec.accumulation, len(self.examples))
        order = rng.permutation(len(self.examples))
        fresh = order[size : 2 * size] if len(order) >= 2 * size else rng.permutation(len(order))[:size]
        return [self.examples[i] for i in order[:size]], [self.examples[i] for i in fresh]


def first_order(
    gradient: Float[Tensor, " E"], embeddings: Float[Tensor, "V E"], current: int
) -> Float[Tensor, " V"]:
    """Return the change of the loss that each word in place of `current` promises: (e_v - e_current) . gradient.

    Ebrahimi et al. 2018, equation 3; the paper's ranking by -e_v . gradient (Shin et al. 2020, equation 2) is the
    same one upside down.
    """
    scores = embeddings @ gradient
    return scores - scores[current]


def best_candidates(promise: Float[Tensor, " V"], allowed: Bool[Tensor, " V"], current: int, count: int) -> list[int]:
    """Return the `count` allowed words that promise the lowest loss, best first, without the current one."""
    usable = allowed.clone()
    usable[current] = False
    ranked = promise.masked_fill(~usable, torch.inf).topk(min(count, int(usable.sum())), largest=False)
    return ranked.indices.tolist()


def random_candidates(rng: np.random.Generator, allowed: Bool[Tensor, " V"], current: int, count: int) -> list[int]:
    """Return `count` different allowed words, drawn evenly, without the current one."""
    usable = allowed.clone()
    usable[current] = False
    words = usable.nonzero()[:, 0].cpu().numpy()
    return rng.choice(words, size=min(count, len(words)), replace=False).tolist()


def mean_gradient(
    reader: Reader, examples: Sequence[TriggerExample], trigger: Sequence[int], rows: int
) -> tuple[float, Float[Tensor, "K E"]]:
    """Return the mean loss of the rows and its gradient at the trigger embeddings, `rows` rows at a time."""
    parts = [reader.gradient(batch, trigger) for batch in _batches(examples, rows)]
    loss = sum(float(loss) for loss, _ in parts) / len(examples)
    return loss, torch.stack([gradient for _, gradient in parts]).sum(0) / len(examples)


def measure(reader: Reader, examples: Sequence[TriggerExample], trigger: Sequence[int], rows: int) -> Figures:
    """Return a trigger's figures on some rows, `rows` of them at a time.

    Args:
        reader: the frozen model.
        examples: the rows.
        trigger: K ids, none to leave the slots out.
        rows: rows of one pass.
    """
    judged = [reader.judge(batch, trigger) for batch in _batches(examples, rows)]
    loss = sum(float(found.losses.double().sum()) for found in judged) / len(examples)
    if judged[0].correct is None:
        return Figures(loss)
    return Figures(loss, sum(int(found.correct.sum()) for found in judged) / len(examples))


def _batches(examples: Sequence[TriggerExample], rows: int) -> list[list[TriggerExample]]:
    """Return batches of rows of similar length, so that little is padding."""
    order = sorted(examples, key=lambda example: len(example.ids) + len(example.target))
    return [order[start : start + rows] for start in range(0, len(order), rows)]


def _best(scored: Sequence[Figures], by: Literal["accuracy", "loss"]) -> int:
    """Return the place of the best figures, the first of equals."""
    place = 0
    for i, figures in enumerate(scored):
        place = i if figures.better_than(scored[place], by) else place
    return place


def _put(trigger: tuple[int, ...], slot: int, word: int) -> tuple[int, ...]:
    return (*trigger[:slot], word, *trigger[slot + 1 :])
