"""One self-contained HTML page about a run: prose, tables with intervals, curves, outputs side by side, facts.

The page loads nothing: style and plots are inline. All that comes from outside (names, model outputs) is escaped.
The same report gives the same bytes, so a page can be compared and kept under version control.
"""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jinja2
from markupsafe import Markup, escape

from foreword.errors import DataError, nearest
from foreword.experiments.heat_map import HeatMap, heat_map
from foreword.experiments.plots import Curve, Plot, legend, line_plot, smoothed

__all__ = [
    "Curve",
    "Estimate",
    "Examples",
    "Facts",
    "Findings",
    "HeatMap",
    "Highlights",
    "Listing",
    "Plot",
    "Prose",
    "Report",
    "Section",
    "Table",
    "render",
    "smoothed",
    "write_report",
]

# Each plot is drawn for a desk and for a phone, and the style sheet shows one: scaled-down text cannot be read.
WIDE_PLOT = (720, 340)
NARROW_PLOT = (340, 270)
# Above this many sections the page gets a list of contents.
CONTENTS_FROM = 4


@dataclass(frozen=True)
class Estimate:
    """A score with its interval, in the score's own unit; shown as `43.2  41.0–45.1`."""

    value: float
    low: float
    high: float


Cell = str | int | float | bool | Estimate | None


@dataclass(frozen=True)
class Prose:
    """Paragraphs, separated by blank lines; `code` in backticks is set in a fixed-width face."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns.

    Attributes:
        columns: headings.
        rows: one cell per column; a number is right-aligned, None is shown as a dash.
        caption: what the table says, in a sentence.
        best: column to "max" or "min"; the best value of that column is set in bold.
        digits: decimals of floats and estimates: one number, or one per column name (2 where it is not given).
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    best: Mapping[str, Literal["max", "min"]] = field(default_factory=dict)
    digits: int | Mapping[str, int] = 2

    def __post_init__(self) -> None:
        _check_rows(self.columns, self.rows)
        for column in self.best:
            if column not in self.columns:
                raise DataError(f"table has no column {column!r} to find the best in{nearest(column, self.columns)}")


@dataclass(frozen=True)
class Examples:
    """Texts side by side, one column a source or a prompt; on a phone each row becomes a card."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def __post_init__(self) -> None:
        _check_rows(self.columns, self.rows)


@dataclass(frozen=True)
class Facts:
    """Names and values: versions, hardware, seeds, times; the names in `code` are shown as commands."""

    facts: Mapping[str, Any]
    caption: str = ""
    code: Sequence[str] = ("command",)


@dataclass(frozen=True)
class Listing:
    """Text as it is in a file, line for line; a long line scrolls in its own box."""

    text: str
    caption: str = ""


@dataclass(frozen=True)
class Findings:
    """Checks and their outcome: `(status, check, detail)` with status "ok", "warn" or "fail"."""

    items: Sequence[tuple[str, str, str]]
    caption: str = ""

    def __post_init__(self) -> None:
        for status, check, _ in self.items:
            if status not in FINDING_WORDS:
                raise DataError(f"finding {check!r} has status {status!r}{nearest(status, FINDING_WORDS)}")


# Status is always written out: colour alone does not reach everybody.
FINDING_WORDS = {"ok": "passes", "warn": "look here", "fail": "fails"}


@dataclass(frozen=True)
class Highlights:
    """The few numbers to take away: `(value, label)` or `(value, label, note)`; values are shown as given."""

    items: Sequence[Sequence[str]]


Block = Prose | Table | Plot | Examples | Facts | Listing | Findings | HeatMap | Highlights


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """A page: title, one paragraph of summary, and sections (a bare block is a section without a heading)."""

    title: str
    summary: str
    sections: Sequence[Section | Block] = ()
    footer: str = "Written by Foreword. This file holds the whole page; it loads nothing."
    language: str = "en"


