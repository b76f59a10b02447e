import pytest

from foreword.errors import ConfigError, DataError
from foreword.evaluate import metrics
from foreword.tasks import get_task
from foreword.tasks.scores import GROUP_METRICS, METRICS

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


def test_two_values_of_one_word_are_one_label(folder):
    task = get_task(change(folder, '{"1": bad, "5": good}', '{"1": bad, "2": bad, "5": good}'))
    assert task.labels == ("bad", "good")
    references = [record.targets for record in task.load("train")]
    scores, _ = metrics.score(["accuracy", "macro_f1"], ["good", "good"], references, task.labels)
    assert (scores["accuracy"], scores["macro_F1"]) == (0.5, pytest.approx(1 / 3))


def test_the_names_of_metrics_are_those_of_evaluate():
    assert set(metrics.STATISTICS) == METRICS
    assert set(metrics.BY_GROUP) == GROUP_METRICS


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
        ("[accuracy]", "[acuracy]", "unknown metric 'acuracy'; did you mean 'accuracy'?"),
        ("[accuracy]", "[]", "metrics = [] of task 'reviews' scores nothing; give at least one"),
        ("[accuracy]", "[f1, squad]", "'f1' and 'squad' both give a score called 'F1'"),
        ("[accuracy]", "[bleu, e2e_bleu]", "'bleu' and 'e2e_bleu' both give a score called 'BLEU'"),
        ("[accuracy]", "[exact_match, squad]", "'exact_match' and 'squad' both give a score called 'EM'"),
        ("[accuracy]", "[e2e_meteor, webnlg_meteor]", "both give a score called 'METEOR'"),
        ("[accuracy]", "[rouge, accuracy, rouge]", "'rouge' is named twice"),
        ("[accuracy]", "[accuracy, multirc]", "'multirc' needs what only its own task keeps"),
        ("licence: ours", "max_source: 0", "max_source = 0 must be at least 1"),
        ("licence: ours", "max_target: 1", "max_target = 1 must be at least 2"),
        ("max_new_tokens: 4", "max_new_tokens: 0", "generation.max_new_tokens = 0 must be at least 1"),
        ("max_new_tokens: 4", "num_beams: 0", "generation.num_beams = 0 must be at least 1"),
        ('"1": bad', '"1": ""', "label_words.1 = '' is empty"),
        ("{text}", "{text:>9}", "has ':>9' behind column 'text'"),
        ("{text}", "{text!r}", "has '!r' behind column 'text'"),
        ('"{stars}"', '"{stars!s:.1}"', "has '!s:.1' behind column 'stars'"),
    ],
)
def test_bad_task_files_are_config_errors(folder, old, new, said):
    with pytest.raises(ConfigError) as error:
        get_task(change(folder, old, new))
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["f1", "t5_f1"])
def test_f1_of_two_labels_does_not_fit_three(folder, name):
    path = change(folder, "[accuracy]", f"[{name}]")
    assert get_task(path).metrics == (name,)
    with pytest.raises(ConfigError, match=f"{name!r} needs two labels and label_words gives 3; take macro_f1"):
        get_task(change(folder, '"5": good', '"3": fair, "5": good'))


@pytest.mark.parametrize("name", ["f1", "t5_f1", "macro_f1"])
def test_metrics_whose_value_depends_on_the_labels_need_label_words(folder, name):
    """Else the records that happen to be scored would say which labels there are, and the alphabet their order."""
    change(folder, 'label_words: {"1": bad, "5": good}\n', "")
    with pytest.raises(ConfigError, match=f"{name!r} needs labels, and task 'reviews' has no label_words; give them"):
        get_task(change(folder, "[accuracy]", f"[{name}]"))
    assert get_task(change(folder, f"[{name}]", "[accuracy, exact_match]")).metrics == ("accuracy", "exact_match")


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


@pytest.mark.parametrize("value", ["null", '""', '" "', '["p", "q"]', '{"a": 1}'])
def test_a_source_field_must_be_a_text(folder, value):
    (folder / "dev.jsonl").write_text(f'{{"title": {value}, "text": "x", "stars": 5}}', encoding="utf-8")
    with pytest.raises(DataError, match="row 1: field 'title' is empty or not a text"):
        get_task(str(folder / "task.yaml")).load("dev")


@pytest.mark.parametrize("value", ["null", '""', '["p", "q"]'])
def test_a_longer_target_and_an_id_must_be_texts(folder, value):
    change(folder, 'label_words: {"1": bad, "5": good}\n', "")
    (folder / "dev.jsonl").write_text(f'{{"title": {value}, "text": "x", "stars": 5}}', encoding="utf-8")
    path = change(folder, 'source: "{title}: {text}"', 'source: "{text}"\nid: title')
    with pytest.raises(DataError, match="row 1: field 'title' is empty or not a text"):
        get_task(path).load("dev")
    change(folder, "id: title\n", "")
    assert get_task(path).load("dev")[0].source == "x"
    change(folder, 'target: "{stars}"', 'target: "-> {title}"')
    with pytest.raises(DataError, match="row 1: field 'title' is empty or not a text"):
        get_task(path).load("dev")


def test_a_file_without_rows_is_named(folder):
    (folder / "train.csv").write_text("title,text,stars\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.csv' holds no rows"):
        get_task(str(folder / "task.yaml")).load("train")
