"""AutoPrompt on a masked model in a grid: scored as it was trained, beside the template without trigger words."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from foreword.config import build
from foreword.evaluate.job import evaluate
from foreword.experiments.grid.address import Contents
from foreword.experiments.grid.check import check_grid
from foreword.experiments.grid.drive import run_grid
from foreword.experiments.grid.results import floor_name, read_results
from foreword.experiments.grid.spec import Grid, points
from foreword.experiments.grid.work import RUN, folder_of

sys.path.insert(0, str(Path(__file__).parents[1] / "autoprompt"))
readers = pytest.importorskip("readers")

SEARCH = {"candidates": 2, "accumulation": 1, "rows": 4, "score": "loss", "labels": {"n": ["n"], "y": ["y"]}}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("masked")
    readers.save_bert(root / "bert")
    readers.save_task(root / "task")
    return root


def masked_grid(place: Path, store: Path, axes=None, **search) -> Grid:
    base = {
        "task": str(place / "task" / "task.yaml"), "method": "autoprompt", "steps": 1,
        "backbone": {"source": str(place / "bert"), "device": "cpu"}, "autoprompt": {**SEARCH, **search},
    }
    grid = build(Grid, {
        "name": "masked", "base": base, "axes": axes or {}, "scoring": {"resamples": 0}, "store": str(store),
    })
    check_grid(grid)
    return grid


def outputs(folder: Path) -> list[str]:
    return [json.loads(line)["prediction"] for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_a_masked_model_is_scored_beside_its_template_as_evaluate_does_it(place, tmp_path):
    ran = run_grid(masked_grid(place, tmp_path), tell=lambda line: None)
    assert [row.state for row in ran.rows] == ["done", "done"], [row.detail for row in ran.rows]
    results = read_results(ran.grid, ran.rows)
    (score,), (floor,) = results.scores, results.floors
    found = evaluate(folder_of(tmp_path, score.address) / RUN, resamples=0)
    assert score.metrics == found.scores[found.subject].metrics
    assert outputs(score.folder) == [row["prediction"] for row in found.predictions[found.subject]]
    assert floor.metrics == found.scores["untouched"].metrics
    assert outputs(floor.folder) == [row["prediction"] for row in found.predictions["untouched"]]
    assert set(outputs(floor.folder)) <= {"n", "y"}  # labels, read off by their words


def test_templates_have_floors_of_their_own(place, tmp_path):
    axes = {"template": {"field": "autoprompt.template", "values": ["{source} [T] [P] .", "{source} . [T] [P]"]}}
    ran = run_grid(masked_grid(place, tmp_path, axes), tell=lambda line: None)
    assert not ran.failed
    floors = read_results(ran.grid, ran.rows).floors
    assert [floor_name(floor, floors) for floor in floors] == [
        "untouched bert (template {source} [T] [P] .)", "untouched bert (template {source} . [T] [P])"
    ]
    assert len({floor.address for floor in floors}) == 2


def test_label_words_that_are_searched_are_the_floors_too(place, tmp_path):
    search = {"labels": None, "label_search": {"words": 1, "epochs": 1}}
    ran = run_grid(masked_grid(place, tmp_path, {"seed": [0, 1]}, **search), tell=lambda line: None)
    assert [row.state for row in ran.rows] == ["done"] * 4, [row.detail for row in ran.rows]
    results = read_results(ran.grid, ran.rows)
    names = [floor_name(floor, results.floors) for floor in results.floors]
    assert names == [f"untouched bert (label words of seed {seed})" for seed in (0, 1)]
    for score, floor in zip(results.scores, results.floors, strict=True):
        found = evaluate(folder_of(tmp_path, score.address) / RUN, resamples=0)
        assert outputs(floor.folder) == [row["prediction"] for row in found.predictions["untouched"]]


@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        ({"autoprompt": {"template": "{source} [T] [P]"}}, True),
        ({"autoprompt": {"labels": {"n": ("b",), "y": ("y",)}}}, True),
        ({"data": {"max_source": 2}}, True),
        ({"autoprompt": {"candidates": 3}}, False),
        ({"seed": 1, "steps": 2}, False),  # given label words are the same for all seeds
    ],
)
def test_a_masked_floors_address_holds_its_template_and_label_words(place, tmp_path, changed, differs):
    config = points(masked_grid(place, tmp_path))[0].config
    parts = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in changed.items()
    }
    contents = Contents()
    other = dataclasses.replace(config, **parts)
    assert (contents.untouched(other) != contents.untouched(config)) == differs


def test_a_decoders_floor_is_the_same_for_trigger_words_as_for_a_prompt(place, tmp_path):
    config = points(masked_grid(place, tmp_path))[0].config
    decoder = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, source="foreword-decoder-1.5m"))
    prompt = dataclasses.replace(decoder, method="prompt")
    assert Contents().untouched(decoder) == Contents().untouched(prompt)
