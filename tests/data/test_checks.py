"""Planted faults are counted exactly, and sound data passes."""

import json

import pytest
from backbones import make
from toy import save_backbone

from foreword.cli import main
from foreword.data.checks import check_data, find_leak, measure
from foreword.data.examples import FORMATS, tokenise
from foreword.data.records import Record
from foreword.errors import DataError, MissingDataError
from foreword.experiments.data_page import check_task, token_counter
from foreword.tasks import Task, get_task

TRAIN = [
    Record("one two", ("yes",), "t1"), Record("three", ("no",), "t2"), Record("One  Two", ("yes",), "t3"),
    Record("four", ("",), "t4"), Record(" ", ("yes",), "t5"), Record("five", ("perhaps",), "t6"),
]
TEST = [Record("ONE two", ("yes",), "s1"), Record("three", ("yes",), "s2"), Record("six", ("no",), "s3")]


def test_planted_faults_are_counted():
    found = check_data({"train": TRAIN, "test": TEST}, labels=("no", "yes"))
    train = found.splits["train"]
    assert (train.records, train.targets, train.empty_sources, train.empty_targets) == (6, 6, 1, 1)
    assert (train.repeated_rows, train.repeated_sources, train.illegal_labels) == (1, 1, 2)
    assert train.labels == {"no": 1, "yes": 3}
    (leak,) = found.leaks
    assert (leak.known, leak.split, leak.sources, leak.rows, leak.of) == ("train", "test", 2, 1, 3)
    assert leak.examples == ("s1",)
    status = {check: level for level, check, _ in found.findings()}
    assert status["test repeats train"] == "fail" and status["train: empty targets"] == "fail"
    assert status["train: repeated rows"] == "warn" and status["train: labels out of balance"] == "warn"


def test_sound_data_passes():
    found = check_data({"train": [Record("a", ("x",), "1")], "test": [Record("b", ("y",), "2")]})
    assert [level for level, _, _ in found.findings()] == ["ok", "ok", "ok"]
    assert find_leak("a", TRAIN, "b", [Record("new", ("z",))]).sources == 0


def test_lengths_and_cuts():
    found = measure(["a", "a b c", "a b"])
    assert (found.unit, found.median, found.longest, sum(found.counts), found.cut) == ("words", 2.0, 3, 3, None)
    assert len(found.edges) == len(found.counts) + 1
    cut = measure(["abcd", "ab"], lambda texts: [len(text) for text in texts], 3)
    assert (cut.unit, cut.longest, cut.cut) == ("tokens", 4, 1)
    assert measure([]).longest == 0


def rows(first, count):
    return [Record(f"word {i}", ("up" if i % 2 else "down",), str(i)) for i in range(first, first + count)]


@pytest.mark.parametrize(
    ("dev", "test", "status"),
    [
        (rows(0, 12)[::-1], rows(0, 12), "fail"),
        (rows(0, 13), rows(0, 12), "fail"),
        (rows(6, 16), rows(0, 12), "fail"),
        (rows(9, 16), rows(0, 12), "fail"),  # 3 of 12, a quarter
        (rows(10, 16), rows(0, 12), "warn"),
        (rows(10, 4), rows(0, 12), "fail"),  # 2 of 12, but half of dev
    ],
)
def test_a_good_part_of_the_test_rows_in_dev_is_a_fault_and_a_few_are_a_warning(dev, test, status):
    ids = {record.id for record in dev} & {record.id for record in test}
    ((level, check, detail), *others) = [f for f in check_data({"dev": dev, "test": test}).findings() if f[0] != "ok"]
    assert (level, check, others) == (status, "test repeats dev", [])
    assert detail.startswith(f"{len(ids)} of {len(test)} sources, {len(ids)} with the same target")
    assert (f"they are {len(ids)} of {len(dev)} records of dev" in detail) == (status == "fail")


def test_a_source_with_another_target_is_no_copied_row():
    other = [Record(record.source, ("sideways",), record.id) for record in rows(0, 12)]
    leak = find_leak("dev", other, "test", rows(0, 12))
    assert (leak.sources, leak.rows, leak.back, leak.is_substantial) == (12, 0, 0, False)


def test_splits_are_compared_in_the_order_of_their_use():
    """Whatever order they are asked for in: what training has seen is a fault of the other split."""
    found = check_data({"test": rows(0, 40), "dev": rows(60, 4), "train": rows(39, 40)}).findings()
    assert [(status, check) for status, check, _ in found if status == "fail"] == [
        ("fail", "dev repeats train"), ("fail", "test repeats train")
    ]


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("limits", [(3, 4), (4, 6), (6, 5), (9, 9)])
def test_what_is_counted_as_cut_is_what_tokenising_cuts(name, limits):
    """A token a character; EOS and the format's white space take their part of the limit."""
    backbone = make("t5" if name == "seq2seq" else "gpt2")
    records = [Record("a" * n, ("b" * n,), str(n)) for n in range(1, 10)]
    made = tokenise(records, backbone.tokenizer, FORMATS[name], *limits)
    found = check_data(
        {"train": records}, (), token_counter(backbone.tokenizer), limits, form=FORMATS[name]
    ).splits["train"]
    assert (found.source_lengths.cut, found.target_lengths.cut) == (made.sources_cut, made.targets_cut)
    assert 0 < made.targets_cut < 9


