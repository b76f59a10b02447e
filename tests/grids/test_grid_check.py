"""Grids that would give wrong figures or none are refused before anything runs, with field, value and fix."""

import datetime
import json

import pytest
from gridkit import AXES, grid_tree, make_grid, save_labels, with_store

from foreword.cli import main
from foreword.errors import ConfigError, DataError
from foreword.experiments.grid.address import Contents
from foreword.experiments.grid.drive import plan, run_grid
from foreword.experiments.grid.protocols import load_grid
from foreword.experiments.grid.spec import points
from foreword.tasks import get_task

SPACES = {"prefix": {"optim.lr": [0.1]}, "prompt": {"optim.lr": [0.3]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"page": {"metric": "acuracy"}}, "page.metric = 'acuracy' .*did you mean 'accuracy'"),
        ({"page": {"metric": "METEOR"}}, "page.metric = 'METEOR' is no score of this grid"),
        ({"page": {"gap": ["test", "tset"]}}, "page.gap names target 'tset'; did you mean 'test'"),
        ({"page": {"shift": "methd"}}, "page.shift names axis 'methd'; did you mean 'method'"),
        ({"page": {"over": ["sed"]}}, "page.over names axis 'sed'"),
        ({"page": {"x": "seed"}}, "page.x names axis 'seed', which page.over averages over"),
        ({"page": {"baseline": {"seed": "0"}}}, "page.baseline names axis 'seed', which page.over averages over"),
        ({"page": {"baseline": {"method": "prompt", "seed": "0"}}}, "names 2 axes; give one"),
        ({"page": {"examples": -1}}, "page.examples = -1 must be at least 0"),
        ({"skip": [{"method": "prfix"}]}, "skip or when: method = 'prfix' .*did you mean 'prefix'"),
        ({"when": [{"labels": {"seed": "2"}, "set": {"steps": 3}}]}, "skip or when: seed = '2' is no value"),
        ({"search": {"budget": 1, "spaces": {**SPACES, "promt": {}}}}, "search.spaces: method = 'promt'.*'prompt'"),
        ({"search": {"budget": 1, "spaces": SPACES, "axis": "methd"}}, "search.axis = 'methd' is no axis"),
        ({"search": {"budget": 1, "spaces": SPACES, "axis": "seed"}}, "search.axis = 'seed' is averaged over"),
        ({"search": {"budget": 0, "spaces": SPACES}}, "search.budget = 0 must be at least 1"),
        ({"search": {"budget": -1, "spaces": SPACES}}, "search.budget = -1 must be at least 1"),
        ({"search": {"budget": 1, "spaces": SPACES, "seed": -1}}, "search.seed = -1"),
        ({"search": {"budget": 1, "spaces": {**SPACES, "prompt": {"dev.metric": ["loss"]}}}}, "varies dev.metric"),
        ({"scoring": {"limit": 0}}, "scoring.limit = 0 must be at least 1"),
        ({"scoring": {"num_beams": 0}}, "scoring.num_beams = 0 must be at least 1"),
        ({"scoring": {"max_new_tokens": 0}}, "scoring.max_new_tokens = 0 must be at least 1"),
        ({"scoring": {"batch_size": 0}}, "scoring.batch_size = 0 must be at least 1"),
        ({"scoring": {"resamples": -1}}, "scoring.resamples = -1 must be at least 0"),
        ({"scoring": {"seed": -1}}, "scoring.seed = -1"),
        ({"scoring": {"targets": [{"relabel": {"up": "on"}}]}}, "relabel .* names no task"),
        ({"scoring": {"metrics": ["multirc"]}}, "'multirc' needs what only the records of task 'multirc' tell"),
        ({"threads": 0}, "threads = 0 must be at least 1"),
        ({"gang": 0}, "gang = 0 must be at least 1"),
        ({"base": {"dev": {"every": 3, "metric": "acuracy"}}}, "dev.metric = 'acuracy' .*did you mean 'accuracy'"),
        ({"base": {"view": 3}}, "view = 3 must be a mapping of fields"),
        ({"base": {"view": {"siz": 8}}}, "unknown field 'view.siz'; did you mean 'size'"),
        ({"axes": {"size": {"field": "view.siez", "values": [8]}}}, "unknown field 'view.siez'"),
        ({"base": {"view": {"size": 8, "draw": -1}}}, "draw = -1 must be at least 0"),
        ({"axes": {"day": {"field": "optim.lr", "values": [datetime.date(2024, 1, 2)]}}}, "optim.lr = datetime.date"),
    ],
)
def test_a_grid_that_cannot_work_is_refused(ground, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_grid(ground, **changes)


def test_a_score_that_is_best_when_least_cannot_decide(ground, tmp_path):
    task = save_labels(tmp_path, metrics=["webnlg_ter"])
    with pytest.raises(ConfigError, match=r"dev\.metric = 'TER' is best when least"):
        make_grid(ground, base={"task": str(task), "dev": {"every": 3, "metric": "TER"}})


def test_an_unknown_task_among_the_targets_is_said_before_the_search(ground):
    with pytest.raises(DataError, match="unknown task 'nosuch'"):
        make_grid(ground, scoring={"targets": [{"task": "nosuch"}]}, search={"budget": 1, "spaces": SPACES})


def test_a_metric_over_groups_meets_only_the_task_that_is_scored_by_it(ground):
    """The run's own task is not scored here."""
    targets = {"targets": [{"task": "multirc", "split": "dev"}], "metrics": ["multirc"]}
    assert make_grid(ground, scoring=targets).scoring.metrics == ("multirc",)
    with pytest.raises(ConfigError, match=r"'multirc' needs what only .* task 'boolq' is scored too"):
        make_grid(ground, scoring={**targets, "targets": [*targets["targets"], {"task": "boolq", "split": "dev"}]})


@pytest.mark.parametrize("field", ["num_beams", "max_new_tokens"])
def test_an_own_task_that_cannot_be_decoded_is_refused(ground, tmp_path, field):
    save_labels(tmp_path, generation={"max_new_tokens": 3, field: 0})
    with pytest.raises(ConfigError, match=f"generation.{field} = 0 must be at least 1"):
        get_task(str(tmp_path / "order.yaml"))


def test_the_command_line_says_a_wrong_number_and_exits_2(ground, tmp_path, capsys):
    (tmp_path / "grid.yaml").write_text(json.dumps(grid_tree(ground, threads=0)), encoding="utf-8")
    assert main(["grid", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "foreword: threads = 0 must be at least 1\n"


def test_a_share_in_scientific_notation_is_a_number(ground):
    name = f"{ground / 'task' / 'order.yaml'}@size=10,dev=1e-05"
    assert len(get_task(name).load("dev")) == 1  # at least one
    with pytest.raises(ConfigError, match="is not field=number"):
        get_task(f"{ground / 'task' / 'order.yaml'}@size=10,dev=1e-")


def test_values_of_an_axis_arrive_as_they_are(ground):
    """Whatever is written in YAML: an emoji is one character and no pair of surrogates."""
    axes = {"text": {"field": "prompt.init.text", "values": ["fire \U0001f525", "füße"]}}
    grid = make_grid(ground, base={"prompt": {"length": 3, "kind": "prompt", "init": {"name": "words"}}}, axes=axes)
    assert [point.config.prompt.init.text for point in points(grid)] == ["fire \U0001f525", "füße"]


def test_a_setting_that_walks_into_another_ones_value_leaves_it_alone(ground):
    """The first axis sets a whole group of fields, the second one of them; the grid itself must not change."""
    axes = {
        "kind": {"whole": {"prompt": {"kind": "prompt"}}},
        "length": {"default": {}, "two": {"prompt.length": 2}, "again": {}},
    }
    grid = make_grid(ground, axes=axes)
    assert [point.config.prompt.length for point in points(grid)] == [10, 2, 10]
    assert grid.axes["kind"] == {"whole": {"prompt": {"kind": "prompt"}}}


def test_a_dev_split_with_the_test_splits_records_is_refused(ground, tmp_path):
    task = save_labels(tmp_path, dev="test.jsonl")
    grid = with_store(make_grid(ground, base={"task": str(task)}), tmp_path / "store")
    with pytest.raises(ConfigError, match=r"12 of 12 records of split 'test' .* 12 of 12 records there"):
        run_grid(grid, tell=lambda line: None)
    assert not (tmp_path / "store").exists()
    told = make_grid(ground, base={"task": str(task)}, reported_dev="there are no other labels")
    run_grid(with_store(told, tmp_path / "store"), tell=lambda line: None, only_read=True)
    unselected = make_grid(ground, base={"task": str(task), "dev": {"every": 0}})
    run_grid(with_store(unselected, tmp_path / "store"), tell=lambda line: None, only_read=True)


def dev_of_test_rows(folder, test_rows, own_rows=0, reverse=False):
    """Write the tiny task with a dev file of some test rows and some of its own dev rows."""
    task = save_labels(folder)
    lines = {split: (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines() for split in ("dev", "test")}
    rows = lines["test"][:test_rows] + lines["dev"][:own_rows]
    (folder / "dev.jsonl").write_text("\n".join(reversed(rows) if reverse else rows), encoding="utf-8")
    return str(task)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"test_rows": 12, "reverse": True}, r"12 of 12 records of split 'test' .* 12 of 12 records there"),
        ({"test_rows": 12, "own_rows": 1}, r"12 of 12 records of split 'test' .* 12 of 13 records there"),
        ({"test_rows": 6}, r"6 of 12 records of split 'test' .* 6 of 6 records there"),
        ({"test_rows": 3, "own_rows": 8}, r"3 of 12 records of split 'test' .* 3 of 11 records there"),
        ({"test_rows": 2, "own_rows": 2}, r"2 of 12 records of split 'test' .* 2 of 4 records there"),
    ],
)
def test_a_dev_split_that_holds_test_rows_is_refused(ground, tmp_path, rows, said):
    """In another order, with others beside them, a part of them, or few of them which are most of dev."""
    grid = make_grid(ground, base={"task": dev_of_test_rows(tmp_path, **rows)})
    with pytest.raises(ConfigError, match=said):
        plan(grid, points(grid), Contents())


