"""A user's own CSV of 200 rows becomes a scored prompt with one YAML of ten lines and one command."""

import pytest
from toy import save_backbone

from foreword.cli import main
from foreword.errors import ConfigError, DataError
from foreword.experiments.data_page import check_task
from foreword.experiments.grid.protocols import trial_of_task
from foreword.tasks import get_task

TASK = """\
name: opposites
source: "word: {word}"
target: "{kind}"
train: rows.csv
holdout: 0.15
metrics: [accuracy, macro_f1]
label_words: {a: vowel, b: other}
generation: {max_new_tokens: 4}
licence: our own
"""


@pytest.fixture
def own(tmp_path):
    """Two hundred rows of which some share a word."""
    assert len(TASK.splitlines()) <= 10
    lines = [f"{'aeioubcdfg'[i % 10]}{(i * 7) % 180},{'a' if i % 10 < 5 else 'b'}" for i in range(200)]
    (tmp_path / "rows.csv").write_text("word,kind\n" + "\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "own.yaml").write_text(TASK, encoding="utf-8")
    save_backbone(tmp_path / "backbone")
    return tmp_path


def test_the_holdout_keeps_sources_together(own):
    task = get_task(str(own / "own.yaml"))
    parts = {split: task.load(split) for split in ("train", "dev", "test")}
    assert sum(map(len, parts.values())) == 200
    sources = {split: {record.source for record in records} for split, records in parts.items()}
    assert not sources["train"] & sources["dev"] and not sources["dev"] & sources["test"]
    assert not sources["train"] & sources["test"]
    assert len(sources["dev"]) == len(sources["test"]) == round(0.15 * len(set().union(*sources.values())))
    assert task.load("dev") == parts["dev"]


def test_one_command_checks_learns_scores_and_tells(own, monkeypatch, capsys):
    monkeypatch.chdir(own)
    words = ["try", "own.yaml", "steps=4", "dev.every=2", "prompt.reparam_width=16", "--backbone", "backbone"]
    assert main(words) == 0
    assert "report: runs/try/own/report.html" in capsys.readouterr().out
    page = (own / "runs" / "try" / "own" / "report.html").read_text(encoding="utf-8")
    for piece in ("A first prompt for opposites", "macro_F1", "untouched", "Data checks", "illegal outputs"):
        assert piece in page
    rows = (own / "runs" / "try" / "own" / "results.csv").read_text().splitlines()
    assert sum(",accuracy," in row for row in rows) == 2


def test_a_fault_of_the_data_is_told_and_changes_the_exit_code(own, monkeypatch, capsys):
    """A training row among the test rows: what was learned is scored all the same, and the page says so too."""
    monkeypatch.chdir(own)
    word = get_task("own.yaml").load("train")[0].source.removeprefix("word: ")
    (own / "test.csv").write_text(f"word,kind\n{word},a\nnew,b\nnewer,b\n", encoding="utf-8")
    (own / "own.yaml").write_text(TASK.replace("holdout: 0.15", "holdout: 0.15\ntest: test.csv"), encoding="utf-8")
    words = ["try", "own.yaml", "steps=2", "dev.every=2", "prompt.reparam_width=16", "--backbone", "backbone"]
    assert main(words) == 1
    told = capsys.readouterr()
    assert "fail  test repeats train: 1 of 3 sources, 1 with the same target" in told.err
    assert "report: runs/try/own/report.html" in told.out


def test_the_holdout_does_not_part_rows_that_differ_in_case_alone(own):
    """The data checks would call them one row in two splits."""
    lines = [f"{word},a" for i in range(40) for word in (f"Word {i}", f"word  {i}")]
    (own / "rows.csv").write_text("word,kind\n" + "\n".join(lines) + "\n", encoding="utf-8")
    task = get_task(str(own / "own.yaml"))
    assert [len(task.load(split)) for split in ("train", "dev", "test")] == [56, 12, 12]
    assert not check_task(task).leaks


def test_a_task_without_dev_rows_or_a_useless_holdout_is_refused(own):
    (own / "own.yaml").write_text(TASK.replace("holdout: 0.15\n", ""), encoding="utf-8")
    with pytest.raises(DataError, match=r"no split 'dev'; name its file, or give holdout: 0\.15"):
        trial_of_task(str(own / "own.yaml"))
    (own / "own.yaml").write_text(TASK.replace("0.15", "0.5"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"holdout = 0\.5"):
        get_task(str(own / "own.yaml"))


def test_a_hub_data_set_is_read_by_its_splits(own, monkeypatch):
    """`datasets` reads a folder as it reads a hub id."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(own / "cache"))
    (own / "set").mkdir()
    (own / "set" / "train.csv").write_text((own / "rows.csv").read_text(), encoding="utf-8")
    text = TASK.replace("train: rows.csv", f"train: train\nhub: {own / 'set'}")
    (own / "own.yaml").write_text(text, encoding="utf-8")
    assert len(get_task(str(own / "own.yaml")).load("test")) > 10
