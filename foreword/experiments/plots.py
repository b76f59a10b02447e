"""Line plots as inline SVG, without matplotlib: axes, ticks, bands, gaps, and colours that the page's theme decides.

The SVG holds no colour of its own: series are classes `s0` … `s7`, coloured by the report's style sheet for light and
dark. Text is drawn at its final size, so a plot is rendered once per page width instead of being scaled down.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from foreword.errors import DataError, nearest

Point = tuple[float, float]

COLOURS = 8
# Beyond eight series the colours start again with another dash, so no two of the first 24 look the same.
DASHES = ("", "6 3", "2 3")
# More points than this per series are thinned: a line 700 pixels wide cannot show them.
MAX_POINTS = 400
MARKED_POINTS = 40
_DIGIT_WIDTH = 7


@dataclass(frozen=True)
class Plot:
    """Curves over one x axis.

    Attributes:
        series: name to points `(x, y)`; a point that is not finite breaks the line.
        x_label, y_label: axis names with their unit.
        caption: what the reader should see, in a sentence.
        log_x, log_y: logarithmic axes; points at or below zero are left out there.
        bands: name to `(x, low, high)`, shaded in that series' colour (confidence intervals).
        faint: series drawn thin and pale, e.g. the raw loss behind its running mean.
    """

    series: dict[str, list[Point]]
    x_label: str
    y_label: str
    caption: str = ""
    log_x: bool = False
    log_y: bool = False
    bands: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)
    faint: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (*self.bands, *self.faint):
            if name not in self.series:
                raise DataError(f"plot {self.y_label!r} has no series {name!r}{nearest(name, self.series)}")


Curve = Plot


def smoothed(points: Sequence[Point], window: int = 20) -> list[Point]:
    """Return the running mean of `points` over the last `window` of them, NaN left out; x is kept."""
    means = []
    for place, (x, _) in enumerate(points):
        recent = [y for _, y in points[max(0, place + 1 - window) : place + 1] if math.isfinite(y)]
        means.append((x, sum(recent) / len(recent) if recent else math.nan))
    return means


def thinned(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """Return at most about `limit` points that keep every peak: the lowest and highest of each stretch, in x order."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(2 * len(points) / limit)
    kept = [points[0]]
    for start in range(1, len(points) - 1, size):
        stretch = points[start : min(start + size, len(points) - 1)]
        kept += sorted({min(stretch, key=_height), max(stretch, key=_height)})
    return [*kept, points[-1]]


def _height(point: Point) -> float:
    return point[1]