def test_a_few_rows_in_both_splits_are_no_reason_to_refuse(ground, tmp_path):
    """Until the first dev records, which alone decide where `dev_limit` is set, are those."""
    task = dev_of_test_rows(tmp_path, test_rows=2, own_rows=8)
    grid = make_grid(ground, base={"task": task})
    assert len(plan(grid, points(grid), Contents())) == 5
    first = make_grid(ground, base={"task": task, "data": {"dev_limit": 3}})
    with pytest.raises(ConfigError, match=r"2 of 12 records .* 2 of 3 records there"):
        plan(first, points(first), Contents())


def test_a_dev_file_that_changes_is_looked_at_again(ground, tmp_path):
    grid = make_grid(ground, base={"task": dev_of_test_rows(tmp_path, test_rows=0, own_rows=8)})
    assert plan(grid, points(grid), Contents())
    dev_of_test_rows(tmp_path, test_rows=12)
    with pytest.raises(ConfigError, match="12 of 12 records"):
        plan(grid, points(grid), Contents())


def test_test_rows_in_the_words_of_another_task_are_the_same_rows(ground, tmp_path):
    """The reported labels are written as the run's own, as the runs are scored on them."""
    task, other = save_labels(tmp_path / "own"), save_labels(tmp_path / "other", "other", up="upward")
    (tmp_path / "own" / "dev.jsonl").write_text((tmp_path / "other" / "test.jsonl").read_text(), encoding="utf-8")
    target = {"task": str(other), "split": "test", "relabel": {"upward": "up"}}
    grid = make_grid(ground, base={"task": str(task)}, scoring={"targets": [target]})
    with pytest.raises(ConfigError, match=r"12 of 12 records of split 'test' of task .*other\.yaml"):
        plan(grid, points(grid), Contents())


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (["bleu", "e2e_bleu"], "'bleu' and 'e2e_bleu' both give a score called 'BLEU'"),
        (["exact_match", "squad"], "'exact_match' and 'squad' both give a score called 'EM'"),
        (["accuracy", "accuracy"], "'accuracy' is named twice"),
    ],
)
def test_metrics_of_one_score_name_are_refused(ground, metrics, said):
    with pytest.raises(ConfigError, match=said):
        make_grid(ground, scoring={"metrics": metrics})


