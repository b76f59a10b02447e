"""One learner's run while it lasts: what surrounds its steps. Looks, evaluations, checkpoints, the end."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from foreword.backbone import Backbone
from foreword.baselines.methods import make_baseline
from foreword.config import to_dict
from foreword.data.examples import Example, TextFormat
from foreword.data.records import Record
from foreword.errors import ConfigError, DataError, TrainingError, nearest
from foreword.prompts.batch import check_tokens
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.train.dev import Best, Evaluator, evaluate_step
from foreword.train.learner import Learner, PromptLearner
from foreword.train.parallel import World
from foreword.train.progress import Display
from foreword.train.record import ARTIFACT, Checkpoint, RunRecord, read_best, read_latest, usage
from foreword.train.run_config import Recipe
from foreword.train.step import StepReport, Trainee
from foreword.train.track import Sink, open_sinks

STATE_FIELDS = ("optimiser_steps", "sampler", "best", "stopped", "final_loss", "data", "backbone")
"""What the state of a checkpoint holds; see `Run._save`."""


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What a run came to.

    Attributes:
        run_dir: where everything was written; None for a run kept in memory.
        artifact_dir: the saved prompt or model; None in memory.
        steps: optimiser steps taken.
        final_loss: normalised training loss of the last step.
        best_dev: the deciding dev metric at the best step; None without evaluations.
        best_step: the step whose parameters were saved.
        prompt: the trained prompt; None for the other methods.
        seconds: wall-clock of this process's part, loading not included.
    """

    run_dir: Path | None
    artifact_dir: Path | None
    steps: int
    final_loss: float
    best_dev: float | None
    best_step: int
    prompt: SoftPrompt | None
    seconds: float


@dataclass(frozen=True, eq=False)
class TrainData:
    """The tokenised rows of a run, their text format, the training records and their digest, the task's labels."""

    train: Sequence[Example]
    dev: Sequence[Example] = ()
    form: TextFormat | None = None
    digest: str = ""
    records: Sequence[Record] = ()
    labels: tuple[str, ...] = ()

    @property
    def tail(self) -> int:
        """How many ids at each source's end are the separator, which comes after a suffix or infix."""
        return 0 if self.form is None else self.form.tail


def make_learner(recipe: Recipe, backbone: Backbone, data: TrainData) -> tuple[Learner, str]:
    """Return a fresh learner of the recipe's method, and a line on how it was initialised."""
    if recipe.method != "prompt":
        spec = getattr(recipe, recipe.method)
        return make_baseline(recipe.method, spec, backbone, recipe.seed, data.records, data.labels)
    texts = [example.source_ids + example.target_ids for example in data.train]
    learner, report = PromptLearner.fresh(recipe.prompt, backbone, recipe.seed, texts)
    learner.prompt.format = data.form.name if data.form is not None else None
    return learner, f"init {report.name}: {report.detail} (fit error {report.error:.2g})"


def check_dev(recipe: Recipe, data: TrainData, evaluator: Evaluator | None) -> None:
    """Raise where the dev evaluations could not decide anything: said now, not at the first of them.

    Raises:
        ConfigError: `dev.metric` is a score that nobody computes.
    """
    if recipe.dev.every and evaluator is None and (recipe.dev.metric != "loss" or not data.dev):
        known = ["loss"] if data.dev else []
        why = nearest(recipe.dev.metric, known) if known else "; there are no dev rows, give some or set dev.every to 0"
        raise ConfigError(f"dev.metric = {recipe.dev.metric!r} is not among the scores{why}")


def check_rows(recipe: Recipe, backbone: Backbone, data: TrainData) -> None:
    """Raise where a row cannot fit the backbone's positions or embeddings: said before the first step.

    Raises:
        DataError: it names the record that is too long, and what shortens it.
        PromptError: it names the record with a token that the backbone lacks.
    """
    for row in (*data.train, *data.dev):
        check_tokens(backbone, row.source_ids + row.target_ids, f"record {row.record_id!r}")
    limit = backbone.geometry.max_positions
    soft, inline = (recipe.prompt.length, recipe.prompt.kind != "prefix") if recipe.method == "prompt" else (0, False)
    if limit is None or recipe.method == "written" or soft >= limit:  # `make_prompt` refuses that length itself
        return
    for split, rows in (("train", data.train), ("dev", data.dev)):
        for number, row in enumerate(rows):
            source, target = len(row.source_ids), len(row.target_ids)
            total = max(source + inline * soft, target) if backbone.is_encoder_decoder else soft + source + target - 1
            if total > limit:
                raise DataError(
                    f"record {row.record_id or f'#{number}'} of {split}: prompt and text take {total} positions, the "
                    f"backbone has {limit}; set data.max_source (this source has {source} tokens, its target {target})"
                )


