"""What the command-line tests share: a tiny backbone on disk, a task of one's own, a run that was trained on them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from backbones import make

from foreword.cli import main

TASK = """\
name: letters
source: "{word}"
target: "{answer}"
train: train.jsonl
dev: dev.jsonl
test: dev.jsonl
metrics: [exact_match]
generation: {max_new_tokens: 4}
"""
RECIPE = """\
task: {task}
backbone: {{source: {backbone}}}
prompt: {{kind: prefix, length: 3}}
batch: {{rows: 4}}
steps: 4
checkpoint: {{every: 2}}
"""


@dataclass(frozen=True)
class Place:
    """A folder with a backbone, a task, a recipe and a finished run."""

    root: Path
    backbone: Path
    task: Path
    recipe: Path
    run: Path


@dataclass(frozen=True)
class Outcome:
    """What one command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def foreword(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Return a function that runs the command line in this process."""

    def run(*words: object) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in words])
        found = capsys.readouterr()
        return Outcome(code, found.out, found.err)

    return run


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Build the shared place once; tests read it and write elsewhere."""
    root = tmp_path_factory.mktemp("place")
    backbone = make("llama")
    backbone.model.save_pretrained(root / "backbone")
    backbone.tokenizer.save_pretrained(root / "backbone")
    for split, words in (("train", ("ab", "cd", "ef", "gh", "ij", "kl")), ("dev", ("mn", "op"))):
        lines = [json.dumps({"word": word, "answer": word[::-1]}) for word in words]
        (root / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "letters.yaml").write_text(TASK, encoding="utf-8")
    recipe = RECIPE.format(task=root / "letters.yaml", backbone=root / "backbone")
    (root / "recipe.yaml").write_text(recipe, encoding="utf-8")
    assert main(["train", str(root / "recipe.yaml"), "--out", str(root / "run")]) == 0
    return Place(root, root / "backbone", root / "letters.yaml", root / "recipe.yaml", root / "run")
