"""The page: intervals only where there are several runs, honest costs, commands that work, nothing stale."""

import dataclasses
import json
import math
import shlex

import pytest
from gridkit import make_grid, save_labels, with_store

from foreword.cli import main
from foreword.errors import MissingExtraError
from foreword.evaluate.across import Slope
from foreword.evaluate.metrics import STATISTICS
from foreword.evaluate.stats import Interval
from foreword.experiments import report
from foreword.experiments.grid.compare import GapSlope, compare, seen_minus_unseen
from foreword.experiments.grid.drive import run_grid
from foreword.experiments.grid.making import FLOP, _arithmetic, made_blocks
from foreword.experiments.grid.page import estimate, grid_report, write_page
from foreword.experiments.grid.results import read_results
from foreword.experiments.grid.work import TRAINED, folder_of
from foreword.train.record import CONFIG

METHODS = {"prompt": {"prompt.kind": "prompt"}, "prefix": {"prompt.kind": "prefix"}}
BASELINE = {"baseline": {"method": "prompt"}, "metric": "accuracy"}


def quietly(grid):
    ran = run_grid(grid, tell=lambda line: None)
    assert not ran.failed
    return ran


@pytest.fixture(scope="module")
def ran(ground, tmp_path_factory):
    """One pair of runs, whose dev split is judged by a score."""
    changes = {"base": {"steps": 2, "dev": {"every": 1, "metric": "accuracy"}}, "axes": {"method": METHODS}}
    scoring = {"limit": 7, "seed": 3, "batch_size": 5, "num_beams": 2, "metrics": ["accuracy"], "resamples": 20}
    grid = make_grid(ground, **changes, scoring=scoring, page=BASELINE)
    return quietly(with_store(grid, tmp_path_factory.mktemp("page") / "store"))


def section(found, title):
    return next(part.blocks for part in found.sections if part.title == title)


def test_one_pair_of_runs_has_no_interval(ran):
    results = read_results(ran.grid, ran.rows)
    (table,) = section(grid_report(ran, results), "Comparisons")
    (row,) = table.rows
    assert row[table.columns.index("pairs")] == 1
    assert isinstance(row[table.columns.index("difference over runs")], float)
    assert isinstance(row[table.columns.index("difference over records")], report.Estimate)


def test_the_best_dev_value_and_what_the_run_s_limits_cut_are_told(ran):
    results = read_results(ran.grid, ran.rows)
    (costs,) = section(grid_report(ran, results), "Time, size and convergence")
    best = [max(value for _, value in training.dev) for training in results.trainings]
    assert [row[costs.columns.index("best dev")] for row in costs.rows] == best
    tree = {**ran.grid.base, "data": {**ran.grid.base.get("data", {}), "max_source": 1}}
    for grid, limited in ((ran.grid, False), (dataclasses.replace(ran.grid, base=tree), True)):
        prose, _, table, *_ = section(grid_report(dataclasses.replace(ran, grid=grid), results), "Data checks")
        assert "tokens of" in prose.text
        row = table.rows[0]
        every = row[table.columns.index("records")]
        assert row[table.columns.index("sources cut")] == (every if limited else None)


def test_a_number_is_bare_where_there_is_no_interval():
    assert estimate(None) is None and estimate(Interval(0.5, 0.5, 0.5), 1) == 0.5
    assert estimate(Interval(0.5, 0.4, 0.6)) == report.Estimate(0.5, 0.4, 0.6)
    assert estimate(Slope(0.0, math.nan, math.nan, math.nan, 3)) == 0.0


def test_a_slope_of_equal_gaps_has_a_dash_for_its_p(ran, monkeypatch):
    """All gaps equal, as where both methods are never right: no interval and no p, and no `nan` on the page."""
    flat = GapSlope("prefix", "test", Slope(0.0, math.nan, math.nan, math.nan, 3))
    monkeypatch.setattr("foreword.experiments.grid.page.gap_slopes", lambda results: [flat])
    tables = section(grid_report(ran, read_results(ran.grid, ran.rows)), "Comparisons")
    assert tables[1].rows == [("prefix", "test", 0.0, None, 3)]
    assert "nan" not in report.render(report.Report("t", "s", [tables[1]])).lower().split("<main")[1]


def test_a_gap_of_one_run_has_no_interval(ground, tmp_path):
    grid = make_grid(
        ground, base={"steps": 2, "dev": {"every": 0}}, axes={"method": METHODS},
        scoring={"targets": [{"split": "test"}, {"split": "dev"}]}, page={"gap": ["test", "dev"]},
    )
    ran = quietly(with_store(grid, tmp_path / "store"))
    (table,) = section(grid_report(ran, read_results(ran.grid, ran.rows)), "Seen and unseen")
    assert all(isinstance(row[-1], float) for row in table.rows) and len(table.rows) == 2


def test_targets_of_different_metrics_are_compared_where_they_have_the_score(ground, tmp_path):
    other = save_labels(tmp_path / "other", "only_bleu", first=200, metrics=["bleu"])
    targets = [{"split": "test"}, {"task": str(other), "label": "other"}]
    page = {**BASELINE, "gap": ["test", "other"]}
    grid = make_grid(
        ground, base={"steps": 2}, axes={"method": METHODS}, scoring={"targets": targets}, page=page
    )
    ran = quietly(with_store(grid, tmp_path / "store"))
    results = read_results(ran.grid, ran.rows)
    assert [row.target for row in compare(results)] == ["test"] and seen_minus_unseen(results) == []
    assert write_page(ran, tmp_path / "page").is_file()


