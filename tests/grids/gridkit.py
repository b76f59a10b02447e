"""A tiny grid for tests: a random backbone on disk, a task of 60 rows, two recipes and two seeds."""

import dataclasses
import json
from pathlib import Path

from foreword.config import build
from foreword.experiments.grid.check import check_grid
from foreword.experiments.grid.protocols import apply_protocol
from foreword.experiments.grid.spec import Grid

AXES = {
    "method": {
        "prefix": {"prompt.kind": "prefix", "optim.lr": 0.1},
        "prompt": {"prompt.kind": "prompt", "optim.lr": 0.3},
    },
    "seed": [0, 1],
}


def save_labels(folder: Path, name: str = "order", up: str = "up", first: int = 0, **fields) -> Path:
    """Write a task whose label says whether a word has its letters in order; its rows count from `first`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, start, rows in (("train", 0, 40), ("dev", 40, 8), ("test", 48, 12)):
        words = [chr(97 + i % 7) + chr(97 + (3 * i) % 11) + str(first + i) for i in range(start, start + rows)]
        lines = [json.dumps({"s": word, "t": "up" if word[0] < word[1] else "down"}) for word in words]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    task = {
        "name": name, "source": "{s}", "target": "{t}", "metrics": ["accuracy", "bleu"],
        "train": "train.jsonl", "dev": "dev.jsonl", "test": "test.jsonl",
        "label_words": {"up": up, "down": "down"}, "generation": {"max_new_tokens": 3}, **fields,
    }
    (folder / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")
    return folder / f"{name}.yaml"


def grid_tree(root: Path, **changes) -> dict:
    base = {
        "task": str(root / "task" / "order.yaml"),
        "backbone": {"source": str(root / "backbone"), "device": "cpu"},
        "prompt": {"length": 3},
        "batch": {"rows": 4},
        "steps": 6,
        "dev": {"every": 3},
        "checkpoint": {"every": 2},
    }
    base |= changes.pop("base", {})
    scoring = {"resamples": 50} | changes.pop("scoring", {})
    return {"name": "tiny", "base": base, "axes": AXES, "scoring": scoring, "store": str(root / "store"), **changes}


def make_grid(root: Path, **changes) -> Grid:
    grid = apply_protocol(build(Grid, grid_tree(root, **changes)))
    check_grid(grid)
    return grid


def with_store(grid: Grid, store: Path) -> Grid:
    return dataclasses.replace(grid, store=str(store))
