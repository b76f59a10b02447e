"""One evaluation, readable top to bottom: what a run or a saved prompt scores, beside the untouched backbone."""

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from foreword.backbone import Backbone
from foreword.config import check_seed
from foreword.errors import ConfigError
from foreword.evaluate.metrics import check_metrics
from foreword.evaluate.runner import Forgetting, Scores, check_forgetting, write_scores
from foreword.evaluate.runner import evaluate as score_generator
from foreword.evaluate.subject import Subject, Tell, load_subjects, read_run, text_loss, unrelated_texts
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.tasks import get_task
from foreword.tasks.task import Task


@dataclass(frozen=True)
class Evaluation:
    """The outcome of one evaluation.

    Attributes:
        source: what was evaluated.
        scores: by name: the untouched backbone's (where it was asked for), then the subject's.
        predictions: by name: id, source, targets and prediction of each record.
        forgetting: loss on unrelated text without the prompt, before and after.
    """

    source: str
    scores: dict[str, Scores]
    predictions: dict[str, list[dict[str, object]]] = field(repr=False)
    forgetting: Forgetting

    @property
    def subject(self) -> str:
        """The name of what was evaluated, a key of `scores`."""
        return list(self.scores)[-1]

    def write(self, folder: str | Path) -> Path:
        """Write the subject's `scores.json` and `predictions.jsonl` to a folder and return the former's path."""
        mine = self.scores[self.subject]
        forgetting = {**asdict(self.forgetting), "unchanged": self.forgetting.unchanged}
        others = {name: asdict(scores) for name, scores in self.scores.items() if name != self.subject}
        extra = {"subject": self.subject, "forgetting": forgetting, "others": others}
        return write_scores(folder, mine, self.predictions[self.subject], extra)


def evaluate(
    source: str | Path | SoftPrompt,
    task: str | Task | None = None,
    *,
    backbone: str | Path | Backbone | None = None,
    split: str = "test",
    limit: int | None = None,
    untouched: bool = True,
    batch_size: int = 32,
    resamples: int = 1000,
    seed: int = 0,
    tell: Tell | None = None,
) -> Evaluation:
    """Return the scores of a run directory, a saved prompt or a prompt in memory on one split of a task.

    Args:
        source: a run directory of `foreword train`, the directory or hub id of a prompt, or a prompt.
        task: a task, its name or its YAML file; None takes the one that the run was trained on.
        backbone: what the prompt runs on; None takes the one it was learned on.
        split: of the task.
        limit: score this many records, drawn by `seed`.
        untouched: also score the backbone without the prompt, on the same input.
        batch_size: rows generated at once.
        resamples: of the bootstrap intervals; 0 leaves them out.
        seed: of the sampling of records and of the bootstrap.
        tell: called with the subject's name, the texts done and their total.

    Raises:
        ConfigError: the task, the backbone or a metric of the task is not known, or a number is out of range.
        DataError: the task or its split cannot be loaded.
        ArtifactError: nothing can be loaded from `source`.
        PromptError: the prompt does not belong to the backbone.
    """
    check_seed(seed)
    for name, value, least in (("batch_size", batch_size, 1), ("resamples", resamples, 0)):
        if value < least:
            raise ConfigError(f"{name} = {value!r} must be at least {least}")
    task = _task(task, source)
    check_metrics(task.metrics)
    task.load(split, 1)  # a missing file is said before a model is loaded
    plain, subject = (_cut_as_trained(one, task) for one in load_subjects(source, backbone))
    texts = unrelated_texts()
    before = text_loss(plain.backbone, texts)

    scores, predictions = {}, {}
    for which in [plain, subject] if untouched else [subject]:
        generate = partial(which.outputs, limits=task.generation, batch_size=batch_size, tell=tell)
        scores[which.name], predictions[which.name] = score_generator(generate, task, split, limit, seed, resamples)

    forgetting = check_forgetting(lambda _: before, lambda given: text_loss(subject.backbone, given), texts)
    name = str(source) if isinstance(source, str | Path) else subject.name
    return Evaluation(name, scores, predictions, forgetting)


def _cut_as_trained(subject: Subject, task: Task) -> Subject:
    """Return the subject with the task's truncation where it has none of its own, as training does it."""
    return subject if subject.max_source is not None else replace(subject, max_source=task.max_source)


def _task(task: str | Task | None, source: object) -> Task:
    """Return the task that was asked for, or the run's own."""
    if isinstance(task, Task):
        return task
    run = read_run(source)
    if task is None and run is None:
        raise ConfigError(f"task is not given and {str(source)!r} is no run directory that knows one; give --task")
    return get_task(task or run.task)