def test_a_grid_whose_only_metric_nobody_could_compute_still_has_a_page(ground, tmp_path, monkeypatch):
    def no_library(*given):
        raise MissingExtraError("chrF needs a library")

    monkeypatch.setitem(STATISTICS, "chrf", no_library)
    task = save_labels(tmp_path / "task", metrics=["chrf"])
    grid = make_grid(
        ground, base={"steps": 2, "task": str(task)}, axes={"method": METHODS}, page={"baseline": {"method": "prompt"}}
    )
    ran = quietly(with_store(grid, tmp_path / "store"))
    assert compare(read_results(ran.grid, ran.rows)) == []
    assert "illegal outputs" in write_page(ran, tmp_path / "page").read_text(encoding="utf-8")


def test_a_headline_score_that_nobody_could_compute_is_told(ran):
    results = read_results(ran.grid, ran.rows)
    skipped = {"e2e_meteor": "METEOR needs Java"}
    scores = [dataclasses.replace(score, skipped=skipped) for score in results.scores]
    grid = dataclasses.replace(ran.grid, page=dataclasses.replace(ran.grid.page, metric="METEOR"))
    found = dataclasses.replace(results, grid=grid, scores=scores)
    assert found.metric == "accuracy"
    _, prose, *_ = section(grid_report(dataclasses.replace(ran, grid=grid), found), "Results")
    assert "METEOR was asked for and is in no score; accuracy stands for it" in prose.text
    assert "METEOR needs Java" in prose.text
    assert not any(isinstance(b, report.Prose) for b in section(grid_report(ran, results), "Results"))


def test_arithmetic_is_a_lower_bound_of_every_method(ran):
    (one, _) = read_results(ran.grid, ran.rows).trainings
    assert one.facts["method"] == "prompt" and one.tokens > 0
    size, tokens = one.facts["num_backbone"], one.tokens
    for method, factor in (("fine_tune", 6), ("prompt", 4), ("lora", 4), ("adapter", 4), ("top_layers", 2)):
        assert FLOP[method] == factor
        assert _arithmetic([dataclasses.replace(one, method=method)]).startswith(f"{factor * size * tokens:.3g} FLOP")
    assert _arithmetic([dataclasses.replace(one, method="written")]).startswith("0 FLOP")
    hub = dataclasses.replace(one, facts={**one.facts, "num_backbone": None})
    assert _arithmetic([one, hub]).endswith("unknown for 1 of 2 runs") and "FLOP" in _arithmetic([one, hub])
    assert _arithmetic([hub]) == "unknown for 1 of 1 runs"


def test_a_run_of_an_older_version_has_its_method_from_its_config(ran, tmp_path):
    row = ran.rows[0]
    path = folder_of(ran.grid.store, row.piece.address) / TRAINED
    text = path.read_text(encoding="utf-8")
    path.write_text(json.dumps({k: v for k, v in json.loads(text).items() if k != "method"}), encoding="utf-8")
    try:
        piece = dataclasses.replace(row.piece, config=dataclasses.replace(row.piece.config, method="lora"))
        (training,) = read_results(ran.grid, [dataclasses.replace(row, piece=piece)]).trainings
    finally:
        path.write_text(text, encoding="utf-8")
    assert training.method == "lora"


def test_the_commands_on_the_page_do_it_again(ran, tmp_path, monkeypatch, capsys):
    facts = made_blocks(ran, read_results(ran.grid, ran.rows), ["foreword", "grid"])[0].facts
    assert facts["scored otherwise"].startswith("num_beams 2; metrics accuracy:")
    monkeypatch.chdir(tmp_path)
    program, *train = shlex.split(facts["one run again"])
    assert program == "foreword" and main(train) == 0
    again, first = tmp_path / "runs" / "again", folder_of(ran.grid.store, ran.rows[0].piece.address) / "run"
    assert (again / "metrics.jsonl").read_bytes() == (first / "metrics.jsonl").read_bytes()
    _, *score = shlex.split(facts["one run scored"])
    assert score[0] == "evaluate" and {"--split", "--limit", "--seed", "--batch-size", "--resamples"} <= set(score)
    capsys.readouterr()
    assert main(score) == 0
    assert "order, test, 7 records" in capsys.readouterr().out


def test_the_command_names_the_targets_task(ground, tmp_path):
    target = {"task": str(save_labels(tmp_path / "b", "order_b", first=100)), "split": "dev", "label": "b"}
    grid = make_grid(ground, axes={"method": METHODS}, base={"steps": 2}, scoring={"targets": [target]})
    ran = quietly(with_store(grid, tmp_path / "store"))
    words = shlex.split(made_blocks(ran, read_results(ran.grid, ran.rows), [])[0].facts["one run scored"])
    assert words[3:] == ["--task", target["task"], "--split", "dev", "--resamples", "50"]


def test_a_dry_run_takes_a_score_that_decides(ran, capsys):
    config = folder_of(ran.grid.store, ran.rows[0].piece.address) / "run" / CONFIG
    assert main(["train", str(config), "run_dir=nowhere", "--dry-run"]) == 0
    assert "dry run" in capsys.readouterr().out


def test_what_an_earlier_page_left_goes_away(ran, tmp_path):
    write_page(ran, tmp_path)
    first = sorted(path.name for path in (tmp_path / "plots").iterdir())
    (tmp_path / "plots" / "97.svg").write_text("old", encoding="utf-8")
    (tmp_path / "plots" / "mine.svg").write_text("kept", encoding="utf-8")
    (tmp_path / "search.json").write_text("[]", encoding="utf-8")
    write_page(ran, tmp_path)
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [*first, "mine.svg"]
    assert not (tmp_path / "search.json").exists()
