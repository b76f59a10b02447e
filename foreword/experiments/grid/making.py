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
from foreword.experiments.grid.spec import Grid, Scoring, cell_of
from foreword.experiments.grid.work import machine

# Floating-point operations a weight and token (Kaplan et al. 2020): 2 forward; 2 more for gradients that go back
# through frozen weights, 4 where the weights themselves train. Under top layers no gradient goes back: 2 are sure.
FLOP = {"fine_tune": 6, "prompt": 4, "lora": 4, "adapter": 4, "top_layers": 2, "written": 0}


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
        loss = [converged(run, loss=run.dev_metric == "loss") for run in runs]
        known = [found for found in loss if found is not None]
        best = [value for value in map(best_dev, runs) if value is not None]
        rows.append((
            *(dict(cell)[axis] for axis in axes), len(runs), runs[0].facts["num_trained"], runs[0].facts["num_stored"],
            _mean([run.facts["steps"] for run in runs]), _mean([run.tokens for run in runs]),
            _mean([seconds_of(run) for run in runs]), _mean([step for step, _ in known]),
            _mean([sec for _, sec in known]), steady[cell]["mean"], steady[cell]["sd"],
            _mean(best), float(np.std(best, ddof=1)) if len(best) > 1 else None,
        ))
    columns = (
        *axes, "runs", "numbers trained", "numbers kept", "steps", "target tokens", "seconds", "steps to 99 %",
        "seconds to 99 %", "final loss", "sd of it", "best dev", "sd of best dev",
    )
    together = max(run.facts["gang"] for runs in cells.values() for run in runs)
    shared = f" Runs trained in gangs of up to {together}: their seconds are the gang's." if together > 1 else ""
    caption = (
        "Means over runs. Seconds are the wall clock of training, dev evaluations included, on a machine that may have "
        "been shared. To 99 %: when a run first had 99 % of its own best dev value (of its fall, for a loss), at the "
        "grain of its dev evaluations. Best dev: of the value that decides, a loss in nats per target token where no "
        f"score is asked for. Numbers kept: what a prompt is stored as.{shared}"
    )
    losses = ("final loss", "sd of it", "best dev", "sd of best dev")
    digits = {**dict.fromkeys(losses, 3), **dict.fromkeys(("steps", "target tokens", "steps to 99 %"), 0),
              "seconds": 1, "seconds to 99 %": 1}
    return [page.Table(columns, rows, caption=caption, digits=digits)]


def best_dev(training: Training) -> float | None:
    """Return a run's best value of what decides; None without dev evaluations."""
    values = [value for _, value in training.dev if math.isfinite(value)]
    if not values:
        return None
    return min(values) if training.dev_metric == "loss" else max(values)


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
    facts["one run scored"] = _evaluate_command(ran.grid, run)
    if otherwise := _scored_otherwise(ran.grid):
        facts["scored otherwise"] = otherwise
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


def _evaluate_command(grid: Grid, run: str) -> str:
    """Return the command that scores a run on the grid's first target."""
    scoring, usual, target = grid.scoring, Scoring(), grid.scoring.targets[0]
    words = ["foreword", "evaluate", f"{grid.store}/{run}/run"]
    words += [] if target.task is None else ["--task", target.task]
    words += ["--split", target.split]
    for name in ("limit", "seed", "batch_size", "resamples"):
        if (value := getattr(scoring, name)) != getattr(usual, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _scored_otherwise(grid: Grid) -> str:
    """Return in what the grid's scoring differs from that of `foreword evaluate`; empty where it does not."""
    scoring = grid.scoring
    given = {name: getattr(scoring, name) for name in ("num_beams", "max_new_tokens") if getattr(scoring, name)}
    told = [f"{name} {value}" for name, value in given.items()]
    told += [f"metrics {', '.join(scoring.metrics)}"] if scoring.metrics else []
    told += ["label words renamed for runs of other tasks"] if scoring.targets[0].relabel else []
    return f"{'; '.join(told)}: the command above takes the task's own instead" if told else ""


def _arithmetic(trainings: Sequence[Training]) -> str:
    """Return a lower bound of the floating-point operations; target tokens only."""
    known = [t for t in trainings if _flop(t) is not None]
    total = sum(_flop(t) for t in known)
    told = f"{total:.3g} FLOP at least in training (target tokens only; sources and attention come on top)"
    unknown = f"unknown for {len(trainings) - len(known)} of {len(trainings)} runs"
    if len(known) == len(trainings):
        return told
    return f"{told}; {unknown}" if known else unknown


def _flop(training: Training) -> int | None:
    """Return the operations that a run took at least; None where its backbone's size or its tokens are not known."""
    factor, size = FLOP.get(training.method), training.facts.get("num_backbone")
    if factor == 0:
        return 0
    return None if factor is None or not size or not training.tokens else factor * size * training.tokens


def _short(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the grid without what is empty."""
    return {key: value for key, value in tree.items() if value not in (None, "", [], {}, ())}
