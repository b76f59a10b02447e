"""Rows of a file as dictionaries, and rows as records: JSONL, JSON, CSV, TSV, Parquet, Hugging Face datasets."""

import csv
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from foreword.data.extras import load_extra
from foreword.data.records import Record
from foreword.errors import DataError, MissingDataError, nearest

Row = tuple[int, dict[str, Any]]
"""A row and its number: the line in a JSONL file, the data row (from 1, after the header) elsewhere."""

TEXTUAL = (str, int, float, Decimal, date, time, timedelta)
"""What a cell may hold to be read as text, as Python writes it: JSON's 1.50 is "1.5" and its true is "True".

Bytes, lists, structs and decoded images would be learned as Python code.
"""

PACKED = {"gz": b"\x1f\x8b", "zip": b"PK\x03\x04", "zst": b"\x28\xb5\x2f\xfd", "bz2": b"BZh9", "xz": b"\xfd7zXZ"}
"""Compressed files by their endings, and the bytes that they start with (an Excel file is a zip file)."""

_HALF_PAIR = re.compile("[\ud800-\udfff]")


def data_folder() -> Path | None:
    """Return the folder of public data: `$FOREWORD_DATA`, else `../shared/data` beside the checkout, else None."""
    if os.environ.get("FOREWORD_DATA"):
        return Path(os.environ["FOREWORD_DATA"])
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    return beside if beside.is_dir() else None


def data_file(relative: str, how: str) -> Path:
    """Return the path of `relative` inside the data folder; `how` says in words where the file comes from.

    Raises:
        MissingDataError: there is no data folder or no such file; names FOREWORD_DATA and `how`.
    """
    folder = data_folder()
    if folder is None:
        raise MissingDataError(f"no data folder for {relative!r}; set FOREWORD_DATA to a folder that holds it ({how})")
    path = folder / relative
    if not path.is_file():
        raise MissingDataError(f"{str(path)!r} does not exist; get it from {how}, or point FOREWORD_DATA elsewhere")
    return path


def read_text(path: str | Path) -> str:
    """Return a file's text as UTF-8 (a byte-order mark is dropped, line ends are kept).

    Raises:
        DataError: the file is missing, compressed, or is not UTF-8 (names the line).
    """
    path = Path(path)
    _check_file(path)
    raw = path.read_bytes()
    for kind, first in PACKED.items():
        if raw.startswith(first):
            raise DataError(f"{str(path)!r} is compressed ({kind}); unpack it, or export a sheet as CSV")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        byte = f"byte 0x{raw[error.start]:02x}"
        raise DataError(f"{str(path)!r} line {line} is not UTF-8 ({byte}); re-encode the file") from None
    if b"\0" in raw:  # UTF-8 too, but no text has it: UTF-16, a binary file, or one that a crash cut short
        line = raw[: raw.index(b"\0")].count(b"\n") + 1
        raise DataError(f"{str(path)!r} line {line} has a NUL byte: no text, or UTF-16; re-encode the file as UTF-8")
    return text


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{str(path)!r} is a directory; give the path of a file")
    if not path.is_file():
        raise DataError(f"file {str(path)!r} does not exist; check the path")


def read_rows(path: str | Path, kind: str | None = None) -> list[Row]:
    """Return the rows of a file; `kind` (jsonl, json, csv, tsv, parquet) defaults to the file's ending.

    TSV cells are taken as they are, CSV cells may be quoted.

    Raises:
        DataError: missing file, unknown kind, or a malformed row (names its line or row).
    """
    kind = kind or Path(path).suffix.removeprefix(".").lower()
    if kind in PACKED:
        raise DataError(f"{str(path)!r} is compressed ({kind}); unpack it first")
    if kind not in READERS:
        raise DataError(f"{str(path)!r} has kind {kind!r}{nearest(kind, READERS)}")
    return READERS[kind](Path(path))


