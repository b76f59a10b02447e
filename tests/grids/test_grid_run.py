"""A tiny grid runs, is skipped when done, goes on where it broke, records failures, searches on dev, and is told."""

import dataclasses
import json

import pytest
from gridkit import make_grid, with_store

from foreword.errors import ConfigError
from foreword.experiments.grid.address import Contents
from foreword.experiments.grid.drive import make_jobs, plan, run_grid
from foreword.experiments.grid.page import write_page
from foreword.experiments.grid.results import converged, elapsed, read_results
from foreword.experiments.grid.spec import points
from foreword.experiments.grid.work import FAILURE, RUN, TRAINED, folder_of
from foreword.train.job import train


@pytest.fixture(scope="module")
def ran(ground):
    """The tiny grid, run once in this process with a baseline and a plot."""
    grid = make_grid(ground, page={"baseline": {"method": "prompt"}, "metric": "accuracy"}, title="A tiny <grid>")
    lines = []
    return run_grid(grid, tell=lines.append), lines


def test_every_run_is_done_and_told(ran):
    found, lines = ran
    assert [row.state for row in found.rows] == ["done"] * 5  # four runs and the untouched backbone
    assert not found.failed
    assert sum("done" in line for line in lines) == 5 and any("accuracy" in line for line in lines)


def test_what_is_done_is_not_done_again(ran):
    first, _ = ran
    stamps = {row.piece.address: (folder_of(first.grid.store, row.piece.address) / "lock").stat().st_mtime_ns
              for row in first.rows}
    again = run_grid(first.grid, tell=lambda line: None)
    assert [row.state for row in again.rows] == ["found"] * 5
    for address, stamp in stamps.items():
        assert (folder_of(first.grid.store, address) / "lock").stat().st_mtime_ns == stamp  # nobody was there


def test_a_grids_run_is_the_run_that_foreword_train_makes(ran, tmp_path):
    found, _ = ran
    row = found.rows[0]
    alone = train(dataclasses.replace(row.piece.config, run_dir=str(tmp_path / "alone")), progress=False)
    folder = folder_of(found.grid.store, row.piece.address) / RUN
    assert (folder / "metrics.jsonl").read_bytes() == (alone.run_dir / "metrics.jsonl").read_bytes()


def test_the_page_and_its_files(ran, tmp_path):
    found, _ = ran
    path = write_page(found, tmp_path / "page", ["foreword", "grid", "g.yaml"])
    text = path.read_text(encoding="utf-8")
    assert "A tiny &lt;grid&gt;" in text and "<script" not in text and "src=" not in text
    command = "<span>grid</span> <span>g.yaml</span>"
    for piece in ("Data checks", "Comparisons", "Outputs side by side", command, "Holm over records", "untouched"):
        assert piece in text, piece
    rows = (tmp_path / "page" / "results.csv").read_text().splitlines()
    assert rows[0] == "run,method,seed,backbone,task,target,score,value,low,high,n"
    assert len([row for row in rows if ",accuracy," in row]) == 5
    assert len(list((tmp_path / "page" / "plots").glob("*.svg"))) >= 4
    assert (tmp_path / "page" / "grid.yaml").is_file()
    assert write_page(found, tmp_path / "again", ["foreword", "grid", "g.yaml"]).read_bytes() == path.read_bytes()


def test_an_svg_stands_alone(ran, tmp_path):
    from xml.etree import ElementTree

    write_page(ran[0], tmp_path)
    for path in (tmp_path / "plots").glob("*.svg"):
        tree = ElementTree.parse(path)
        assert tree.getroot().tag.endswith("svg")
        text = path.read_text()
        assert "stroke" in text and "var(--c0)" not in text.replace("--c: var(--c0)", "") and "var(--ink)" not in text


def test_a_run_that_broke_off_goes_on_from_its_checkpoint(ran, ground, tmp_path):
    """As a kill leaves it: checkpoints, no `trained.json`; metrics must equal the uninterrupted run's."""
    import shutil

    found, _ = ran
    row = found.rows[1]
    whole = folder_of(found.grid.store, row.piece.address)
    grid = with_store(found.grid, tmp_path / "store")
    broken = folder_of(grid.store, row.piece.address)
    shutil.copytree(whole / RUN, broken / RUN)
    shutil.rmtree(broken / RUN / "artifact")
    (newest,) = (broken / RUN / "checkpoints").glob("step-00000006")
    shutil.rmtree(newest)
    again = run_grid(grid, tell=lambda line: None)
    assert not again.failed
    assert (broken / RUN / "metrics.jsonl").read_bytes() == (whole / RUN / "metrics.jsonl").read_bytes()
    assert len(elapsed([json.loads(x) for x in (broken / RUN / "times.jsonl").read_text().splitlines()])) >= 2


