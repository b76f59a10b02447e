"""A heat map as inline SVG: rows by columns of numbers, darker for larger; colours are the page's.

Cells are filled with one colour of the page's theme at an opacity that follows the value, so the same drawing serves
light and dark paper. Each cell tells its number in a tooltip; the scale stands below.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from foreword.data.files import write_atomic
from foreword.errors import DataError
from foreword.experiments.svg import style

LEFT, TOP, RIGHT = 34, 22, 12
SCALE_HEIGHT = 62
LABEL_WIDTH = 22
TALLEST, SHORTEST = 26, 13


@dataclass(frozen=True)
class HeatMap:
    """Numbers from zero in a grid.

    Attributes:
        values: [rows][columns], none below zero; NaN is left blank.
        rows: a short label for each row.
        columns: a short label for each column.
        x_label, y_label: axis names.
        unit: what a cell's number is.
        caption: what the reader should see, in a sentence.
        top: value of the darkest colour; None takes the largest.
    """

    values: Sequence[Sequence[float]]
    rows: Sequence[str]
    columns: Sequence[str]
    x_label: str
    y_label: str
    unit: str
    caption: str = ""
    top: float | None = None

    def __post_init__(self) -> None:
        if len(self.values) != len(self.rows) or any(len(row) != len(self.columns) for row in self.values):
            shape = [len(row) for row in self.values]
            labels = f"{len(self.rows)} by {len(self.columns)} labels"
            raise DataError(f"heat map of rows {shape} has {labels}; give one each")
        if not self.rows or not self.columns:
            raise DataError("heat map has no cell; give at least one row and one column")
        if any(value < 0 for row in self.values for value in row):
            raise DataError("heat map has a value below zero, which its one colour cannot show")

    @property
    def darkest(self) -> float:
        """The value of full colour."""
        largest = max((v for row in self.values for v in row if math.isfinite(v)), default=0.0)
        return self.top or largest or 1.0


def heat_map(drawn: HeatMap, width: int = 720) -> Markup:
    """Return the map as an `<svg>` of `width` pixels; its height follows from the rows."""
    across = (width - LEFT - RIGHT) / len(drawn.columns)
    down = min(TALLEST, max(SHORTEST, across))
    bottom = TOP + down * len(drawn.rows)
    height = round(bottom + SCALE_HEIGHT)
    places = itertools.product(range(len(drawn.rows)), range(len(drawn.columns)))
    parts = [
        *(_cell(drawn, row, column, across, down) for row, column in places),
        *_row_labels(drawn, down),
        *_column_labels(drawn, across, bottom),
        _text(0, 12, drawn.y_label, "start", "label"),
        _text((LEFT + width - RIGHT) / 2, bottom + 30, drawn.x_label, "middle", "label"),
        *_scale(drawn, bottom + 50),
    ]
    label = escape(f"{drawn.unit}, {drawn.y_label} by {drawn.x_label}")
    return Markup(
        f'<svg class="plot" role="img" aria-label="{label}" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">{"".join(parts)}</svg>'
    )


def write_heat_map(path: str | Path, drawn: HeatMap, width: int = 720) -> Path:
    """Write the map as an SVG file of its own, in the page's light colours, and return its path."""
    inner = str(heat_map(drawn, width))
    paper = f"<style>{style()}</style>" + '<rect width="100%" height="100%" fill="#ffffff"/>'
    head, body = inner.split(">", 1)
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    write_atomic(Path(path), f"{head}>{paper}{body}\n")
    return Path(path)


def _cell(drawn: HeatMap, row: int, column: int, across: float, down: float) -> str:
    value = drawn.values[row][column]
    if not math.isfinite(value):
        return ""
    x, y = LEFT + column * across, TOP + row * down
    told = escape(f"{drawn.y_label} {drawn.rows[row]}, {drawn.x_label} {drawn.columns[column]}: {value:.4g}")
    return (
        f'<rect class="heat" x="{x:.1f}" y="{y:.1f}" width="{across - 1:.1f}" height="{down - 1:.1f}" '
        f'fill-opacity="{_opacity(value / drawn.darkest):.3f}"><title>{told}</title></rect>'
    )


def _opacity(share: float) -> float:
    """Return a cell's opacity: a trace at zero, so that the grid can be seen, all of it from the darkest value on."""
    return 0.04 + 0.96 * min(max(share, 0.0), 1.0)


def _row_labels(drawn: HeatMap, down: float) -> list[str]:
    every = max(1, math.ceil(13 / down))
    return [
        _text(LEFT - 6, TOP + (i + 0.5) * down + 4, name, "end") for i, name in enumerate(drawn.rows) if i % every == 0
    ]


def _column_labels(drawn: HeatMap, across: float, bottom: float) -> list[str]:
    every = max(1, math.ceil(LABEL_WIDTH / across))
    return [
        _text(LEFT + (i + 0.5) * across, bottom + 13, name, "middle")
        for i, name in enumerate(drawn.columns)
        if i % every == 0
    ]


def _scale(drawn: HeatMap, y: float) -> list[str]:
    """Return a row of five swatches from zero to the darkest value."""
    swatches = [
        f'<rect class="heat" x="{LEFT + 16 * i}" y="{y - 9:.1f}" width="15" height="10" '
        f'fill-opacity="{_opacity(i / 4):.3f}"/>' for i in range(5)
    ]
    return [*swatches, _text(LEFT + 88, y, f"0 to {drawn.darkest:.3g}, {drawn.unit}", "start")]


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
