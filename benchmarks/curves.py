"""Learning curves of short prefix runs on the real E2E set: dev loss against rows and against processor seconds."""

import time
from dataclasses import asdict, dataclass

import torch

from foreword.backbone import Backbone
from foreword.data.examples import Example, get_format, tokenise
from foreword.tasks import get_task
from foreword.train.dev import dev_loss
from foreword.train.learner import PromptLearner
from foreword.train.parallel import World
from foreword.train.run_config import Recipe, resolve_recipe
from foreword.train.step import Trainee, train_step


@dataclass(frozen=True)
class Point:
    """One evaluation: rows seen, seconds of training until then (evaluations not counted), dev loss in nats a token."""

    step: int
    rows: int
    seconds: float
    dev_loss: float


@dataclass(frozen=True)
class Curve:
    """One run's evaluations, its initialisation's fit error, and the seconds that the initialisation took."""

    name: str
    seed: int
    init_error: float
    init_seconds: float
    points: list[Point]

    @property
    def least(self) -> float:
        """Return the least dev loss."""
        return min(point.dev_loss for point in self.points)

    def seconds_to(self, loss: float) -> float:
        """Return the training seconds after which the dev loss is first at most `loss`, interpolated; inf if never."""
        for before, after in zip(self.points, self.points[1:], strict=False):
            if after.dev_loss <= loss:
                part = (before.dev_loss - loss) / (before.dev_loss - after.dev_loss)
                return before.seconds + max(0.0, part) * (after.seconds - before.seconds)
        return float("inf")

    def to_dict(self) -> dict:
        """Return everything as JSON takes it."""
        return asdict(self)


def e2e_rows(backbone: Backbone, dev_sources: int) -> tuple[list[Example], list[Example]]:
    """Return the training rows, and the dev rows of the first `dev_sources` meaning representations."""
    form, task = get_format(None, backbone.is_encoder_decoder), get_task("e2e")
    train, dev = task.load("train"), task.load("dev", dev_sources)
    return tuple(tokenise(records, backbone.tokenizer, form).examples for records in (train, dev))


def run_curve(
    name: str, backbone: Backbone, rows: tuple[list[Example], list[Example]], recipe: Recipe, every: int
) -> Curve:
    """Train `recipe.steps` steps and return the curve, evaluated at step 0 and every `every` steps.

    On a CPU the seconds are this process's processor time, which neighbours on the machine do not inflate.
    """
    recipe, world = resolve_recipe(recipe), World()
    clock = time.process_time if backbone.device.type == "cpu" else _gpu_clock
    started = clock()
    learner, report = PromptLearner.fresh(
        recipe.prompt, backbone, recipe.seed, [e.source_ids + e.target_ids for e in rows[0]]
    )
    init_seconds = clock() - started
    trainee = Trainee(learner, rows[0], recipe, world)
    points, seconds, seen = [], 0.0, 0
    while True:
        if trainee.step % every == 0:
            learner.training(False)
            points.append(Point(trainee.step, seen, seconds, dev_loss(backbone, learner, rows[1], 4096, world)))
            learner.training(True)
            print(f"{name:28} seed {recipe.seed} {points[-1]}", flush=True)
        if trainee.step >= recipe.steps:
            return Curve(name, recipe.seed, report.error, init_seconds, points)
        started = clock()
        (step,) = train_step(backbone, [trainee], world)
        seconds, seen = seconds + clock() - started, seen + step.num_targets


def _gpu_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()