@dataclass(frozen=True)
class Scale:
    """A map from data to pixels, linear or logarithmic (base 10)."""

    low: float
    high: float
    first_pixel: float
    last_pixel: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`."""
        low, high, here = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.first_pixel + (self.last_pixel - self.first_pixel) * (here - low) / (high - low)

    def ticks(self, count: int) -> list[float]:
        """Return round values inside the range, about `count` of them."""
        return log_ticks(self.low, self.high, count) if self.log else linear_ticks(self.low, self.high, count)


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten in `[low, high]`, about `count` of them."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    # Rounding removes 0.30000000000000004; ten digits below the step is far under a pixel.
    digits = 10 - math.floor(math.log10(step))
    return [round(n * step, digits) + 0.0 for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """Return powers of ten in `[low, high]`, with 2 and 5 between them while there are fewer than `count`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        inside = [tick for tick in found if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(inside) >= max(2, count - 1):
            return inside[:: math.ceil(len(inside) / (count + 2))]
    return inside if len(inside) >= 2 else [low, high]


def tick_label(value: float) -> str:
    """Return a short label: thousands with a comma, very small and very large numbers in powers of ten."""
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e7):
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e").replace("-", "\u2212")
    text = f"{value:,.0f}" if size >= 1000 else f"{value:.6g}"
    return text.replace("-", "\u2212")


def line_plot(plot: Plot, width: int = 720, height: int = 340) -> Markup:
    """Return the plot as an `<svg>` of `width` by `height` pixels; the legend is the page's (see `legend`)."""
    box = _Frame.of(plot, width, height)
    if box is None:
        return Markup('<p class="empty">No finite value to draw.</p>')
    names = list(plot.series)
    # Faint lines lie under the others, whatever their place in the legend.
    order = sorted(names, key=lambda name: name not in plot.faint)
    parts = [
        _grid(box, plot),
        *(_band(box, names.index(name), points) for name, points in plot.bands.items()),
        *(_line(box, names.index(name), name, plot) for name in order),
    ]
    label = escape(f"{plot.y_label} over {plot.x_label}: {', '.join(names)}")
    return Markup(
        f'<svg class="plot" role="img" aria-label="{label}" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">{"".join(parts)}</svg>'
    )


def legend(plot: Plot) -> list[tuple[str, Markup]]:
    """Return `(name, swatch svg)` for every series."""
    return [(name, _swatch(number, name in plot.faint)) for number, name in enumerate(plot.series)]


@dataclass(frozen=True)
class _Frame:
    """Where things go: the two scales inside their margins, and the size of the whole."""

    x: Scale
    y: Scale
    width: int
    height: int

    @classmethod
    def of(cls, plot: Plot, width: int, height: int) -> "_Frame | None":
        points = [p for name in plot.series for p in _drawable(plot, plot.series[name])]
        points += [(x, y) for band in plot.bands.values() for x, *ys in band for y in ys if _fits(plot, x, y)]
        if not points:
            return None
        x_range = _padded([x for x, _ in points], plot.log_x, 0.0)
        y_range = _padded([y for _, y in points], plot.log_y, 0.06)
        labels = [tick_label(tick) for tick in Scale(*y_range, 0, 1, plot.log_y).ticks(6)]
        left = 14 + _DIGIT_WIDTH * max(map(len, labels), default=1)
        # The last label is centred on the end of the axis and needs half its width beyond it.
        right = width - max(12, _DIGIT_WIDTH * len(tick_label(round(x_range[1]))) // 2 + 2)
        x_scale = Scale(*x_range, left, right, plot.log_x)
        return cls(x_scale, Scale(*y_range, height - 46, 28, plot.log_y), width, height)


def _fits(plot: Plot, x: float, y: float) -> bool:
    finite = math.isfinite(x) and math.isfinite(y)
    return finite and (x > 0 or not plot.log_x) and (y > 0 or not plot.log_y)


def _drawable(plot: Plot, points: Iterable[Point]) -> list[Point]:
    return [(x, y) for x, y in points if _fits(plot, x, y)]


def _padded(values: list[float], log: bool, share: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        factor = (high / low) ** share if high > low else 2.0
        return low / factor, high * factor
    # A single value, or a flat line, still needs a range to stand in.
    room = (high - low) * share if high > low else abs(low) * 0.1 or 1.0
    return low - room, high + room


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _grid(box: _Frame, plot: Plot) -> str:
    left, right, bottom, top = box.x.first_pixel, box.x.last_pixel, box.y.first_pixel, box.y.last_pixel
    parts = []
    for tick in box.y.ticks(6):
        parts.append(_rule(left, box.y(tick), right, box.y(tick), "grid"))
        parts.append(_text(left - 8, box.y(tick) + 4, tick_label(tick), "end"))
    for tick in box.x.ticks(max(3, box.width // 110)):
        parts.append(_rule(box.x(tick), bottom, box.x(tick), bottom + 4, "axis"))
        parts.append(_text(box.x(tick), bottom + 18, tick_label(tick), "middle"))
    parts.append(_rule(left, bottom, right, bottom, "axis"))
    # Axis names stand where they are read first: y above its axis, not turned on its side.
    parts.append(_text(0, top - 14, plot.y_label, "start", "label"))
    parts.append(_text((left + right) / 2, box.height - 6, plot.x_label, "middle", "label"))
    return "".join(parts)


def _band(box: _Frame, number: int, points: list[tuple[float, float, float]]) -> str:
    finite = [p for p in points if all(map(math.isfinite, p)) and (p[0] > 0 or not box.x.log)]
    floor = box.y.low
    edge = [(x, high) for x, _, high in finite] + [(x, max(low, floor)) for x, low, _ in reversed(finite)]
    return f'<polygon class="band s{number % COLOURS}" points="{_pixels(box, edge)}"/>' if finite else ""


def _line(box: _Frame, number: int, name: str, plot: Plot) -> str:
    points = plot.series[name]
    kind = f"s{number % COLOURS}" + (" faint" if name in plot.faint else "")
    dash = _dash(number)
    runs = "".join(
        f'<polyline class="{kind}" points="{_pixels(box, thinned(run))}"{dash}/>' for run in _runs(plot, points)
    )
    return runs + (_marks(box, kind, name, _drawable(plot, points)) if len(points) <= MARKED_POINTS else "")


def _runs(plot: Plot, points: Sequence[Point]) -> list[list[Point]]:
    """Return the stretches of drawable points between gaps."""
    runs: list[list[Point]] = [[]]
    for x, y in points:
        if _fits(plot, x, y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _marks(box: _Frame, kind: str, name: str, points: list[Point]) -> str:
    """Return a dot for each point; its title shows the numbers when a pointer rests on it."""
    return "".join(
        f'<circle class="{kind}" cx="{box.x(x):.1f}" cy="{box.y(y):.1f}" r="3">'
        f"<title>{escape(f'{name}: {tick_label(x)}, {y:.4g}')}</title></circle>"
        for x, y in points
    )


def _pixels(box: _Frame, points: Iterable[Point]) -> str:
    return " ".join(f"{box.x(x):.1f},{box.y(y):.1f}" for x, y in points)


def _dash(number: int) -> str:
    dash = DASHES[number // COLOURS % len(DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _swatch(number: int, faint: bool) -> Markup:
    kind = f"s{number % COLOURS}" + (" faint" if faint else "")
    line = f'<polyline class="{kind}" points="1,6 23,6"{_dash(number)}/>'
    return Markup(f'<svg class="swatch" viewBox="0 0 24 12" width="24" height="12" aria-hidden="true">{line}</svg>')
