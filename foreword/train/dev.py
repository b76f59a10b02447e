"""Evaluation during training: the dev loss, the job's own scores, and whether this step is the best so far."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from foreword.backbone import Backbone
from foreword.data.batches import BatchConfig, BatchSampler
from foreword.data.examples import Example
from foreword.errors import ConfigError, nearest
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.train.learner import Learner
from foreword.train.loss import target_loss
from foreword.train.parallel import World
from foreword.train.run_config import DevConfig
from foreword.train.step import make_pass

Evaluator = Callable[[Backbone, SoftPrompt | None, int], dict[str, float]]
"""From (backbone, prompt or None, step) to named scores; handed to a job, which never imports `evaluate`."""


@dataclass
class Best:
    """The best step so far.

    Attributes:
        step: 0 before the first evaluation.
        value: the deciding metric there.
        name: what RunRecord finds its parameters by.
        since: evaluations without a new best.
    """

    step: int = 0
    value: float | None = None
    name: str | None = None
    since: int = 0

    def state(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        return asdict(self)

    def judge(self, step: int, scores: dict[str, float], config: DevConfig) -> bool:
        """Return whether `scores` are the best so far, and remember them if they are.

        A value that is not finite is worse than any that is; the first of all is kept until then, so that a run always
        has a best step.

        Raises:
            ConfigError: `dev.metric` is none of the scores.
        """
        if config.metric not in scores:
            raise ConfigError(f"dev.metric = {config.metric!r} is not among the scores{nearest(config.metric, scores)}")
        value = scores[config.metric]
        if self.value is None or not math.isfinite(self.value):
            better = self.value is None or math.isfinite(value)
        else:  # no comparison with NaN is true
            better = math.isfinite(value) and (value < self.value if config.metric == "loss" else value > self.value)
        if better:
            self.step, self.value, self.since = step, value, 0
        else:
            self.since += 1
        return better


@torch.no_grad()
def dev_loss(
    backbone: Backbone, learner: Learner, examples: Sequence[Example], tokens: int, world: World, tail: int = 0
) -> float:
    """Return the mean loss of a target token over all examples, in nats; targets of one source share it.

    Args:
        backbone: the frozen model.
        learner: what is being trained.
        examples: the dev rows.
        tokens: most token positions of one pass.
        world: the processes that share the work.
        tail: ids at each source's end that come after a suffix or infix.
    """
    tokens = max(tokens, *(len(example) for example in examples))
    share = world if len(examples) >= world.size else World()
    config = BatchConfig(tokens=tokens, shuffle=False, per_source=0)
    total, count = 0.0, 0
    for batch in BatchSampler.of(examples, config, rank=share.rank, world=share.size):
        rows = make_pass(examples, batch, True, tail).rows
        loss = target_loss(backbone, rows, learner.prompts(len(rows)))
        total = total + loss.sum.double()
        count += loss.num_tokens
    return share.mean(total, count)


def evaluate_step(
    backbone: Backbone,
    learner: Learner,
    examples: Sequence[Example],
    config: DevConfig,
    world: World,
    step: int,
    evaluator: Evaluator | None = None,
    tail: int = 0,
) -> dict[str, float]:
    """Return the scores of one step: `loss` if there are dev rows, and whatever the evaluator gives.

    Dropout is off meanwhile, and the random numbers of training are as if nothing had been evaluated.
    """
    random = learner.random_state()
    learner.training(False)
    try:
        scores = {"loss": dev_loss(backbone, learner, examples, config.tokens, world, tail)} if examples else {}
        if evaluator is not None:
            with torch.no_grad():
                scores |= evaluator(backbone, learner.prompt, step)
    finally:
        learner.training(True)
        learner.load_random_state(random)
    return {name: world.same(float(value)) for name, value in scores.items()}