def test_eos_takes_a_place_of_the_target():
    def words(texts):
        return [len(text.split()) for text in texts]

    for length, cut in ((5, 0), (6, 1)):
        target = " ".join("w" * length)
        (split,) = check_data({"train": [Record("a", (target,), "1")]}, (), words, (None, 6)).splits.values()
        assert (split.target_lengths.longest, split.target_lengths.cut) == (length, cut)


def test_the_command_counts_what_the_backbone_will_cut(own, capsys):
    """Of targets of 2 and 4 characters, both with a space on each side: 4 and 6 tokens beside EOS."""
    save_backbone(own / "backbone")
    text = (own / "own.yaml").read_text(encoding="utf-8")
    (own / "own.yaml").write_text(json.dumps(json.loads(text) | {"max_target": 5}), encoding="utf-8")
    main(["check", str(own / "own.yaml"), "--split", "train", "--backbone", str(own / "backbone")])
    assert "train: targets that will be cut: 10 of 20" in capsys.readouterr().out


@pytest.fixture
def own(tmp_path):
    rows = [{"s": f"word {i}", "t": "up" if i % 2 else "down"} for i in range(20)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "test.jsonl").write_text(json.dumps(rows[0]), encoding="utf-8")
    task = {"name": "own", "source": "{s}", "target": "{t}", "metrics": ["accuracy"], "train": "train.jsonl",
            "test": "test.jsonl", "dev": "gone.jsonl", "label_words": {"up": "up", "down": "down"}}
    (tmp_path / "own.yaml").write_text(json.dumps(task), encoding="utf-8")
    return tmp_path


def test_a_missing_split_is_named_and_a_leak_is_a_fault(own, capsys):
    assert main(["check", str(own / "own.yaml"), "--out", str(own / "page.html")]) == 1
    out = capsys.readouterr().out
    assert "fail  test repeats train: 1 of 1 sources, 1 with the same target" in out
    assert "fail  dev cannot be read" in out and "gone.jsonl" in out and "up 10" in out
    assert "Lengths of the sources" in (own / "page.html").read_text()
    assert main(["check", str(own / "own.yaml"), "--split", "train"]) == 0


@pytest.mark.parametrize(
    ("file", "row", "said"),
    [
        ("train.jsonl", {"s": "new", "t": ""}, "fail  train cannot be read"),
        ("dev.jsonl", {"s": "new", "t": "sideways"}, "label 'sideways' has no label word"),
        ("dev.jsonl", {"s": "", "t": "up"}, "row 1: field 's' is empty"),
        ("dev.jsonl", None, "dev.jsonl' holds no rows"),
    ],
)
def test_a_faulty_row_of_any_split_is_a_fault(own, capsys, file, row, said):
    (own / "test.jsonl").write_text('{"s": "other", "t": "up"}', encoding="utf-8")
    (own / "dev.jsonl").write_text('{"s": "another", "t": "down"}', encoding="utf-8")
    text = (own / "own.yaml").read_text(encoding="utf-8").replace("gone.jsonl", "dev.jsonl")
    (own / "own.yaml").write_text(text, encoding="utf-8")
    assert main(["check", str(own / "own.yaml")]) == 0
    (own / file).write_text("" if row is None else json.dumps(row), encoding="utf-8")
    capsys.readouterr()
    assert main(["check", str(own / "own.yaml")]) == 1
    assert said in capsys.readouterr().out


def test_published_data_that_is_not_at_hand_is_no_fault(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FOREWORD_DATA", str(tmp_path))
    rows = [{"hypothesis": f"h{i}", "premise": "p", "label": label} for i, label in enumerate(get_task("cb").labels)]
    (tmp_path / "superglue" / "cb").mkdir(parents=True)
    (tmp_path / "superglue" / "cb" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert main(["check", "cb"]) == 0
    assert "warn  dev is not at hand" in capsys.readouterr().out


def test_a_task_without_a_sound_split_tells_the_fault_before_what_is_missing():
    faults = {"train": MissingDataError("not here"), "dev": DataError("row 7 is bad")}

    def load(split):
        raise faults[split]

    with pytest.raises(DataError, match="no split of task 'bad' can be loaded: row 7 is bad"):
        check_task(Task("bad", load, ("accuracy",), splits=("train", "dev")))


def test_a_split_without_records_is_a_fault():
    findings = check_data({"train": []}, labels=("a", "b")).findings()
    assert findings == [("fail", "train: no records", "give at least one row")]


def test_parts_of_a_split_are_no_leak(public_webnlg):
    found = check_task(get_task("webnlg"), ["test", "test_seen", "test_unseen"])
    assert not found.leaks
    assert found.splits["test"].records == found.splits["test_seen"].records + found.splits["test_unseen"].records


@pytest.fixture
def public_webnlg():
    try:
        get_task("webnlg").load("test", 1)
    except DataError:
        pytest.skip("FOREWORD_DATA: no public data here")