def _read_jsonl(path: Path) -> list[Row]:
    lines = read_text(path).split("\n")  # not splitlines: U+2028 may stand inside a JSON string
    return [(n, _json_row(line, path, n)) for n, line in enumerate(lines, start=1) if line.strip()]


def _json_row(line: str, path: Path, number: int) -> dict[str, Any]:
    place = f"{str(path)!r} line {number}"
    try:
        row = _parsed(line, place)
    except json.JSONDecodeError as error:
        said = f"{place} is not JSON: {error.msg} at column {error.colno}"
        raise DataError(f"{said}; write one object a line") from None
    if not isinstance(row, dict):
        raise DataError(f"{place} is a {type(row).__name__}, not an object of fields; write one object a line")
    return row


def _parsed(text: str, place: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        JSONDecodeError: it is none.
        DataError: Python would read something else than what stands there, or stop with a traceback.
    """
    try:
        return json.loads(text, object_pairs_hook=_fields)
    except json.JSONDecodeError:
        raise
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    except ValueError:  # Python's limit on the digits of a number, the one other ValueError here
        raise DataError(f"{place} has a number of thousands of digits; put it in quotes") from None
    except RecursionError:
        raise DataError(f"{place} nests its values too deep to be read; flatten them") from None


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; of two equal names `json` keeps the last in silence."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise DataError(f"field {name!r} occurs twice, in {dict(pairs)!r:.80}; keep one of them")
        if fault := _unreadable(value):
            raise DataError(f"field {name!r} {fault}")
        fields[name] = value
    return fields


def _unreadable(value: Any) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}, which JSON does not have; write null, or put a text in quotes"
    if isinstance(value, str) and not value.isascii() and (half := _HALF_PAIR.search(value)):
        return f"has half a character, \\u{ord(half[0]):04x}; write the pair, or the character itself"
    if isinstance(value, list):
        return next(filter(None, map(_unreadable, value)), None)
    return None


def read_json(path: str | Path, comment: str = "") -> Any:
    """Return the value in a JSON file; leading lines that start with `comment` are skipped.

    Raises:
        DataError: missing file or bad JSON (names the line, or the field that occurs twice or has no value).
    """
    lines = read_text(path).split("\n")
    for number, line in enumerate(lines):
        if not comment or not line.startswith(comment):
            break
        lines[number] = ""  # an empty line in its place, so that messages count lines as the file does
    try:
        return _parsed("\n".join(lines), repr(str(path)))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise DataError(f"{str(path)!r} is not JSON: {error.msg} at {where}; mend it there") from None


def _read_json_list(path: Path) -> list[Row]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{str(path)!r} must hold a list of objects; use JSONL or make it one")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(
                f"{str(path)!r} must hold a list of objects; row {number} is {row!r:.60}, make it an object of fields"
            )
    return list(enumerate(rows, start=1))


def _read_csv(path: Path) -> list[Row]:
    return _read_table(path, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def _read_tsv(path: Path) -> list[Row]:
    return _read_table(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_table(path: Path, delimiter: str, quoting: Any) -> list[Row]:
    csv.field_size_limit(2**31 - 1)  # Python's own limit, one for the process, refuses a long document in a cell
    text = read_text(path)
    # A lone carriage return ends a line only where nothing else does; inside a cell it would cut the row in two.
    ends = io.StringIO(text, newline="\n" if "\n" in text else "")
    lines = list(_table_lines(csv.reader(ends, delimiter=delimiter, quoting=quoting, strict=True), path))
    if not lines:
        raise DataError(f"{str(path)!r} is empty; its first row must name the columns")
    (_, header), *body = lines
    _check_columns([name for name in header if name], path)  # a spare comma at each line's end names columns ""
    for number, (line, row) in enumerate(body, start=1):
        if len(row) != len(header):
            raise DataError(
                f"{str(path)!r} row {number} has {len(row)} cells but the header names {len(header)} (line {line}); "
                "give it as many"
            )
    return [(number, dict(zip(header, row, strict=True))) for number, (_, row) in enumerate(body, start=1)]


def _table_lines(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank, with the line on which it starts."""
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            said = "a carriage return in a cell without quotes" if "new-line" in str(error) else error
            raise DataError(f"{str(path)!r} line {line}: {said}; check its quotes") from None
        if row is None:
            return
        if row and row[0].startswith("\ufeff"):
            raise DataError(f"{str(path)!r} line {line} starts with a byte-order mark, as joined files do; drop it")
        if row:
            yield line, row


def _check_columns(names: Sequence[str], path: Path) -> None:
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise DataError(f"{str(path)!r} has two columns {twice!r}, of which only one could be read; rename one")


def _read_parquet(path: Path) -> list[Row]:
    parquet = load_extra("pyarrow.parquet", "reading Parquet")
    _check_file(path)
    try:
        file = parquet.ParquetFile(path)
        _check_columns(file.schema_arrow.names, path)
        table = file.read()
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{str(path)!r} is not a Parquet file: {' '.join(str(error).split())[:120]}") from None
    columns = [_column(table.column(name), f"{str(path)!r} column {name!r}") for name in table.column_names]
    rows = zip(*columns, strict=True)
    return [(number, dict(zip(table.column_names, row, strict=True))) for number, row in enumerate(rows, start=1)]


def _column(column: Any, place: str) -> list[Any]:
    """Return a column's values in Python; not all of Arrow's have one (a year 140,000, a time zone nobody knows)."""
    values = []
    try:
        for value in column:
            values.append(value.as_py())
    except (ValueError, OverflowError, LookupError, NotImplementedError) as error:
        said = " ".join(str(error).split())[:120]
        raise DataError(f"{place} row {len(values) + 1} cannot be read ({said}); mend it or drop the column") from None
    return values


def read_hub(name: str, split: str, config: str | None = None, revision: str | None = None) -> list[Row]:
    """Return the rows of a Hugging Face data set (a hub id, or a folder that `datasets` understands).

    Raises:
        MissingExtraError: `datasets` is not installed.
        MissingDataError: there is no such data set, or no network.
        DataError: the configuration or split cannot be loaded, or a row cannot be read.
    """
    datasets = load_extra("datasets", "reading Hugging Face data sets")
    try:
        table = datasets.load_dataset(name, config, split=split, revision=revision)
        return list(enumerate((dict(row) for row in table), start=1))
    except Exception as error:  # the library raises many unrelated types for a wrong name, split or network
        kind = MissingDataError if isinstance(error, OSError) else DataError
        raise kind(f"data set {name!r}, split {split!r}: {' '.join(str(error).split())[:200]}") from None


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
    key = str(number) if id is None else filled(pick(row, id, place), place, id)
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
        DataError: the cell is null, empty, only white space, not a number (NaN, infinite), or no text at all.
    """
    endless = isinstance(value, (float, Decimal)) and not math.isfinite(value)
    if endless or not isinstance(value, TEXTUAL) or not str(value).strip():
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
    """Return the records of a file, one per row, in order; see `read_rows` and `records_from_rows`.

    Raises:
        DataError: as they do, or the file has no row.
    """
    rows = some_rows(read_rows(path, kind), str(path))
    return records_from_rows(rows, source, target, repr(str(path)), id=id, meta=meta)


def some_rows(rows: list[Row], where: str) -> list[Row]:
    """Return the rows.

    Raises:
        DataError: there is none.
    """
    if not rows:
        raise DataError(f"{where!r} holds no rows; give at least one")
    return rows


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines (sorted keys, UTF-8), in one atomic step."""
    text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    write_atomic(path, text)


def write_atomic(path: str | Path, text: str) -> None:
    """Write text so that a reader, or a kill at any moment, sees the old file or the new one, never a part."""
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{str(path)!r} is a directory; give the path of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
