"""The configuration of one training run, composed of the dataclasses that live beside the code they configure."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from foreword.backbone import bundled_backbones
from foreword.baselines.adapter import AdapterSpec
from foreword.baselines.autoprompt.spec import ITERATIONS, AutoPromptSpec
from foreword.baselines.fine_tune import FineTuneSpec
from foreword.baselines.lora import LoraSpec
from foreword.baselines.top_layers import TopLayersSpec
from foreword.baselines.written import WrittenSpec
from foreword.config import build, check_seed, load_yaml, to_dict
from foreword.data.batches import BatchConfig
from foreword.errors import ConfigError
from foreword.prompts.spec import PromptSpec
from foreword.train.optim import OptimConfig, ScheduleConfig, default_lr

R = TypeVar("R", bound="Recipe")


@dataclass(frozen=True)
class BackboneConfig:
    """Which frozen model, and how it is held; `source` None takes the first bundled one."""

    source: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str | None = None
    quantization: Literal["4bit", "8bit"] | None = None
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class DataConfig:
    """Which records, and how they become tokens.

    Attributes:
        limit: at most the first `limit` training records.
        dev_limit: at most the first `dev_limit` dev records.
        dev_split: the split that early stopping looks at.
        format: text format (foreword.data.examples.FORMATS); None takes the backbone's default.
        max_source, max_target: truncation in tokens; None takes the task's.
        words: text that stands before every source, for methods without a soft prompt: a written prompt's words, and
            the same words for what it is compared with (a soft prompt has them in `prompt.init.text`).
    """

    limit: int | None = None
    dev_limit: int | None = None
    dev_split: str = "dev"
    format: str | None = None
    max_source: int | None = None
    max_target: int | None = None
    words: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("dev_limit", 1), ("max_source", 1), ("max_target", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"data.{name} = {value!r} must be at least {least}; leave it out for no limit")

    def limits(self, max_source: int | None, max_target: int | None) -> tuple[int | None, int | None]:
        """Return the truncation of sources and targets: as set here, else the task's."""
        chosen = (self.max_source, max_source), (self.max_target, max_target)
        source, target = (theirs if own is None else own for own, theirs in chosen)
        return source, target


@dataclass(frozen=True)
class TrainBatch:
    """What one step sees: `accumulation` batches of `rows` rows or of at most `tokens` positions.

    Attributes:
        rows: rows of one pass; 10 where neither `rows` nor `tokens` is given.
        tokens: most token positions of one pass, padding included.
        accumulation: passes per step.
        shuffle: new order each epoch.
        window: batches' worth of rows that are sorted by length together; 1 does not sort.
        share_sources: keep up to `per_source` targets of one source in the same pass and compute the source once.
        per_source: how many; 0 keeps all of them together.
    """

    rows: int | None = None
    tokens: int | None = None
    accumulation: int = 1
    shuffle: bool = True
    window: int = 1
    share_sources: bool = False
    per_source: int = 8

    def __post_init__(self) -> None:
        if self.accumulation < 1:
            raise ConfigError(f"batch.accumulation = {self.accumulation!r} must be at least 1")
        self.sampling()

    def sampling(self) -> BatchConfig:
        """Return what the sampler needs to know."""
        rows = 10 if self.rows is None and self.tokens is None else self.rows
        per_source = self.per_source if self.share_sources else None
        return BatchConfig(rows, self.tokens, self.shuffle, self.window, per_source)


