"""Where a run lives: the digest of everything that decides its outcome, so that the same run is never made twice.

A run's address covers its resolved config, the content of its data and the content of its backbone; a score's address
covers the run's (or the backbone's alone) and how it was scored. Neither holds a path of the run itself.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from foreword.backbone import bundled_backbones
from foreword.baselines.autoprompt.masked import is_masked
from foreword.baselines.autoprompt.trigger import METHOD as AUTOPROMPT
from foreword.config import to_dict
from foreword.data.records import digest
from foreword.experiments.grid.spec import Scoring, Target
from foreword.tasks import Task, get_task, relabelled
from foreword.tasks.view import split_name
from foreword.train.run_config import BackboneConfig, Recipe, RunConfig

# What a run writes down, not what it learns.
SILENT = ("run_dir", "track", "checkpoint", "log_every")
# Methods that learn from what a task says its labels are: which examples are drawn, which label words are read.
LABELLED = ("written", AUTOPROMPT)
DIGITS = 20


@dataclass
class Contents:
    """Digests of backbones and splits, each read once."""

    backbones: dict[tuple[str, str | None], str] = field(default_factory=dict)
    splits: dict[tuple[str, str], str] = field(default_factory=dict)

    def backbone(self, config: BackboneConfig) -> str:
        """Return the digest of a backbone's files; a hub id stands for itself with its revision."""
        source, key = config.source or "", (config.source or "", config.revision)
        if key not in self.backbones:
            folder = bundled_backbones().get(source, Path(source))
            self.backbones[key] = _folder_digest(folder) if Path(folder).is_dir() else f"{source}@{config.revision}"
        return self.backbones[key]

    def split(self, task: Task, name: str, split: str) -> str:
        """Return the digest of a task's records in one split; `name` is what the task is known by."""
        if (name, split) not in self.splits:
            self.splits[name, split] = digest(task.load(split))
        return self.splits[name, split]

    def run(self, config: RunConfig) -> str:
        """Return a run's address.

        Raises:
            DataError: its data cannot be loaded.
        """
        tree = {key: value for key, value in to_dict(config).items() if key not in SILENT}
        for name in get_args(get_type_hints(Recipe)["method"]):
            if name != config.method:  # a method's options bear its name, and no other method reads them
                tree.pop(name, None)
        tree["backbone"]["source"] = self.backbone(config.backbone)
        task = get_task(config.task)
        splits = ["train", *([config.data.dev_split] if config.dev.every else [])]
        tree["data"]["content"] = [self.split(task, config.task, split) for split in splits]
        limits = config.data.limits(task.max_source, task.max_target)
        tree["data"]["max_source"], tree["data"]["max_target"] = limits  # the task's own where the run gives none
        if config.dev.every and config.dev.metric != "loss":  # generation then chooses the best step
            tree["dev"]["by"] = to_dict([task.metrics, to_dict(task.generation), task.labels])
        if config.method in LABELLED and task.labels:
            tree["labels"] = task.labels
        start = config.prompt.init.artifact if config.method == "prompt" else None
        if start and Path(start).is_dir():
            tree["prompt"]["init"]["artifact"] = _folder_digest(Path(start))
        del tree["task"]  # its records say what it is
        return _hash(tree)

    def score(self, of: str, config: RunConfig, scoring: Scoring, target: Target) -> str:
        """Return the address of what a run or a backbone (`of`) scores on one target."""
        task, words = scored_task(config.task, scoring, target), relabelling(config.task, target)
        name = target.task or config.task
        records = self.split(task, f"{name} {sorted(words.items())}" if words else name, target.split)
        how = [task.metrics, to_dict(task.generation), task.labels, scoring.limit, scoring.resamples, scoring.seed]
        if config.data.max_source is None and task.max_source is not None:  # a run's own is in its address
            how.append(task.max_source)
        return _hash({"of": of, "records": records, "how": to_dict(how), "batch": scoring.batch_size})

    def untouched(self, config: RunConfig) -> str:
        """Return the address of a run's backbone without anything learned, which holds what its outputs depend on."""
        own, named = config.data, self.backbone(config.backbone)
        named = _hash(named) if "@" in named else named  # hub ids of one family begin alike
        address = f"untouched-{named[:12]}-{own.format or 'default'}-{own.max_source or 'whole'}".replace("/", "-")
        held: tuple[Any, ...] = replace(config.backbone, source=None, device=None), untouched_words(config)
        if answers_in_template(config):
            held += (self._template(config),)
        return address if held == (BackboneConfig(), None) else f"{address}-{_hash(to_dict(held))[:8]}"

    def _template(self, config: RunConfig) -> list[Any]:
        """Return what decides the outputs of a masked model without trigger words: its template and its label words."""
        task, spec, data = get_task(config.task), config.autoprompt, config.data
        found = [spec.template, spec.labels, task.labels, data.limits(task.max_source, None)[0]]
        if spec.label_search is not None:  # the words are found on the training rows
            found += [spec.label_search, spec.init, spec.skip_capitalised, spec.readable, config.seed, data.limit]
            found.append(self.split(task, config.task, "train"))
        return found


def answers_in_template(config: RunConfig) -> bool:
    """Return whether a run's backbone is a masked model, which answers nowhere but in a template, learned or not."""
    held = config.backbone
    if config.method != AUTOPROMPT or held.source is None:
        return False
    return is_masked(held.source, revision=held.revision, trust_remote_code=held.trust_remote_code)


def untouched_words(config: RunConfig) -> str | None:
    """Return the words before every source that a run's untouched backbone reads too; a written prompt is its words."""
    return None if config.method == "written" else config.data.words


def relabelling(name: str, target: Target) -> dict[str, str]:
    """Return the words of a target's labels that are written otherwise for a run of task `name`: none for its own."""
    return {} if target.task is None or _plain(target.task) == _plain(name) else target.relabel


def _plain(name: str) -> str:
    """Return a task's name without its view; a file by its whole path, however it is written."""
    name = split_name(name)[0]
    return str(Path(name).resolve()) if Path(name).suffix in (".yaml", ".yml") else name


def scored_task(name: str, scoring: Scoring, target: Target) -> Task:
    """Return the task of a target with the grid's metrics and decoding; `name` is the run's own task."""
    task, words = get_task(target.task or name), relabelling(name, target)
    if words:
        task = relabelled(task, words)
    given = {"num_beams": scoring.num_beams, "max_new_tokens": scoring.max_new_tokens}
    limits = replace(task.generation, **{key: value for key, value in given.items() if value is not None})
    return replace(task, generation=limits, metrics=scoring.metrics or task.metrics)


def _folder_digest(folder: Path) -> str:
    """Return the digest of what decides a model's outputs: its weights, configuration and tokenizer."""
    sha = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".model", ".txt", ".bin") and path.name != "pretraining.json":
            sha.update(path.name.encode())
            with path.open("rb") as file:
                sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()


def _hash(tree: Any) -> str:
    text = json.dumps(tree, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]
