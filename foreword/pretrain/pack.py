"""Documents as one stream of tokens on disk, read back as rows of a fixed context; no token is lost."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from foreword.errors import DataError
from foreword.pretrain.tokenizer import END

GIVEN = 0x8000  # bit of a stored token that is read but never a target

Document = str | tuple[tuple[str, bool], ...]  # a text, or its parts, each with whether it is learned


def plain(document: Document) -> str:
    """Return a document's text."""
    return document if isinstance(document, str) else "".join(text for text, _ in document)


def encode_documents(
    tokenizer: PreTrainedTokenizerFast, documents: Iterable[Document], batch: int = 256
) -> Iterator[np.ndarray]:
    """Yield uint16 token arrays, one a document, each ended by the end-of-document token.

    Parts are tokenised apart, and the tokens of those that are not learned carry the bit `GIVEN`.
    """
    end = tokenizer.convert_tokens_to_ids(END)
    pending: list[Document] = []
    for document in documents:
        pending.append(document)
        if len(pending) == batch:
            yield from _encode(tokenizer, pending, end)
            pending = []
    yield from _encode(tokenizer, pending, end)


def _encode(tokenizer: PreTrainedTokenizerFast, documents: list[Document], end: int) -> Iterator[np.ndarray]:
    parts = [((document, True),) if isinstance(document, str) else document for document in documents]
    flat = iter(tokenizer.backend_tokenizer.encode_batch([text for part in parts for text, _ in part]))
    for part in parts:
        ids = [token | (0 if learned else GIVEN) for _, learned in part for token in next(flat).ids]
        yield np.array([*ids, end], dtype=np.uint16)


def write_stream(path: Path, arrays: Iterable[np.ndarray], limit: int | None = None) -> int:
    """Write token arrays one after the other to a file; return how many tokens it holds.

    Args:
        path: the file; it appears only when complete.
        arrays: documents as uint16 tokens.
        limit: stop after the document that reaches this many tokens.
    """
    total = 0
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        for array in arrays:
            file.write(np.ascontiguousarray(array, dtype=np.uint16).tobytes())
            total += len(array)
            if limit is not None and total >= limit:
                break
    partial.replace(path)
    return total


def open_stream(path: Path) -> np.ndarray:
    """Return a memory-mapped uint16 `[tokens]` view of a file written by `write_stream`.

    Raises:
        DataError: the file is missing or empty.
    """
    if not path.is_file() or path.stat().st_size == 0:
        raise DataError(f"token file {str(path)!r} is missing or empty; prepare the data again")
    return np.memmap(path, dtype=np.uint16, mode="r")


def rows_in(stream: np.ndarray, context: int) -> int:
    """Return how many rows of `context` tokens a stream gives, the last one partly filled."""
    return -(-len(stream) // context)


def read_row(stream: np.ndarray, index: int, context: int, pad: int) -> np.ndarray:
    """Return int64 `[context + 1]`: row `index` and the token after it, padded past the end of the stream.

    The extra token is the target of the row's last position, so every token but the stream's first is predicted
    exactly once; it is the next row's first input.
    """
    row = np.asarray(stream[index * context : index * context + context + 1], dtype=np.int64)
    return np.pad(row, (0, context + 1 - len(row)), constant_values=pad)


class Mixture:
    """Rows drawn from several streams by weight, each stream in a fresh random order every epoch.

    Which rows a step gets depends on (seed, step) and nothing else, so a resumed run needs no saved position.
    """

    def __init__(
        self, streams: dict[str, np.ndarray], weights: dict[str, float], context: int, pad: int, seed: int
    ) -> None:
        self.names = sorted(name for name, weight in weights.items() if weight > 0)
        missing = [name for name in self.names if name not in streams]
        if missing:
            raise DataError(f"weights name {missing[0]!r}, but the prepared data holds {', '.join(sorted(streams))}")
        self.streams, self.context, self.pad, self.seed = streams, context, pad, seed
        total = sum(weights[name] for name in self.names)
        self.cycle, self.drawn = _cycle(np.array([weights[name] / total for name in self.names]))
        self.orders: dict[tuple[str, int], np.ndarray] = {}

    def rows(self, step: int, count: int) -> np.ndarray:
        """Return int64 `[count, context + 1]`, the rows of one step."""
        return np.stack([self.row(draw) for draw in range(step * count, (step + 1) * count)])

    def row(self, draw: int) -> np.ndarray:
        """Return int64 `[context + 1]`, the `draw`-th row of the run."""
        cycles, place = divmod(draw, _CYCLE)
        source = int(self.cycle[place])
        earlier = cycles * int(self.drawn[-1, source]) + int(self.drawn[place, source])
        stream = self.streams[self.names[source]]
        epoch, index = divmod(earlier, rows_in(stream, self.context))
        return read_row(stream, int(self._order(source, epoch)[index]), self.context, self.pad)

    def _order(self, source: int, epoch: int) -> np.ndarray:
        name = self.names[source]
        if (name, epoch) not in self.orders:
            self.orders.pop((name, epoch - 1), None)
            size = rows_in(self.streams[name], self.context)
            self.orders[name, epoch] = np.random.default_rng([self.seed, source, epoch]).permutation(size)
        return self.orders[name, epoch]


_CYCLE = 1000  # draws after which the sequence of sources repeats


def _cycle(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sources `[1000]` of a cycle of draws and `[1001, sources]` how often each came before a draw.

    Each draw takes the source that lags furthest behind its share, so every batch is mixed alike.
    """
    drawn = np.zeros((_CYCLE + 1, len(shares)), dtype=np.int64)
    cycle = np.empty(_CYCLE, dtype=np.int64)
    for draw in range(_CYCLE):
        cycle[draw] = np.argmax(shares * (draw + 1) - drawn[draw])
        drawn[draw + 1] = drawn[draw]
        drawn[draw + 1, cycle[draw]] += 1
    return cycle, drawn
