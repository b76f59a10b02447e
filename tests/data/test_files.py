import datetime
import gzip
import json
import os
import sys
from decimal import Decimal

import pytest

from foreword.data.files import (
    data_file,
    data_folder,
    read_hub,
    read_json,
    read_records,
    read_rows,
    write_atomic,
    write_jsonl,
)
from foreword.errors import DataError, MissingDataError, MissingExtraError


def put(tmp_path, name, text, encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"source": "x, y", "target": "é"}\n\n{"source": "b", "target": "c"}\n'),
        ("a.json", '[{"source": "x, y", "target": "é"}, {"source": "b", "target": "c"}]'),
        ("a.csv", 'source,target\n"x, y",é\r\nb,c\n'),
        ("a.tsv", "source\ttarget\nx, y\té\nb\tc\n"),
        ("a.csv", '\ufeffsource,target\n"x, y",é\nb,c'),
    ],
)
def test_every_kind_gives_the_same_records(tmp_path, name, text):
    records = read_records(put(tmp_path, name, text))
    assert [(r.source, r.targets) for r in records] == [("x, y", ("é",)), ("b", ("c",))]


def test_parquet(tmp_path):
    table = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(table.table({"source": ["x"], "target": [["1", "2"]]}), path)
    assert read_records(path)[0].targets == ("1", "2")
    with pytest.raises(DataError, match="not a Parquet file"):
        read_rows(put(tmp_path, "b.parquet", "no"))


@pytest.fixture
def parquet(tmp_path):
    """Return a function that writes one column named target, beside a source, and gives the file's path."""
    table, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def write(values, kind=None, names=("source", "target")):
        column = values if isinstance(values, table.Array) else table.array(values, kind)
        columns = [table.array(["x"] * len(column)), column]
        files.write_table(table.Table.from_arrays(columns, names=list(names)), tmp_path / "a.parquet")
        return tmp_path / "a.parquet"

    return write


@pytest.mark.parametrize(
    ("value", "text"),
    [(Decimal("1.10"), "1.10"), (datetime.datetime(2024, 5, 1, 12), "2024-05-01 12:00:00"), (True, "True"), (7, "7")],
)
def test_parquet_values_as_texts(parquet, value, text):
    assert read_records(parquet([value]))[0].targets == (text,)


@pytest.mark.parametrize("value", [None, b"bytes", {"a": 1}, [["deep"]], [{"a": 1}], float("nan"), ""])
def test_parquet_values_that_are_no_text(parquet, value):
    with pytest.raises(DataError, match=r"a\.parquet' row 1: field 'target' is empty or not a text"):
        read_records(parquet([value]))


