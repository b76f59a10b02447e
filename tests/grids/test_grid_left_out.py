"""A metric that could not be computed is told, is in no mean, and is computed with `--retry`."""

import json

import pytest
from gridkit import make_grid, with_store

from foreword.errors import MissingExtraError
from foreword.evaluate import subject
from foreword.evaluate.metrics import STATISTICS
from foreword.evaluate.stats import Interval
from foreword.experiments.grid.drive import overview, run_grid
from foreword.experiments.grid.results import Score, average
from foreword.experiments.grid.work import PREDICTIONS, SCORES, folder_of

ONE = {"method": {"it": {"prompt.kind": "prompt"}}}


def missing(*_):
    raise MissingExtraError("bleu needs a library: pip install it")


def files(ran, name):
    """The bytes of every score of a grid, by address."""
    pieces = [row.piece for row in ran.rows]
    places = [folder_of(ran.grid.store, piece.address) / "scores" / name for piece in pieces for name in piece.targets]
    return {f"{place.parts[-3]}/{place.name}": (place / name).read_bytes() for place in places}


def quietly(grid, **options):
    return run_grid(grid, tell=lambda line: None, **options)


@pytest.fixture
def lacking(ground, tmp_path, monkeypatch):
    """A run and its untouched backbone, scored while a metric's library was missing."""
    grid = with_store(make_grid(ground, axes=ONE, base={"steps": 2}), tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setitem(STATISTICS, "bleu", missing)
        return quietly(grid)


def test_a_metric_that_was_left_out_is_told(lacking):
    assert [row.state for row in lacking.rows] == ["done", "done"]
    assert all("accuracy" in row.detail and row.detail.endswith("left out: bleu") for row in lacking.rows)
    assert [(row.state, row.detail) for row in quietly(lacking.grid).rows] == [("found", "left out: bleu")] * 2


def test_a_metric_that_was_left_out_is_computed_with_retry(ground, tmp_path, lacking, monkeypatch):
    whole = quietly(with_store(make_grid(ground, axes=ONE, base={"steps": 2}), tmp_path / "whole"))
    assert [row.state for row in overview(lacking.grid, retry=True)[0]] == ["waiting", "waiting"]
    monkeypatch.setattr(subject, "generate_ids", None)  # the outputs are there: none is made again
    again = quietly(lacking.grid, retry=True)
    assert [row.state for row in again.rows] == ["done", "done"], again.rows[0].detail
    assert not any("left out" in row.detail for row in again.rows)
    assert files(again, SCORES) == files(whole, SCORES)  # to the byte what the library's presence would have given
    assert files(again, PREDICTIONS) == files(whole, PREDICTIONS)
    assert [row.state for row in quietly(lacking.grid, retry=True).rows] == ["found", "found"]


def test_a_metric_that_is_still_missing_stays_left_out(lacking, monkeypatch):
    before = files(lacking, SCORES)
    monkeypatch.setitem(STATISTICS, "bleu", missing)
    again = quietly(lacking.grid, retry=True)
    assert [row.state for row in again.rows] == ["done", "done"]
    assert all(row.detail.endswith("left out: bleu") for row in again.rows)
    assert files(again, SCORES) == before


def test_outputs_that_are_gone_are_generated_again(lacking):
    for row in lacking.rows:
        (target,) = row.piece.targets
        (folder_of(lacking.grid.store, row.piece.address) / "scores" / target / PREDICTIONS).unlink()
    again = quietly(lacking.grid, retry=True)
    assert [row.state for row in again.rows] == ["done", "done"]
    assert all(json.loads(text)["skipped"] == {} for text in files(again, SCORES).values())
    assert all(files(again, PREDICTIONS).values())


def test_a_mean_that_lacks_a_run_is_none(tmp_path):
    """`runs: 3` beside the mean of two would say what is not so."""

    def score(**metrics):
        held = {name: Interval(value, value - 0.1, value + 0.1) for name, value in metrics.items()}
        return Score({}, "test", metrics, held, None, 0.0, 4, "a", tmp_path, "b", "o", "o")

    three = [score(BLEU=0.1, METEOR=0.9), score(BLEU=0.2), score(BLEU=0.3)]
    assert average(three, "METEOR") is None and average([], "BLEU") is None
    assert average(three, "BLEU").value == pytest.approx(0.2)
    assert average(three[:1], "METEOR") == Interval(0.9, 0.8, 1.0)  # one run that has it: its bootstrap interval
