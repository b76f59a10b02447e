"""A toy job for tests: a tiny backbone saved to a folder, a task of forty short rows, and configs over them."""

import json
from pathlib import Path

import torch
from backbones import make

from foreword.config import build
from foreword.data.examples import Example
from foreword.prompts.init import draw_undirected
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.train.run_config import Recipe, RunConfig, resolve_recipe

EXAMPLES = [
    Example((5, 6, 7, 8), (20, 21, 2), "a"),
    Example((9, 10), (22, 2), "b"),
    Example((5, 6, 7, 8), (23, 24, 25, 26, 2), "c"),
    Example((11, 12, 13), (27, 28, 29, 2), "d"),
    Example((9, 10), (30, 31, 32, 33, 34, 35, 2), "e"),
    Example((14,), (2,), "f"),
    Example((15, 16, 17, 18, 19), (36, 37, 2), "g"),
    Example((5, 6, 7, 8), (38, 2), "h"),
]
"""Eight rows with unequal targets; three sources are shared."""


def save_backbone(folder: Path, family: str = "llama") -> Path:
    backbone = make(family)
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder


def save_task(folder: Path, rows: int = 40) -> Path:
    """Write rows whose target follows from the source: its letters doubled."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["".join(chr(97 + (7 * i + 3 * k) % 11) for k in range(1 + i % 4)) for i in range(rows)]
    lines = [json.dumps({"s": word, "t": "".join(c + c for c in word)}) for word in words]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "dev.jsonl").write_text("\n".join(lines[:8]), encoding="utf-8")
    task = {
        "name": "toy", "source": "{s}", "target": "{t}", "metrics": ["exact_match"],
        "train": "rows.jsonl", "dev": "dev.jsonl",
    }
    (folder / "toy.yaml").write_text(json.dumps(task), encoding="utf-8")
    return folder / "toy.yaml"


def run_config(backbone: Path, task: Path, run_dir: Path, **changes) -> RunConfig:
    """Return a short run: an MLP prefix with dropout, 12 steps, a dev evaluation every 4, a checkpoint every 3."""
    tree = {
        "task": str(task),
        "backbone": {"source": str(backbone), "device": "cpu"},
        "run_dir": str(run_dir),
        "prompt": {"reparam": "mlp", "reparam_width": 16, "length": 4, "dropout": 0.1},
        "optim": {"lr": 5e-3},
        "batch": {"rows": 4},
        "steps": 12,
        "dev": {"every": 4},
        "checkpoint": {"every": 3},
        "track": [],
        **changes,
    }
    return build(RunConfig, tree)


def recipe(**changes) -> Recipe:
    return resolve_recipe(Recipe(**changes))


def drawn_prompt(backbone, seed: int = 0, **spec):
    prompt = make_prompt(PromptSpec(**{"length": 4, **spec}), backbone)
    draw_undirected(prompt, torch.Generator().manual_seed(seed))
    return prompt


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