@dataclass(frozen=True)
class DevConfig:
    """Evaluation during training.

    Attributes:
        every: steps between evaluations; 0 for none.
        metric: what decides the best step: `loss` (least), or a score of the job's evaluator (greatest).
        patience: stop after this many evaluations in a row without a new best; None goes on to the end.
        tokens: most token positions of one evaluation pass.
    """

    every: int = 0
    metric: str = "loss"
    patience: int | None = None
    tokens: int = 4096

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ConfigError(f"dev.every = {self.every!r} must not be negative; 0 means never")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"dev.patience = {self.patience!r} must be at least 1; leave it out to go on to the end")


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints: one every `every` steps (0: only the last), of which the newest `keep` stay."""

    every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        if self.every < 0 or self.keep < 1:
            raise ConfigError(
                f"checkpoint.every = {self.every!r} must be at least 0 and keep = {self.keep!r} at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How something is learned, whatever the data and the backbone.

    Attributes:
        method: `prompt` trains a soft prompt; `fine_tune` every weight of the backbone, `top_layers` its last blocks,
            `adapter` a bottleneck behind each block, `lora` PEFT's low-rank updates; `written` trains nothing;
            `autoprompt` searches written words (it reads no optimiser, schedule, batch or epochs).
        prompt: the soft prompt's form.
        fine_tune, top_layers, adapter, lora, written, autoprompt: options of the other methods.
        loss: `token` divides the step's summed loss by its target tokens; `sequence_sum` by its targets (Li & Liang).
        steps: optimiser steps; or
        epochs: passes over the data (5 where neither is given).
        log_every: steps between looks at the loss (each makes a GPU wait); every step's figures are kept all the same.
        track: where curves go: `tensorboard`, `wandb`, `mlflow`.
        shard: split the frozen weights over the processes of a data-parallel run (FSDP2).
        seed: of the initialisation, the data order and all dropout.
    """

    method: Literal["prompt", "fine_tune", "top_layers", "adapter", "lora", "written", "autoprompt"] = "prompt"
    prompt: PromptSpec = field(default_factory=PromptSpec)
    fine_tune: FineTuneSpec = field(default_factory=FineTuneSpec)
    top_layers: TopLayersSpec = field(default_factory=TopLayersSpec)
    adapter: AdapterSpec = field(default_factory=AdapterSpec)
    lora: LoraSpec = field(default_factory=LoraSpec)
    written: WrittenSpec = field(default_factory=WrittenSpec)
    autoprompt: AutoPromptSpec = field(default_factory=AutoPromptSpec)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch: TrainBatch = field(default_factory=TrainBatch)
    loss: Literal["token", "sequence_sum"] = "token"
    steps: int | None = None
    epochs: float | None = None
    dev: DevConfig = field(default_factory=DevConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log_every: int = 10
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    shard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ConfigError(f"steps = {self.steps} and epochs = {self.epochs} are both given; give one of them")
        for name in ("steps", "epochs", "log_every"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} = {value!r} must be positive")
        check_seed(self.seed)
        if self.method != "prompt" and self.shard:
            raise ConfigError(f"shard = true splits frozen weights; it does not go with method {self.method!r}")

    @property
    def title(self) -> str:
        """A short name: the method, and a soft prompt's kind and length."""
        if self.method == "prompt":
            return f"{self.prompt.kind}{self.prompt.length}"
        return getattr(self, self.method).title


@dataclass(frozen=True, kw_only=True)
class RunConfig(Recipe):
    """One training run: a recipe, a backbone, a task and a run directory.

    Attributes:
        task: a name in foreword.tasks.TASKS, or the path of a task's YAML file.
        run_dir: where everything is written; None makes `runs/<task>-<what>-seed<seed>`.
    """

    task: str
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    run_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == "prompt" and self.data.words:
            raise ConfigError(
                f"data.words = {self.data.words!r} is for methods without a soft prompt; put the words into the prompt "
                "by prompt.init.name = 'words' (or 'activations') and prompt.init.text"
            )


def resolve_recipe(recipe: R) -> R:
    """Return the recipe with every default that depends on other fields filled in."""
    if recipe.method == "autoprompt":  # no optimiser: its iterations are its steps (RECIPES 4)
        given = recipe.steps is not None or recipe.epochs is not None
        return recipe if given else dataclasses.replace(recipe, steps=ITERATIONS)
    lr = recipe.optim.lr
    if lr is None:
        lr = default_lr(recipe.optim.name, recipe.method, recipe.prompt.kind, recipe.prompt.reparam)
    epochs = 5.0 if recipe.steps is None and recipe.epochs is None else recipe.epochs
    return dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, lr=lr), epochs=epochs)


def resolve(config: RunConfig) -> RunConfig:
    """Return the whole configuration as it will be written: nothing left to be decided later.

    Raises:
        ConfigError: no backbone is named and none is bundled.
    """
    config = resolve_recipe(config)
    source = config.backbone.source or next(iter(bundled_backbones()), None)
    if source is None:
        raise ConfigError("backbone.source is not given and no backbone is bundled; give a directory or a hub id")
    run_dir = config.run_dir or f"runs/{Path(config.task).stem}-{config.title}-seed{config.seed}"
    return dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, source=source), run_dir=run_dir)


def load_config(path: str | Path) -> RunConfig:
    """Return the configuration in a YAML file."""
    return build(RunConfig, load_yaml(path))


def differences(saved: Recipe, wanted: Recipe) -> list[str]:
    """Return one phrase for each field in which two configurations differ, dotted names first."""
    old, new = _flat(to_dict(saved)), _flat(to_dict(wanted))
    return [
        f"{key} was {old.get(key)!r} and is now {new.get(key)!r}" for key in old | new if old.get(key) != new.get(key)
    ]


def _flat(tree: dict[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{where}{key}.") if isinstance(value, dict) else {f"{where}{key}": value}
    return flat