def test_a_failure_is_recorded_and_tried_again_only_when_asked(ground, tmp_path):
    axes = {"format": {"field": "data.format", "values": ["plain", "seq2seq"]}}  # the second is for encoder-decoders
    grid = with_store(make_grid(ground, axes=axes, scoring={"untouched": False}), tmp_path / "s")
    found = run_grid(grid, tell=lambda line: None)
    assert [row.state for row in found.rows] == ["done", "failed"]
    failed = found.failed[0]
    record = json.loads((folder_of(grid.store, failed.piece.address) / FAILURE).read_text())
    assert record["reason"] == failed.detail and "does not fit a decoder" in record["reason"]
    assert "Traceback" in record["trace"]
    assert record["machine"]["torch"]
    again = run_grid(grid, tell=lambda line: None)
    assert [row.state for row in again.rows] == ["found", "failed"]
    retried = []
    run_grid(grid, retry=True, tell=retried.append)
    assert any("running" in line for line in retried)
    text = write_page(found, tmp_path / "page").read_text()
    assert "What failed" in text and failed.piece.address in text


def test_a_gang_gives_the_scores_of_runs_alone(ran, ground, tmp_path):
    found, _ = ran
    grid = with_store(make_grid(ground, gang=4, page={"metric": "accuracy"}), tmp_path / "store")
    rows = plan(grid, points(grid), Contents())
    jobs = make_jobs(grid, [row.piece for row in rows])
    assert [len(job.pieces) for job in jobs] == [4, 1]
    together = run_grid(grid, tell=lambda line: None)
    for mine, alone in zip(read_results(grid, together.rows).trainings, read_results(found.grid, found.rows).trainings,
                           strict=True):
        assert mine.facts["gang"] == 4 and mine.labels == alone.labels
        assert mine.facts["best_dev"] == pytest.approx(alone.facts["best_dev"], abs=1e-4)


def test_a_search_has_one_budget_for_all_and_looks_at_dev_alone(ground, tmp_path):
    spaces = {"prefix": {"optim.lr": [0.001, 0.01, 0.1]}, "prompt": {"optim.lr": [0.001, 0.3], "prompt.length": [2, 3]}}
    grid = with_store(make_grid(ground, search={"budget": 2, "spaces": spaces}), tmp_path / "store")
    found = run_grid(grid, tell=lambda line: None)
    assert [trial.cell[0][1] for trial in found.trials] == ["prefix", "prefix", "prompt", "prompt"]
    for cell in ("prefix", "prompt"):
        mine = [trial for trial in found.trials if trial.cell[0][1] == cell]
        best = min(mine, key=lambda trial: trial.value)
        runs = [row.point.config for row in found.rows if row.point and row.point.labels["method"] == cell]
        assert {config.optim.lr for config in runs} == {best.settings["optim.lr"]}
        for trial in mine:
            folder = folder_of(grid.store, trial.address)
            scored = (folder / "scores").is_dir()
            assert not scored or trial.settings == best.settings  # a trial that lost was never scored on test
    text = write_page(found, tmp_path / "page").read_text()
    assert "The search" in text and (tmp_path / "page" / "search.json").is_file()
    greedy = make_grid(ground, search={"budget": 4, "spaces": spaces})
    with pytest.raises(ConfigError, match=r"spaces.prefix has 3 combinations for budget = 4"):
        run_grid(greedy, tell=lambda line: None)
    with pytest.raises(ConfigError, match="same budget"):
        run_grid(make_grid(ground, search={"budget": 1, "spaces": {"prefix": spaces["prefix"]}}), tell=print)


def test_a_dev_score_may_decide_instead_of_the_loss(ground, tmp_path):
    axes = {"method": {"prompt": {"prompt.kind": "prompt"}}}
    grid = with_store(
        make_grid(ground, axes=axes, base={"dev": {"every": 3, "metric": "accuracy"}, "steps": 3}), tmp_path / "store"
    )
    found = run_grid(grid, tell=lambda line: None)
    facts = json.loads((folder_of(grid.store, found.rows[0].piece.address) / TRAINED).read_text())
    assert not found.failed and 0.0 <= facts["best_dev"] <= 1.0


def test_time_to_99_percent_is_counted_by_hand(ran):
    from dataclasses import replace

    one = read_results(ran[0].grid, ran[0].rows).trainings[0]
    dev = [(10, 4.0), (20, 2.005), (30, 2.0), (40, 2.5)]
    seconds = [(10, 1.0), (20, 2.5), (30, 4.0), (40, 5.0)]
    assert converged(replace(one, dev=dev, seconds=seconds)) == (20, 2.5)  # 4 - 0.99 * 2 = 2.02 is passed at 2.005
    assert converged(replace(one, dev=[(10, 0.5), (20, 0.98), (30, 1.0)], seconds=seconds), loss=False) == (30, 4.0)
    assert converged(replace(one, dev=[])) is None
    rows = [{"step": 1, "seconds": 2.0}, {"step": 2, "seconds": 3.0}, {"step": 2, "seconds": 1.0}]
    assert elapsed(rows) == [(1, 2.0), (2, 3.0), (2, 4.0)]  # the second attempt comes on top
