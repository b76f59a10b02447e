"""`foreword train`, `pretrain` and `demo`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.cli.command import add_command
from foreword.errors import ConfigError

if TYPE_CHECKING:
    from foreword.train.run import TrainResult


def add_train(commands: Any) -> None:
    """Add `foreword train`."""
    add = add_command(commands, "train", _train, "Learn a soft prompt (or fine-tune, to compare).")
    add("settings", nargs="*", metavar="RECIPE.yaml | field.path=value",
        help="a recipe file, then fields that differ from it: `prompt.length=5 optim.lr=1e-3`")
    add("--task", help="name of a task or path of its YAML file")
    add("--backbone", help="directory, bundled name or hub id")
    add("--out", metavar="DIR", help="run directory")
    add("--seed", type=int)
    add("--resume", metavar="RUN_DIR", help="go on with a run that stopped, exactly where it was")
    add("--gang", metavar="RECIPE.yaml", help="train every member of the recipe's list `gang` in one pass")
    add("--dry-run", action="store_true", help="resolve the configuration, build everything, take no step")


def add_pretrain(commands: Any) -> None:
    """Add `foreword pretrain`."""
    add = add_command(commands, "pretrain", _pretrain, "Train a small backbone from corpora.")
    add("recipe", metavar="RECIPE.yaml")
    add("settings", nargs="*", metavar="field.path=value")


def add_demo(commands: Any) -> None:
    """Add `foreword demo`."""
    add = add_command(commands, "demo", _demo, "Learn prompts on the bundled backbones and write a report.")
    add("--out", metavar="DIR", default="runs/demo")
    add("--backbone", help="default: the bundled one")
    add("--steps", type=int, help="of the main training; fewer is faster and worse")


def _train(arguments: argparse.Namespace) -> int:
    from foreword.evaluate.dev import dev_evaluator
    from foreword.train.job import resume, train
    from foreword.train.rehearse import rehearse, settle

    if arguments.gang:
        return _train_gang(arguments)
    if arguments.resume and arguments.out:
        raise ConfigError(f"--out {arguments.out!r} does not go with --resume, which goes on in its own directory")
    shortcuts = {"task": arguments.task, "backbone.source": arguments.backbone, "run_dir": arguments.out}
    config = settle(arguments.settings, {**shortcuts, "seed": arguments.seed}, arguments.resume)
    evaluator = dev_evaluator(config)
    if arguments.dry_run:
        print(rehearse(config, evaluator).summary())
        return 0
    if arguments.resume:
        result = resume(arguments.resume, config, evaluator=evaluator)
    else:
        result = train(config, evaluator=evaluator)
    _print_result(result)
    return 0


def _train_gang(arguments: argparse.Namespace) -> int:
    from foreword.evaluate.dev import gang_evaluator
    from foreword.train.gang import load_gang, train_gang

    given = (arguments.settings, arguments.task, arguments.backbone, arguments.out, arguments.seed, arguments.resume)
    if any(value is not None and value != [] for value in given) or arguments.dry_run:
        raise ConfigError("--gang takes its members' fields from the recipe alone; write them there")
    members = load_gang(arguments.gang)
    for result in train_gang(members, evaluator=gang_evaluator(members)):
        _print_result(result)
    return 0


def _print_result(result: "TrainResult") -> None:
    dev = "" if result.best_dev is None else f", dev {result.best_dev:.4f} at step {result.best_step}"
    print(f"{result.steps} steps in {result.seconds:.0f} s, loss {result.final_loss:.4f}{dev}")
    print(f"foreword evaluate {result.run_dir}")


def _pretrain(arguments: argparse.Namespace) -> int:
    from foreword.pretrain.job import pretrain

    print(pretrain(arguments.recipe, arguments.settings))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from foreword.demo import demo

    report = demo(Path(arguments.out), backbone=arguments.backbone, steps=arguments.steps, say=print)
    print(f"report: {report}")
    return 0
