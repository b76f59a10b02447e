"""One optimiser step: draw rows, run passes, divide the summed loss once, clip, move.

A step takes any number of trainees over one frozen model. Each has its own data order, normaliser, optimiser and
schedule, so that a gang of N is N runs that happen to share their forward passes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.data.batches import BatchSampler
from foreword.data.examples import Example
from foreword.errors import TrainingError
from foreword.prompts.batch import Row
from foreword.shapes import Float
from foreword.train.learner import Learner
from foreword.train.loss import target_loss
from foreword.train.optim import clip_gradients, make_optimiser
from foreword.train.parallel import World
from foreword.train.run_config import Recipe


@dataclass(frozen=True, eq=False)
class Pass:
    """The rows of one forward pass of one trainee, and the example that each of their targets is."""

    rows: list[Row]
    examples: list[int]
    num_tokens: int


@dataclass(frozen=True, eq=False)
class StepReport:
    """What one step did; tensors stay on the device until somebody looks.

    Attributes:
        step: number of the step, from 1.
        loss: the normalised loss.
        per_target: [R] summed loss of each target of this process.
        examples: the example of each target.
        grad_norm: before clipping.
        lr: learning rate of the step.
        num_tokens: target tokens, over all processes.
        num_targets: targets, over all processes.
    """

    step: int
    loss: Float[Tensor, ""]
    per_target: Float[Tensor, " R"]
    examples: list[int]
    grad_norm: Float[Tensor, ""]
    lr: float
    num_tokens: int
    num_targets: int


class Trainee:
    """One learner in training: its examples in their order, its optimiser, its place in time."""

    def __init__(
        self, learner: Learner, examples: Sequence[Example], recipe: Recipe, world: World, tail: int = 0
    ) -> None:
        """Start at step 0.

        Args:
            learner: what trains.
            examples: the training rows.
            recipe: resolved (`resolve_recipe`).
            world: the processes that share each step.
            tail: ids at the end of each source that come after a suffix or infix (the separator).
        """
        self.learner = learner
        self.examples = examples
        self.recipe = recipe
        self.tail = tail
        self.parameters = learner.parameters()
        # A written prompt has nothing to train: its run is over before the first step.
        self.optimiser = make_optimiser(self.parameters, recipe.optim) if self.parameters else None
        config = recipe.batch.sampling()
        self.sampler = BatchSampler.of(examples, config, seed=recipe.seed, rank=world.rank, world=world.size)
        self.total = (recipe.steps or self._steps_of_epochs(recipe.epochs)) if self.parameters else 0
        self.step = 0
        self.checked = False
        self._batches = _endless(self.sampler)

    def draw(self) -> list[Pass]:
        """Return the passes of the next step."""
        batches = [next(self._batches) for _ in range(self.recipe.batch.accumulation)]
        return [make_pass(self.examples, batch, self.recipe.batch.share_sources, self.tail) for batch in batches]

    def finish_step(self, norm: Tensor) -> float:
        """Move the parameters by their gradients and return the learning rate that was used."""
        lr = self.recipe.optim.lr * self.recipe.schedule.factor(self.step, self.total)
        self.optimiser.step(lr)
        self.step += 1
        return lr

    def check_gradients(self) -> None:
        """Raise if a tensor of the prompt gets no gradient: it would stay as it was drawn, in silence.

        Among a model's own weights some may be unused, and an adapter or LoRA starts with one of its two factors at
        zero, so that the other gets a zero gradient at the first step: there, only all tensors together must move.

        Raises:
            TrainingError: it names the tensor.
        """
        silent = [name for name, p in self.parameters.items() if p.grad is None or not p.grad.any()]
        if silent and (self.learner.is_prompt or len(silent) == len(self.parameters)):
            kind = "no" if self.parameters[silent[0]].grad is None else "a zero"
            raise TrainingError(
                f"step {self.step + 1}: tensor {silent[0]!r} got {kind} gradient, so it cannot learn; run "
                "`foreword doctor`, or choose other prompt.stacks or init"
            )
        self.checked = True

    def _steps_of_epochs(self, epochs: float) -> int:
        whole = int(epochs)
        batches = sum(len(self.sampler.plan(epoch)) for epoch in range(whole))
        batches += round((epochs - whole) * len(self.sampler.plan(whole))) if epochs > whole else 0
        return max(1, batches // self.recipe.batch.accumulation)


def train_step(backbone: Backbone, trainees: Sequence[Trainee], world: World) -> list[StepReport]:
    """Take one step with every trainee and return their reports in order.

    Raises:
        TrainingError: at its first step, a prompt tensor has no gradient.
    """
    drawn = [trainee.draw() for trainee in trainees]
    counts = world.sum_counts(
        [[sum(p.num_tokens for p in passes), sum(len(p.examples) for p in passes)] for passes in drawn]
    )
    norms = [
        tokens if t.recipe.loss == "token" else targets for t, (tokens, targets) in zip(trainees, counts, strict=True)
    ]
    losses: list[list[Tensor]] = [[] for _ in trainees]
    for number in range(max(map(len, drawn))):
        members = [i for i, passes in enumerate(drawn) if number < len(passes)]
        _run_pass(backbone, [(trainees[i], drawn[i][number], norms[i], losses[i]) for i in members])
    reports = []
    for trainee, passes, parts, norm, (tokens, targets) in zip(trainees, drawn, losses, norms, counts, strict=True):
        per_target = torch.cat(parts)
        loss = world.sum_gradients(trainee.parameters, per_target.sum() / norm)
        if not trainee.checked:
            trainee.check_gradients()
        grad_norm = clip_gradients(trainee.parameters, trainee.recipe.optim)
        lr = trainee.finish_step(grad_norm)
        examples = [example for p in passes for example in p.examples]
        reports.append(StepReport(trainee.step, loss, per_target, examples, grad_norm, lr, tokens, targets))
    return reports


def _run_pass(backbone: Backbone, members: list[tuple[Trainee, Pass, int, list[Tensor]]]) -> None:
    """Run one forward and backward pass for all members, leaving each one's losses by target in its list."""
    rows = [row for _, part, _, _ in members for row in part.rows]
    prompts = [prompt for trainee, part, _, _ in members for prompt in trainee.learner.prompts(len(part.rows))]
    per_target = target_loss(backbone, rows, prompts).per_target
    sizes = [len(part.examples) for _, part, _, _ in members]
    pieces = per_target.split(sizes)
    objective = sum(piece.sum() / norm for piece, (_, _, norm, _) in zip(pieces, members, strict=True))
    objective.backward()
    for piece, (_, _, _, losses) in zip(pieces, members, strict=True):
        losses.append(piece.detach())


def make_pass(examples: Sequence[Example], indices: Sequence[int], share: bool, tail: int) -> Pass:
    """Return the rows of some examples; those with equal sources become one row if `share`."""
    groups: dict[object, list[int]] = {}
    for index in indices:
        groups.setdefault(examples[index].source_ids if share else index, []).append(index)
    rows = [Row(examples[g[0]].source_ids, tuple(examples[i].target_ids for i in g), tail) for g in groups.values()]
    order = [i for group in groups.values() for i in group]
    return Pass(rows, order, sum(len(examples[i].target_ids) for i in order))


def _endless(sampler: BatchSampler) -> Iterator[list[int]]:
    while True:
        yield from sampler
