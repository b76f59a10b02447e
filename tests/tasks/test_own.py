import pytest

from foreword.errors import ConfigError, DataError
from foreword.tasks import get_task

YAML = """\
name: reviews
source: "{title}: {text}"
target: "{stars}"
label_words: {"1": bad, "5": good}
train: train.csv
dev: dev.jsonl
metrics: [accuracy]
generation: {max_new_tokens: 4}
licence: ours
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "task.yaml").write_text(YAML, encoding="utf-8")
    (tmp_path / "train.csv").write_text("title,text,stars\nA,fine,5\nB,poor,1\n", encoding="utf-8")
    (tmp_path / "dev.jsonl").write_text('{"title": "C", "text": "so so", "stars": 5}\n', encoding="utf-8")
    return tmp_path


def change(folder, old, new):
    path = folder / "task.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    return str(path)


def test_ten_lines_make_a_task(folder):
    task = get_task(str(folder / "task.yaml"))
    assert [(r.source, r.targets, r.id) for r in task.load("train")] == [
        ("A: fine", ("good",), "1"),
        ("B: poor", ("bad",), "2"),
    ]
    assert task.load("dev")[0].targets == ("good",)
    assert (task.splits, task.labels, task.generation.max_new_tokens) == (("train", "dev"), ("bad", "good"), 4)


def test_a_bare_target_column_may_hold_several_references(folder):
    change(folder, 'label_words: {"1": bad, "5": good}\n', "")
    change(folder, 'target: "{stars}"', 'target: "{refs}"')
    (folder / "dev.jsonl").write_text('{"title": "C", "text": "x", "refs": ["p", "q"]}', encoding="utf-8")
    assert get_task(str(folder / "task.yaml")).load("dev")[0].targets == ("p", "q")


def test_ids_and_literal_braces(folder):
    change(folder, 'source: "{title}: {text}"', 'source: "{{{title}}}"\nid: title')
    assert [(r.source, r.id) for r in get_task(str(folder / "task.yaml")).load("train")] == [("{A}", "A"), ("{B}", "B")]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("metrics:", "metric:", "unknown field 'metric'; did you mean 'metrics'?"),
        ("name: reviews\n", "", "missing field 'name'"),
        ('"{stars}"', '"{stars"', "target = '{stars'"),
        ('"{stars}"', "stars", "fills in no column"),
        ('"{title}: {text}"', '"{}"', "fills in no column"),
        ("train: train.csv\ndev: dev.jsonl\n", "", "names no file"),
        ("max_new_tokens", "max_tokens", "did you mean 'max_new_tokens'"),
    ],
)
def test_bad_task_files_are_config_errors(folder, old, new, said):
    with pytest.raises(ConfigError) as error:
        get_task(change(folder, old, new))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{text}", "{txt}", "row 1 has no field 'txt'; did you mean 'text'?"),
        ('"1": bad', '"2": bad', "row 2: label '1' has no label word"),
        ("train: train.csv", "train: gone.csv", "gone.csv"),
    ],
)
def test_bad_rows_are_data_errors(folder, old, new, said):
    with pytest.raises(DataError) as error:
        get_task(change(folder, old, new)).load("train")
    assert said in str(error.value)


def test_a_null_source_field_is_an_error(folder):
    (folder / "dev.jsonl").write_text('{"title": null, "text": "x", "stars": 5}', encoding="utf-8")
    with pytest.raises(DataError, match="field 'title' is empty"):
        get_task(str(folder / "task.yaml")).load("dev")
