"""Scores of the dev split while a run trains: what a job is handed where a score decides its best step."""

from collections.abc import Sequence
from typing import Any

from foreword.backbone import Backbone
from foreword.baselines.autoprompt.trigger import METHOD as AUTOPROMPT
from foreword.errors import ConfigError, nearest
from foreword.evaluate.runner import evaluate_outputs
from foreword.evaluate.subject import Subject
from foreword.tasks import Task, get_task
from foreword.tasks.scores import LOWER_IS_BETTER, score_names
from foreword.train.dev import Evaluator
from foreword.train.run_config import RunConfig


def dev_evaluator(config: RunConfig) -> Evaluator | None:
    """Return a function that scores the dev split by generation, or None where the run needs none: it has no dev
    evaluations, its dev loss decides, or it searches trigger words, which are judged by a score of their own.

    Raises:
        ConfigError: `dev.metric` is no score of the task.
        DataError: the dev split cannot be loaded.
    """
    if not config.dev.every or config.dev.metric == "loss" or config.method == AUTOPROMPT:
        return None
    task, data = get_task(config.task), config.data
    check_dev_metric(config, task)
    records = task.load(data.dev_split, data.dev_limit)
    sources = [record.source for record in records]

    def scores(backbone: Backbone, prompt: Any, step: int) -> dict[str, float]:
        subject = Subject("dev", backbone, prompt, data.format, data.max_source or task.max_source, data.words)
        outputs = subject.outputs(sources, task.generation)
        return evaluate_outputs(task, records, outputs, data.dev_split, resamples=0).metrics

    return scores


def check_dev_metric(config: RunConfig, task: Task) -> None:
    """Raise unless a run's `dev.metric` can choose its best step: said before it trains.

    Raises:
        ConfigError: it is no score of the task, or one that is best when least.
    """
    wanted = config.dev.metric
    if not config.dev.every or wanted == "loss":
        return
    known = ["accuracy"] if config.method == AUTOPROMPT else score_names(task.metrics)
    if wanted not in known:
        why = nearest(wanted, ["loss", *known])
        raise ConfigError(f"dev.metric = {wanted!r} is no score of task {task.name!r}{why}")
    if wanted in LOWER_IS_BETTER:
        raise ConfigError(f"dev.metric = {wanted!r} is best when least, and the greatest score is kept; take another")


def gang_evaluator(configs: Sequence[RunConfig]) -> Evaluator | None:
    """Return the one evaluator of all members of a gang, or None where they differ in what they are judged on."""
    judged = {repr((config.task, config.data, config.dev.metric)) for config in configs}
    return dev_evaluator(configs[0]) if len(judged) == 1 else None
