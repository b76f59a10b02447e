"""One training run, from a config to a run directory: read it from the top.

    train(config)        write the config · load backbone, data and learner · step until done · write the artefact
    resume(run_dir)      the same from the newest checkpoint, to the same last bit
    train_prompt(...)    the same for a backbone and examples that are already in memory

A run directory holds `config.yaml`, `metrics.jsonl` (one row a step, no clock), `times.jsonl`, `checkpoints/`,
`artifact/` (the prompt, or the fine-tuned model) and whatever trackers write.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from foreword.backbone import Backbone, load_backbone
from foreword.data.examples import Example, TextFormat, get_format, tokenise
from foreword.data.records import Record, add_words, digest
from foreword.errors import DataError, ForewordError
from foreword.prompts.spec import PromptSpec
from foreword.tasks import get_task
from foreword.train.dev import Evaluator
from foreword.train.parallel import World, join_world, shard_weights
from foreword.train.progress import Display
from foreword.train.record import RunRecord, discard_unstarted, read_config
from foreword.train.run import Run, TrainData, TrainResult
from foreword.train.run_config import Recipe, RunConfig, resolve, resolve_recipe
from foreword.train.step import train_step
from foreword.train.trigger_run import run_trigger_search


def train(config: RunConfig, *, evaluator: Evaluator | None = None, progress: bool | None = None) -> TrainResult:
    """Train as configured and return the result; everything is in its run directory.

    Args:
        config: the run.
        evaluator: scores of a step for the dev evaluations, beside the dev loss.
        progress: True for a bar, False for silence; None for a bar on a terminal and plain lines elsewhere.

    Raises:
        ConfigError: the config cannot work, or its run directory already holds a run.
        TrainingError: a loss that is not finite, or a prompt tensor without gradient.
    """
    config = resolve(config)
    world = join_world(config.backbone.device)
    if world.is_first:
        RunRecord.create(config).close()  # before the backbone loads
    world.wait()
    try:
        return _run(config, world, evaluator, progress)
    except ForewordError:
        if world.is_first:
            discard_unstarted(config.run_dir)
        raise


def resume(
    run_dir: str | Path,
    config: RunConfig | None = None,
    *,
    evaluator: Evaluator | None = None,
    progress: bool | None = None,
) -> TrainResult:
    """Go on with a run from its newest checkpoint; the result equals the uninterrupted run's to the last bit.

    Args:
        run_dir: the run directory.
        config: if given, it must be the run's own.
        evaluator: as in `train`.
        progress: as in `train`.

    Raises:
        ConfigError: no run there, or `config` differs; it names the fields.
        TrainingError: the newest checkpoint is damaged, or data or backbone have changed.
    """
    saved = read_config(run_dir, None if config is None else resolve(config))
    return _run(saved, join_world(saved.backbone.device), evaluator, progress)


def train_prompt(
    backbone: Backbone,
    data: Iterable[Record] | Sequence[Example],
    spec: PromptSpec | None = None,
    *,
    dev: Iterable[Record] | Sequence[Example] = (),
    recipe: Recipe | None = None,
    evaluator: Evaluator | None = None,
    progress: bool | None = False,
    **settings: Any,
) -> TrainResult:
    """Train a soft prompt on a backbone and data in memory; nothing is written.

    Args:
        backbone: the frozen model.
        data: records, or examples that are already tokenised.
        spec: the prompt's form; None takes the recipe's.
        dev: the same for evaluations during training (`recipe.dev`).
        recipe: how to learn; None takes the defaults.
        evaluator: scores of a step, beside the dev loss.
        progress: as in `train`.
        settings: fields of `Recipe` that replace the recipe's, as in `steps=200, seed=1`.

    Returns:
        The result, whose `prompt` is the best step's if there were evaluations, else the last's.
    """
    recipe = dataclasses.replace(recipe or Recipe(), **settings)
    recipe = resolve_recipe(dataclasses.replace(recipe, method="prompt", prompt=spec or recipe.prompt))
    form = get_format(None, backbone.is_encoder_decoder)
    rows = TrainData(_examples(data, backbone, form), _examples(dev, backbone, form), form)
    run = Run(recipe, backbone, rows, World(), evaluator=evaluator)
    return run_all(backbone, [run], World(), progress)[0]


def _run(config: RunConfig, world: World, evaluator: Evaluator | None, progress: bool | None) -> TrainResult:
    if config.method == "autoprompt":
        return run_trigger_search(config, world, evaluator, progress)
    backbone = load_frozen(config, world)
    data = load_data(config, backbone)
    run = Run(config, backbone, data, world, Path(config.run_dir), evaluator)
    return run_all(backbone, [run], world, progress)[0]


def load_frozen(config: RunConfig, world: World) -> Backbone:
    """Return the configured backbone on this process's device, its weights shared out if asked."""
    chosen = dataclasses.asdict(config.backbone)
    source, device = chosen.pop("source"), chosen.pop("device") or world.device
    backbone = load_backbone(source, device=device, **chosen)
    if config.shard and world.size > 1:
        _ = backbone.fingerprint  # read while the weights are whole
        shard_weights(backbone, world)
    return backbone


def load_data(config: RunConfig, backbone: Backbone) -> TrainData:
    """Return the configured task's rows for a backbone.

    Raises:
        DataError: the task, a split or a record is missing or malformed.
    """
    task, wanted = get_task(config.task), config.data
    form = get_format(wanted.format, backbone.is_encoder_decoder)
    limits = wanted.limits(task.max_source, task.max_target)
    records = _worded(task.load("train", wanted.limit), wanted.words)
    shown = records[:8] if config.method == "written" else records  # nothing trains: a few rows for a rehearsal
    train_rows = tokenise(shown, backbone.tokenizer, form, *limits).examples
    dev_rows: Sequence[Example] = ()
    if config.dev.every:
        dev_records = _worded(task.load(wanted.dev_split, wanted.dev_limit), wanted.words)
        dev_rows = tokenise(dev_records, backbone.tokenizer, form, *limits).examples
    return TrainData(train_rows, dev_rows, form, digest(records), records, task.labels)


def _worded(records: list[Record], words: str | None) -> list[Record]:
    return [dataclasses.replace(record, source=add_words(record.source, words)) for record in records]


def run_all(backbone: Backbone, runs: Sequence[Run], world: World, progress: bool | None) -> list[TrainResult]:
    """Step all runs together until each is done, then finish each; one run, or a gang over one frozen model."""
    title = runs[0].recipe.title if len(runs) == 1 else f"gang of {len(runs)}"
    show = progress if world.is_first else False
    try:
        with Display(title, max(run.trainee.total for run in runs), show) as display:
            for run in runs:
                run.open(display)
            while active := [run for run in runs if not run.done]:
                reports = train_step(backbone, [run.trainee for run in active], world)
                for run, report in zip(active, reports, strict=True):
                    run.after_step(report)
            return [run.finish() for run in runs]
    finally:
        for run in runs:
            run.close()


def _examples(data: Iterable[Record] | Sequence[Example], backbone: Backbone, form: TextFormat) -> list[Example]:
    items = list(data)
    kinds = {type(item) for item in items}
    if not kinds <= {Example} and not kinds <= {Record}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(f"data holds {names}; give Records, as in Record('source', ('target',)), or Examples")
    if not items or kinds == {Example}:
        return items
    return tokenise(items, backbone.tokenizer, form).examples
