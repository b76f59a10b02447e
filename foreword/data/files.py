"""Rows of a file as dictionaries, and rows as records: JSONL, JSON, CSV, TSV, Parquet, Hugging Face datasets."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from foreword.data.extras import load_extra
from foreword.data.records import Record
from foreword.errors import DataError, nearest

Row = tuple[int, dict[str, Any]]
"""A row and its number: the line in a JSONL file, the data row (from 1, after the header) elsewhere."""


def data_folder() -> Path | None:
    """Return the folder of public data: `$FOREWORD_DATA`, else `../shared/data` beside the checkout, else None."""
    if os.environ.get("FOREWORD_DATA"):
        return Path(os.environ["FOREWORD_DATA"])
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    return beside if beside.is_dir() else None


def data_file(relative: str, how: str) -> Path:
    """Return the path of `relative` inside the data folder; `how` says in words where the file comes from.

    Raises:
        DataError: there is no data folder or no such file; names FOREWORD_DATA and `how`.
    """
    folder = data_folder()
    if folder is None:
        raise DataError(f"no data folder for {relative!r}; set FOREWORD_DATA to a folder that holds it ({how})")
    path = folder / relative
    if not path.is_file():
        raise DataError(f"{str(path)!r} does not exist; get it from {how}, or point FOREWORD_DATA elsewhere")
    return path


def read_text(path: str | Path) -> str:
    """Return a file's text as UTF-8 (a byte-order mark is dropped, line ends are kept).

    Raises:
        DataError: the file is missing, or is not UTF-8 (names the line).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"file {str(path)!r} does not exist; check the path")
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        byte = f"byte 0x{raw[error.start]:02x}"
        raise DataError(f"{str(path)!r} line {line} is not UTF-8 ({byte}); re-encode the file") from None


def read_rows(path: str | Path, kind: str | None = None) -> list[Row]:
    """Return the rows of a file; `kind` (jsonl, json, csv, tsv, parquet) defaults to the file's ending.

    TSV cells are taken as they are, CSV cells may be quoted.

    Raises:
        DataError: missing file, unknown kind, or a malformed row (names its line or row).
    """
    kind = kind or Path(path).suffix.removeprefix(".").lower()
    if kind not in READERS:
        raise DataError(f"{str(path)!r} has kind {kind!r}{nearest(kind, READERS)}")
    return READERS[kind](Path(path))


def _read_jsonl(path: Path) -> list[Row]:
    lines = read_text(path).split("\n")  # not splitlines: U+2028 may stand inside a JSON string
    return [(n, _json_row(line, path, n)) for n, line in enumerate(lines, start=1) if line.strip()]


