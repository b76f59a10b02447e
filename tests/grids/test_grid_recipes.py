"""Every grid in recipes/grids says how it is run, parses, and is sound before anything is trained."""

import re
import shlex
from pathlib import Path

import pytest

from foreword.cli import make_parser
from foreword.experiments.grid.protocols import load_grid
from foreword.experiments.grid.search import draw_trials
from foreword.experiments.grid.spec import axes_of, points

ROOT = Path(__file__).parents[2]
GRIDS = sorted((ROOT / "recipes" / "grids").glob("*.yaml"))


def test_there_are_grids_for_every_question():
    assert len(GRIDS) >= 13


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_a_grid_says_how_it_is_run_and_is_sound(path):
    text = path.read_text(encoding="utf-8")
    assert "# Expected:" in text and "# Time:" in text
    (line,) = re.findall(r"^# Command:  foreword (.*)$", text, flags=re.M)
    arguments = make_parser().parse_args(shlex.split(line))
    assert arguments.recipe == f"recipes/grids/{path.name}" and arguments.run
    grid = load_grid(path)
    assert grid.name == path.stem and grid.title and grid.question and grid.page.notes
    found = points(grid)
    count = int(re.search(r"^# Time:\s+(\d+) runs", text, flags=re.M)[1])
    assert len(found) == count
    if grid.search is not None:
        assert set(draw_trials(grid)) == {value.label for value in axes_of(grid)[grid.search.axis]}


def test_adaptation_and_size_decide_the_backbone_together():
    grid = load_grid(ROOT / "recipes" / "grids" / "size_x_adaptation.yaml")
    found = {(p.labels["adapted"], p.labels["size"]): p.config.backbone.source for p in points(grid)}
    assert found["0 %", "6m"].split("/")[-2] == "foreword-t5-6m-lm0" and found["10 %", "6m"] == "foreword-t5-6m-lm10"
    assert len(set(found.values())) == 6
