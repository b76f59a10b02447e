"""Axes become points, points become addresses, and a grid that would select on a test split is refused."""

import json

import pytest
from gridkit import grid_tree, make_grid

from foreword.errors import ConfigError, DataError
from foreword.experiments.grid.address import Contents
from foreword.experiments.grid.protocols import load_grid
from foreword.experiments.grid.spec import axis_values, cell_of, points
from foreword.tasks import get_task


def test_axes_multiply_and_skip_leaves_out(ground):
    grid = make_grid(ground, skip=[{"method": "prompt", "seed": "1"}])
    found = [point.labels for point in points(grid)]
    assert found == [
        {"method": "prefix", "seed": "0"}, {"method": "prefix", "seed": "1"}, {"method": "prompt", "seed": "0"}
    ]
    config = points(grid)[2].config
    assert (config.prompt.kind, config.optim.lr, config.seed, config.track) == ("prompt", 0.3, 0, ())
    assert cell_of(grid, found[1]) == (("method", "prefix"),)


def test_an_axis_is_a_list_a_field_with_values_or_labels_with_fields():
    assert [v.settings for v in axis_values("seed", [0, 1])] == [{"seed": 0}, {"seed": 1}]
    assert [v.x for v in axis_values("length", {"field": "prompt.length", "values": [1, 5]})] == [1.0, 5.0]
    (size,) = axis_values("size", {"small": {"backbone.source": "a", "x": 6e6}})
    assert size.settings == {"backbone.source": "a"} and size.x == 6e6
    for bad in ({}, [], 3, {"a": 1}, [1, 1]):
        with pytest.raises(ConfigError, match=r"axes\.a"):
            axis_values("a", bad)


def test_the_address_follows_content_and_nothing_else(ground):
    (first, *_) = points(make_grid(ground))
    same = points(make_grid(ground, base={"checkpoint": {"every": 0}, "log_every": 1}))[0]
    other = points(make_grid(ground, base={"steps": 7}))[0]
    contents = Contents()
    assert contents.run(first.config) == contents.run(same.config) != contents.run(other.config)
    assert len(contents.run(first.config)) == 20


def test_fine_tuning_is_one_run_whatever_the_prompt_length(ground):
    axes = {"method": {"fine_tune": {"method": "fine_tune"}}, "length": {"field": "prompt.length", "values": [1, 5]}}
    contents = Contents()
    assert len({contents.run(point.config) for point in points(make_grid(ground, axes=axes))}) == 1


