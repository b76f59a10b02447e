"""Before a run: its configuration from a recipe and words of the command line, and a rehearsal that takes no step."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foreword.config import build, load_yaml, override, to_dict
from foreword.data.examples import Example
from foreword.errors import ConfigError
from foreword.train.dev import Evaluator
from foreword.train.job import load_data, load_frozen
from foreword.train.loss import target_loss
from foreword.train.parallel import World
from foreword.train.record import read_config
from foreword.train.run import check_dev, check_rows, make_learner
from foreword.train.run_config import RunConfig, resolve
from foreword.train.step import make_pass
from foreword.train.trigger_run import load_readable, measure, prepare, refuse_unused

REHEARSED_RECORDS = 4
SEARCHED_RECORDS = 100
"""Of a search, whose label words need records of every label."""


def settle(settings: Sequence[str], shortcuts: Mapping[str, Any], resumed: str | None = None) -> RunConfig:
    """Return the configuration of a run: defaults < recipe < `field.path=value` < shortcuts.

    Args:
        settings: a recipe's path (first, if there is one), then assignments.
        shortcuts: dotted field to value; None is as good as absent.
        resumed: a run directory whose configuration stands in for a recipe.

    Raises:
        ConfigError: a second recipe, an assignment that is none, an unknown or missing field, a wrong value.
    """
    first, rest = list(settings[:1]), list(settings[1:])
    if first and "=" in first[0]:
        first, rest = [], [*first, *rest]
    if first:
        tree = load_yaml(first[0])
    else:
        tree = to_dict(read_config(resumed)) if resumed else {}
    given = {dotted: value for dotted, value in shortcuts.items() if value is not None}
    tree = override(tree, rest)
    for dotted, value in given.items():
        _put(tree, dotted, value)
    if "task" not in tree:
        raise ConfigError("missing field 'task'; give --task NAME, or a recipe that names one")
    return build(RunConfig, tree)


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[leaf] = value


@dataclass(frozen=True)
class Rehearsal:
    """What a run would start from.

    Attributes:
        config: resolved.
        examples: tokenised rows that were tried.
        num_parameters: trainable.
        init: what the initialisation did.
        loss: of the rows tried, in nats per target token.
    """

    config: RunConfig
    examples: Sequence[Example]
    num_parameters: int
    init: str
    loss: float

    def summary(self) -> str:
        """Return a few lines for people."""
        config = self.config
        rows = ", ".join(f"{len(e.source_ids)}+{len(e.target_ids)}" for e in self.examples)
        return "\n".join(
            (
                f"dry run: {config.title} on {config.backbone.source} for task {config.task}; nothing was written",
                f"{self.num_parameters:,} trainable parameters; {self.init}",
                f"tokens of the first rows, source+target: {rows}",
                f"loss before training: {self.loss:.4f} nats per token; the run would be written to {config.run_dir}",
            )
        )


def rehearse(config: RunConfig, evaluator: Evaluator | None = None) -> Rehearsal:
    """Return what a run would start from: everything is loaded and built, a few rows are tried, nothing is written.

    Args:
        config: the run.
        evaluator: what the run would be handed for its dev evaluations; it is not called.

    Raises:
        ForewordError: whatever the run itself would raise before its first step.
    """
    config = resolve(config)
    if config.method == "autoprompt":
        return _rehearse_search(config)
    backbone = load_frozen(config, World())
    limit = config.data.limit if config.method == "written" else REHEARSED_RECORDS  # examples are drawn from all
    few = dataclasses.replace(config.data, limit=limit, dev_limit=REHEARSED_RECORDS)
    data = load_data(dataclasses.replace(config, data=few), backbone)
    check_dev(config, data, evaluator)
    check_rows(config, backbone, data)
    learner, init = make_learner(config, backbone, data)
    learner.training(False)
    examples = data.train[:REHEARSED_RECORDS]
    rows = make_pass(examples, range(len(examples)), config.batch.share_sources, data.tail).rows
    with torch.no_grad():
        loss = target_loss(backbone, rows, learner.prompts(len(rows)))
    count = sum(parameter.numel() for parameter in learner.parameters().values())
    return Rehearsal(config, examples, count, init, float(loss.sum) / loss.num_tokens)


def _rehearse_search(config: RunConfig) -> Rehearsal:
    """Return what a search for trigger words would start from; label words are looked for in a few records only."""
    refuse_unused(config)
    limit, dev = (min(n or SEARCHED_RECORDS, SEARCHED_RECORDS) for n in (config.data.limit, config.data.dev_limit))
    few = dataclasses.replace(config.data, limit=limit, dev_limit=dev)
    prepared = prepare(dataclasses.replace(config, data=few), load_readable(config.backbone))
    rows = prepared.search.examples[:REHEARSED_RECORDS]
    loss = measure(prepared.search.reader, rows, prepared.first, len(rows)).loss
    examples = [Example(row.ids, row.target) for row in rows]
    return Rehearsal(config, examples, 0, prepared.summary(), loss)
