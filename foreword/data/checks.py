"""Checks on data before anything is trained: duplicates, leaks across splits, empty and cut texts, labels, lengths."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from foreword.data.records import Record

BINS = 12
# Labels rarer than this share of an even split are pointed out.
RARE = 0.5


@dataclass(frozen=True)
class Lengths:
    """Lengths of the texts of one kind in a split.

    Attributes:
        unit: what is counted, `words` or `tokens`.
        median, p95, longest: of the lengths.
        edges, counts: the histogram: `counts[i]` texts have a length from `edges[i]` up to `edges[i + 1]`.
        cut: how many are longer than the limit; None without one.
    """

    unit: str
    median: float
    p95: float
    longest: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    cut: int | None = None


@dataclass(frozen=True)
class SplitCheck:
    """What one split holds.

    Attributes:
        records, targets: how many.
        empty_sources, empty_targets: texts of white space only; a record without a target is an empty target.
        repeated_rows: rows whose source and target occurred before in the split.
        repeated_sources: records whose source occurred before.
        labels: how often each label occurs; empty for free text.
        illegal_labels: targets that are no label.
        source_lengths, target_lengths: see `Lengths`.
    """

    records: int
    targets: int
    empty_sources: int
    empty_targets: int
    repeated_rows: int
    repeated_sources: int
    labels: dict[str, int]
    illegal_labels: int
    source_lengths: Lengths
    target_lengths: Lengths


@dataclass(frozen=True)
class Leak:
    """Rows of `split` that are also in `known`: with the same source, and with the same source and a same target.

    Case and white space are not told apart. `examples` are ids of such rows.
    """

    known: str
    split: str
    sources: int
    rows: int
    of: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataCheck:
    """The outcome for a whole task.

    Attributes:
        splits: by name.
        leaks: every pair of splits that share a source.
        missing: from a split whose data is not at hand to the reason.
        broken: from a split whose file or rows have a fault that keeps it from being loaded, to that fault.
    """

    splits: dict[str, SplitCheck]
    leaks: list[Leak] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def findings(self) -> list[tuple[str, str, str]]:
        """Return `(status, check, detail)` with status ok, warn or fail, worst problems of each kind named."""
        found = []
        for name, split in self.splits.items():
            found += _split_findings(name, split)
        for leak in self.leaks:
            # Several texts for one input are usual; the same text for the same input in two splits is a copied row.
            status = "fail" if leak.rows and leak.known == "train" else "warn"
            detail = f"{leak.sources:,} of {leak.of:,} sources, {leak.rows:,} with the same target"
            detail += f" (as {', '.join(leak.examples)})"
            found.append((status, f"{leak.split} repeats {leak.known}", detail))
        if len(self.splits) > 1 and not self.leaks:
            found.append(("ok", "no source is in two splits", f"{', '.join(self.splits)} compared"))
        found += [("fail", f"{name} cannot be read", reason) for name, reason in self.broken.items()]
        found += [("warn", f"{name} is not at hand", reason) for name, reason in self.missing.items()]
        return found


def check_data(
    splits: Mapping[str, Sequence[Record]],
    labels: Sequence[str] = (),
    count: Callable[[Sequence[str]], Sequence[int]] | None = None,
    limits: tuple[int | None, int | None] = (None, None),
    contained: Sequence[tuple[str, str]] = (),
) -> DataCheck:
    """Return what the splits hold and what they share.

    Args:
        splits: records by split, before anything refuses them.
        labels: the legal targets of a classification.
        count: from texts to their lengths in tokens; None counts words.
        limits: most source and target tokens; longer texts will be cut.
        contained: pairs (whole, part) of splits, of which the second is a part of the first by design.
    """
    found = {name: _check_split(records, labels, count, limits) for name, records in splits.items()}
    names = list(splits)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if (a, b) not in contained]
    leaks = [leak for a, b in pairs if (leak := find_leak(a, splits[a], b, splits[b])).sources]
    return DataCheck(found, leaks)


def find_leak(known: str, first: Sequence[Record], split: str, second: Sequence[Record]) -> Leak:
    """Return how much of `second` is also in `first`."""
    targets: dict[str, set[str]] = {}
    for record in first:
        targets.setdefault(_folded(record.source), set()).update(map(_folded, record.targets))
    shared = [record for record in second if _folded(record.source) in targets]
    copied = [r for r in shared if targets[_folded(r.source)] & set(map(_folded, r.targets))]
    examples = tuple(record.id for record in (copied or shared)[:3])
    return Leak(known, split, len(shared), len(copied), len(second), examples)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _check_split(
    records: Sequence[Record],
    labels: Sequence[str],
    count: Callable[[Sequence[str]], Sequence[int]] | None,
    limits: tuple[int | None, int | None],
) -> SplitCheck:
    targets = [target for record in records for target in record.targets]
    rows = Counter((_folded(record.source), _folded(target)) for record in records for target in record.targets)
    sources = Counter(_folded(record.source) for record in records)
    bare = sum(not record.targets for record in records)
    known = Counter(target.strip() for target in targets) if labels else Counter()
    return SplitCheck(
        records=len(records),
        targets=len(targets),
        empty_sources=sum(not record.source.strip() for record in records),
        empty_targets=bare + sum(not target.strip() for target in targets),
        repeated_rows=rows.total() - len(rows),
        repeated_sources=sources.total() - len(sources),
        labels={label: known[label] for label in labels},
        illegal_labels=sum(count for label, count in known.items() if label not in labels),
        source_lengths=measure([record.source for record in records], count, limits[0]),
        target_lengths=measure(targets, count, limits[1]),
    )


def measure(
    texts: Sequence[str], count: Callable[[Sequence[str]], Sequence[int]] | None = None, limit: int | None = None
) -> Lengths:
    """Return the lengths of texts; `limit` is in the counted unit and counts only where tokens are counted."""
    unit = "words" if count is None else "tokens"
    sizes = np.array([len(text.split()) for text in texts] if count is None else count(list(texts)), dtype=np.int64)
    if not len(sizes):
        return Lengths(unit, 0.0, 0.0, 0, (0.0, 1.0), (0,), None)
    width = max(1, -(-int(sizes.max() + 1) // BINS))
    edges = np.arange(0, sizes.max() + 1 + width, width)
    counts, _ = np.histogram(sizes, edges)
    cut = int((sizes > limit).sum()) if limit is not None and count is not None else None
    p95 = float(np.percentile(sizes, 95))
    return Lengths(
        unit, float(np.median(sizes)), p95, int(sizes.max()), tuple(map(float, edges)), tuple(map(int, counts)), cut
    )


def _split_findings(name: str, split: SplitCheck) -> list[tuple[str, str, str]]:
    if not split.records:
        return [("fail", f"{name}: no records", "give at least one row")]
    found = []
    for what, number in (("source", split.empty_sources), ("target", split.empty_targets)):
        if number:
            found.append(("fail", f"{name}: empty {what}s", f"{number:,} of {split.records:,} records"))
    if split.illegal_labels:
        found.append(("fail", f"{name}: targets that are no label", f"{split.illegal_labels:,} of {split.targets:,}"))
    if split.repeated_rows:
        found.append(("warn", f"{name}: repeated rows", f"{split.repeated_rows:,} of {split.targets:,} rows"))
    for what, lengths, number in (
        ("sources", split.source_lengths, split.records), ("targets", split.target_lengths, split.targets)
    ):
        if lengths.cut:
            found.append(("warn", f"{name}: {what} that will be cut", f"{lengths.cut:,} of {number:,}"))
    rare = [label for label, n in split.labels.items() if n < RARE * split.targets / len(split.labels)]
    if rare:
        detail = ", ".join(f"{label} {number:,}" for label, number in split.labels.items())
        found.append(("warn", f"{name}: labels out of balance", detail))
    return found or [("ok", f"{name}: no fault found", f"{split.records:,} records, {split.targets:,} targets")]