def test_metrics_over_labels_meet_only_tasks_that_have_them(ground, tmp_path):
    plain = save_labels(tmp_path, label_words={})
    with pytest.raises(ConfigError, match="'macro_f1' needs labels, and task 'order' has no label_words"):
        make_grid(ground, base={"task": str(plain)}, scoring={"metrics": ["macro_f1"]})
    with pytest.raises(ConfigError, match="'f1' needs two labels and label_words gives 3"):
        make_grid(ground, scoring={"metrics": ["f1"], "targets": [{"task": "cb", "split": "dev"}]})
    assert make_grid(ground, scoring={"metrics": ["macro_f1", "f1"]}).scoring.metrics == ("macro_f1", "f1")


def test_the_dev_split_under_another_name_is_refused(ground, tmp_path):
    other = save_labels(tmp_path / "copy")  # the same rows, in another file of another name
    grid = make_grid(ground, scoring={"targets": [{"task": str(other), "split": "dev"}]})
    with pytest.raises(ConfigError, match=r"8 of 8 records of split 'dev' of .* \(as 1, 2, 3\) are in split 'dev' of"):
        run_grid(with_store(grid, tmp_path / "store"), tell=lambda line: None, only_read=True)


def test_a_search_is_refused_before_its_first_trial(ground, tmp_path):
    """Its data, its targets and what its trials would select on are looked at first."""
    task = save_labels(tmp_path, dev="test.jsonl")
    wanted = {"budget": 1, "spaces": SPACES}
    grid = make_grid(ground, base={"task": str(task)}, search=wanted)
    with pytest.raises(ConfigError, match="which the runs select on"):
        run_grid(with_store(grid, tmp_path / "store"), tell=lambda line: None)
    missing = make_grid(ground, scoring={"targets": [{"split": "tset"}]}, search=wanted)
    with pytest.raises(DataError, match="no split 'tset'; did you mean 'test'"):
        run_grid(with_store(missing, tmp_path / "store"), tell=lambda line: None)
    sly = {"budget": 1, "spaces": {**SPACES, "prompt": {"data.dev_split": ["test"]}}}
    with pytest.raises(ConfigError, match="would select on a test split"):
        run_grid(with_store(make_grid(ground, search=sly), tmp_path / "store"), tell=lambda line: None)
    assert not (tmp_path / "store").exists()


def test_targets_that_are_written_out_win_over_the_protocols(ground, tmp_path):
    """Also where they are what a grid without any would be scored on."""
    axes = {"method": AXES["method"]}
    protocol = {"name": "low_data", "sizes": [8], "subsets": 1, "seeds": 1}
    tree = grid_tree(ground, axes=axes, protocol=protocol)
    (tmp_path / "grid.yaml").write_text(json.dumps(tree), encoding="utf-8")
    assert load_grid(tmp_path / "grid.yaml").scoring.targets[0].split == "dev"  # the protocol's
    tree["scoring"]["targets"] = [{"split": "test"}]
    (tmp_path / "grid.yaml").write_text(json.dumps(tree), encoding="utf-8")
    grid = load_grid(tmp_path / "grid.yaml")
    assert [(t.task, t.split) for t in grid.scoring.targets] == [(None, "test")] and grid.scoring.resamples == 50
    tree["protocol"] = {"name": "extrapolation", "seeds": 1}
    (tmp_path / "grid.yaml").write_text(json.dumps(tree), encoding="utf-8")
    grid = load_grid(tmp_path / "grid.yaml")
    assert [t.split for t in grid.scoring.targets] == ["test"] and grid.page.gap is None
