"""Outputs side by side: the same records, with what the untouched backbone and the best cells make of them."""

import math

from foreword.experiments import report as page
from foreword.experiments.grid.results import Cell, Results, Score, average, cell_name, floor_name, read_predictions

SHOWN_CHARACTERS = 400
SHOWN_CELLS = 4


def example_blocks(results: Results) -> list[page.Block]:
    """Return a table of outputs for each target."""
    if not results.scores or not results.grid.page.examples:
        return []
    return [block for target in results.targets if (block := _target_examples(results, target)) is not None]


def _target_examples(results: Results, target: str) -> page.Examples | None:
    """Return the first records with the outputs of the untouched backbone and of the best cells, one run each."""
    cells = {cell: scores[0] for cell, scores in results.cells(target).items()}
    ranked = _ranked(results, target)
    rows = {cell: read_predictions(cells[cell]) for cell in ranked}
    best = next((cell for cell in ranked if rows[cell]), None)
    if best is None:
        return None
    sources = [row["source"] for row in rows[best]]
    alike = [cell for cell in ranked if [row["source"] for row in rows[cell]] == sources]
    spaced = alike if len(alike) <= SHOWN_CELLS else [*alike[: SHOWN_CELLS - 1], alike[-1]]
    columns = _floor_column(results, cells[best], sources) | {cell_name(cell): rows[cell] for cell in spaced}
    places = range(0, len(sources), max(1, len(sources) // results.grid.page.examples))
    shown = [
        [_short(sources[place]), _short(rows[best][place]["targets"][0]),
         *(_short(outputs[place]["prediction"]) for outputs in columns.values())]
        for place in list(places)[: results.grid.page.examples]
    ]
    caption = f"Records of {target}, evenly spaced, with their first reference: the best cells and the last one."
    if len(alike) < len(ranked):
        caption += f" {len(ranked) - len(alike)} of {len(ranked)} cells were scored on other records and are left out."
    return page.Examples(("source", "reference", *columns), shown, caption=caption)


def _ranked(results: Results, target: str) -> list[Cell]:
    """Return the cells that have a headline score, best first."""
    means = {
        cell: found.value for cell, scores in results.cells(target).items()
        if (found := average(scores, results.metric)) is not None and not math.isnan(found.value)
    }
    return sorted(means, key=lambda cell: means[cell], reverse=not results.lower_is_better)


def _floor_column(results: Results, best: Score, sources: list[str]) -> dict[str, list[dict[str, object]]]:
    """Return the untouched backbone's outputs on these records, by its name: of the best cell's own task first."""
    own = (best.backbone, best.trained_on)
    floors = [floor for floor in results.floors if floor.target == best.target]
    for floor in sorted(floors, key=lambda floor: (floor.backbone, floor.trained_on) != own):
        rows = read_predictions(floor)
        if [row["source"] for row in rows] == sources:
            return {floor_name(floor, results.floors): rows}
    return {}


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS].rstrip() + " …"
