"""Every recipe says how it is run, and runs (dry); evaluation commands name the recipe's own run."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from test_readme import fresh  # noqa: F401

from foreword.cli import main, make_parser
from foreword.demo import configs
from foreword.train.rehearse import settle

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def header(path: Path) -> str:
    """The comment lines at the top, without their `#`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.lstrip("# ") for line in lines[:end])


def test_there_are_recipes():
    assert len(RECIPES) >= 7


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_how_it_is_run_and_runs_dry(path, fresh, capsys):  # noqa: F811
    text = header(path)
    assert "Expected:" in text and "Time:" in text
    lines = re.findall(r"foreword (?:train|evaluate) .*", text)
    assert lines and lines[0].startswith(f"foreword train recipes/{path.name}")
    config = settle([str(path)], {})
    for line in lines:
        words = shlex.split(line)[1:]
        if words[0] == "train":
            assert main([*words, "--dry-run"]) == 0, capsys.readouterr().err
            assert "nothing was written" in capsys.readouterr().out
        else:
            assert make_parser().parse_args(words).source == config.run_dir
    assert not (fresh / "runs").exists()


@pytest.mark.parametrize("task", ["venues", "sentiment", "headlines"])
def test_the_demo_runs_what_its_recipes_say(task):
    (config,) = [config for config in configs(Path("runs/demo")) if config.task == task]
    (path,) = [path for path in RECIPES if path.stem.startswith(task)]
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert settle([str(path)], {"run_dir": config.run_dir, "backbone.source": config.backbone.source}) == config, tree