@dataclass(eq=False)
class Run:
    """One learner's run: what surrounds its steps. Kept in memory where `run_dir` is None.

    Attributes:
        recipe: resolved.
        backbone: the frozen model.
        data: its rows.
        world: the processes that share each step; the first one writes.
        run_dir: an existing run directory, or None.
        evaluator: scores for dev evaluations.
    """

    recipe: Recipe
    backbone: Backbone
    data: TrainData
    world: World
    run_dir: Path | None = None
    evaluator: Evaluator | None = None
    best: Best = field(default_factory=Best)
    stopped: bool = False

    def __post_init__(self) -> None:
        check_dev(self.recipe, self.data, self.evaluator)
        check_rows(self.recipe, self.backbone, self.data)
        self.learner, self.init_line = make_learner(self.recipe, self.backbone, self.data)
        self.trainee = Trainee(self.learner, self.data.train, self.recipe, self.world, self.data.tail)
        self.world.share(self.trainee.parameters)
        self.record: RunRecord | None = None
        self.sinks: list[Sink] = []
        self.pending: list[StepReport] = []
        self.final_loss = math.nan
        self._best_in_memory: dict[str, torch.Tensor] = {}
        self._saved_step = 0

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        return self.stopped or self.trainee.step >= self.trainee.total

    def open(self, display: Display) -> None:
        """Go to the newest checkpoint if there is one, and open what is written to."""
        self.display, self.started = display, time.monotonic()
        if self.run_dir is not None:
            checkpoint = read_latest(self.run_dir, STATE_FIELDS)
            self._restore(checkpoint)
            self.world.wait()  # nobody writes before everybody has read
            if self.world.is_first:
                self.record = RunRecord(self.run_dir, self.recipe.checkpoint.keep)
                self.record.go_back_to(checkpoint)
                self.record.times({"step": self.trainee.step, "seconds": 0.0, "tokens": 0})  # a process starts
                self.sinks = open_sinks(self.run_dir, self.recipe, self.trainee.step)
        self._say(f"going on from step {self.trainee.step}" if self.trainee.step else self.init_line)

    def after_step(self, report: StepReport) -> None:
        """Look at the loss, evaluate and save, each when it is due."""
        self.pending.append(report)
        step, recipe = report.step, self.recipe
        evaluate = bool(recipe.dev.every) and (step % recipe.dev.every == 0 or step == self.trainee.total)
        save = bool(recipe.checkpoint.every) and step % recipe.checkpoint.every == 0
        if step % recipe.log_every == 0 or evaluate or save or self.done:
            self._look()
        if evaluate:
            self._evaluate()
        if save or self.done:
            self._save()

    def finish(self) -> TrainResult:
        """Take the best step's parameters, write the artefact, and return the result."""
        if self.best.name is not None:
            self._load_parameters(self._best_parameters())
        artifact = None
        if self.record is not None:
            recipe = {key: value for key, value in to_dict(self.recipe).items() if key != "run_dir"}
            facts = {"recipe": recipe, "scores": self._scores(), "data_digest": self.data.digest}
            artifact = self.learner.save(self.run_dir / ARTIFACT, **facts)
            trained = sum(parameter.numel() for parameter in self.trainee.parameters.values())
            seconds = time.monotonic() - self.started
            self.record.times(usage(self.trainee.step, seconds, trained, self.backbone.device))
        self.learner.training(False)
        self.world.wait()
        steps = self.trainee.step
        prompt, best_step = self.learner.prompt, self.best.step or steps
        seconds = time.monotonic() - self.started
        return TrainResult(self.run_dir, artifact, steps, self.final_loss, self.best.value, best_step, prompt, seconds)

    def close(self) -> None:
        """Close every file."""
        for sink in self.sinks:
            sink.close()
        if self.record is not None:
            self.record.close()

    def _scores(self) -> dict[str, float]:
        scores = {"train_loss": self.final_loss}
        if self.best.step:
            scores |= {f"dev_{self.recipe.dev.metric}": self.best.value, "best_step": self.best.step}
        return scores

    def _look(self) -> None:
        """Fetch the figures of the steps since the last look, in one transfer, check them and write them down."""
        if not self.pending:
            return
        figures = torch.stack([torch.stack([r.loss.float(), r.grad_norm.float()]) for r in self.pending]).tolist()
        for report, (loss, norm) in zip(self.pending, figures, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._refuse(report, loss, norm)
            self.final_loss = loss
            row = {"loss": loss, "lr": report.lr, "tokens": report.num_tokens, "grad_norm": norm}
            self._write(report.step, row)
        tokens = sum(report.num_tokens for report in self.pending)
        self.display.update(self.pending[-1].step, self.final_loss, tokens)
        if self.record is not None:
            seconds = time.monotonic() - self.started
            self.record.flush()
            self.record.times({"step": self.pending[-1].step, "seconds": round(seconds, 3), "tokens": tokens})
        self.pending.clear()

    def _write(self, step: int, row: dict[str, float], prefix: str = "train/") -> None:
        if self.record is not None:
            self.record.metrics({"step": step, **row})
        for sink in self.sinks:
            sink.log(step, {f"{prefix}{name}": value for name, value in row.items()})

    def _refuse(self, report: StepReport, loss: float, norm: float) -> None:
        """Raise over a step whose loss or gradient is not finite, naming its rows."""
        bad = (~torch.isfinite(report.per_target)).tolist()
        rows = [example for example, is_bad in zip(report.examples, bad, strict=True) if is_bad] or report.examples
        names = ", ".join(self.data.train[i].record_id or f"#{i}" for i in rows[:8])
        last = self.record.last_checkpoint() if self.record is not None else "none"
        raise TrainingError(
            f"step {report.step}: loss = {loss} and gradient norm = {norm} on rows {names}; last good checkpoint: "
            f"{last}; lower optim.lr = {self.recipe.optim.lr}, or look at those rows"
        )

    def _evaluate(self) -> None:
        step, config = self.trainee.step, self.recipe.dev
        scores = evaluate_step(
            self.backbone, self.learner, self.data.dev, config, self.world, step, self.evaluator, self.data.tail
        )
        better = self.best.judge(step, scores, config)
        if better:
            self._keep_best(step)
        self._write(step, {f"dev_{name}": value for name, value in scores.items()}, prefix="")
        self.stopped = config.patience is not None and self.best.since >= config.patience
        figures = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self._say(f"dev at step {step}: {figures}{' (best)' if better else ''}")

    def _say(self, line: str) -> None:
        """Show a line, with the member's name in a gang."""
        alone = self.display.title == self.recipe.title
        self.display.say(line if alone or self.run_dir is None else f"{self.run_dir.name}: {line}")

    def _keep_best(self, step: int) -> None:
        if self.run_dir is None:
            self._best_in_memory = {name: p.detach().clone() for name, p in self.trainee.parameters.items()}
            self.best.name = "memory"
            return
        self.best.name = f"best-{step:08d}"
        if self.record is not None:
            self.record.save_best(step, self.trainee.parameters)

    def _best_parameters(self) -> dict[str, torch.Tensor]:
        if self.run_dir is None:
            return self._best_in_memory
        self.world.wait()
        return read_best(self.run_dir, self.best.name)

    def _load_parameters(self, values: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.trainee.parameters.items():
                parameter.copy_(values[name])

    def _save(self) -> None:
        """Write a checkpoint of this step."""
        if self.record is None or self._saved_step == self.trainee.step:
            return
        moments, taken = self.trainee.optimiser.state()
        groups = {"learner": self.trainee.parameters, "optim": moments, "random": self.learner.random_state()}
        tensors = {f"{group}.{name}": t for group, named in groups.items() for name, t in named.items()}
        state = {
            "optimiser_steps": taken,
            "sampler": self.trainee.sampler.state_dict(),
            "best": self.best.state(),
            "stopped": self.stopped,
            "final_loss": self.final_loss,
            "data": self.data.digest,
            "backbone": self.backbone.fingerprint,  # read before anything was changed
        }
        self.record.save(self.trainee.step, tensors, state)
        self._saved_step = self.trainee.step

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        """Put everything where the checkpoint has it."""
        if checkpoint is None:
            return
        state = checkpoint.state
        _check_same("training data", state["data"], self.data.digest)
        if state["backbone"]:  # runs of older versions have none for fine-tuning
            _check_same("backbone", state["backbone"], self.backbone.fingerprint)
        groups: dict[str, dict[str, torch.Tensor]] = {"learner": {}, "optim": {}, "random": {}}
        for full, tensor in checkpoint.tensors.items():
            group, _, name = full.partition(".")
            groups[group][name] = tensor
        self._load_parameters(groups["learner"])
        self.trainee.optimiser.load(groups["optim"], state["optimiser_steps"])
        self.trainee.sampler.load_state_dict(state["sampler"])
        self.trainee.step = self._saved_step = state["step"]
        self.learner.load_random_state(groups["random"])
        self.best, self.stopped, self.final_loss = Best(**state["best"]), state["stopped"], state["final_loss"]


def _check_same(what: str, saved: object, now: object) -> None:
    if saved != now:
        raise TrainingError(f"the {what} is not what this run was started with; restore it, or start a new run_dir")
