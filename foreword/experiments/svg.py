"""A plot as an SVG file of its own, with the page's light colours in it."""

import re
from importlib import resources
from pathlib import Path

from markupsafe import escape

from foreword.data.files import write_atomic
from foreword.experiments.plots import Plot, legend, line_plot

WIDTH, HEIGHT, LINE = 720, 340, 20


def write_svg(path: str | Path, plot: Plot) -> Path:
    """Write a plot with its legend as an SVG file that any program shows, and return its path."""
    path = Path(path)
    write_atomic(path, standalone(plot))
    return path


def standalone(plot: Plot) -> str:
    """Return a plot with its legend as one SVG document; its style is the report's, for light paper."""
    entries = legend(plot)
    height = HEIGHT + LINE * len(entries) + 8
    inner = str(line_plot(plot, WIDTH, HEIGHT)).replace("<svg ", '<svg y="0" ', 1)
    parts = []
    for number, (name, swatch) in enumerate(entries):
        y = HEIGHT + LINE * number + 14
        placed = str(swatch).replace("<svg ", f'<svg x="8" y="{y - 10}" ', 1)
        parts.append(f'{placed}<text class="label" x="40" y="{y}">{escape(name)}</text>')
    paper = f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
        f"<style>{style()}</style>{paper}{inner}{''.join(parts)}</svg>\n"
    )


def style() -> str:
    """Return the rules of the report's style sheet that a plot needs, its variables replaced by their light values."""
    sheet = resources.files("foreword").joinpath("assets/report/report.css").read_text(encoding="utf-8")
    values = dict(re.findall(r"(--[\w-]+):\s*([^;]+);", sheet[: sheet.index("@media")]))
    wanted = r"^(?:svg |polyline|circle|\.band|\.s\d).*$"
    rules = "\n".join(re.findall(wanted, sheet, flags=re.M))
    rules = re.sub(r"var\((--(?!c\))[\w-]+)\)", lambda m: values[m[1]], rules)
    return str(escape(rules)).replace("&#34;", '"').replace("&gt;", ">")