def test_other_data_or_another_backbone_is_another_address(ground, tmp_path):
    from gridkit import save_labels
    from toy import save_backbone

    save_labels(tmp_path / "task")
    save_backbone(tmp_path / "backbone")
    config, copy = points(make_grid(ground))[0].config, points(make_grid(tmp_path))[0].config
    assert Contents().run(config) == Contents().run(copy)  # the same content elsewhere
    with (tmp_path / "task" / "train.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"s": "zz", "t": "up"}))
    changed = Contents().run(copy)
    assert changed != Contents().run(config)
    save_backbone(tmp_path / "backbone", "gpt2")
    assert Contents().run(copy) != changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": {"data": {"dev_split": "test"}}}, "would select on a test split"),
        ({"scoring": {"targets": [{"split": "dev"}]}}, "which the runs select on"),
        ({"search": {"budget": 1, "spaces": {}}, "base": {"dev": {"every": 0}}}, "search needs dev evaluations"),
        ({"page": {"x": "lenth"}}, "page.x names axis 'lenth'"),
        ({"page": {"baseline": {"method": "prefx"}}}, "did you mean 'prefix'"),
        ({"scoring": {"metrics": ["bleuu"]}}, "unknown metric 'bleuu'"),
        ({"skip": [{"method": "prefix"}, {"method": "prompt"}]}, "every combination is skipped"),
        ({"protocol": {"name": "low_dta"}}, "did you mean 'low_data'"),
        ({"base": {"dev": {"evry": 3}}}, "did you mean 'dev.every'|did you mean 'every'"),
    ],
)
def test_a_grid_that_cannot_work_is_refused_before_anything_runs(ground, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_grid(ground, **changes)


def test_reporting_the_split_that_selects_needs_a_reason(ground):
    grid = make_grid(ground, scoring={"targets": [{"split": "dev"}]}, reported_dev="SuperGLUE has no other labels")
    assert grid.scoring.targets[0].split == "dev"


def test_a_grid_is_read_from_yaml_with_changes(ground, tmp_path):
    (tmp_path / "grid.yaml").write_text(json.dumps(grid_tree(ground)), encoding="utf-8")
    assert load_grid(tmp_path / "grid.yaml", ["base.steps=3"]).base["steps"] == 3
    with pytest.raises(ConfigError, match="unknown field 'scorin'"):
        load_grid(tmp_path / "grid.yaml", ["scorin.limit=3"])


def test_low_data_draws_its_dev_set_from_the_training_split(ground):
    protocol = {"name": "low_data", "sizes": [8, 16], "subsets": 2, "seeds": 2}
    grid = make_grid(ground, protocol=protocol, axes={"method": {"prefix": {"prompt.kind": "prefix"}}})
    found = points(grid)
    assert len(found) == 2 * 2 * 2
    assert list(found[0].labels) == ["method", "size", "draw", "seed"]
    assert grid.page.x == "size" and grid.scoring.targets[0].split == "dev"
    assert grid.scoring.targets[0].task == grid.base["task"]  # the whole task's dev split, which no run selects on
    task = get_task(found[-1].config.task)
    train, dev = task.load("train"), task.load("dev")
    assert (len(train), len(dev)) == (16, 5)  # 30 % of 16
    assert not {record.source for record in train} & {record.source for record in dev}
    whole = {record.source for record in get_task(grid.base["task"]).load("train")}
    assert {record.source for record in (*train, *dev)} <= whole


def test_views_are_nested_seeded_and_checked(ground):
    name = str(ground / "task" / "order.yaml")
    small, large = (get_task(f"{name}@size={n},draw=3").load("train") for n in (5, 20))
    assert small == large[:5]
    assert get_task(f"{name}@size=5,draw=4").load("train") != small
    shots = get_task(f"{name}@per_label=3,dev=1.0")
    labels = [record.targets[0] for record in shots.load("train")]
    assert sorted(labels) == ["down"] * 3 + ["up"] * 3 and len(shots.load("dev")) == 6
    assert len(shots.load("test")) == 12
    with pytest.raises(DataError, match="too few for"):
        get_task(f"{name}@size=39").load("train")
    with pytest.raises(ConfigError, match="give one of them"):
        get_task(f"{name}@size=5,per_label=2")
    with pytest.raises(ConfigError, match="did you mean"):
        get_task(f"{name}@sizes=5")
    with pytest.raises(ConfigError, match="is not field=number"):
        get_task(f"{name}@size=many")


def test_domain_shift_and_extrapolation_write_their_targets(ground):
    task = str(ground / "task" / "order.yaml")
    shift = {"name": "domain_shift", "tasks": [task], "only_tested": ["mrpc"], "seeds": 2,
             "relabel": {"mrpc": {"equivalent": "up"}}}
    grid = make_grid(ground, protocol=shift, axes={})
    assert [target.task for target in grid.scoring.targets] == [task, "mrpc"] and grid.page.shift == "trained_on"
    assert grid.scoring.targets[1].relabel == {"equivalent": "up"}
    grid = make_grid(ground, protocol={"name": "extrapolation", "seeds": 1})
    assert [target.split for target in grid.scoring.targets] == ["test_seen", "test_unseen", "test"]
    assert grid.page.gap == ("test_seen", "test_unseen")