def test_parquet_values_that_python_does_not_have(parquet):
    pyarrow = pytest.importorskip("pyarrow")
    year_148_000 = pyarrow.array([0, 2**62], pyarrow.timestamp("us"))
    not_utf8 = pyarrow.array([b"a", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    for column in (year_148_000, not_utf8):
        with pytest.raises(DataError, match=r"a\.parquet' column 'target' row 2 cannot be read .*drop the column"):
            read_rows(parquet(column))


def test_two_parquet_columns_of_one_name(parquet):
    for name in ("target", ""):
        with pytest.raises(DataError, match=f"two columns {name!r}"):
            read_rows(parquet(["y"], names=(name, name)))


def test_folders_named_as_columns_add_none(parquet, tmp_path):
    folder = tmp_path / "target=9"
    folder.mkdir()
    path = parquet(["y"]).rename(folder / "a.parquet")
    assert read_rows(path) == [(1, {"source": "x", "target": "y"})]


def test_hub_reads_a_local_folder(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    put(folder, "train.jsonl", '{"source": "a", "target": "b"}\n')
    assert read_hub(str(folder), "train") == [(1, {"source": "a", "target": "b"})]
    with pytest.raises(DataError, match="'nosplit'"):
        read_hub(str(folder), "nosplit")


def test_a_hub_set_that_is_not_there_is_no_fault_of_its_rows(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    for error, kind in ((ConnectionError("no network"), MissingDataError), (ValueError("Unknown split"), DataError)):
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        with pytest.raises(DataError, match="data set 'any', split 'train'") as raised:
            read_hub("any", "train")
        assert type(raised.value) is kind


def test_a_hub_row_that_cannot_be_decoded_is_a_data_error(monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = ({"a": 1 // n} for n in (1, 0))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    with pytest.raises(DataError, match="data set 'any', split 'train': integer division"):
        read_hub("any", "train")


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"foreword\[eval\]"):
        read_hub("any", "train")


def test_tsv_cells_keep_their_quotes(tmp_path):
    assert read_rows(put(tmp_path, "a.tsv", 'x\n"half a quote\n'))[0][1] == {"x": '"half a quote'}


def test_id_meta_and_several_references(tmp_path):
    path = put(tmp_path, "a.jsonl", '{"q": "a", "refs": ["1", "2"], "key": 7, "lang": "en"}')
    (record,) = read_records(path, "q", "refs", id="key", meta=["lang"])
    assert (record.targets, record.id, record.meta) == (("1", "2"), "7", {"lang": "en"})


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"source": "a", "target": "b"}\n{"source": ', "line 2 is not JSON"),
        ("a.jsonl", "[1]", "line 1 is a list"),
        ("a.jsonl", '{"sorce": "a", "target": "b"}', "no field 'source'; did you mean 'sorce'?"),
        (
            "a.jsonl",
            '{"source": "a", "target": "b"}\n\n{"source": "a", "target": "  "}',
            "row 3: field 'target' is empty",
        ),
        ("a.jsonl", '{"source": "a", "target": null}', "row 1: field 'target' is empty"),
        ("a.jsonl", '{"source": "a", "target": []}', "empty list"),
        ("a.csv", "source,target\na,b,c\n", "row 1 has 3 cells but the header names 2"),
        ("a.csv", 'source,target\na,"b\n', "line 2: unexpected end of data; check its quotes"),
        ("a.csv", "", "is empty"),
        ("a.json", "{}", "list of objects"),
        ("a.json", "[", "is not JSON"),
        ("a.jsonn", "", "did you mean 'json'"),
        # What Python's readers take in silence, or answer with a traceback.
        ("a.jsonl", '{"source": "a", "target": NaN}', "line 1: field 'target' is nan"),
        ("a.jsonl", '\n{"source": "a", "target": ["b", -1e999]}', "line 2: field 'target' is -inf"),
        ("a.jsonl", '{"source": "a", "source": "z", "target": "b"}', "line 1: field 'source' occurs twice"),
        ("a.jsonl", '{"source": "a", "target": {"x": 1, "x": 2}}', "line 1: field 'x' occurs twice"),
        ("a.jsonl", '{"source": "a", "target": ' + "9" * 5000 + "}", "line 1 has a number of thousands of digits"),
        ("a.jsonl", '{"source": "a", "target": ' + "[" * 100_000, "line 1 nests its values too deep"),
        ("a.jsonl", '{"source": "a", "target": "\\ud83d"}', "line 1: field 'target' has half a character, \\ud83d"),
        ("a.jsonl", '{"source": "a", "target": {"b": 1}}', "row 1: field 'target' is empty or not a text"),
        ("a.jsonl", '{"source": ["a"], "target": "b"}', "row 1: field 'source' is empty or not a text"),
        ("a.jsonl", '{"source": "a", "target": "b"}\n\ufeff{"source": "a", "target": "b"}', "line 2 is not JSON"),
        ("a.jsonl", "", "holds no rows"),
        ("a.json", "[]", "holds no rows"),
        ("a.json", '[{"source": "a", "target": "b"}, 3]', "row 2 is 3"),
        ("a.json", '[{"source": "a", "target": NaN}]', "field 'target' is nan"),
        ("a.json", '[{"source": "a", "target": "b", "target": "c"}]', "field 'target' occurs twice"),
        ("a.json", '[\n{"source": }]', "at line 2 column 12"),
        ("a.csv", "source,target\n", "holds no rows"),
        ("a.csv", "source,target,source\na,b,c\n", "two columns 'source'"),
        ("a.csv", "source,target\na,b\n\n\nc\n", "row 2 has 1 cells but the header names 2 (line 5)"),
        ("a.csv", "source,target\na,b\rc,d\n", "line 2: a carriage return in a cell without quotes"),
        ("a.csv", "source,target\na,b\n\ufeffsource,target\n", "line 3 starts with a byte-order mark"),
        ("a.csv", "source,target\na,b\0\n", "line 2 has a NUL byte"),
        ("a.csv", "source,target\n ,b\n", "row 1: field 'source' is empty"),
        ("a.tsv", "source\ttarget\na\tb\tc\n", "row 1 has 3 cells"),
        ("a.tsv", "source\ttarget\na\rb\tc\n", "line 2: a carriage return"),
        ("a.csv.gz", "", "is compressed (gz); unpack it first"),
    ],
)
def test_malformed_files_say_where(tmp_path, name, text, said):
    with pytest.raises(DataError) as error:
        read_records(put(tmp_path, name, text))
    assert said in str(error.value) and name in str(error.value)


def test_bad_encoding_names_the_line(tmp_path):
    with pytest.raises(DataError, match=r"line 2 is not UTF-8 \(byte 0xe9\)"):
        read_rows(put(tmp_path, "a.csv", "source,target\né,b\n", "latin-1"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nofile\.csv") as error:
        read_rows(tmp_path / "nofile.csv")
    assert not isinstance(error.value, MissingDataError)  # a path that a user gave, not published data
    with pytest.raises(DataError, match="is a directory; give the path of a file"):
        read_rows(tmp_path, "csv")


def test_a_compressed_file_is_told_from_text_in_another_encoding(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(gzip.compress(b"source,target\na,b\n"))
    with pytest.raises(DataError, match=r"is compressed \(gz\); unpack it"):
        read_rows(path)
    with pytest.raises(DataError, match="line 1 has a NUL byte: no text, or UTF-16"):
        read_rows(put(tmp_path, "a.csv", "source,target\n", "utf-16-le"))


def test_a_long_document_fits_in_a_cell(tmp_path):
    assert len(read_records(put(tmp_path, "a.csv", f"source,target\n{'x' * 140_000},b\n"))[0].source) == 140_000


@pytest.mark.parametrize(
    ("name", "text", "targets"),
    [
        ("a.csv", "source,target\ra,b\rc,d\r", ["b", "d"]),  # an old Mac's line ends
        ("a.csv", "source,target,,\r\na,b,,\r\n", ["b"]),  # a spreadsheet's spare columns
        ("a.csv", 'source,target\n"a\rz","b\r\nc"\n', ["b\r\nc"]),
        ("a.jsonl", '\ufeff{"source": "a", "target": 1}\r\n{"source": "a", "target": "2"}\r\n', ["1", "2"]),
        ("a.jsonl", '{"source": "a", "target": "\\ud83d\\ude00"}', ["\U0001f600"]),
        ("a.jsonl", '{"source": "a", "target": ' + "9" * 40 + "}", ["9" * 40]),
        ("a.jsonl", '{"source": "a", "target": "b\u2028c"}', ["b\u2028c"]),
    ],
)
def test_odd_files_that_are_sound(tmp_path, name, text, targets):
    assert [target for r in read_records(put(tmp_path, name, text)) for target in r.targets] == targets


@pytest.mark.parametrize("key", ["null", '""', "[1]"])
def test_an_id_must_be_a_text(tmp_path, key):
    path = put(tmp_path, "a.jsonl", f'{{"source": "a", "target": "b", "key": {key}}}')
    with pytest.raises(DataError, match="row 1: field 'key' is empty or not a text"):
        read_records(path, id="key")


def test_json_comments_are_skipped(tmp_path):
    assert read_json(put(tmp_path, "a.json", "# one\n# two\n[1]"), comment="#") == [1]
    with pytest.raises(DataError, match="line 3 column 2"):
        read_json(put(tmp_path, "a.json", "# one\n# two\n[x]"), comment="#")


def test_missing_data_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FOREWORD_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    with pytest.raises(MissingDataError, match=r"e2e.*get it from there.*FOREWORD_DATA"):
        data_file("e2e/trainset.csv", "there")


def test_written_lines_are_deterministic_and_leave_no_part(tmp_path):
    write_jsonl(tmp_path / "deep" / "a.jsonl", [{"b": 1, "a": "é"}])
    assert (tmp_path / "deep" / "a.jsonl").read_text(encoding="utf-8") == '{"a": "é", "b": 1}\n'
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.jsonl"]
    assert json.loads((tmp_path / "deep" / "a.jsonl").read_text(encoding="utf-8")) == {"a": "é", "b": 1}


def test_a_directory_is_no_file_to_write(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(DataError, match="taken' is a directory; give the path of a file"):
        write_atomic(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("fault", ["text", "disk"])
def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path, monkeypatch, fault):
    path = put(tmp_path, "a.txt", "old")
    if fault == "disk":
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError if fault == "disk" else UnicodeEncodeError):
        write_atomic(path, "new" if fault == "disk" else "\ud800")
    assert [(file.name, file.read_text(encoding="utf-8")) for file in tmp_path.iterdir()] == [("a.txt", "old")]
