"""How a grid was made: commands, versions, hardware; what each cell cost in time, sizes and arithmetic."""

import json
import math
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml

from foreword.config import to_dict
from foreword.experiments import report as page
from foreword.experiments.grid.compare import stability
from foreword.experiments.grid.drive import Ran
from foreword.experiments.grid.results import Cell, Results, Training, converged
from foreword.experiments.grid.spec import cell_of
from foreword.experiments.grid.work import machine


def cost_blocks(results: Results) -> list[page.Block]:
    """Return what each cell cost and how fast and how steadily it learned."""
    cells: dict[Cell, list[Training]] = {}
    for training in results.trainings:
        cells.setdefault(cell_of(results.grid, training.labels), []).append(training)
    if not cells:
        return []
    steady = dict(stability(results))
    axes = [axis for axis in results.grid.axes if axis not in results.grid.page.over]
    rows = []
    for cell, runs in cells.items():
        loss = [converged(run, loss=results.grid.base.get("dev", {}).get("metric", "loss") == "loss") for run in runs]
        known = [found for found in loss if found is not None]
        rows.append((
            *(dict(cell)[axis] for axis in axes), len(runs), runs[0].facts["num_trained"], runs[0].facts["num_stored"],
            _mean([run.facts["steps"] for run in runs]), _mean([run.tokens for run in runs]),
            _mean([seconds_of(run) for run in runs]), _mean([step for step, _ in known]),
            _mean([sec for _, sec in known]), steady[cell]["mean"], steady[cell]["sd"],
        ))
    columns = (
        *axes, "runs", "numbers trained", "numbers kept", "steps", "target tokens", "seconds", "steps to 99 %",
        "seconds to 99 %", "final loss", "its sd",
    )
    together = max(run.facts["gang"] for runs in cells.values() for run in runs)
    shared = f" Runs trained in gangs of up to {together}: their seconds are the gang's." if together > 1 else ""
    caption = (
        "Means over runs. Seconds are the wall clock of training, dev evaluations included, on a machine that may have "
        "been shared. To 99 %: when a run first had 99 % of its own best dev value (of its fall, for a loss), at the "
        f"grain of its dev evaluations. Numbers kept: what a prompt is stored as.{shared}"
    )
    digits = {"final loss": 3, "its sd": 3, **dict.fromkeys(("steps", "target tokens", "steps to 99 %"), 0),
              "seconds": 1, "seconds to 99 %": 1}
    return [page.Table(columns, rows, caption=caption, digits=digits)]


def seconds_of(training: Training) -> float:
    """Return the seconds a run trained, broken-off attempts included."""
    return training.seconds[-1][1] if training.seconds else training.facts["seconds"]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return float(np.mean(known)) if known else None


def made_blocks(ran: Ran, results: Results, command: Sequence[str]) -> list[page.Block]:
    """Return commands, versions, hardware, time, arithmetic, the grid itself and every run's address."""
    machines = {json.dumps(t.facts["machine"], sort_keys=True): t.facts["machine"] for t in results.trainings}
    facts: dict[str, Any] = {}
    if command:
        facts["command"] = shlex.join(command)
    run = next((t.address for t in results.trainings), "ADDRESS")
    facts["one run again"] = f"foreword train {ran.grid.store}/{run}/run/config.yaml run_dir=runs/again"
    facts["one run scored"] = f"foreword evaluate {ran.grid.store}/{run}/run"
    unique = {training.address: training for training in results.trainings}
    facts["training"] = f"{sum(map(seconds_of, unique.values())):,.0f} s of training in {len(unique)} runs"
    facts["arithmetic"] = _arithmetic(list(unique.values()))
    for number, found in enumerate(machines.values() or [machine()], start=1):
        name = "machine" if len(machines) < 2 else f"machine {number}"
        facts[name] = {key: value for key, value in found.items() if value is not None}
    code = ("command", "one run again", "one run scored")
    axes = list(ran.grid.axes)
    rows = [
        (*(row.point.labels[axis] for axis in axes), row.state, row.piece.address)
        for row in ran.rows if row.point is not None
    ]
    table = page.Table((*axes, "state", "run"), rows, caption=f"Every run, by its folder in {ran.grid.store}.")
    text = yaml.safe_dump(_short(to_dict(ran.grid)), sort_keys=False, allow_unicode=True)
    return [page.Facts(facts, code=code), page.Listing(text, caption="The grid, its protocol written out."), table]


def _arithmetic(trainings: Sequence[Training]) -> str:
    """Return a lower bound of the floating-point operations: 2 a weight and token forward, 2 back through a frozen
    model, 4 where the weights themselves are trained (Kaplan et al. 2020); target tokens only.
    """
    known = [t for t in trainings if t.facts.get("num_backbone")]
    total = sum(t.facts["num_backbone"] * t.tokens * (4 if t.facts["num_stored"] else 6) for t in known)
    return f"{total:.3g} FLOP at least in training (target tokens only; sources and attention come on top)"


def _short(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the grid without what is empty."""
    return {key: value for key, value in tree.items() if value not in (None, "", [], {}, ())}
