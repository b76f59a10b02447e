"""A task's data checks as blocks of a page, as lines of a terminal, and as the counts behind both."""

from collections.abc import Callable, Sequence
from typing import Any

from foreword.data.checks import DataCheck, check_data
from foreword.data.examples import TextFormat
from foreword.data.records import Record
from foreword.errors import DataError, MissingDataError
from foreword.experiments import report as page
from foreword.tasks import Task

# Splits that are parts of another one by design.
PARTS = ("test_seen", "test_unseen", "dev_seen", "dev_unseen")
BAR = 24


def check_task(
    task: Task, splits: Sequence[str] = (), tokenizer: Any = None, form: TextFormat | None = None
) -> DataCheck:
    """Return the checks of a task's splits (all by default); one that cannot be loaded is named with the reason.

    Published data that is not at hand is no fault; a task's own file that is missing or has a faulty row is one.

    Args:
        task: the task.
        splits: which.
        tokenizer: counts tokens, and with the task's limits what will be cut; None counts words.
        form: of the runs, whose white space counts for those limits; None counts the texts and EOS alone.

    Raises:
        DataError: none of the splits can be loaded.
    """
    loaded: dict[str, list[Record]] = {}
    missing: dict[str, str] = {}
    broken: dict[str, str] = {}
    for split in splits or task.splits:
        if split not in task.splits:
            raise DataError(f"task {task.name!r} has no split {split!r}; it has {', '.join(task.splits)}")
        try:
            loaded[split] = task.loader(split)  # not `load`, which refuses what is to be counted here
        except MissingDataError as error:
            missing[split] = str(error)
        except DataError as error:
            broken[split] = str(error)
    if not loaded:
        reason = next(iter((broken or missing).values()))
        raise DataError(f"no split of task {task.name!r} can be loaded: {reason}")
    contained = [(whole, part) for part in PARTS for whole in ("test", "dev") if part.startswith(whole)]
    limits = (task.max_source, task.max_target)
    found = check_data(loaded, task.labels, token_counter(tokenizer), limits, contained, form)
    return DataCheck(found.splits, found.leaks, missing, broken)


def token_counter(tokenizer: Any) -> Callable[[Sequence[str]], list[int]] | None:
    """Return a function from texts to their lengths in a tokenizer's tokens; None for None."""
    if tokenizer is None:
        return None

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    return count


def data_blocks(name: str, found: DataCheck) -> list[page.Block]:
    """Return a task's checks as blocks: findings, a table of splits, label balance, length histograms."""
    rows = [
        (
            split, check.records, check.targets, check.source_lengths.median, check.source_lengths.longest,
            check.target_lengths.median, check.target_lengths.longest,
            check.source_lengths.cut, check.target_lengths.cut,
        )
        for split, check in found.splits.items()
    ]
    unit = next(iter(found.splits.values())).source_lengths.unit
    columns = (
        "split", "records", "targets", f"source, median {unit}", "longest", f"target, median {unit}", "longest ",
        "sources cut", "targets cut",
    )
    blocks: list[page.Block] = [
        page.Findings(found.findings(), caption=f"Checks on the data of {name}, before any training."),
        page.Table(columns, rows, caption=f"Splits of {name}.", digits=0),
    ]
    labelled = {split: check.labels for split, check in found.splits.items() if check.labels}
    if labelled:
        labels = list(next(iter(labelled.values())))
        table = [(split, *(counts[label] for label in labels)) for split, counts in labelled.items()]
        blocks.append(page.Table(("split", *labels), table, caption=f"Labels of {name}."))
    blocks += [_histogram(name, found, kind) for kind in ("source", "target")]
    return blocks


def _histogram(name: str, found: DataCheck, kind: str) -> page.Plot:
    series = {}
    for split, check in found.splits.items():
        lengths = getattr(check, f"{kind}_lengths")
        total = max(1, sum(lengths.counts))
        middles = [(a + b) / 2 for a, b in zip(lengths.edges, lengths.edges[1:], strict=False)]
        series[split] = [(x, n / total) for x, n in zip(middles, lengths.counts, strict=True)]
        unit = lengths.unit
    return page.Plot(series, f"{kind} length in {unit}", "share of texts", caption=f"Lengths of the {kind}s of {name}.")


def data_lines(name: str, found: DataCheck) -> list[str]:
    """Return a task's checks as lines for a terminal."""
    lines = [f"{status:4}  {check}: {detail}" for status, check, detail in found.findings()]
    for split, check in found.splits.items():
        for kind in ("source", "target"):
            lengths = getattr(check, f"{kind}_lengths")
            lines.append(
                f"{name} {split}: {kind} of {lengths.median:.0f} {lengths.unit} at the median, {lengths.p95:.0f} at "
                f"95 %, {lengths.longest} at most"
            )
            highest = max(1, *lengths.counts)
            for low, count in zip(lengths.edges, lengths.counts, strict=False):
                lines.append(f"  from {low:5.0f} {'#' * round(BAR * count / highest):{BAR}} {count:,}")
        if check.labels:
            lines.append(f"{name} {split}: " + ", ".join(f"{label} {n:,}" for label, n in check.labels.items()))
    return lines
