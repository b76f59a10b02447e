"""What is known of a grid's pieces while it runs: state, progress and headline score, read from disk."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.experiments.grid.spec import Point
from foreword.experiments.grid.work import RUN, SCORES, TRAINED, Piece, failure_of, folder_of, is_done, left_out
from foreword.train.record import TIMES

STATES = ("waiting", "running", "done", "found", "failed")


@dataclass
class Row:
    """One piece of a grid: its point (None for an untouched backbone), its state and, for people, a detail.

    `tried` holds the settings of a search's trial, None for a run that counts.
    """

    piece: Piece
    point: Point | None
    state: str = "waiting"
    detail: str = ""
    tried: dict[str, Any] | None = None

    @property
    def title(self) -> str:
        """Its labels in words."""
        if self.point is None:
            return f"untouched {Path(self.piece.config.backbone.source).name}"
        run = ", ".join(f"{axis} {label}" for axis, label in self.point.labels.items()) or "the run"
        tried = ", ".join(f"{name} {value}" for name, value in (self.tried or {}).items())
        return run if self.tried is None else f"trial of {run}: {tried or 'as it is'}"


def first_state(store: str | Path, piece: Piece, retry: bool) -> tuple[str, str]:
    """Return a piece's state before anything runs, with the reason if it failed earlier, or the metrics it lacks.

    With `retry`, what failed waits, and so does what lacks a metric.
    """
    if is_done(store, piece):
        lacking = lacks(store, piece)
        return ("waiting" if retry and lacking else "found"), lacking
    failure = failure_of(store, piece)
    if failure is not None and not retry:
        return "failed", failure["reason"]
    return "waiting", ""


def progress_of(store: str | Path, piece: Piece) -> str:
    """Return how far a running piece is."""
    folder = folder_of(store, piece.address)
    if not piece.trains or (folder / TRAINED).is_file():
        scored = sum((folder / "scores" / address / SCORES).is_file() for address in piece.targets)
        return f"scoring {min(scored + 1, len(piece.targets))} of {len(piece.targets)}"  # or a score a second time
    steps = [row["step"] for row in read_jsonl(folder / RUN / TIMES)]
    return f"step {max(steps):,}" if steps else "starting"


def headline(store: str | Path, piece: Piece, metric: str | None) -> str:
    """Return a finished piece's first score in words."""
    for address in piece.targets:
        found = read_json(folder_of(store, piece.address) / "scores" / address / SCORES)
        if found is not None and found["metrics"]:
            name = metric if metric in found["metrics"] else next(iter(found["metrics"]))
            return f"{name} {found['metrics'][name]:.4f}"
    return ""


def lacks(store: str | Path, piece: Piece) -> str:
    """Return in words which metrics could not be computed where a piece was scored; nothing where all could."""
    folder = folder_of(store, piece.address) / "scores"
    names = [name for address in piece.targets for name in left_out(folder / address)]
    return f"left out: {', '.join(dict.fromkeys(names))}" if names else ""


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object of ours, or None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file that may still be written to: a last line without its end is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1] if line]


def counts(rows: Sequence[Row]) -> Mapping[str, int]:
    """Return how many rows are in each state that occurs."""
    found = {state: sum(row.state == state for row in rows) for state in STATES}
    return {state: count for state, count in found.items() if count}
