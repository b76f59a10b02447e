"""Every run and every untouched backbone is scored on the right words; one scoring's failure is not another's."""

import json
from pathlib import Path

import pytest
from gridkit import make_grid, save_labels, with_store

from foreword.evaluate import runner, subject
from foreword.evaluate.dev import dev_evaluator, gang_evaluator
from foreword.experiments.grid.address import Contents
from foreword.experiments.grid.compare import compare
from foreword.experiments.grid.drive import plan, run_grid
from foreword.experiments.grid.examples import example_blocks
from foreword.experiments.grid.page import grid_report, write_page
from foreword.experiments.grid.pools import _Queue
from foreword.experiments.grid.results import floor_name, read_predictions, read_results
from foreword.experiments.grid.spec import points
from foreword.experiments.grid.state import first_state
from foreword.experiments.grid.work import FAILURE, Job, folder_of

PROMPT = {"prompt.kind": "prompt"}


def quietly(grid, **options):
    return run_grid(grid, tell=lambda line: None, **options)


@pytest.fixture
def second(tmp_path) -> Path:
    """Another task: other words, and `on` where the first one says `up`."""
    return save_labels(tmp_path / "second", "order_b", "on", first=100)


def test_the_in_domain_control_keeps_its_own_label_words(ground, second, tmp_path):
    """Runs of task A are scored on A with A's words; runs of B on A with B's, which A's labels are written in."""
    first = str(ground / "task" / "order.yaml")
    protocol = {
        "name": "domain_shift", "tasks": [first, str(second)], "seeds": 1,
        "relabel": {first: {"up": "on"}, str(second): {"on": "up"}},
    }
    grid = with_store(make_grid(ground, axes={}, protocol=protocol, base={"steps": 2}), tmp_path / "store")
    ran = quietly(grid)
    assert not ran.failed
    results = read_results(grid, ran.rows)
    words = {first: "up", str(second): "on"}
    for score in results.scores:
        legal = {word for row in read_predictions(score) for word in row["targets"]}
        assert legal == {words[score.labels["trained_on"]], "down"}, (score.labels, score.target)
    floors = [floor for floor in results.floors if floor.target == grid.scoring.targets[0].name]
    assert sorted(floor_name(floor, results.floors) for floor in floors) == [
        "untouched backbone (labels as they are)", "untouched backbone (labels renamed)"
    ]
    assert "labels renamed" in write_page(ran, tmp_path / "page").read_text(encoding="utf-8")


def test_records_of_different_tasks_are_neither_compared_nor_shown_as_one(ground, second, tmp_path):
    """An axis over tasks, each scored on its own test split: 12 and 12 records that have nothing to do with another."""
    axes = {
        "trained": {"a": {"task": str(ground / "task" / "order.yaml")}, "b": {"task": str(second)}},
        "method": {"prompt": PROMPT, "prefix": {"prompt.kind": "prefix"}},
    }
    page = {"baseline": {"trained": "a"}, "metric": "accuracy"}
    grid = with_store(make_grid(ground, axes=axes, page=page, base={"steps": 2}), tmp_path / "store")
    ran = quietly(grid)
    results = read_results(grid, ran.rows)
    assert [(row.outputs, row.units) for row in compare(results)] == [(None, 1), (None, 1)]
    (block,) = example_blocks(results)
    own = {row["source"] for row in read_predictions(next(s for s in results.scores if s.target == "test"))}
    shown = {row[0] for row in block.rows}
    assert shown <= own or not shown & own  # one task's records, whichever is best
    best = "trained a" if shown <= own else "trained b"
    assert all(best in column for column in block.columns[3:]) and len(block.columns) == 5
    assert block.columns[2].startswith("untouched backbone (on order")
    assert "2 of 4 cells were scored on other records" in block.caption
    report = grid_report(ran, results)
    table = report.sections[0].blocks[1]
    assert "12 records of order, 12 records of order_b" in table.caption
    assert [row[0] for row in table.rows[:2]] == ["untouched backbone (on order)", "untouched backbone (on order_b)"]
    by_method = make_grid(ground, axes=axes, page={"baseline": {"method": "prompt"}}, base={"steps": 2})
    paired = compare(read_results(with_store(by_method, tmp_path / "store"), ran.rows))
    assert len(paired) == 2 and all(row.outputs is not None for row in paired)  # the same records on both sides


