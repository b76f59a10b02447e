"""Training a projector: by distance to prompts that the target already has, through its frozen task loss, or by both.

Su et al. 2022: distance minimising needs prompts of the same tasks on both models; task tuning needs the source tasks'
data and the target model, and can be applied to tasks whose target prompt nobody has trained.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foreword.backbone import Backbone
from foreword.compose.activations import StateMaps
from foreword.compose.least_squares import LinearMap, fit_linear
from foreword.compose.projector import EMBEDDING, LayersMap, Projector, TokenMap, check_takes, project
from foreword.data.examples import Example
from foreword.errors import ConfigError, PromptError, TrainingError, nearest
from foreword.prompts.batch import Row
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.train.loss import target_loss

LossOf = Callable[[], Tensor]

Pair = tuple[SoftPrompt, SoftPrompt]
"""One task's prompt on the source and on the target."""


@dataclass(frozen=True)
class FitConfig:
    """How a projector is trained.

    Attributes:
        steps: optimiser steps.
        lr: AdamW's learning rate, 5e-3 in Su et al.'s first code (0.1 in their second).
        eps: AdamW's epsilon (1e-6 there).
        rows: examples of each task in a step, for the task loss.
        distance: weight of the squared distance beside the task loss, where the target's prompts are given too.
        clip: largest gradient norm; 0 never clips.
    """

    steps: int = 500
    lr: float = 5e-3
    eps: float = 1e-6
    rows: int = 8
    distance: float = 1.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"fit.{name} = {getattr(self, name)!r} must be at least 1")
        if not self.lr > 0 or self.distance < 0 or self.clip < 0:
            raise ConfigError(f"fit.lr = {self.lr!r} must be positive, distance and clip not negative")


def solve_projector(projector: Projector, found: LinearMap | StateMaps) -> None:
    """Give a linear projector the weights of a least-squares map, to use as it is or to start training from.

    Args:
        projector: of kind `token` without activation, or `layers`.
        found: an embedding map (`recycle.embedding_map`, `fit_pairs`) or maps of states (`activations.fit_states`).

    Raises:
        PromptError: the projector is not of the map's form.
    """
    for part in projector.parts.values():
        if isinstance(part, TokenMap) and isinstance(part.activation, nn.Identity) and isinstance(found, LinearMap):
            part.set(found)
        elif isinstance(part, LayersMap) and isinstance(found, StateMaps):
            part.set(found.maps)
        else:
            raise PromptError(f"a projector of kind {projector.spec.kind!r} cannot take a {type(found).__name__}")


def fit_pairs(pairs: Sequence[Pair], *, ridge: float = 0.0, intercept: bool = False) -> LinearMap:
    """Return the token-wise map nearest to all pairs of prompts, in closed form.

    Raises:
        ConfigError: no pair.
        PromptError: a pair is not of kind `prompt`, or of two lengths.
    """
    _check_pairs(pairs)
    if any(p.spec.kind != "prompt" for pair in pairs for p in pair):
        raise PromptError("the closed form is for prompts of input embeddings; train a projector for prefixes")
    with torch.no_grad():
        mine, theirs = (torch.cat([pair[side].table(EMBEDDING).cpu() for pair in pairs]) for side in (0, 1))
    return fit_linear(mine, theirs, ridge=ridge, intercept=intercept)


def fit_distance(projector: Projector, pairs: Sequence[Pair], config: FitConfig | None = None) -> list[float]:
    """Train a projector to make each pair's target prompt from its source prompt; return the loss of every step.

    Raises:
        ConfigError: no pair.
        PromptError: a pair of two lengths.
        TrainingError: the loss is not finite.
    """
    _check_pairs(pairs)
    config = config or FitConfig()
    return _train(projector, config, lambda: squared_distance(projector, pairs))


