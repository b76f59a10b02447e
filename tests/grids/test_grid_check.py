"""Grids that would give wrong figures or none are refused before anything runs, with field, value and fix."""

import datetime
import json

import pytest
from gridkit import AXES, grid_tree, make_grid, save_labels, with_store

from foreword.cli import main
from foreword.errors import ConfigError, DataError
from foreword.experiments.grid.drive import run_grid
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
    with pytest.raises(ConfigError, match=r"split 'test' of task .* holds the very records of split 'dev'"):
        run_grid(grid, tell=lambda line: None)
    assert not (tmp_path / "store").exists()
    told = make_grid(ground, base={"task": str(task)}, reported_dev="there are no other labels")
    run_grid(with_store(told, tmp_path / "store"), tell=lambda line: None, only_read=True)
    unselected = make_grid(ground, base={"task": str(task), "dev": {"every": 0}})
    run_grid(with_store(unselected, tmp_path / "store"), tell=lambda line: None, only_read=True)


def test_the_dev_split_under_another_name_is_refused(ground, tmp_path):
    other = save_labels(tmp_path / "copy")  # the same rows, in another file of another name
    grid = make_grid(ground, scoring={"targets": [{"task": str(other), "split": "dev"}]})
    with pytest.raises(ConfigError, match="holds the very records of split 'dev'"):
        run_grid(with_store(grid, tmp_path / "store"), tell=lambda line: None, only_read=True)


def test_a_search_is_refused_before_its_first_trial(ground, tmp_path):
    """Its data, its targets and what its trials would select on are looked at first."""
    task = save_labels(tmp_path, dev="test.jsonl")
    wanted = {"budget": 1, "spaces": SPACES}
    grid = make_grid(ground, base={"task": str(task)}, search=wanted)
    with pytest.raises(ConfigError, match="very records"):
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
