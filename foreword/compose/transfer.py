"""Transfer across tasks: every prompt on every task without training, and what a start from another prompt saves."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.data.examples import get_format, tokenise
from foreword.data.records import Record
from foreword.errors import ConfigError, DataError
from foreword.evaluate.runner import evaluate_outputs, sample
from foreword.evaluate.subject import Subject
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.shapes import Float
from foreword.tasks.task import Task
from foreword.train.dev import dev_loss
from foreword.train.parallel import World
from foreword.train.record import METRICS

CURVE_SHARE = 0.99
"""A run has converged when it has made this share of all its progress."""


@dataclass(frozen=True)
class ZeroShot:
    """What one prompt does on one task without training on it.

    Attributes:
        loss: nats per target token.
        score: the task's first metric on generated texts; None where nothing was generated or it cannot be computed.
        metric: that metric's name.
    """

    loss: float
    score: float | None = None
    metric: str = ""


@dataclass(frozen=True)
class _Given:
    """A prompt, or none, for every row: what a loss over a data set needs of a learner."""

    prompt: SoftPrompt | None

    def prompts(self, count: int) -> Sequence[SoftPrompt | None]:
        return [self.prompt] * count


@torch.no_grad()
def zero_shot(
    backbone: Backbone,
    prompt: SoftPrompt | None,
    task: Task,
    records: Sequence[Record],
    *,
    generated: int | None = 0,
    tokens: int = 4096,
    batch_size: int = 32,
) -> ZeroShot:
    """Return the loss and the score of a prompt on a task's records.

    Args:
        backbone: the frozen model.
        prompt: learned on any task; None for the backbone alone.
        task: whose metric and limits count; decoding is greedy, so that a matrix of tasks is affordable.
        records: of one of its splits.
        generated: generate for this many records (the first ones); 0 for the loss alone, None for all.
        tokens: most token positions of one pass of the loss.
        batch_size: rows generated at once.
    """
    if generated is not None and generated < 0:
        raise ConfigError(f"generated = {generated} must not be negative; 0 gives the loss alone")
    form = get_format(None if prompt is None else prompt.format, backbone.is_encoder_decoder)
    examples = tokenise(records, backbone.tokenizer, form, task.max_source, task.max_target).examples
    training = prompt is not None and prompt.training
    if prompt is not None:
        prompt.eval()
    try:
        loss = dev_loss(backbone, _Given(prompt), examples, tokens, World(), form.tail)
        chosen = list(records if generated is None else records[:generated])
        if not chosen:
            return ZeroShot(loss)
        limits = dataclasses.replace(task.generation, num_beams=1)
        subject = Subject("zero-shot", backbone, prompt, form.name, task.max_source)
        outputs = subject.outputs([record.source for record in chosen], limits, batch_size)
    finally:
        if prompt is not None:
            prompt.train(training)
    first = dataclasses.replace(task, metrics=task.metrics[:1])
    metrics = evaluate_outputs(first, chosen, outputs, resamples=0).metrics
    name = next(iter(metrics), "")
    return ZeroShot(loss, metrics.get(name), name)


@dataclass(frozen=True)
class TransferMatrix:
    """Every source prompt on every target task.

    Attributes:
        sources: names of the prompts, `untouched` (no prompt) last.
        targets: names of the tasks.
        cells: by source, by target.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    cells: dict[str, dict[str, ZeroShot]]

    def losses(self) -> Float[Tensor, "N M"]:
        """Return the losses of all sources but `untouched`, a row a source."""
        return torch.tensor(
            [[self.cells[s][t].loss for t in self.targets] for s in self.sources if s != UNTOUCHED], dtype=torch.float64
        )

    def relative(self) -> Float[Tensor, "N N"]:
        """Return which share of what a task's own prompt gains over the backbone alone each source's prompt gains.

        (untouched - source) / (untouched - own) in loss: 1 on the diagonal, 0 for no help, negative for harm. Su et
        al. divide scores; a share of a loss is defined where label words differ and every score is 0. NaN where a
        task's own prompt gains nothing.

        Raises:
            ConfigError: the sources are not named as the targets, so that there is no diagonal.
        """
        if self.sources[:-1] != self.targets:
            raise ConfigError(f"sources {self.sources[:-1]} must be the targets {self.targets}, in their order")
        floor = torch.tensor([self.cells[UNTOUCHED][t].loss for t in self.targets], dtype=torch.float64)
        losses = self.losses()
        gain = floor - losses.diagonal()
        return torch.where(gain > 0, (floor - losses) / gain, torch.nan)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "TransferMatrix":
        """Return the matrix that `to_dict` described."""
        cells = {s: {t: ZeroShot(**cell) for t, cell in row.items()} for s, row in tree["cells"].items()}
        return cls(tuple(tree["sources"]), tuple(tree["targets"]), cells)


