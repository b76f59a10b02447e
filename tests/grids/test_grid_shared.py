"""Rows that are one run, as tasks with the same training and dev rows make them: trained once, each scored apart."""

import json
from pathlib import Path

import pytest
from gridkit import make_grid, save_labels, with_store

from foreword.errors import DataError
from foreword.experiments.grid import work as working
from foreword.experiments.grid.address import Contents
from foreword.experiments.grid.drive import make_jobs, plan, run_grid
from foreword.experiments.grid.results import read_results
from foreword.experiments.grid.spec import points
from foreword.experiments.grid.work import FAILURE, TRAINED, Job, Piece, folder_of, pack_job, unpack_job, work

ONE = {"it": {"prompt.kind": "prompt"}}

pytestmark = pytest.mark.timeout(60)  # what waits for its own lock waits for ever


def shared(ground, tmp_path: Path, **changes):
    """A grid over two tasks of the same training and dev rows; `b` is tested on its training rows, by accuracy."""
    a = save_labels(tmp_path / "a", "a")
    b = save_labels(tmp_path / "b", "b", test="train.jsonl", metrics=["accuracy"])
    axes = {"task": {"a": {"task": str(a)}, "b": {"task": str(b)}}, "method": ONE}
    grid = make_grid(ground, axes=axes, base={"steps": 2}, reported_dev="a test", **changes)
    return with_store(grid, tmp_path / "store")


@pytest.mark.parametrize("gang", [1, 2])
def test_two_rows_of_one_run_are_trained_once_and_scored_on_their_own_tasks(ground, tmp_path, gang):
    grid = shared(ground, tmp_path, gang=gang)
    ran = run_grid(grid, tell=lambda line: None)
    assert [row.state for row in ran.rows] == ["done"] * 4, [row.detail for row in ran.rows]
    first, second, *_ = (row.piece for row in ran.rows)
    assert first.address == second.address and set(first.targets).isdisjoint(second.targets)
    assert len(list(Path(grid.store).glob(f"*/{TRAINED}"))) == 1
    results = read_results(grid, ran.rows)
    assert [(score.task, score.n) for score in results.scores] == [("a", 12), ("b", 40)]
    assert [sorted(score.metrics) for score in results.scores] == [["BLEU", "accuracy"], ["accuracy"]]
    assert [(score.task, score.n) for score in results.floors] == [("a", 12), ("b", 40)]
    alone = with_store(shared(ground, tmp_path), tmp_path / "alone")
    run_grid(alone, tell=lambda line: None)
    for mine, other in zip(results.scores, read_results(alone, ran.rows).scores, strict=True):
        assert mine.metrics == other.metrics


def test_one_piece_an_address_goes_to_a_job(ground, tmp_path):
    grid = shared(ground, tmp_path, gang=2)
    rows = plan(grid, points(grid), Contents())
    runs = [row.piece for row in rows if row.point is not None]
    (job,) = make_jobs(grid, runs, retry=True)
    (piece,) = job.pieces
    assert list(piece.targets) == [*runs[0].targets, *runs[1].targets] and job.retry
    assert piece.tasks == dict.fromkeys(runs[1].targets, runs[1].config.task)
    assert unpack_job(pack_job(job)) == job  # as another process is sent it
    assert make_jobs(grid, runs[:1])[0].pieces == (runs[0],)


def test_a_job_with_one_address_twice_does_not_wait_for_its_own_lock(tmp_path, ground):
    config = points(make_grid(ground, axes={"method": ONE}))[0].config
    piece = Piece("here", config, {}, trains=False)
    outcomes = work(Job((piece, piece), str(tmp_path), make_grid(ground).scoring))
    assert [outcome.state for outcome in outcomes] == ["done", "done"]


def test_a_failed_scoring_fails_the_row_that_asked_for_it_alone(ground, tmp_path, monkeypatch):
    """The first row's score breaks; the second one's is computed all the same, in one job."""
    grid = shared(ground, tmp_path, gang=2, scoring={"untouched": False})
    score = working._score

    def broken(job, piece, folder, target, task):
        if task.name == "a":
            raise DataError("the test rows are gone")
        score(job, piece, folder, target, task)

    monkeypatch.setattr(working, "_score", broken)
    ran = run_grid(grid, tell=lambda line: None)
    assert [row.state for row in ran.rows] == ["failed", "done"]
    assert ran.rows[0].detail == "the test rows are gone" and ran.rows[1].detail.startswith("accuracy")
    record = json.loads((folder_of(grid.store, ran.rows[0].piece.address) / FAILURE).read_text(encoding="utf-8"))
    assert record["targets"] == list(ran.rows[0].piece.targets) and "Traceback" in record["trace"]
    assert [row.state for row in run_grid(grid, tell=lambda line: None).rows] == ["failed", "found"]
    monkeypatch.undo()
    assert [row.state for row in run_grid(grid, retry=True, tell=lambda line: None).rows] == ["done", "found"]


def test_a_failed_training_fails_every_row_of_the_run(ground, tmp_path):
    grid = shared(ground, tmp_path, gang=2, scoring={"untouched": False})
    (tmp_path / "store").mkdir()
    address = plan(grid, points(grid), Contents())[0].piece.address
    (tmp_path / "store" / address).mkdir()
    (tmp_path / "store" / address / "run").write_text("in the way", encoding="utf-8")
    ran = run_grid(grid, tell=lambda line: None)
    assert [row.state for row in ran.rows] == ["failed", "failed"]
    assert ran.rows[0].detail == ran.rows[1].detail != ""
