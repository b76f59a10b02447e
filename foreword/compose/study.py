"""What an ensemble gains on a task: its score beside its members' average, the best on dev, and the best on test.

The best on test is an oracle: it is chosen by the scores that it is then reported with, and no user has it. All members
answer a split in the same passes, and every ensemble is made of those answers or of the same members.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foreword.backbone import Backbone
from foreword.compose.ensemble import BATCH_TEXTS, Ensemble, check_rule
from foreword.data.files import write_atomic, write_jsonl
from foreword.data.records import Record
from foreword.errors import ConfigError
from foreword.evaluate.metrics import check_metrics, statistics
from foreword.evaluate.metrics.statistics import Statistics
from foreword.evaluate.runner import sample
from foreword.evaluate.stats import Difference, Interval, Spread, bootstrap, paired_bootstrap_of_runs, spread
from foreword.evaluate.subject import load_subjects, read_run
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.tasks import get_task
from foreword.tasks.task import Task

STUDY_RULES = ("majority", "mean", "borda")


@dataclass(frozen=True)
class Member:
    """One prompt: its name, its dev score, its test score with interval."""

    name: str
    dev: float
    test: Interval


@dataclass(frozen=True)
class Ensembled:
    """One rule's score, and how much more that is than the members' average and the best on dev (paired bootstrap)."""

    rule: str
    test: Interval
    over_average: Difference
    over_best_on_dev: Difference


@dataclass(frozen=True)
class EnsembleReport:
    """Average, best on dev, best on test (oracle) and ensembles, by one score.

    Attributes:
        task, split, dev_split: what was scored.
        n, dev_n: records of each.
        score: the score's name, where larger is better.
        members: in the order given.
        average: the members' mean test score; resamples draw the same records for all members.
        spread: mean and standard deviation over members.
        best_on_dev: the member to use alone.
        best_on_test: the oracle.
        ensembles: one entry a rule.
        rows: for `answers.jsonl`: record, members' answers, ensembles' answers.
    """

    task: str
    split: str
    dev_split: str
    n: int
    dev_n: int
    score: str
    members: tuple[Member, ...]
    average: Interval
    spread: Spread
    best_on_dev: Member
    best_on_test: Member
    ensembles: tuple[Ensembled, ...]
    rows: list[dict[str, Any]] = field(repr=False, default_factory=list)

    def lines(self) -> list[str]:
        """Return the report as lines of a table."""
        named = [(member.name, member.test, f"dev {member.dev:.4f}") for member in self.members]
        sd = "" if self.spread.sd is None else f"sd {self.spread.sd:.4f}"
        named.append(("average", self.average, sd))
        named += [
            ("best on dev", self.best_on_dev.test, self.best_on_dev.name),
            ("best on test (oracle)", self.best_on_test.test, self.best_on_test.name),
        ]
        named += [(f"ensemble, {one.rule}", one.test, _gain(one.over_average)) for one in self.ensembles]
        width = max(len(name) for name, _, _ in named)
        head = f"{self.task}, {self.split}, {self.n} records, {self.score}; chosen on {self.dev_n} of {self.dev_split}"
        rows = [f"{name:<{width}}  {v.value:.4f} [{v.low:.4f}, {v.high:.4f}]  {note}" for name, v, note in named]
        return [head, *(row.rstrip() for row in rows)]

    def write(self, folder: str | Path) -> Path:
        """Write `ensemble.json` and `answers.jsonl` to a folder and return the former's path."""
        folder = Path(folder)
        facts = {key: value for key, value in dataclasses.asdict(self).items() if key != "rows"}
        write_jsonl(folder / "answers.jsonl", self.rows)
        write_atomic(folder / "ensemble.json", json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        return folder / "ensemble.json"


def _gain(found: Difference) -> str:
    return f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}] over the average"