UNTOUCHED = "untouched"


def zero_shot_matrix(
    backbone: Backbone,
    prompts: Mapping[str, SoftPrompt],
    tasks: Mapping[str, Task],
    *,
    split: str = "dev",
    limit: int | None = 200,
    generated: int | None = 0,
    seed: int = 0,
) -> TransferMatrix:
    """Return every prompt, and no prompt, on every task.

    Args:
        backbone: the frozen model.
        prompts: by name.
        tasks: by name.
        split: of the tasks.
        limit: records of each task, drawn by `seed`; None takes all.
        generated: records to generate for and score, as in `zero_shot`.
        seed: of the drawing.
    """
    if UNTOUCHED in prompts:
        raise ConfigError(f"a prompt is called {UNTOUCHED!r}, which stands for no prompt; rename it")
    sources: dict[str, SoftPrompt | None] = {**prompts, UNTOUCHED: None}
    records = {name: sample(task.load(split), limit, seed) for name, task in tasks.items()}
    cells = {
        source: {
            name: zero_shot(backbone, prompt, task, records[name], generated=generated) for name, task in tasks.items()
        }
        for source, prompt in sources.items()
    }
    return TransferMatrix(tuple(sources), tuple(tasks), cells)


@dataclass(frozen=True)
class Curve:
    """A run's dev figure by step; `lower_is_better` for a loss."""

    steps: tuple[int, ...]
    values: tuple[float, ...]
    lower_is_better: bool = True

    @property
    def best(self) -> float:
        """The best value of the run."""
        return (min if self.lower_is_better else max)(self.values)

    def steps_to(self, goal: float) -> float:
        """Return the steps after which the run is first at least as good as `goal`, interpolated; inf if never."""
        sign = 1 if self.lower_is_better else -1
        before: tuple[float, float] | None = None
        for step, value in zip(self.steps, self.values, strict=True):
            if sign * value <= sign * goal:
                if before is None:
                    return float(step)
                return before[0] + (before[1] - goal) / (before[1] - value) * (step - before[0])
            before = (step, value)
        return math.inf

    def converged(self, share: float = CURVE_SHARE) -> float:
        """Return the steps after which the run has made `share` of its progress from its first to its best value."""
        return self.steps_to(self.values[0] + share * (self.best - self.values[0]))


def read_curve(run_dir: str | Path, metric: str = "loss", start: float | None = None) -> Curve:
    """Return the dev curve of a run directory.

    Args:
        run_dir: of `foreword train` with `dev.every` set.
        metric: `loss`, or a score of the run's evaluator (then greater is better).
        start: the value before the first step, which runs do not record.

    Raises:
        DataError: the run has no such dev figure.
    """
    path = Path(run_dir) / METRICS
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    points = [(row["step"], row[f"dev_{metric}"]) for row in rows if f"dev_{metric}" in row]
    if not points:
        raise DataError(f"{str(run_dir)!r} has no dev_{metric}; train with dev.every > 0")
    points = points if start is None else [(0, start), *points]
    return Curve(tuple(step for step, _ in points), tuple(value for _, value in points), metric == "loss")


@dataclass(frozen=True)
class SpeedUp:
    """What a start saved (Su et al.'s two ratios, greater than 1 where the start helped).

    Attributes:
        convergence: steps until the plain run converged / steps until the started run did, each to its own best.
        comparable: steps until the plain run converged / steps until the started run was as good as it then was; 0
            where it never was, inf where it was before its first step.
        steps_saved: the same as a difference; -inf where it never was.
    """

    convergence: float
    comparable: float
    steps_saved: float


def speed_up(plain: Curve, started: Curve, share: float = CURVE_SHARE) -> SpeedUp:
    """Return what a start saved against a plain run.

    Args:
        plain: curve of the run from the plain initialisation.
        started: curve of the run from another prompt, on the same data.
        share: of the progress that counts as converged.
    """
    needed = plain.converged(share)
    goal = plain.values[0] + share * (plain.best - plain.values[0])
    reached = started.steps_to(goal)
    own = started.converged(share)
    return SpeedUp(_ratio(needed, own), _ratio(needed, reached), needed - reached)


def _ratio(plain: float, started: float) -> float:
    return math.inf if started == 0 else plain / started
