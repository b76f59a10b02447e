"""The transfer recipes: every command in their headers parses, names what another one makes, and runs dry in order."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from toy import drawn_prompt, save_backbone, save_task

from foreword.artifact import save_prompt
from foreword.backbone import load_backbone
from foreword.cli import main, make_parser

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes" / "transfer").glob("*.yaml"))


def commands(path):
    """The `foreword` commands of the header, in order: what it needs, then its own."""
    lines = [line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return [shlex.split(found[1]) for line in lines if (found := re.search(r"(?:^|: +)foreword (.*)", line))]


def made_by(words):
    """What a command writes, and what it reads."""
    if words[0] == "train":
        recipe = yaml.safe_load((ROOT / words[1]).read_text(encoding="utf-8"))
        run = next((w.removeprefix("run_dir=") for w in words if w.startswith("run_dir=")), recipe["run_dir"])
        start = recipe["prompt"]["init"].get("artifact")
        return [run, f"{run}/artifact"], [start] if start else []
    arguments = make_parser().parse_args(words)
    if words[0] == "evaluate":
        return [], [arguments.source]
    return [arguments.out], arguments.prompts if words[1] == "mix" else [arguments.prompt]


def test_there_are_recipes():
    assert len(RECIPES) >= 6


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_header_makes_everything_that_it_reads(path):
    found = commands(path)
    trained = [words[1] for words in found if words[0] == "train"]
    assert trained[-1] == f"recipes/transfer/{path.name}" and found[-1][0] == "evaluate"
    there: set[str] = set()
    for words in found:
        makes, reads = made_by(words)
        assert set(reads) <= there, words
        there |= set(makes)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_dry_on_a_toy(path, tmp_path, capsys):
    model, task = save_backbone(tmp_path / "model"), save_task(tmp_path / "task")
    backbone = load_backbone(model)
    save_prompt(drawn_prompt(backbone, kind="prompt", length=20), tmp_path / "start", backbone)
    words = [f"task={task}", f"backbone.source={model}", f"run_dir={tmp_path / 'run'}"]
    if "artifact" in yaml.safe_load(path.read_text(encoding="utf-8"))["prompt"]["init"]:
        words.append(f"prompt.init.artifact={tmp_path / 'start'}")
    assert main(["train", str(path), *words, "--dry-run"]) == 0, capsys.readouterr().err
    assert "prompt20" in capsys.readouterr().out