def write_report(path: str | Path, report: Report) -> Path:
    """Write the report as one HTML file and return its path; the file appears whole or not at all.

    Args:
        path: the file to write or replace; missing folders are made.
        report: what to show.

    Raises:
        DataError: the path is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(
            f"report path {str(path)!r} is a folder; give a file name such as {str(path / 'report.html')!r}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render(report).encode("utf-8")
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(page)
        # mkstemp makes files private; a report is as readable as any other new file.
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
    return path


def render(report: Report) -> str:
    """Return the report's HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("foreword", "assets/report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_clean,
    )
    sections = [section if isinstance(section, Section) else Section("", [section]) for section in report.sections]
    views = [_section_view(number, section) for number, section in enumerate(sections, start=1)]
    environment.filters["inline"] = _inline
    titled = [view for view in views if view["title"]]
    page = environment.get_template("report.html.j2").render(
        report=report, sections=views, contents=titled if len(titled) >= CONTENTS_FROM else []
    )
    return page


def _clean(value: object) -> object:
    """Return text without what HTML cannot carry: control characters and lone surrogates from odd model outputs."""
    if not isinstance(value, str):
        return value
    cleaned = re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]", "\ufffd", str(value))
    return Markup(cleaned) if isinstance(value, Markup) else cleaned


def _check_rows(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    for number, row in enumerate(rows, start=1):
        if len(row) != len(columns):
            raise DataError(f"row {number} has {len(row)} cells for {len(columns)} columns ({', '.join(columns)})")


def _section_view(number: int, section: Section) -> dict[str, Any]:
    slug = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")
    return {"id": f"{slug or 'part'}-{number}", "title": section.title, "blocks": [_view(b) for b in section.blocks]}


def _view(block: Block) -> dict[str, Any]:
    """Return what the template needs of a block: its kind, its fields and what has to be computed first."""
    view: dict[str, Any] = {"kind": type(block).__name__.lower(), "block": block}
    if isinstance(block, Prose):
        view["paragraphs"] = [_inline(part) for part in re.split(r"\n\s*\n", block.text.strip())]
    elif isinstance(block, Plot):
        view |= {
            "legend": legend(block),
            "wide": line_plot(block, *WIDE_PLOT),
            "narrow": line_plot(block, *NARROW_PLOT),
        }
    elif isinstance(block, HeatMap):
        view |= {"wide": heat_map(block, WIDE_PLOT[0]), "narrow": heat_map(block, NARROW_PLOT[0])}
    elif isinstance(block, Table):
        view |= _table_view(block)
    elif isinstance(block, Facts):
        view["facts"] = [(name, _fact(value), name in block.code) for name, value in block.facts.items()]
    elif isinstance(block, Findings):
        view["words"] = FINDING_WORDS
    elif isinstance(block, Highlights):
        view["figures"] = [(*item, "")[:3] for item in block.items]
    return view


def _inline(text: str) -> Markup:
    """Return escaped text with its backticked parts as `<code>`."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _fact(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value))
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def _table_view(table: Table) -> dict[str, Any]:
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    numeric = [all(_is_number(cell) or cell is None for cell in cells) for cells in columns]
    best = [_best(cells, table.best.get(name)) for name, cells in zip(table.columns, columns, strict=True)]
    digits = [table.digits if isinstance(table.digits, int) else table.digits.get(name, 2) for name in table.columns]
    rows = [
        [
            {"text": _shown(cell, places), "interval": _interval(cell, places), "best": _value(cell) in winners}
            for cell, places, winners in zip(row, digits, best, strict=True)
        ]
        for row in table.rows
    ]
    return {"heads": list(zip(table.columns, numeric, strict=True)), "numeric": numeric, "cells": rows}


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int | float | Estimate) and not isinstance(cell, bool)


def _value(cell: Cell) -> float | None:
    if isinstance(cell, Estimate):
        return cell.value
    return cell if _is_number(cell) else None  # type: ignore[return-value]


def _best(cells: Sequence[Cell], order: str | None) -> set[float]:
    # A NaN is not equal to itself and would poison min and max, so it never wins.
    values = [value for cell in cells if (value := _value(cell)) is not None and value == value]
    if not order or not values:
        return set()
    return {max(values) if order == "max" else min(values)}


def _shown(cell: Cell, digits: int) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    value = _value(cell)
    if value is None:
        return str(cell)
    text = f"{value:,}" if isinstance(cell, int) else f"{value:,.{digits}f}"
    return text.replace("-", "\u2212")


def _interval(cell: Cell, digits: int) -> str:
    if not isinstance(cell, Estimate):
        return ""
    between = " to " if min(cell.low, cell.high) < 0 else "–"  # a dash beside a minus reads as one
    return f"{cell.low:,.{digits}f}{between}{cell.high:,.{digits}f}".replace("-", "\u2212")
