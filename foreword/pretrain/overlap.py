"""13-gram overlap of training documents with the evaluation sets: what is found is counted, and dropped."""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

GRAM_WORDS = 13
DROP_AT = 2  # distinct shared 13-grams from which a document is dropped; a single one is a common quotation

_WORD = re.compile(r"[a-z0-9]+")
_EVALUATION_FILES: dict[str, tuple[str, ...]] = {
    "e2e": ("e2e/devset.csv", "e2e/testset_w_refs.csv"),
    "webnlg2017": ("webnlg2017/dev.json", "webnlg2017/test.json"),
    "rnnlg": ("rnnlg/*/valid.json", "rnnlg/*/test.json"),
    "sst2": ("glue/sst2/dev.tsv", "glue/sst2/test.tsv"),
    "mrpc": ("glue/mrpc/msr_paraphrase_test.txt",),
    "superglue": ("superglue/*/val.jsonl", "superglue/*/test.jsonl", "superglue/*/dev32.jsonl"),
    "xquad_en": ("xquad_en/*",),
}


@dataclass
class OverlapReport:
    """Counts of one training mixture: documents read and dropped, and documents sharing a 13-gram by set."""

    documents: int = 0
    dropped: int = 0
    touched: dict[str, int] = field(default_factory=dict)  # evaluation set → documents that share any 13-gram with it


class OverlapFilter:
    """Knows all 13-grams of the evaluation sets' development and test files.

    Words are lower-cased letters and digits; a 13-gram is a 64-bit polynomial hash of its word numbers, so two
    different ones collide with a chance of about 1e-11 a look-up.
    """

    def __init__(self, root: Path) -> None:
        self.numbers: dict[str, int] = {}
        self.grams = {name: self._read(root, patterns) for name, patterns in _EVALUATION_FILES.items()}
        self.report = OverlapReport(touched=dict.fromkeys(self.grams, 0))

    def keep(self, documents: Iterable[str]) -> Iterator[str]:
        """Yield the documents that share fewer than `DROP_AT` distinct 13-grams with the evaluation sets."""
        for document in documents:
            grams = self.hashes(document)
            shared = {name: _shared(grams, known) for name, known in self.grams.items()}
            self.report.documents += 1
            for name, count in shared.items():
                self.report.touched[name] += count > 0
            if sum(shared.values()) >= DROP_AT:
                self.report.dropped += 1
            else:
                yield document

    def hashes(self, text: str) -> np.ndarray:
        """Return the sorted distinct uint64 hashes of a text's 13-grams."""
        numbers = self.numbers
        words = [numbers.setdefault(word, len(numbers) + 1) for word in _WORD.findall(text.lower())]
        if len(words) < GRAM_WORDS:
            return np.empty(0, dtype=np.uint64)
        values = _spread(np.array(words, dtype=np.uint64))
        count = len(words) - GRAM_WORDS + 1
        total = np.zeros(count, dtype=np.uint64)
        for offset in range(GRAM_WORDS):  # Horner's rule; overflow wraps, as wanted
            total = total * np.uint64(0x9E3779B97F4A7C15) + values[offset : offset + count]
        return np.unique(total)

    def _read(self, root: Path, patterns: tuple[str, ...]) -> np.ndarray:
        files = [file for pattern in patterns for file in sorted(root.glob(pattern)) if file.is_file()]
        parts = [self.hashes(text) for file in files for text in texts_in(file)]
        return np.unique(np.concatenate(parts)) if parts else np.empty(0, dtype=np.uint64)


def _shared(grams: np.ndarray, known: np.ndarray) -> int:
    """Return how many of `grams` are among the sorted `known`; a bisection, since `known` is much longer."""
    if not len(known):
        return 0
    return int(np.count_nonzero(known[np.minimum(np.searchsorted(known, grams), len(known) - 1)] == grams))


def _spread(values: np.ndarray) -> np.ndarray:
    """Return splitmix64 of word numbers, so that small numbers do not give nearby hashes."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return values ^ (values >> np.uint64(27))


def texts_in(path: Path) -> Iterator[str]:
    """Yield every string in a JSON, JSONL, CSV or TSV file, whatever its field."""
    raw = path.read_text(encoding="utf-8-sig", errors="replace")
    if path.suffix == ".jsonl":
        yield from (text for line in raw.splitlines() if line.strip() for text in _strings(json.loads(line)))
    elif path.suffix == ".json":
        body = "\n".join(line for line in raw.split("\n") if not line.startswith("#"))
        yield from _strings(json.loads(body))
    elif path.suffix == ".csv":
        yield from (cell for row in csv.reader(raw.splitlines(keepends=True)) for cell in row)
    else:
        yield from (cell for line in raw.splitlines() for cell in line.split("\t"))


def _strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        yield from (text for value in tree.values() for text in _strings(value))
    elif isinstance(tree, list):
        yield from (text for value in tree for text in _strings(value))
