"""A second set of paraphrases beside MRPC, made from WebNLG's texts as they are read: do two texts say the same?"""

import hashlib
from collections.abc import Sequence

from foreword.data.records import Record
from foreword.tasks.classification import LABEL_LIMITS, PARAPHRASE_LABELS, t5_source
from foreword.tasks.table_to_text import load_webnlg
from foreword.tasks.task import Task


def load_webnlg_paraphrase(split: str) -> list[Record]:
    """Return one pair of texts for each entry of a WebNLG split; train, dev and test keep their entries apart.

    `equivalent`: two texts of one entry, people's wordings of the same triples. `not_equivalent`: a text of the entry
    and one of the entry of its category and size that shares most triples with it but not all (among equals, most
    subjects, properties and objects), which is what makes it hard. Which of the two an entry gives is drawn by the
    digest of its id; one with a single text gives the second, or nothing where no other entry is of its kind.

    Raises:
        DataError: WebNLG is not in the data folder.
    """
    entries = load_webnlg(split)
    groups: dict[tuple[str, int], list[Record]] = {}
    for entry in entries:
        groups.setdefault((entry.meta["category"], entry.meta["size"]), []).append(entry)
    made = (_pair(entry, groups[entry.meta["category"], entry.meta["size"]]) for entry in entries)
    return [record for record in made if record is not None]


def _pair(entry: Record, group: Sequence[Record]) -> Record | None:
    """Return an entry's record, or None where no other entry can stand against it."""
    if len(entry.targets) > 1 and _draw(entry.id) % 2:
        return _record(entry, entry.targets[1], "equivalent", entry.id)
    mine = _triples(entry)
    others = [other for other in group if _triples(other) != mine]
    if not others:
        return None
    nearest = max(others, key=lambda other: (*_shared(mine, _triples(other)), _draw(entry.id + other.id)))
    return _record(entry, nearest.targets[0], "not_equivalent", nearest.id)


def _shared(mine: frozenset[str], theirs: frozenset[str]) -> tuple[int, int]:
    """Return how many triples two entries share, and how many subjects, properties and objects."""
    parts = [{part for triple in triples for part in triple.split(" : ")} for triples in (mine, theirs)]
    return len(mine & theirs), len(parts[0] & parts[1])


def _record(entry: Record, second: str, label: str, other: str) -> Record:
    row = {"sentence1": entry.targets[0], "sentence2": second}
    source = t5_source(row, {key: key for key in row}, entry.id)
    return Record(source, (label,), entry.id, {"label": label, "other": other, "seen": entry.meta["seen"]})


def _triples(entry: Record) -> frozenset[str]:
    return frozenset(entry.source.removeprefix(" | ").split(" | "))


def _draw(text: str) -> int:
    return hashlib.sha256(text.encode()).digest()[0]


def webnlg_paraphrase() -> Task:
    """Return the task made from WebNLG 2017, in MRPC's label words: prompts of one can be read on the other."""
    return Task(
        name="webnlg_paraphrase",
        loader=load_webnlg_paraphrase,
        metrics=("t5_f1", "accuracy"),
        generation=LABEL_LIMITS,
        splits=("train", "dev", "test", "test_seen", "test_unseen"),
        labels=PARAPHRASE_LABELS,
        template="sentence1: ... sentence2: ... -> not_equivalent | equivalent",
        licence="CC BY-NC-SA 4.0 (pairs made from WebNLG 2017, Gardent et al.)",
    )
