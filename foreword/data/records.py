"""Records: what a task is made of, before any tokenizer sees it.

The lowest layer of `data/`: `tasks/` builds these and everything after reads them, so nothing here imports `tasks/`.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from foreword.errors import DataError


@dataclass(frozen=True)
class Record:
    """One source text with its reference targets (several when a data set gives several) and where it came from."""

    source: str
    targets: tuple[str, ...]
    id: str = ""
    meta: dict[str, Any] = field(default_factory=dict, hash=False)


def pairs(records: Iterable[Record]) -> list[tuple[str, str]]:
    """Return training pairs `(source, target)`: every target of every record, in order."""
    return [(record.source, target) for record in records for target in record.targets]


def split_targets(records: Iterable[Record]) -> list[Record]:
    """Return one record per target, in order; ids get `#k` when a record had several. Undone by `group_targets`."""
    return [
        Record(record.source, (target,), f"{record.id}#{k}" if len(record.targets) > 1 else record.id, record.meta)
        for record in records
        for k, target in enumerate(record.targets)
    ]


def group_targets(records: Iterable[Record]) -> list[Record]:
    """Return one record per distinct source with all its targets; sources and targets keep their first order.

    The id and meta are those of the source's first record (an id loses its `#k`).
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.source, []).append(record)
    return [_merge(group) for group in groups.values()]


def _merge(group: list[Record]) -> Record:
    first = group[0]
    targets = tuple(target for record in group for target in record.targets)
    return Record(first.source, targets, first.id.partition("#")[0], first.meta)


def add_words(source: str, words: str | None) -> str:
    """Return a source with words before it (Li & Liang's form for fine-tuning, RECIPES 1.4), or as it is."""
    return f"{words} {source}" if words else source


def check_records(records: Sequence[Record], where: str, *, need_targets: bool = True) -> None:
    """Check that there are records and that none has an empty or missing target.

    Raises:
        DataError: names `where` (a file or a task and split) and the first bad record.
    """
    if not records:
        raise DataError(f"{where} holds no records; give at least one row")
    for number, record in enumerate(records, start=1):
        if need_targets and not record.targets:
            raise DataError(f"{where}: record {number} (id {record.id!r}) has no target; add one or drop the row")
        for target in record.targets:
            if need_targets and not target.strip():
                raise DataError(f"{where}: record {number} (id {record.id!r}) has an empty target; fill or drop it")


def digest(records: Iterable[Record]) -> str:
    """Return the sha256 (hex) of the records' content: sources, targets, ids and meta, in order."""
    sha = hashlib.sha256()
    for record in records:
        row = [record.source, list(record.targets), record.id, record.meta]
        sha.update(json.dumps(row, ensure_ascii=False, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
        sha.update(b"\n")
    return sha.hexdigest()
