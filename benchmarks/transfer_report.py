"""The transfer study's summary: means, sign tests and verdicts in words; as JSON, Markdown and one HTML page."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from scipy.stats import binomtest
from transfer_runs import FAMILIES, Settings, Study, label

from foreword.data.files import write_atomic
from foreword.experiments.report import Prose, Report, Section, Table, write_report

SIGNIFICANT = 0.05


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p-value of so many wins against losses, ties left out; 1 where there are none."""
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def start_lines(cells: Iterable[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return a line for each way to start: on how many tasks it was better than the plain start, and by how much.

    Args:
        cells: (task, what `transfer_tasks.starts` gives), one a task and seed. Seeds of one task are not independent,
            so each task counts once in the sign tests, by the median over its seeds.
    """
    cells = list(cells)
    names = dict.fromkeys(name for _, cell in cells for name in cell if name != "plain")
    return [_start_line(name, [(task, cell) for task, cell in cells if name in cell]) for name in names]


def _start_line(name: str, cells: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    saved = [(task, cell[name]["speed"]["steps_saved"]) for task, cell in cells]
    gains = [(task, cell["plain"]["final"]["loss"] - cell[name]["final"]["loss"]) for task, cell in cells]
    (sooner, later), (better, worse) = _signs(saved), _signs(gains)
    first = [cell["plain"]["curve"]["values"][0] - cell[name]["curve"]["values"][0] for _, cell in cells]
    scores = [_difference(cell[name]["final"]["score"], cell["plain"]["final"]["score"]) for _, cell in cells]
    line = {
        "start": name, "runs": len(cells), "sooner": sooner, "later": later, "p_sooner": sign_test(sooner, later),
        "median_steps_saved": median(value for _, value in saved),
        "median_speed_up": median(cell[name]["speed"]["comparable"] for _, cell in cells),
        "loss_gain_before_training": mean(first), "final_loss_gain": mean(value for _, value in gains),
        "final_better": better, "final_worse": worse, "p_final": sign_test(better, worse),
        "final_score_gain": _mean(scores),
    }
    return {**line, "verdict": verdict(line)}


def _signs(values: Sequence[tuple[str, float]]) -> tuple[int, int]:
    """Return on how many tasks the median over seeds is above 0, and below."""
    tasks = dict.fromkeys(task for task, _ in values)
    medians = [median(value for name, value in values if name == task) for task in tasks]
    return sum(value > 0 for value in medians), sum(value < 0 for value in medians)


def _difference(mine: float | None, other: float | None) -> float | None:
    return None if mine is None or other is None else mine - other


def verdict(line: dict[str, Any]) -> str:
    """Return what a line says in words; nothing is called a help or a harm that a sign test does not tell apart."""
    def said(better: int, worse: int, p: float, what: str) -> str:
        if p > SIGNIFICANT:
            return f"no clear difference in {what} ({better} of {better + worse} better, p = {p:.2f})"
        return f"{'better' if better > worse else 'worse'} in {what} (p = {p:.3f})"

    speed = said(line["sooner"], line["later"], line["p_sooner"], "steps")
    return f"{speed}; {said(line['final_better'], line['final_worse'], line['p_final'], 'final loss')}"


def model_lines(cells: dict[str, dict[str, Any]], settings: Settings) -> list[dict[str, Any]]:
    """Return a line for each pair, method and side of the family fence: the median share of the own prompt's gain."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for key, cell in cells.items():
        pair, task = key.split("/")[0], key.split("/")[1].rpartition("-s")[0]
        side = "inside the family" if task in settings.held_inside else "outside"
        for name, found in cell["methods"].items():
            groups.setdefault((pair, name, side), []).append({**found, "plain": cell["plain_start_loss"]})
    return [
        {
            "pair": pair, "method": name, "held_out": side, "runs": len(found),
            "median_share_of_own_gain": _median([f["share"] for f in found]),
            "better_than_plain_start": sum(f["loss"] < f["plain"] for f in found),
            "score": _mean([f["score"] for f in found]),
        }
        for (pair, name, side), found in groups.items()
    ]


def correlation_lines(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each measure's mean correlation with relative transfer over seeds, and each seed's p-values."""
    names = dict.fromkeys(name for cell in cells for name in cell["measures"])
    lines = []
    for name in names:
        found = [cell["measures"][name] for cell in cells if name in cell["measures"]]
        line: dict[str, Any] = {"measure": name, "seeds": len(found)}
        for how in ("pooled", "per_target"):
            line[f"rho_{how}"] = _mean([f[how]["rho"] for f in found])
            line[f"p_{how}"] = [f[how]["p_value"] for f in found]
        lines.append(line)
    return sorted(lines, key=lambda line: -(line["rho_per_target"] if line["rho_per_target"] is not None else -2))


def _mean(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return mean(finite) if finite else None


def _median(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return median(finite) if finite else None


def family_lines(relatives: Sequence[list[list[float]]], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Return the median relative transfer within a family and across, and how often it is above 0."""
    groups: dict[str, list[float]] = {"same family": [], "other family": []}
    for table in relatives:
        for i, source in enumerate(tasks):
            for j, target in enumerate(tasks):
                if i != j and math.isfinite(table[i][j]):
                    same = FAMILIES[source] == FAMILIES[target]
                    groups["same family" if same else "other family"].append(table[i][j])
    return [
        {"sources": name, "pairs": len(v), "median_relative": _median(v), "above_0": sum(x > 0 for x in v)}
        for name, v in groups.items()
    ]


def write_summary(study: Study, summary: dict[str, Any]) -> Path:
    """Write summary.json, summary.md and summary.html, and return the page."""
    write_atomic(study.out / "summary.json", json.dumps(_strict(summary), indent=2, allow_nan=False) + "\n")
    sections = [Section(title, [Prose(text), *_blocks(rows)]) for title, text, rows in _parts(summary) if rows]
    first = (
        f"{len(study.settings.tasks)} tasks, {study.settings.seeds} seeds, {study.settings.kind} of "
        f"{study.settings.length}, {study.settings.steps} steps on {label(study.settings.backbone)}; pairs "
        + ", ".join(f"{label(a)} to {label(b)}" for a, b in study.settings.pairs)
    )
    lines = ["# Transfer study", "", first, ""]
    for title, text, rows in _parts(summary):
        if rows:
            lines += [f"## {title}", "", text, "", *_markdown(rows), ""]
    write_atomic(study.out / "summary.md", "\n".join(lines))
    return write_report(study.out / "summary.html", Report("Transfer study", first, sections))


def _parts(summary: dict[str, Any]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Return title, explanation and rows of each part."""
    return [
        ("Zero-shot transfer across tasks", "Relative transfer: the share of a task's own prompt's gain in dev loss "
         "over the backbone alone that another task's prompt makes. 1 is as good as its own, negative is harm.",
         summary["families"]),
        ("Does a similarity predict it?", "Spearman's rho with relative transfer, mean over seeds; p-values (one a "
         "seed) by permuting tasks, one-sided. Per target ranks the sources of each target apart.",
         summary["correlations"]),
        ("Starting from another task's prompt", "Against the plain start, over tasks and seeds. Steps saved until the "
         "loss at which the plain run had made 99 % of its progress (-inf: never). Sign tests count tasks, leave ties "
         "out, and are not corrected for their number. Losses and scores are of the dev records that chose the step.",
         summary["starts"]),
        ("Carrying prompts to another model", "Zero-shot on held-out tasks of the target: median share of the gain "
         "that the target's own trained prompt makes; how often the carried prompt is better than an untrained start.",
         summary["models"]),
        ("Starting from a carried prompt", "As above, on the target model, held-out tasks only.",
         summary["model_starts"]),
    ]


def _blocks(rows: Sequence[dict[str, Any]]) -> list[Table | Prose]:
    """Return a table of figures, and what they say in words below it: sentences would squeeze the columns."""
    names = [name for name in rows[0] if name != "verdict"]
    cells = [[_cell(row[name]) for name in names] for row in rows]
    said = [f"{', '.join(filter(None, (r.get('pair'), r['start'])))}: {r['verdict']}." for r in rows if "verdict" in r]
    return [Table([name.replace("_", " ") for name in names], cells, digits=3), *map(Prose, said)]


def _cell(value: object) -> Any:
    if isinstance(value, list):
        return ", ".join("-" if v is None or math.isnan(v) else f"{v:.3f}" for v in value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _strict(value: Any) -> Any:
    """Return a value as strict JSON has it: infinite and undefined numbers as words."""
    if isinstance(value, dict):
        return {key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_strict(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _markdown(rows: Sequence[dict[str, Any]]) -> list[str]:
    def text(value: object) -> str:
        value = _cell(value)
        return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    body = [" | ".join(text(value) for value in row.values()) for row in rows]
    return [f"| {line} |" for line in (" | ".join(rows[0]), " | ".join("---" for _ in rows[0]), *body)]
