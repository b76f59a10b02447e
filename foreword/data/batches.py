"""Batches: which examples meet in which step (pure index logic), and how they become tensors.

Every epoch's plan is a function of (seed, epoch) alone, so a position in it is all the state there is.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from foreword.data.examples import Example
from foreword.errors import ConfigError, DataError, TrainingError

IGNORE = -100
"""The label of a position without loss, as in Transformers."""


@dataclass(frozen=True)
class BatchConfig:
    """How examples are put into batches.

    Attributes:
        rows: examples in a batch; exactly one of `rows` and `tokens` is given.
        tokens: most token positions in a batch, padding included.
        shuffle: new order each epoch; else the order of the examples.
        window: batches' worth of rows that are sorted by length together (1: no sorting, as in the papers).
        per_source: None mixes all rows freely. A number keeps up to that many targets of one source together, so that
            the source need be computed only once; 0 keeps all of them together.
    """

    rows: int | None = None
    tokens: int | None = None
    shuffle: bool = True
    window: int = 1
    per_source: int | None = None

    def __post_init__(self) -> None:
        if (self.rows is None) == (self.tokens is None):
            raise ConfigError(f"batch rows = {self.rows} and tokens = {self.tokens}; give exactly one of them")
        if (self.rows or self.tokens or 0) < 1 or self.window < 1 or (self.per_source or 0) < 0:
            raise ConfigError(f"batch sizes must be at least 1: {asdict(self)}")


@dataclass
class BatchSampler:
    """Batches of example indices, epoch after epoch, resumable at any batch.

    Iterating gives the rest of the current epoch, then moves to the next one. No row is lost or repeated within an
    epoch. With `world` ranks each batch is cut into `world` contiguous non-empty parts and this rank gets its own, so
    all ranks take the same number of steps and together see the batches that one process would see; only a batch of
    fewer than `world` rows is merged into its neighbour.

    Args:
        sources: for each example, an id of its source (equal ids share it).
        source_lens, target_lens: for each example, tokens before the target, and in the target.
    """

    sources: Sequence[Any]
    source_lens: Sequence[int]
    target_lens: Sequence[int]
    config: BatchConfig
    seed: int = 0
    rank: int = 0
    world: int = 1
    epoch: int = 0
    position: int = 0

    def __post_init__(self) -> None:
        if not len(self.sources):
            raise DataError("no example to put into batches; the data set is empty")
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"rank = {self.rank} is not in 0..{self.world - 1}")
        budget, lens = self.config.tokens, self._lengths()
        if budget is not None and lens.max() > budget:
            raise DataError(
                f"row {int(lens.argmax())} has {int(lens.max())} tokens but a batch may have {budget}; "
                "raise the token budget or set max_source and max_target"
            )
        self._plans: dict[int, list[list[int]]] = {}

    @classmethod
    def of(cls, examples: Sequence[Example], config: BatchConfig, **settings: Any) -> "BatchSampler":
        """Return the sampler of tokenised examples; `settings` are seed, rank and world."""
        numbers: dict[tuple[int, ...], int] = {}
        return cls(
            [numbers.setdefault(example.source_ids, len(numbers)) for example in examples],
            [len(example.source_ids) for example in examples],
            [len(example.target_ids) for example in examples],
            config,
            **settings,
        )

    def __len__(self) -> int:
        """Return the number of batches in the current epoch, those already taken included."""
        return len(self.plan(self.epoch))

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.plan(self.epoch)
        while self.position < len(batches):
            batch = batches[self.position]
            self.position += 1  # before the yield: a state saved while this batch is in use resumes after it
            yield _part(batch, self.rank, self.world)
        self.epoch, self.position = self.epoch + 1, 0

    def plan(self, epoch: int) -> list[list[int]]:
        """Return all batches of an epoch, for all ranks together. Rows of one source are adjacent if they share it."""
        if epoch not in self._plans:
            rng = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            self._plans = {epoch: self._plan(rng)}
        return self._plans[epoch]

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs: seed, epoch, position, and the configuration to compare with."""
        place = {"seed": self.seed, "epoch": self.epoch, "position": self.position}
        return {**place, "data": self._data_digest(), **asdict(self.config)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position.

        Raises:
            TrainingError: the state was saved with other data or other settings, so the batches would differ.
        """
        mine = self.state_dict()
        for name in mine.keys() - {"epoch", "position"}:
            if state.get(name) != mine[name]:
                was, now = state.get(name), mine[name]
                raise TrainingError(f"batch setting {name} was {was!r} in the saved run and is {now!r}; cannot resume")
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def _data_digest(self) -> str:
        """Return a digest of the rows' number and lengths, so that a resume with other data is noticed."""
        lens = np.array([self.source_lens, self.target_lens], dtype=np.int64)
        return hashlib.sha256(lens.tobytes()).hexdigest()[:16]

    def _lengths(self) -> np.ndarray:
        return np.asarray(self.source_lens) + np.asarray(self.target_lens)

    def _plan(self, rng: np.random.Generator) -> list[list[int]]:
        units = self._units(rng)
        if self.config.shuffle:
            units = [units[i] for i in rng.permutation(len(units))]
        batches = _cut(self._sorted(units), self)
        if self.config.shuffle and self.config.window > 1:  # sorting put short batches next to each other
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return _shareable(batches, self.world)

    def _units(self, rng: np.random.Generator) -> list[list[int]]:
        """Return the index lists that stay together: single rows, or (chunks of) the rows of one source."""
        if self.config.per_source is None:
            return [[i] for i in range(len(self.sources))]
        groups: dict[Any, list[int]] = {}
        for i, source in enumerate(self.sources):
            groups.setdefault(source, []).append(i)
        if self.config.shuffle:  # so that a chunk has other targets each epoch
            groups = {source: [rows[i] for i in rng.permutation(len(rows))] for source, rows in groups.items()}
        size = self.config.per_source or len(self.sources)
        return [rows[k : k + size] for rows in groups.values() for k in range(0, len(rows), size)]

    def _sorted(self, units: list[list[int]]) -> list[list[int]]:
        """Return the units, sorted by length within windows of about `window` batches."""
        if self.config.window == 1:
            return units
        lens = self._lengths()
        rows = self.config.rows or max(1, int((self.config.tokens or 1) // lens.mean()))
        per_unit = max(1.0, len(self.sources) / len(units))
        size = max(1, int(self.config.window * rows / per_unit))
        blocks = [units[k : k + size] for k in range(0, len(units), size)]
        return [unit for block in blocks for unit in sorted(block, key=lambda rows: max(lens[i] for i in rows))]


def _cut(units: list[list[int]], sampler: BatchSampler) -> list[list[int]]:
    order = [i for unit in units for i in unit]
    if sampler.config.rows is not None:
        batches = [order[k : k + sampler.config.rows] for k in range(0, len(order), sampler.config.rows)]
        return _even_tail(batches)
    return _by_budget(order, sampler)


def _even_tail(batches: list[list[int]]) -> list[list[int]]:
    """Return the batches with a short last one evened out with its neighbour, so that ranks can share both."""
    if len(batches) < 2 or len(batches[-1]) == len(batches[-2]):
        return batches
    both = batches[-2] + batches[-1]
    middle = (len(both) + 1) // 2
    return [*batches[:-2], both[:middle], both[middle:]]


def _by_budget(order: list[int], sampler: BatchSampler) -> list[list[int]]:
    """Return consecutive batches whose padded positions stay within the token budget."""
    batches: list[list[int]] = []
    filling = _Filling(sampler)
    for i in order:
        if filling.rows and filling.with_row(i).positions() > (sampler.config.tokens or 0):
            batches.append(filling.rows)
            filling = _Filling(sampler)
        filling = filling.with_row(i)
    return [*batches, filling.rows]


@dataclass(frozen=True)
class _Filling:
    """A batch being filled, and the widest row in it so far."""

    sampler: BatchSampler
    rows: list[int] = field(default_factory=list)
    sources: frozenset[Any] = frozenset()
    source_len: int = 0
    target_len: int = 0
    total_len: int = 0

    def with_row(self, i: int) -> "_Filling":
        sampler = self.sampler
        source, target = sampler.source_lens[i], sampler.target_lens[i]
        return _Filling(
            sampler,
            [*self.rows, i],
            self.sources | {sampler.sources[i]} if sampler.config.per_source is not None else self.sources,
            max(self.source_len, source),
            max(self.target_len, target),
            max(self.total_len, source + target),
        )

    def positions(self) -> int:
        """Return the token positions of the padded batch; sources that are kept together count once."""
        if self.sampler.config.per_source is None:
            return len(self.rows) * self.total_len
        return len(self.sources) * self.source_len + len(self.rows) * self.target_len


def _shareable(batches: list[list[int]], world: int) -> list[list[int]]:
    """Return the batches with each too small for `world` ranks merged into the one before it."""
    if sum(map(len, batches)) < world:
        raise DataError(f"{sum(map(len, batches))} rows cannot be shared by {world} processes; use fewer processes")
    merged: list[list[int]] = []
    for batch in batches:
        if merged and min(len(batch), len(merged[-1])) < world:
            merged[-1] = merged[-1] + batch
        else:
            merged.append(batch)
    return merged


def _part(batch: list[int], rank: int, world: int) -> list[int]:
    return batch[len(batch) * rank // world : len(batch) * (rank + 1) // world]


def share_sources(examples: Sequence[Example]) -> list[list[int]]:
    """Return runs of neighbouring examples with the same source, as index lists: what can be computed once."""
    runs: list[list[int]] = []
    for i, example in enumerate(examples):
        if i and examples[i - 1].source_ids == example.source_ids:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def collate(
    examples: Sequence[Example],
    pad_id: int,
    side: Literal["left", "right"] = "right",
    is_encoder_decoder: bool = False,
) -> dict[str, torch.Tensor]:
    """Return `input_ids`, `attention_mask` and `labels`, all int64, padded on `side`.

    For a decoder all three are [B, T]; labels stand at their own token's position (the shift is the loss's business)
    and are -100 on sources and padding. For an encoder-decoder the first two are the source's [B, T_source] and the
    labels the target's [B, T_target], always padded on the right, where the decoder needs it.
    """
    if side not in ("left", "right"):
        raise ConfigError(f"padding side {side!r} is neither 'left' nor 'right'")
    if is_encoder_decoder:
        inputs = [example.source_ids for example in examples]
        labels = pad([example.target_ids for example in examples], IGNORE, "right")
    else:
        inputs = [example.source_ids + example.target_ids for example in examples]
        labels = pad([(IGNORE,) * len(e.source_ids) + e.target_ids for e in examples], IGNORE, side)
    mask = pad([(1,) * len(row) for row in inputs], 0, side)
    return {"input_ids": pad(inputs, pad_id, side), "attention_mask": mask, "labels": labels}


def pad(rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"]) -> torch.Tensor:
    """Return rows of different lengths as one int64 tensor [B, T], filled with `value` on `side`."""
    width = max(len(row) for row in rows)
    fill = [[value] * (width - len(row)) for row in rows]
    left = side == "left"
    return torch.tensor([[*f, *row] if left else [*row, *f] for f, row in zip(fill, rows, strict=True)])
