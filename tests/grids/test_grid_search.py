"""A search: what decides between trials, what failed of them, and what can be listed before it has ended."""

import json
import math

import pytest
from gridkit import grid_tree, make_grid, with_store

from foreword.cli import main
from foreword.errors import ConfigError, DataError
from foreword.experiments.grid import work
from foreword.experiments.grid.drive import overview, run_grid
from foreword.experiments.grid.making import cost_blocks
from foreword.experiments.grid.page import grid_report, write_page
from foreword.experiments.grid.results import read_results
from foreword.experiments.grid.search import Trial, choose

CELL = (("method", "prompt"),)
ONE = {"method": {"prompt": {"prompt.kind": "prompt"}}}
SPACES = {"prompt": {"optim.lr": [0.1, 0.3]}}
BROKEN = {"prompt": {"data.format": ["plain", "seq2seq"]}}  # the second is for encoder-decoders


def tiny(ground, store, **changes):
    changes = {"axes": ONE, "base": {"steps": 2, "dev": {"every": 1}}, "scoring": {"untouched": False}} | changes
    return with_store(make_grid(ground, **changes), store)


def trial(lr, value, metric):
    return Trial(CELL, {"optim.lr": lr}, value, "run", metric)


def test_the_greatest_score_and_the_least_loss_are_chosen():
    for metric, best in (("loss", 0.1), ("accuracy", 0.3)):
        trials = [trial(0.1, 0.2, metric), trial(0.2, None, metric), trial(0.3, 0.9, metric)]
        assert choose(trials) == {CELL: {"optim.lr": best}}


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_a_trial_without_a_finite_value_is_never_chosen(metric):
    for bad in (math.nan, math.inf, -math.inf):
        trials = [trial(9.0, bad, metric), trial(0.1, 0.5, metric), trial(8.0, bad, metric)]
        assert choose(trials) == {CELL: {"optim.lr": 0.1}}
        with pytest.raises(DataError, match=r"all trials of .*prompt.* have no finite dev value"):
            choose([trial(9.0, bad, metric), trial(0.1, None, metric)])


def test_what_decides_may_be_set_in_an_axis(ground, tmp_path):
    """The base says loss; the axis says accuracy, whose greatest value is the best."""
    axes = {"method": {"prompt": {"prompt.kind": "prompt", "dev.metric": "accuracy"}}}
    grid = tiny(ground, tmp_path / "store", axes=axes, search={"budget": 2, "spaces": SPACES})
    ran = run_grid(grid, tell=lambda line: None)
    assert [found.metric for found in ran.trials] == ["accuracy", "accuracy"]
    (training,) = read_results(grid, ran.rows).trainings
    assert training.dev_metric == "accuracy" and training.dev
    (table,) = cost_blocks(read_results(grid, ran.rows))  # the fall of a loss is not the rise of a score
    first = next(step for step, value in training.dev if value >= 0.99 * max(value for _, value in training.dev))
    assert table.rows[0][table.columns.index("steps to 99 %")] == first


def test_trials_that_cannot_be_compared_are_refused_before_they_run(ground, tmp_path):
    spaces = {"prompt": {"dev": [{"every": 1}, {"every": 1, "metric": "accuracy"}]}}
    with pytest.raises(ConfigError, match=r"judged by several dev\.metric"):
        run_grid(tiny(ground, tmp_path / "store", search={"budget": 2, "spaces": spaces}), tell=lambda line: None)
    assert not (tmp_path / "store").exists()


def test_a_trial_that_failed_is_told_and_changes_the_exit_code(ground, tmp_path, capsys):
    grid = tiny(ground, tmp_path / "store", search={"budget": 2, "spaces": BROKEN})
    ran = run_grid(grid, tell=lambda line: None)
    assert [row.state for row in ran.rows] == ["done"]  # the trial that worked is the run, and is scored
    (failed,) = ran.failed
    assert failed.title == "trial of method prompt: data.format seq2seq"
    text = write_page(ran, tmp_path / "page").read_text(encoding="utf-8")
    assert "What failed" in text and failed.piece.address in text and "trials of the search: 1 failed" in text
    tree = grid_tree(ground, axes=ONE, base={"steps": 2, "dev": {"every": 1}}, scoring={"untouched": False})
    tree |= {"store": str(tmp_path / "store"), "search": {"budget": 2, "spaces": BROKEN}}
    (tmp_path / "grid.yaml").write_text(json.dumps(tree), encoding="utf-8")
    assert main(["grid", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "page")]) == 1
    assert "failed: trial of method prompt: data.format seq2seq" in capsys.readouterr().err


def test_the_list_shows_trials_until_they_have_decided(ground, tmp_path, capsys, monkeypatch):
    tree = grid_tree(ground, axes=ONE, base={"steps": 2, "dev": {"every": 1}})
    tree |= {"store": str(tmp_path / "store"), "search": {"budget": 2, "spaces": SPACES}}
    (tmp_path / "grid.yaml").write_text(json.dumps(tree), encoding="utf-8")
    words = ["grid", str(tmp_path / "grid.yaml")]
    assert main([*words, "--list"]) == 0
    told = capsys.readouterr().out
    assert told.count("trial of method prompt") == 2 and "untouched" not in told
    assert "wait for the search" in told and not (tmp_path / "store").exists()
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main([*words, "--list"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told[:-1]] == ["found"] * 4 and told[-1] == "4 found"
    rows, complete = overview(with_store(make_grid(ground, **_changes(tree)), tmp_path / "store"))
    assert complete and {rows[2].piece.address} < {row.piece.address for row in rows[:2]} | {"other"}
    (tmp_path / "store" / rows[0].piece.address / work.TRAINED).unlink()  # one trial is to be done again
    assert not overview(with_store(make_grid(ground, **_changes(tree)), tmp_path / "store"))[1]


def _changes(tree):
    return {name: tree[name] for name in ("axes", "base", "scoring", "search")}


def test_two_points_that_are_one_run_are_both_done(ground, tmp_path):
    """Fine-tuning does not read the prompt's length."""
    axes = {"method": {"fine_tune": {"method": "fine_tune"}}, "length": {"field": "prompt.length", "values": [2, 3]}}
    grid = tiny(ground, tmp_path / "store", axes=axes)
    lines = []
    ran = run_grid(grid, tell=lines.append)
    assert [row.state for row in ran.rows] == ["done", "done"]
    assert ran.rows[0].piece.address == ran.rows[1].piece.address
    results = read_results(grid, ran.rows)
    assert [score.labels["length"] for score in results.scores] == ["2", "3"]
    assert "not run yet" not in str(grid_report(ran, results))
