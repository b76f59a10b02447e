import json
import sys

import pytest

from foreword.data.files import data_file, data_folder, read_hub, read_json, read_records, read_rows, write_jsonl
from foreword.errors import DataError, MissingExtraError


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


def test_hub_reads_a_local_folder(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    put(folder, "train.jsonl", '{"source": "a", "target": "b"}\n')
    assert read_hub(str(folder), "train") == [(1, {"source": "a", "target": "b"})]
    with pytest.raises(DataError, match="'nosplit'"):
        read_hub(str(folder), "nosplit")


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
        ("a.csv", 'source,target\na,"b\n', "check its quotes"),
        ("a.csv", "", "is empty"),
        ("a.json", "{}", "list of objects"),
        ("a.json", "[", "is not JSON"),
        ("a.jsonn", "", "did you mean 'json'"),
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
    with pytest.raises(DataError, match=r"nofile\.csv"):
        read_rows(tmp_path / "nofile.csv")


def test_json_comments_are_skipped(tmp_path):
    assert read_json(put(tmp_path, "a.json", "# one\n# two\n[1]"), comment="#") == [1]


def test_missing_data_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FOREWORD_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    with pytest.raises(DataError, match=r"e2e.*get it from there.*FOREWORD_DATA"):
        data_file("e2e/trainset.csv", "there")


def test_written_lines_are_deterministic_and_leave_no_part(tmp_path):
    write_jsonl(tmp_path / "deep" / "a.jsonl", [{"b": 1, "a": "é"}])
    assert (tmp_path / "deep" / "a.jsonl").read_text(encoding="utf-8") == '{"a": "é", "b": 1}\n'
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.jsonl"]
    assert json.loads((tmp_path / "deep" / "a.jsonl").read_text(encoding="utf-8")) == {"a": "é", "b": 1}
