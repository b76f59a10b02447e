"""A run that broke off goes on whatever its address leaves out: the grid may have changed that meanwhile."""

import dataclasses
import json
import shutil

import pytest
from gridkit import make_grid, with_store

from foreword.experiments.grid.address import Contents
from foreword.experiments.grid.drive import plan, run_grid
from foreword.experiments.grid.spec import points
from foreword.experiments.grid.work import RUN, TRAINED, folder_of
from foreword.train.record import CONFIG, RunRecord

TUNED = {"method": {"it": {"method": "fine_tune"}}}


def tiny(ground, store, **base):
    grid = make_grid(ground, axes=TUNED, base={"steps": 2, **base}, scoring={"untouched": False})
    return with_store(grid, store)


def only_piece(grid):
    return plan(grid, points(grid), Contents())[0].piece


@pytest.mark.parametrize(
    "changed",
    [
        {"track": ["tensorboard"]},
        {"checkpoint": {"every": 1}},
        {"log_every": 3},
        {"prompt": {"length": 5}},
        {"task": "order.yaml"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_run_goes_on_after_a_change_that_its_address_leaves_out(ground, tmp_path, monkeypatch, changed):
    """As a kill right after the start leaves it: a config and nothing else."""
    monkeypatch.chdir(ground / "task")
    grid, now = tiny(ground, tmp_path), tiny(ground, tmp_path, **changed)
    begun = only_piece(grid)
    run_dir = folder_of(tmp_path, begun.address) / RUN
    RunRecord.create(dataclasses.replace(begun.config, run_dir=str(run_dir))).close()
    before = (run_dir / CONFIG).read_bytes()
    assert only_piece(now).address == begun.address and only_piece(now).config != begun.config
    ran = run_grid(now, tell=lambda line: None)
    assert [(row.state, row.piece.address) for row in ran.rows] == [("done", begun.address)], ran.rows[0].detail
    assert (run_dir / CONFIG).read_bytes() == before  # the run keeps what it began with


def test_a_changed_grid_goes_on_from_the_checkpoint_to_the_same_numbers(ground, tmp_path):
    axes = {"method": {"it": {"prompt.kind": "prompt"}}}
    whole = with_store(make_grid(ground, axes=axes, scoring={"untouched": False}), tmp_path / "whole")
    assert not run_grid(whole, tell=lambda line: None).failed
    done = folder_of(whole.store, only_piece(whole).address)
    changed = make_grid(ground, axes=axes, scoring={"untouched": False}, base={"checkpoint": {"every": 5}})
    changed = with_store(changed, tmp_path / "broken")
    broken = folder_of(changed.store, only_piece(changed).address)
    shutil.copytree(done / RUN, broken / RUN)
    shutil.rmtree(broken / RUN / "artifact")
    shutil.rmtree(broken / RUN / "checkpoints" / "step-00000006")
    assert not run_grid(changed, tell=lambda line: None).failed
    assert (broken / RUN / "metrics.jsonl").read_bytes() == (done / RUN / "metrics.jsonl").read_bytes()
    facts = [json.loads((folder / TRAINED).read_text(encoding="utf-8")) for folder in (broken, done)]
    assert facts[0]["best_dev"] == facts[1]["best_dev"]