def _json_row(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{str(path)!r} line {number} is not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        raise DataError(f"{str(path)!r} line {number} is a {type(row).__name__}, not an object of fields")
    return row


def read_json(path: str | Path, comment: str = "") -> Any:
    """Return the value in a JSON file; leading lines that start with `comment` are skipped.

    Raises:
        DataError: missing file or bad JSON (names the line).
    """
    lines = read_text(path).split("\n")
    while comment and lines and lines[0].startswith(comment):
        lines.pop(0)
    try:
        return json.loads("\n".join(lines))
    except json.JSONDecodeError as error:
        raise DataError(f"{str(path)!r} is not JSON: {error.msg} at line {error.lineno}") from None


def _read_json_list(path: Path) -> list[Row]:
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{str(path)!r} must hold a list of objects; use JSONL or make it one")
    return list(enumerate(rows, start=1))


def _read_csv(path: Path) -> list[Row]:
    return _read_table(path, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def _read_tsv(path: Path) -> list[Row]:
    return _read_table(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_table(path: Path, delimiter: str, quoting: Any) -> list[Row]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        header, *cells = [row for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{str(path)!r} line {reader.line_num}: {error}; check its quotes") from None
    except ValueError:
        raise DataError(f"{str(path)!r} is empty; its first row must name the columns") from None
    for number, row in enumerate(cells, start=1):
        if len(row) != len(header):
            raise DataError(f"{str(path)!r} row {number} has {len(row)} cells but the header names {len(header)}")
    return [(number, dict(zip(header, row, strict=True))) for number, row in enumerate(cells, start=1)]


def _read_parquet(path: Path) -> list[Row]:
    parquet = load_extra("pyarrow.parquet", "reading Parquet")
    if not path.is_file():
        raise DataError(f"file {str(path)!r} does not exist; check the path")
    try:
        return list(enumerate(parquet.read_table(path).to_pylist(), start=1))
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} is not a Parquet file: {' '.join(str(error).split())[:120]}") from None


def read_hub(name: str, split: str, config: str | None = None, revision: str | None = None) -> list[Row]:
    """Return the rows of a Hugging Face data set (a hub id, or a folder that `datasets` understands).

    Raises:
        MissingExtraError: `datasets` is not installed.
        DataError: the data set, configuration or split cannot be loaded.
    """
    datasets = load_extra("datasets", "reading Hugging Face data sets")
    try:
        table = datasets.load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # the library raises many unrelated types for a wrong name, split or network
        raise DataError(f"data set {name!r}, split {split!r}: {' '.join(str(error).split())[:200]}") from None
    return list(enumerate((dict(row) for row in table), start=1))


READERS: dict[str, Callable[[Path], list[Row]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json_list,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
}


def pick(row: dict[str, Any], column: str, where: str) -> Any:
    """Return `row[column]`.

    Raises:
        DataError: no such column; names `where` and the nearest one.
    """
    if column not in row:
        raise DataError(f"{where} has no field {column!r}{nearest(column, row)}")
    return row[column]


def records_from_rows(
    rows: Iterable[Row], source: str, target: str, where: str, *, id: str | None = None, meta: Sequence[str] = ()
) -> list[Record]:
    """Return one record per row, taking source, target (a text or a list of texts), id and meta from columns.

    Raises:
        DataError: a column is missing (names the nearest) or a source or target is empty (names the row).
    """
    return [_record(row, number, source, target, where, id, meta) for number, row in rows]


def _record(
    row: dict[str, Any], number: int, source: str, target: str, where: str, id: str | None, meta: Sequence[str]
) -> Record:
    place = f"{where} row {number}"
    key = str(number) if id is None else str(pick(row, id, place))
    extra = {name: pick(row, name, place) for name in meta}
    text = filled(pick(row, source, place), place, source)
    return Record(text, texts(pick(row, target, place), place, target), key, extra)


def texts(value: Any, place: str, column: str) -> tuple[str, ...]:
    """Return a target cell as a tuple of texts; a list is several references of one source."""
    items = value if isinstance(value, list) else [value]
    if not items:
        raise DataError(f"{place}: target field {column!r} is an empty list; give at least one text")
    return tuple(filled(item, place, column) for item in items)


def filled(value: Any, place: str, column: str) -> str:
    """Return a cell as text.

    Raises:
        DataError: the cell is null, empty, only white space, or a container.
    """
    if value is None or isinstance(value, (dict, list)) or not str(value).strip():
        raise DataError(f"{place}: field {column!r} is empty or not a text ({value!r:.60}); fill or drop the row")
    return str(value)


def read_records(
    path: str | Path,
    source: str = "source",
    target: str = "target",
    *,
    id: str | None = None,
    meta: Sequence[str] = (),
    kind: str | None = None,
) -> list[Record]:
    """Return the records of a file, one per row, in order; see `read_rows` and `records_from_rows`."""
    return records_from_rows(read_rows(path, kind), source, target, repr(str(path)), id=id, meta=meta)


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines (sorted keys, UTF-8), in one atomic step."""
    text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    write_atomic(path, text)


def write_atomic(path: str | Path, text: str) -> None:
    """Write text so that a reader, or a kill at any moment, sees the old file or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
