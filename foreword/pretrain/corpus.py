"""Documents from `*.txt.xz` corpora, their held-out split, and the mixture they are drawn in."""

import hashlib
import lzma
import os
import random
from collections.abc import Iterator
from pathlib import Path

from foreword.errors import DataError, nearest

END_OF_DOCUMENT = "<|endoftext|>"

# Share of the tokens per natural source. Wikipedia is the backbone: facts, names, present-day English. The two
# novel collections are a third of the bytes but get an eighth of the tokens, since their English is a century old.
# Files of under 12 MB are seen two to five times more often than their size would give.
NATURAL_WEIGHTS: dict[str, float] = {
    "wikipedia_en": 0.60,
    "novels100": 0.07,
    "eltec_eng": 0.06,
    "dialogue_sgd": 0.08,
    "us_gov_blogs": 0.07,
    "openstax_ccby": 0.04,
    "ms_business_docs": 0.03,
    "us_speeches": 0.02,
    "cia_factbook": 0.01,
    "african_storybook": 0.01,
    "recipes": 0.01,
}

_HELDOUT_SHARE, _HELDOUT_SHARE_SMALL, _SMALL_FILE_BYTES = 0.005, 0.04, 3_000_000


def data_root() -> Path:
    """Return the directory of the public data: `$FOREWORD_DATA`, else `../shared/data` beside the repository.

    Raises:
        DataError: neither exists.
    """
    named = os.environ.get("FOREWORD_DATA")
    root = Path(named) if named else Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not root.is_dir():
        raise DataError(f"data directory {str(root)!r} does not exist; set FOREWORD_DATA to the folder with corpora/")
    return root


def corpus_path(source: str, root: Path | None = None) -> Path:
    """Return the `.txt.xz` file of a source.

    Raises:
        DataError: there is no such file; the message names the nearest source.
    """
    folder = (root or data_root()) / "corpora"
    path = folder / f"{source}.txt.xz"
    if not path.is_file():
        names = [file.name.removesuffix(".txt.xz") for file in folder.glob("*.txt.xz")]
        raise DataError(f"no corpus {source!r} in {str(folder)!r}{nearest(source, names)}")
    return path


def read_documents(path: Path) -> Iterator[str]:
    r"""Yield the documents of one file in order: paragraphs joined by `\n`, the `<|endoftext|>` lines taken out."""
    lines: list[str] = []
    with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            if line.strip() == END_OF_DOCUMENT:
                yield from _document(lines)
                lines = []
            else:
                lines.append(line.rstrip("\n"))
    yield from _document(lines)


def _document(lines: list[str]) -> Iterator[str]:
    # The separator inside a line would be read as a special token, so it is taken out of running text.
    text = "\n".join(lines).replace(END_OF_DOCUMENT, " ").strip()
    if text:
        yield text


def fraction(text: str, salt: str = "heldout") -> float:
    """Return a number in [0, 1) that depends on the text and the salt only, so splits never move."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, key=salt.encode("utf-8")).digest()
    return int.from_bytes(digest, "big") / 2**64


def heldout_share(path: Path) -> float:
    """Return the share of a file's documents that is held out: 0.5 %, or 4 % of a file under 3 MB (as .xz)."""
    return _HELDOUT_SHARE_SMALL if path.stat().st_size < _SMALL_FILE_BYTES else _HELDOUT_SHARE


def split_documents(path: Path) -> tuple[list[str], list[str]]:
    """Return (training documents, held-out documents) of a file, split by a hash of each document's text.

    A file of a few very long documents (the novels) may give no held-out document: then its documents are first
    cut into pieces of about 20,000 characters at paragraph ends.
    """
    share = heldout_share(path)
    train: list[str] = []
    heldout: list[str] = []
    for document in read_documents(path):
        for piece in _pieces(document, 20_000):
            (heldout if fraction(piece) < share else train).append(piece)
    return train, heldout


def _pieces(document: str, size_chars: int) -> Iterator[str]:
    if len(document) <= 2 * size_chars:
        yield document
        return
    lines: list[str] = []
    length = 0
    for line in document.split("\n"):
        lines.append(line)
        length += len(line) + 1
        if length >= size_chars:
            yield "\n".join(lines)
            lines, length = [], 0
    if lines:
        yield "\n".join(lines)


def shuffled(documents: list[str], seed: int) -> list[str]:
    """Return the documents in an order drawn from `seed`."""
    order = list(documents)
    random.Random(seed).shuffle(order)
    return order


def take_chars(documents: list[str], chars: int) -> list[str]:
    """Return the leading documents that hold `chars` characters together, or all of them if they hold fewer."""
    taken: list[str] = []
    for document in documents:
        if chars <= 0:
            break
        taken.append(document)
        chars -= len(document)
    return taken