@pytest.mark.parametrize("method", ["fine_tune", "written"])
def test_the_untouched_backbone_reads_the_words_that_a_run_reads(ground, tmp_path, monkeypatch, method):
    """A written prompt is its words, so there the backbone alone goes without."""
    read = {}
    rows = subject.Subject._rows

    def spy(self, sources, limits):
        read.setdefault(self.name, self.words)
        return rows(self, sources, limits)

    monkeypatch.setattr(subject.Subject, "_rows", spy)
    axes = {"method": {"it": {"method": method, "data.words": "sort these"}}}
    grid = make_grid(ground, axes=axes, base={"steps": 2, "dev": {"every": 0}})
    assert not quietly(with_store(grid, tmp_path / "store")).failed
    plain = read.pop("untouched")
    assert plain == (None if method == "written" else "sort these")
    assert list(read.values()) == ["sort these"]


def test_a_dev_score_is_taken_on_the_words_that_a_run_learns_on(ground, monkeypatch):
    axes = {"method": {"it": {"method": "fine_tune", "data.words": "sort these"}}}
    config = points(make_grid(ground, axes=axes, base={"dev": {"every": 1, "metric": "accuracy"}}))[0].config
    seen = []

    def outputs(self, sources, limits):
        seen.append((self.words, len(sources)))
        return ["up"] * len(sources)

    monkeypatch.setattr(subject.Subject, "outputs", outputs)
    assert 0 <= dev_evaluator(config)(None, None, 1)["accuracy"] <= 1
    assert seen == [("sort these", 8)]
    others = points(make_grid(ground))
    assert dev_evaluator(others[0].config) is None and gang_evaluator([config, others[0].config]) is None
    assert gang_evaluator([config, config]) is not None


def test_a_failed_scoring_does_not_block_another_one(ground, tmp_path, monkeypatch):
    """Scoring breaks in one grid; another one that scores the same run otherwise goes on, as after a mended YAML."""

    def tiny(**scoring):
        grid = make_grid(ground, axes={"method": {"prompt": PROMPT}}, base={"steps": 2}, scoring=scoring)
        return with_store(grid, tmp_path / "store")

    broken = tiny(untouched=False)
    monkeypatch.setattr(runner, "bootstrap", _out_of_memory)
    first = quietly(broken)
    assert [row.state for row in first.rows] == ["failed"]
    monkeypatch.undo()
    assert [row.state for row in quietly(broken).rows] == ["failed"]  # the same again only with retry
    record = json.loads((folder_of(broken.store, first.rows[0].piece.address) / FAILURE).read_text(encoding="utf-8"))
    assert record["targets"] == list(first.rows[0].piece.targets)
    second = quietly(tiny(untouched=False, metrics=["accuracy"]))
    assert [row.state for row in second.rows] == ["done"]
    assert second.rows[0].piece.address == first.rows[0].piece.address  # nothing was trained twice
    assert [row.state for row in quietly(broken).rows] == ["failed"]  # and what failed is still known
    assert [row.state for row in quietly(broken, retry=True).rows] == ["done"]
    assert not (folder_of(broken.store, first.rows[0].piece.address) / FAILURE).exists()


def _out_of_memory(*_, **__):
    raise MemoryError("no memory")


def test_a_lost_worker_is_about_what_it_had_not_done(ground, tmp_path):
    grid = with_store(make_grid(ground, axes={"method": {"prompt": PROMPT}}, base={"steps": 2}), tmp_path / "store")
    run, floor = (row.piece for row in plan(grid, points(grid), Contents()))
    queue = _Queue([], {0: 3})
    queue.lost(0, [Job((run, floor), grid.store, grid.scoring)], "killed")
    told = {p.address: json.loads((folder_of(grid.store, p.address) / FAILURE).read_text()) for p in (run, floor)}
    assert told[run.address]["targets"] is None  # it was not trained yet: whatever is to be scored, it fails
    assert told[floor.address]["targets"] == list(floor.targets)
    assert first_state(grid.store, run, False)[0] == "failed"
