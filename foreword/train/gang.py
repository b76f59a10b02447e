"""A gang: N prompts trained in one pass over one frozen model, each exactly as it would train alone.

Seeds, tasks, lengths, kinds, learning rates, schedules and numbers of steps may differ from member to member; the
backbone is one. Each member has its own run directory, which `foreword train --resume` takes like any other.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from foreword.backbone import Backbone
from foreword.config import build, load_yaml, override
from foreword.errors import ConfigError, ForewordError
from foreword.train.dev import Evaluator
from foreword.train.job import load_data, load_frozen, run_all
from foreword.train.parallel import join_world
from foreword.train.record import RunRecord, discard_unstarted, read_config
from foreword.train.run import Run, TrainData, TrainResult
from foreword.train.run_config import DataConfig, RunConfig, differences, resolve


def load_gang(path: str | Path) -> list[RunConfig]:
    """Return the members that a YAML file describes: a recipe with a list `gang` of what each member changes.

    An entry maps dotted fields to values, as in `- {seed: 1, prompt.length: 20}`.

    Raises:
        ConfigError: no `gang` list, or a member that is no valid recipe.
    """
    tree = load_yaml(path)
    members = tree.pop("gang", None)
    if not isinstance(members, list) or not all(isinstance(member, dict) for member in members) or not members:
        raise ConfigError(f"{str(path)!r} has no list 'gang' of mappings; give one entry a member")
    changes = [[f"{field}={json.dumps(value, default=str)}" for field, value in member.items()] for member in members]
    trees = [override(tree, change) for change in changes]
    return [build(RunConfig, tree) for tree in trees]


def train_gang(
    configs: Sequence[RunConfig], *, evaluator: Evaluator | None = None, progress: bool | None = None
) -> list[TrainResult]:
    """Train all members together and return their results in order.

    Args:
        configs: the members.
        evaluator: scores of a step for each member's dev evaluations.
        progress: as in `foreword.train.job.train`.

    Raises:
        ConfigError: members on different backbones, without a soft prompt, or in one run directory.
    """
    configs = [resolve(config) for config in configs]
    check_gang(configs)
    world = join_world(configs[0].backbone.device)
    if world.is_first:
        for config in configs:
            RunRecord.create(config).close()
    world.wait()
    try:
        return _run(configs, evaluator, progress)
    except ForewordError:
        for config in configs if world.is_first else ():
            discard_unstarted(config.run_dir)
        raise


def resume_gang(
    run_dirs: Sequence[str | Path], *, evaluator: Evaluator | None = None, progress: bool | None = None
) -> list[TrainResult]:
    """Go on with all members, each from its own newest checkpoint; arguments and result as in `train_gang`."""
    configs = [read_config(run_dir) for run_dir in run_dirs]
    check_gang(configs)
    return _run(configs, evaluator, progress)


def check_gang(configs: Sequence[RunConfig]) -> None:
    """Raise unless the configs can share one frozen model.

    Raises:
        ConfigError: it names the field.
    """
    if not configs:
        raise ConfigError("gang is empty; give at least one member")
    directories = [config.run_dir for config in configs]
    for number, config in enumerate(configs):
        if config.method != "prompt":
            raise ConfigError(
                f"gang member {number}: method = {config.method!r} changes the model; only 'prompt' shares it"
            )
        if directories.index(config.run_dir) != number:
            raise ConfigError(
                f"gang member {number}: run_dir = {config.run_dir!r} is another member's too; name its own"
            )
        first = dataclasses.replace(configs[0], backbone=config.backbone, shard=config.shard)
        if changed := differences(configs[0], first):
            raise ConfigError(f"gang member {number}: {'; '.join(changed)}; members share one backbone")


def _run(configs: Sequence[RunConfig], evaluator: Evaluator | None, progress: bool | None) -> list[TrainResult]:
    world = join_world(configs[0].backbone.device)
    backbone = load_frozen(configs[0], world)
    loaded = _load_all(configs, backbone)
    runs = [
        Run(config, backbone, data, world, Path(config.run_dir), evaluator)
        for config, data in zip(configs, loaded, strict=True)
    ]
    return run_all(backbone, runs, world, progress)


def _load_all(configs: Sequence[RunConfig], backbone: Backbone) -> list[TrainData]:
    """Return each member's rows; equal ones are read once."""
    known: dict[tuple[str, DataConfig, bool], TrainData] = {}
    for config in configs:
        key = (config.task, config.data, bool(config.dev.every))
        if key not in known:
            known[key] = load_data(config, backbone)
    return [known[config.task, config.data, bool(config.dev.every)] for config in configs]
