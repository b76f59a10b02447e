"""A run that searches trigger words (AutoPrompt): the same run directory, resumption and dev evaluation as training.

One step is one iteration of the search. `steps`, `dev`, `checkpoint`, `track` and `seed` mean what they mean elsewhere;
the sizes of batches are the spec's own, and nothing is optimised by gradient descent.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foreword.backbone import Backbone, load_backbone
from foreword.baselines.autoprompt.labels import search_labels
from foreword.baselines.autoprompt.masked import is_masked, load_masked
from foreword.baselines.autoprompt.reader import Reader, TriggerExample
from foreword.baselines.autoprompt.rows import RowMaker, giveaways, label_names
from foreword.baselines.autoprompt.search import Figures, Flip, Search, measure
from foreword.baselines.autoprompt.spec import AutoPromptSpec
from foreword.baselines.autoprompt.trigger import Trigger, make_writer, named
from foreword.baselines.autoprompt.words import allowed_tokens, first_trigger, label_ids
from foreword.config import to_dict
from foreword.data.records import digest
from foreword.errors import BackboneError, ConfigError, TrainingError
from foreword.tasks import get_task
from foreword.train.dev import Best, Evaluator
from foreword.train.parallel import World
from foreword.train.progress import Display
from foreword.train.record import ARTIFACT, Checkpoint, RunRecord, read_latest, usage
from foreword.train.run import TrainResult
from foreword.train.run_config import BackboneConfig, RunConfig
from foreword.train.track import open_sinks

STATE_FIELDS = ("labels", "best", "idle", "evaluations", "stopped", "final_loss", "data", "backbone")
"""What the state of a checkpoint holds; see `TriggerRun._save`."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that a search starts from.

    Attributes:
        search: model, rows and constants.
        dev: rows of the dev evaluations.
        first: the trigger words before the first iteration.
        found: what the words will be kept as; its ids are the first ones.
        digest: of the training records.
    """

    search: Search
    dev: Sequence[TriggerExample]
    first: tuple[int, ...]
    found: Trigger
    digest: str

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        return self.search.reader.backbone

    def summary(self) -> str:
        """Return a line on what the search starts from."""
        words = self.found.text(self.backbone.tokenizer)
        labels = named(self.found.labels, self.backbone.tokenizer)
        return f"{int(self.search.allowed.sum()):,} candidate words; {words!r}" + (f"; {labels}" if labels else "")


def load_readable(config: BackboneConfig) -> Backbone:
    """Return the configured model: decoder-only, encoder-decoder, or masked where its config says so.

    Raises:
        BackboneError: it cannot be loaded; or a masked model in 4 or 8 bits.
    """
    chosen = dataclasses.asdict(config)
    source, quantization = chosen.pop("source"), chosen.pop("quantization")
    options = {name: chosen[name] for name in ("revision", "trust_remote_code")}
    if not is_masked(source, **options):
        return load_backbone(source, quantization=quantization, **chosen)
    if quantization is not None:
        raise BackboneError(f"backbone.quantization = {quantization!r} is not for masked models; leave it out")
    return load_masked(source, **chosen)


def prepare(config: RunConfig, backbone: Backbone, labels: dict[str, tuple[int, ...]] | None = None) -> Prepared:
    """Return rows, allowed words, label words and the first trigger of a run.

    Args:
        config: resolved.
        backbone: as configured.
        labels: label words that were found before; None finds them.

    Raises:
        DataError: the task, a split or a record is missing or malformed.
        ConfigError: labels, words or template do not fit the task or the backbone.
    """
    task, wanted, spec = get_task(config.task), config.data, config.autoprompt
    max_source, max_target = wanted.limits(task.max_source, task.max_target)
    writer = make_writer(backbone, spec.template, wanted.format, max_source)
    names = label_names(spec, task.labels)
    maker = RowMaker(backbone, writer, names, max_target)
    records = task.load("train", wanted.limit)
    rows = maker.rows(records)
    dev = maker.rows(task.load(wanted.dev_split, wanted.dev_limit)) if config.dev.every else []
    known = giveaways(rows, few=bool(task.labels) or writer.form is None)
    if labels is None:
        labels = _label_words(config, backbone, rows, names, known, writer.template.slots)
    reader = Reader(backbone, labels)
    search = Search(reader, rows, spec, _allowed(backbone, spec, known, labels), config.seed)
    first = first_trigger(backbone.tokenizer, spec, writer.template.slots, search.allowed)
    form = None if writer.form is None else writer.form.name
    found = Trigger(writer.template.text, first, labels, form, writer.max_source)
    return Prepared(search, dev, first, found, digest(records))


def _allowed(backbone: Backbone, spec: AutoPromptSpec, known: set[int], labels: dict[str, tuple[int, ...]]) -> Any:
    vocabulary = backbone.model.get_input_embeddings().weight.shape[0]
    given = known.union(*labels.values()) if labels else known
    return allowed_tokens(backbone.tokenizer, vocabulary, spec, given)


def _label_words(
    config: RunConfig, backbone: Backbone, rows: Sequence[TriggerExample], names: tuple[str, ...], known: set[int],
    slots: int,
) -> dict[str, tuple[int, ...]]:
    """Return the label words: the given ones, those that a probe finds, or none."""
    spec = config.autoprompt
    if spec.labels is not None:
        given = label_ids(backbone.tokenizer, spec.labels)
        return {name: given[name] for name in names}
    if spec.label_search is None:
        return {}
    allowed = _allowed(backbone, spec, known, {})
    trigger = first_trigger(backbone.tokenizer, spec, slots, allowed)
    return search_labels(Reader(backbone), rows, names, trigger, spec.label_search, allowed, config.seed)


def run_trigger_search(
    config: RunConfig, world: World, evaluator: Evaluator | None = None, progress: bool | None = None
) -> TrainResult:
    """Search trigger words as configured, going on from the newest checkpoint of the run directory if there is one.

    Args:
        config: resolved, with method `autoprompt`, its run directory made.
        world: this process alone.
        evaluator: none; a search is judged by loss or accuracy.
        progress: as in `train`.

    Raises:
        ForewordError: as `prepare`; or what the run was started with has changed.
    """
    refuse_unused(config)
    if world.size > 1 or evaluator is not None:
        raise ConfigError("method 'autoprompt' runs in one process and takes no evaluator; start it alone")
    checkpoint = read_latest(config.run_dir, STATE_FIELDS)
    backbone = load_readable(config.backbone)
    labels = _saved_labels(checkpoint)
    run = TriggerRun(config, prepare(config, backbone, labels), checkpoint)
    with Display(config.title, config.steps, progress) as display:
        try:
            run.open(display)
            while not run.done:
                run.step()
            return run.finish()
        finally:
            run.close()


def _saved_labels(checkpoint: Checkpoint | None) -> dict[str, tuple[int, ...]] | None:
    return checkpoint and {label: tuple(ids) for label, ids in checkpoint.state["labels"].items()}


class TriggerRun:
    """One search while it lasts: iterations, dev evaluations, checkpoints, the end."""

    def __init__(self, config: RunConfig, prepared: Prepared, checkpoint: Checkpoint | None = None) -> None:
        """Start at the first trigger, or where a checkpoint was.

        Raises:
            TrainingError: data or backbone are not what the checkpoint's run was started with.
        """
        self.config, self.prepared, self.checkpoint = config, prepared, checkpoint
        self.trigger = self.best_trigger = self.judged = prepared.first
        self.iteration, self.idle, self.evaluations = 0, 0, 0
        self.best, self.stopped, self.final_loss = Best(), False, math.nan
        self.record: RunRecord | None = None
        self.sinks: list[Any] = []
        if checkpoint is not None:
            self._restore(checkpoint)

    @property
    def done(self) -> bool:
        """Whether no iteration is left."""
        return self.stopped or self.iteration >= self.config.steps

    def open(self, display: Display) -> None:
        """Open what is written to, and look at the first trigger on the dev rows."""
        self.display, self.started = display, time.monotonic()
        directory = Path(self.config.run_dir)
        self.record = RunRecord(directory, self.config.checkpoint.keep)
        self.record.go_back_to(self.checkpoint)
        self.sinks = open_sinks(directory, self.config, self.iteration)
        display.say(f"going on from step {self.iteration}" if self.iteration else self.prepared.summary())
        if self.checkpoint is None and self.prepared.dev:
            self._evaluate()

    def step(self) -> None:
        """Do one iteration, and evaluate and save where due."""
        self.iteration += 1
        flip = self.prepared.search.step(self.trigger, self.iteration)
        self.trigger, self.final_loss = flip.trigger, flip.after.loss
        self.evaluations += flip.evaluations
        self.idle = 0 if flip.accepted else self.idle + 1
        self._write(self.iteration, self._row(flip))
        self.display.update(self.iteration, self.final_loss, flip.evaluations)
        if not math.isfinite(self.final_loss):
            raise TrainingError(f"step {self.iteration}: loss = {self.final_loss}; set backbone.dtype to float32")
        config = self.config
        stall = config.autoprompt.stall
        self.stopped = stall is not None and self.idle >= stall
        # A trigger that has not changed since the last evaluation is not evaluated again (RECIPES 4).
        if config.dev.every and (self.iteration % config.dev.every == 0 or self.done) and self.trigger != self.judged:
            self._evaluate()
        if self.done or (config.checkpoint.every and self.iteration % config.checkpoint.every == 0):
            self._save()

    def finish(self) -> TrainResult:
        """Write the artefact of the best trigger on the dev rows, or of the last one, and return the result."""
        chosen = self.best_trigger if self.config.dev.every else self.trigger
        found = dataclasses.replace(self.prepared.found, ids=chosen)
        recipe = {key: value for key, value in to_dict(self.config).items() if key != "run_dir"}
        scores = {"train_loss": self.final_loss, "evaluations": self.evaluations}
        if self.best.value is not None:
            scores |= {f"dev_{self.config.dev.metric}": self.best.value, "best_step": self.best.step}
        facts = {"recipe": recipe, "scores": scores, "data_digest": self.prepared.digest}
        run_dir = Path(self.config.run_dir)
        artifact = found.save(run_dir / ARTIFACT, self.prepared.backbone, self.config.autoprompt, **facts)
        self.display.say(f"found {found.text(self.prepared.backbone.tokenizer)!r}")
        seconds = time.monotonic() - self.started
        self.record.times(usage(self.iteration, seconds, 0, self.prepared.backbone.device))
        best_step = self.best.step if self.config.dev.every else self.iteration
        return TrainResult(
            run_dir, artifact, self.iteration, self.final_loss, self.best.value, best_step, None, seconds
        )

    def close(self) -> None:
        """Close every file."""
        for sink in self.sinks:
            sink.close()
        if self.record is not None:
            self.record.close()

    def _row(self, flip: Flip) -> dict[str, Any]:
        row = {"loss": flip.after.loss, "candidate_loss": flip.best.loss}
        if flip.after.accuracy is not None:
            row |= {"accuracy": flip.after.accuracy, "candidate_accuracy": flip.best.accuracy}
        return row | {
            "slot": flip.slot, "candidate": flip.token, "accepted": int(flip.accepted), "evaluations": self.evaluations
        }

    def _write(self, step: int, row: dict[str, Any]) -> None:
        self.record.metrics({"step": step, **row})
        self.record.flush()
        self.record.times({"step": step, "seconds": round(time.monotonic() - self.started, 3)})
        for sink in self.sinks:
            sink.log(step, {f"train/{name}": value for name, value in row.items()})

    def _evaluate(self) -> None:
        search, config = self.prepared.search, self.config.dev
        found = measure(search.reader, self.prepared.dev, self.trigger, search.spec.rows)
        scores = _scores(found)
        if self.best.judge(self.iteration, scores, config):
            self.best_trigger = self.trigger
        self.judged = self.trigger
        self._write(self.iteration, {f"dev_{name}": value for name, value in scores.items()})
        if config.patience is not None and self.best.since >= config.patience:
            self.stopped = True
        figures = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        words = dataclasses.replace(self.prepared.found, ids=self.trigger).text(self.prepared.backbone.tokenizer)
        self.display.say(f"dev at step {self.iteration}: {figures}; {words!r}")

    def _save(self) -> None:
        """Write a checkpoint of this iteration."""
        tensors = {name: torch.tensor(getattr(self, name)) for name in ("trigger", "best_trigger", "judged")}
        state = {
            "labels": self.prepared.found.labels,
            "best": self.best.state(),
            "idle": self.idle,
            "evaluations": self.evaluations,
            "stopped": self.stopped,
            "final_loss": self.final_loss,
            "data": self.prepared.digest,
            "backbone": self.prepared.backbone.fingerprint,
        }
        self.record.save(self.iteration, tensors, state)

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        now = {"data": self.prepared.digest, "backbone": self.prepared.backbone.fingerprint}
        for name in ("data", "backbone"):
            if state[name] != now[name]:
                raise TrainingError(f"the {name} is not what this run was started with; restore it, or start a new one")
        for name in ("trigger", "best_trigger", "judged"):
            setattr(self, name, tuple(checkpoint.tensors[name].tolist()))
        self.iteration, self.idle, self.evaluations = state["step"], state["idle"], state["evaluations"]
        self.best, self.stopped, self.final_loss = Best(**state["best"]), state["stopped"], state["final_loss"]


def _scores(figures: Figures) -> dict[str, float]:
    return {name: value for name, value in dataclasses.asdict(figures).items() if value is not None}


def refuse_unused(config: RunConfig) -> None:
    """Raise where a field is set that a search does not read, so that nothing is left out in silence.

    Raises:
        ConfigError: names the field.
    """
    plain = RunConfig(task=config.task)
    for name in ("optim", "schedule", "batch", "loss", "epochs", "shard", "prompt"):
        if getattr(config, name) != getattr(plain, name):
            raise ConfigError(f"{name} is set, but method 'autoprompt' does not read it; see the fields of autoprompt")
    if config.data.words:
        raise ConfigError("data.words does not go with method 'autoprompt'; put the words into autoprompt.template")
