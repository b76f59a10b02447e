import pytest

from foreword.data.records import Record
from foreword.errors import ConfigError, DataError
from foreword.evaluate.metrics import check_metrics
from foreword.tasks import TASKS, Task, get_task
from foreword.tasks.scores import check_labels, check_score_names


def test_names_are_nearest_or_listed():
    assert get_task("e2e") is TASKS["e2e"]
    with pytest.raises(DataError, match="did you mean 'webnlg'"):
        get_task("webnlq")


@pytest.mark.parametrize("name", TASKS)
def test_every_task_says_what_it_is(name):
    task = TASKS[name]
    assert task.name == name
    assert task.licence and task.template
    check_metrics(task.metrics)
    check_score_names(task.metrics)
    check_labels(task.metrics, task.labels, name)


@pytest.mark.parametrize("name", [n for n in TASKS if n not in ("venues", "sentiment", "headlines")])
def test_missing_data_is_one_line_that_names_foreword_data(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FOREWORD_DATA", str(tmp_path))

    def no_network(name, split, config=None):
        raise DataError(f"data set {name!r} cannot be reached")

    monkeypatch.setattr("foreword.tasks.source.read_hub", no_network)
    for split in TASKS[name].splits:
        with pytest.raises(DataError, match="FOREWORD_DATA") as error:
            TASKS[name].load(split)
        assert "\n" not in str(error.value)


def test_a_task_made_in_python_has_no_two_scores_of_one_name():
    with pytest.raises(ConfigError, match="'f1' and 'squad' both give a score called 'F1'"):
        Task("t", lambda split: [Record("a", ("b",))], ("f1", "squad"), labels=("a", "b"))


def test_splits_limits_and_targets_are_checked():
    task = Task("t", lambda split: [Record(split, ("x",)), Record("b", ("",))], ("bleu",), splits=("train",))
    assert task.load("train", limit=1) == [Record("train", ("x",))]
    with pytest.raises(DataError, match=r"no split 'tran'; did you mean 'train'\?"):
        task.load("tran")
    with pytest.raises(DataError, match="limit = 0"):
        task.load("train", limit=0)
    with pytest.raises(DataError, match="task 't', split 'train': record 2"):
        task.load("train")
