"""Checks on data before anything is trained: duplicates, leaks across splits, empty and cut texts, labels, lengths."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from foreword.data.examples import TextFormat
from foreword.data.records import Record

BINS = 12
# Labels rarer than this share of an even split are pointed out.
RARE = 0.5
# From these shares on, dev is not by chance the split that is reported: of that split's rows, and of dev's. By nature
# AESLC repeats 0.11 of its test rows in dev, and 0.26 of RNNLG's training rows (a view cuts dev from them) are in test.
REPORTED_IN_DEV = 0.25
DEV_IN_REPORTED = 0.5


@dataclass(frozen=True)
class Lengths:
    """Lengths of the texts of one kind in a split.

    Attributes:
        unit: what is counted, `words` or `tokens`.
        median, p95, longest: of the lengths.
        edges, counts: the histogram: `counts[i]` texts have a length from `edges[i]` up to `edges[i + 1]`.
        cut: how many lose tokens to the limit; None without one.
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

    Case and white space are not told apart.

    Attributes:
        known, split: the two splits.
        sources, rows: records of `split` whose source is in `known`; whose source and a target are.
        of: records of `split`.
        examples: ids of such records.
        back, known_of: records of `known` whose source and a target are in `split`, and all of `known`.
    """

    known: str
    split: str
    sources: int
    rows: int
    of: int
    examples: tuple[str, ...] = ()
    back: int = 0
    known_of: int = 0

    @property
    def is_substantial(self) -> bool:
        """Return whether choosing by `known` is choosing by a good part of `split`, or by little else."""
        return self.rows > 0 and (
            self.rows >= REPORTED_IN_DEV * self.of or self.back >= DEV_IN_REPORTED * self.known_of
        )


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
            found.append(_leak_finding(leak))
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
    form: TextFormat | None = None,
) -> DataCheck:
    """Return what the splits hold and what they share.

    Args:
        splits: records by split, before anything refuses them.
        labels: the legal targets of a classification.
        count: from texts to their lengths in tokens; None counts words.
        limits: most source and target tokens, the target's EOS among them; longer texts will be cut.
        contained: pairs (whole, part) of splits, of which the second is a part of the first by design.
        form: what stands around the texts, which is counted for the limits; None counts the texts and EOS alone.
    """
    found = {name: _check_split(records, labels, count, limits, form) for name, records in splits.items()}
    names = sorted(splits, key=_place)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if (a, b) not in contained]
    leaks = [leak for a, b in pairs if (leak := find_leak(a, splits[a], b, splits[b])).sources]
    return DataCheck(found, leaks)


def find_leak(known: str, first: Sequence[Record], split: str, second: Sequence[Record]) -> Leak:
    """Return how much of `second` is also in `first`, and how much of `first` in `second`."""
    mine, theirs = [_folded_rows(records) for records in (first, second)]
    known_targets, split_targets = _targets_of(mine), _targets_of(theirs)
    shared = [number for number, (source, _) in enumerate(theirs) if source in known_targets]
    copied = [number for number in shared if _repeats(theirs[number], known_targets)]
    examples = tuple(second[number].id for number in (copied or shared)[:3])
    back = sum(_repeats(row, split_targets) for row in mine)
    return Leak(known, split, len(shared), len(copied), len(second), examples, back, len(first))


def _place(split: str) -> int:
    """Return a split's place in the order of use, whatever order it was asked for in: train, dev, what is reported."""
    return 0 if split == "train" else 1 if split.startswith("dev") else 2


def _folded_rows(records: Sequence[Record]) -> list[tuple[str, set[str]]]:
    return [(folded(record.source), set(map(folded, record.targets))) for record in records]


def _targets_of(rows: Sequence[tuple[str, set[str]]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for source, targets in rows:
        found.setdefault(source, set()).update(targets)
    return found


def _repeats(row: tuple[str, set[str]], known: Mapping[str, set[str]]) -> bool:
    source, targets = row
    return not targets.isdisjoint(known.get(source, ()))


def folded(text: str) -> str:
    """Return a text by which texts are the same that differ in case and white space alone."""
    return " ".join(text.casefold().split())


def _check_split(
    records: Sequence[Record],
    labels: Sequence[str],
    count: Callable[[Sequence[str]], Sequence[int]] | None,
    limits: tuple[int | None, int | None],
    form: TextFormat | None,
) -> SplitCheck:
    targets = [target for record in records for target in record.targets]
    rows = Counter((folded(record.source), folded(target)) for record in records for target in record.targets)
    sources = Counter(folded(record.source) for record in records)
    bare = sum(not record.targets for record in records)
    known = Counter(target.strip() for target in targets) if labels else Counter()
    form = form or TextFormat("texts alone")
    kept = None if limits[1] is None else limits[1] - 1  # EOS survives every cut
    return SplitCheck(
        records=len(records),
        targets=len(targets),
        empty_sources=sum(not record.source.strip() for record in records),
        empty_targets=bare + sum(not target.strip() for target in targets),
        repeated_rows=rows.total() - len(rows),
        repeated_sources=sources.total() - len(sources),
        labels={label: known[label] for label in labels},
        illegal_labels=sum(count for label, count in known.items() if label not in labels),
        source_lengths=measure(
            [record.source for record in records], count, limits[0], (form.before_source, form.after_source)
        ),
        target_lengths=measure(targets, count, kept, (form.before_target, form.after_target)),
    )


def measure(
    texts: Sequence[str],
    count: Callable[[Sequence[str]], Sequence[int]] | None = None,
    limit: int | None = None,
    around: tuple[str, str] = ("", ""),
) -> Lengths:
    """Return the lengths of texts.

    Args:
        texts: of one kind.
        count: from texts to their lengths in tokens; None counts words.
        limit: most tokens that are kept of a text with what stands around it; of no effect where words are counted.
        around: what is put before and behind every text.
    """
    unit = "words" if count is None else "tokens"
    sizes = np.array([len(text.split()) for text in texts] if count is None else count(list(texts)), dtype=np.int64)
    if not len(sizes):
        return Lengths(unit, 0.0, 0.0, 0, (0.0, 1.0), (0,), None)
    width = max(1, -(-int(sizes.max() + 1) // BINS))
    edges = np.arange(0, sizes.max() + 1 + width, width)
    counts, _ = np.histogram(sizes, edges)
    cut = None
    if limit is not None and count is not None:
        whole = sizes if around == ("", "") else np.array(count([around[0] + text + around[1] for text in texts]))
        cut = int((whole > limit).sum())
    p95 = float(np.percentile(sizes, 95))
    return Lengths(
        unit, float(np.median(sizes)), p95, int(sizes.max()), tuple(map(float, edges)), tuple(map(int, counts)), cut
    )


def _leak_finding(leak: Leak) -> tuple[str, str, str]:
    """Return what is found: a row that training has seen is a fault, and so is a dev split of what is reported."""
    # Several texts for one input are usual; the same text for the same input in two splits is a copied row.
    detail = f"{leak.sources:,} of {leak.of:,} sources, {leak.rows:,} with the same target"
    detail += f" (as {', '.join(leak.examples)})"
    selects = leak.known.startswith("dev") and leak.split.startswith("test") and leak.is_substantial
    if selects:
        detail += f"; they are {leak.back:,} of {leak.known_of:,} records of {leak.known}, which runs select on"
    status = "fail" if selects or (leak.rows and leak.known == "train") else "warn"
    return status, f"{leak.split} repeats {leak.known}", detail


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