def study(
    sources: Sequence[str | Path | SoftPrompt],
    task: str | Task | None = None,
    *,
    backbone: str | Path | Backbone | None = None,
    rules: Sequence[str] = STUDY_RULES,
    choose: bool = False,
    split: str = "test",
    dev_split: str = "dev",
    limit: int | None = None,
    dev_limit: int | None = None,
    batch_size: int = BATCH_TEXTS,
    resamples: int = 1000,
    seed: int = 0,
) -> EnsembleReport:
    """Return what members and ensembles of them score on a task.

    Args:
        sources: run directories, saved prompts or prompts in memory, all of one backbone.
        task: None takes the one that the first run was trained on.
        backbone: None takes the one that the first was learned on.
        rules: ensembles to score (foreword.compose.ensemble.RULES).
        choose: choose among the task's labels by probability instead of generating.
        split: what is reported.
        dev_split: what the best member is chosen on, and what breaks ties; another split than `split`.
        limit, dev_limit: score this many records, drawn by `seed`.
        batch_size: texts in one pass.
        resamples: of the bootstrap.
        seed: of samples and bootstrap.

    Raises:
        ConfigError: no task, no member, labels of a task that has none, or one split for both purposes.
    """
    task = _task(task, sources)
    check_metrics(task.metrics)
    if split == dev_split:
        raise ConfigError(f"split and dev_split are both {split!r}: what is chosen there cannot be reported there")
    for rule in rules:
        check_rule(rule)
    if resamples < 1:
        raise ConfigError(f"resamples = {resamples} gives no interval; give at least 1")
    if choose and not task.labels:
        raise ConfigError(f"task {task.name!r} has no labels to choose among; leave `choose` out")
    ensemble, names = load_members(sources, backbone, batch_size)
    dev, test = sample(task.load(dev_split), dev_limit, seed), sample(task.load(split), limit, seed)
    on_dev = [_one(_table(task, dev, answers))[1] for answers in _by_member(ensemble, task, dev, choose)]
    ensemble.weights = on_dev  # ties go to the members that are better on dev
    answers = _by_member(ensemble, task, test, choose)
    merged = {rule: _merged(ensemble, task, test, answers, rule, choose) for rule in rules}
    return _report(task, (split, dev_split), (test, len(dev)), names, on_dev, answers, merged, resamples, seed)


def load_members(
    sources: Sequence[str | Path | SoftPrompt],
    backbone: str | Path | Backbone | None = None,
    batch_size: int = BATCH_TEXTS,
) -> tuple[Ensemble, list[str]]:
    """Return an ensemble of saved prompts, runs or prompts in memory, and the members' names.

    Raises:
        ConfigError: no member, one that is no soft prompt, or sources that are truncated differently.
    """
    if not sources:
        raise ConfigError("an ensemble of no member cannot answer; give at least one prompt")
    subjects = []
    for source in sources:
        subject = load_subjects(source, backbone)[1]
        backbone = subject.backbone
        if subject.prompt is None:
            raise ConfigError(f"{str(source)!r} is a {subject.name}; an ensemble shares one frozen model")
        subjects.append(subject)
    if len({subject.max_source for subject in subjects}) > 1:
        limits = [subject.max_source for subject in subjects]
        raise ConfigError(f"members read sources cut at data.max_source = {limits}; an ensemble has one input")
    names = [
        subject.name if isinstance(source, SoftPrompt) else Path(str(source)).name
        for source, subject in zip(sources, subjects, strict=True)
    ]
    names = [name if names.count(name) == 1 else f"{name} #{i + 1}" for i, name in enumerate(names)]
    prompts = [subject.prompt for subject in subjects]
    return Ensemble(backbone, prompts, max_source=subjects[0].max_source, batch_size=batch_size), names


def _task(task: str | Task | None, sources: Sequence[object]) -> Task:
    if isinstance(task, Task):
        return task
    runs = [run for run in map(read_run, sources) if run is not None]
    if task is None and not runs:
        raise ConfigError("task is not given and no source is a run directory that knows one; give --task")
    return get_task(task or runs[0].task)