def fit_task(
    projector: Projector,
    prompts: Mapping[str, SoftPrompt],
    target: Backbone,
    data: Mapping[str, Sequence[Example]],
    generator: torch.Generator,
    config: FitConfig | None = None,
    *,
    pairs: Sequence[Pair] = (),
    tail: int = 0,
) -> list[float]:
    """Train a projector through the frozen target's loss on the source tasks; return the loss of every step.

    Every step sees rows of every task in one pass, each behind its own projected prompt; tasks count alike.

    Args:
        projector: changed in place.
        prompts: the source's, by task.
        target: the frozen model.
        data: tokenised for the target, by task.
        generator: CPU generator that draws the rows.
        config: how; None takes the defaults.
        pairs: prompts that the target has, for the distance term.
        tail: of the text format (`data.examples.TextFormat.tail`).

    Raises:
        ConfigError: no task, or a task without data.
        TrainingError: the loss is not finite.
    """
    config = config or FitConfig()
    if not prompts:
        raise ConfigError("no prompt to train the projector on; give at least one")
    for task in prompts:
        if not data.get(task):
            raise ConfigError(f"task {task!r} has a prompt but no examples{nearest(task, data)}")
    if pairs:
        _check_pairs(pairs)

    def loss() -> Tensor:
        found = task_loss(projector, prompts, target, data, generator, config.rows, tail)
        return found + config.distance * squared_distance(projector, pairs) if pairs else found

    return _train(projector, config, loss)


def squared_distance(projector: Projector, pairs: Sequence[Pair]) -> Tensor:
    """Return the mean squared difference of projected and target tables over all pairs."""
    terms = []
    for source, target in pairs:
        check_takes(projector, source)
        device = next(projector.parameters()).device
        made = projector({name: source.table(name).detach().to(device) for name in projector.parts})
        if any(made[name].shape != target.table(name).shape for name in made):
            raise PromptError("a target prompt covers other layers than the projector makes; give one of all layers")
        terms += [(made[name] - target.table(name).detach().to(device)).square().mean() for name in made]
    return torch.stack(terms).mean()


def task_loss(
    projector: Projector,
    prompts: Mapping[str, SoftPrompt],
    target: Backbone,
    data: Mapping[str, Sequence[Example]],
    generator: torch.Generator,
    count: int,
    tail: int = 0,
) -> Tensor:
    """Return the mean over tasks of the loss a target token on `count` drawn rows of each."""
    rows: list[Row] = []
    given: list[SoftPrompt] = []
    for task, prompt in prompts.items():
        drawn = torch.randint(len(data[task]), (count,), generator=generator).tolist()
        rows += [Row(data[task][i].source_ids, (data[task][i].target_ids,), tail) for i in drawn]
        given += [project(projector, prompt, target)] * count
    found = target_loss(target, rows, given)
    sums = found.per_target.view(len(prompts), count).sum(1)
    return (sums / found.tokens_per_target.view(len(prompts), count).sum(1)).mean()


def _train(projector: Projector, config: FitConfig, loss: LossOf) -> list[float]:
    """Run AdamW on a loss of the projector."""
    parameters = list(projector.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=config.lr, eps=config.eps, weight_decay=0.0)
    losses = []
    for step in range(1, config.steps + 1):
        optimiser.zero_grad()
        found = loss()
        found.backward()
        losses.append(float(found.detach()))
        if not torch.isfinite(found):
            raise TrainingError(f"projector step {step}: loss = {losses[-1]}; lower fit.lr = {config.lr}")
        if config.clip:
            nn.utils.clip_grad_norm_(parameters, config.clip)
        optimiser.step()
    optimiser.zero_grad()
    return losses


def _check_pairs(pairs: Sequence[Pair]) -> None:
    if not pairs:
        raise ConfigError("no pair of prompts to learn a distance from; give at least one task's on both models")
    for source, target in pairs:
        if source.spec.kind != target.spec.kind or source.length != target.length:
            raise PromptError(
                f"a {source.spec.kind} of {source.length} and a {target.spec.kind} of {target.length} are no pair; "
                "train both alike"
            )