def _by_member(ensemble: Ensemble, task: Task, records: Sequence[Record], choose: bool) -> list[list[str]]:
    """Return [N][B] each member's answers."""
    texts = [record.source for record in records]
    if choose:
        rows = [[order[0] for order in orders] for orders in ensemble.rank(texts, [task.labels] * len(texts))]
    else:
        rows = ensemble.outputs(texts, task.generation)
    return [list(answers) for answers in zip(*rows, strict=True)]


def _merged(
    ensemble: Ensemble, task: Task, records: Sequence[Record], answers: list[list[str]], rule: str, choose: bool
) -> list[str]:
    """Return one answer a record; what the members wrote is voted on and not written again."""
    texts = [record.source for record in records]
    if choose and rule != "majority":
        return ensemble.classify(texts, task.labels, rule)
    if rule == "mean":
        return ensemble.decode_mean(texts, task.generation)
    return ensemble.vote(texts, list(zip(*answers, strict=True)), rule)


def _table(task: Task, records: Sequence[Record], answers: Sequence[str]) -> Statistics:
    """Return the statistics of the task's first metric that can be computed here."""
    outputs = [text if text.strip() else task.generation.empty_output for text in answers]
    references, keys = [list(r.targets) for r in records], [r.meta.get("score", {}) for r in records]
    found, skipped = statistics(task.metrics, outputs, references, task.labels, keys)
    if not found:
        why = "; ".join(skipped.values()) or "it names none"
        raise ConfigError(f"no metric of task {task.name!r} can be computed: {why}")
    return next(iter(found.values()))


def _one(table: Statistics) -> tuple[str, float]:
    return next(iter(table.scores().items()))


def _mean(tables: Sequence[Statistics]) -> Statistics:
    """Return the statistics whose score is the mean of several systems' scores on the same records."""
    width = tables[0].values.shape[1]

    def finish(sums: np.ndarray) -> dict[str, np.ndarray]:
        parts = [table.finish(sums[:, i * width : (i + 1) * width]) for i, table in enumerate(tables)]
        return {name: np.mean([part[name] for part in parts], axis=0) for name in parts[0]}

    return Statistics(np.concatenate([table.values for table in tables], axis=1), finish)


def _report(
    task: Task, splits: tuple[str, str], records: tuple[list[Record], int], names: list[str], on_dev: list[float],
    answers: list[list[str]], merged: dict[str, list[str]], resamples: int, seed: int,
) -> EnsembleReport:  # fmt: skip
    test, dev_n = records
    tables = [_table(task, test, one) for one in answers]
    score = _one(tables[0])[0]

    def interval(table: Statistics) -> Interval:
        return bootstrap(table, np.random.Generator(np.random.PCG64(seed)), resamples)[score]

    def over(table: Statistics, others: Sequence[Statistics]) -> Difference:
        return paired_bootstrap_of_runs([table], others, np.random.Generator(np.random.PCG64(seed)), resamples)[score]

    members = tuple(Member(name, dev, interval(t)) for name, dev, t in zip(names, on_dev, tables, strict=True))
    best = max(range(len(members)), key=lambda i: members[i].dev)
    ensembled = []
    for rule, texts in merged.items():
        table = _table(task, test, texts)
        ensembled.append(Ensembled(rule, interval(table), over(table, tables), over(table, [tables[best]])))
    rows = [
        {"id": record.id, "source": record.source, "targets": list(record.targets), "members": [a[i] for a in answers],
         "ensembles": {rule: texts[i] for rule, texts in merged.items()}}
        for i, record in enumerate(test)
    ]
    return EnsembleReport(
        task=task.name, split=splits[0], dev_split=splits[1], n=len(test), dev_n=dev_n, score=score, members=members,
        average=interval(_mean(tables)), spread=spread([m.test.value for m in members]), best_on_dev=members[best],
        best_on_test=max(members, key=lambda m: m.test.value), ensembles=tuple(ensembled), rows=rows,
    )


__all__ = ["STUDY_RULES", "EnsembleReport", "Ensembled", "Member", "load_members", "study"]
