"""The SVG line plots: round ticks, true positions, gaps, thinning that keeps peaks, well-formed output."""

import math
import random
from xml.etree import ElementTree

import pytest

from foreword.experiments.plots import (
    MAX_POINTS,
    Plot,
    Scale,
    legend,
    line_plot,
    linear_ticks,
    log_ticks,
    smoothed,
    thinned,
    tick_label,
)


def drawn(plot, **size):
    return ElementTree.fromstring(line_plot(plot, **size))


def kinds(svg, tag, name=""):
    return [node for node in svg.iter(tag) if name in node.get("class", "")]


def pixels(node):
    return [tuple(map(float, pair.split(","))) for pair in node.get("points").split()]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.13, 0.52, [0.2, 0.3, 0.4, 0.5]),
        (-3, 3, [-2, 0, 2]),
        (1e-5, 3e-5, [1e-5, 1.5e-5, 2e-5, 2.5e-5, 3e-5]),
        (0, 4321, [0, 1000, 2000, 3000, 4000]),
    ],
)
def test_linear_ticks_are_round(low, high, expected):
    assert linear_ticks(low, high, 5) == expected


def test_ticks_of_random_ranges_stay_inside_and_few():
    rng = random.Random(0)
    for _ in range(500):
        low = rng.uniform(-1, 1) * 10 ** rng.randint(-6, 6)
        high = low + 10 ** rng.uniform(-4, 6)
        ticks = linear_ticks(low, high, 5)
        assert 1 <= len(ticks) <= 8 and all(low - 1e-6 * (high - low) <= t <= high + 1e-6 * (high - low) for t in ticks)


def test_log_ticks():
    assert log_ticks(1, 100, 6) == [1, 2, 5, 10, 20, 50, 100]
    assert log_ticks(1, 1e6, 6) == [1, 10, 100, 1000, 1e4, 1e5, 1e6]
    assert log_ticks(3, 4, 5) == [3, 4]


@pytest.mark.parametrize(
    ("value", "label"),
    [(0.0, "0"), (0.3, "0.3"), (-2.5, "−2.5"), (12000, "12,000"), (1e-5, "1e−5"), (3e8, "3e8"), (100.0, "100")],
)
def test_tick_labels(value, label):
    assert tick_label(value) == label


def test_scales_map_ends_to_ends():
    scale = Scale(1, 100, 50, 250, log=True)
    assert (scale(1), scale(10), scale(100)) == (50, pytest.approx(150), 250)
    assert Scale(0, 4, 300, 20)(1) == 230


def test_points_stand_where_they_should():
    svg = drawn(Plot({"a": [(0, 0), (5, 1), (10, 0)]}, "x", "y"), width=600, height=300)
    (line,) = kinds(svg, "polyline", "s0")
    left, middle, right = pixels(line)
    assert left[0] < middle[0] < right[0] and middle[0] == pytest.approx((left[0] + right[0]) / 2)
    assert middle[1] < left[1] == right[1]
    assert len(kinds(svg, "circle")) == 3 and svg.get("viewBox") == "0 0 600 300"


@pytest.mark.parametrize("width", [720, 340])
def test_everything_stays_inside_the_picture(width):
    plot = Plot({"a": [(x, 10.0**x) for x in range(1, 7)]}, "tokens", "loss", bands={"a": [(1, -9, 9e6), (6, 1, 2)]})
    svg = drawn(plot, width=width, height=300)
    for node in (*svg.iter("polyline"), *svg.iter("polygon")):
        assert all(0 <= x <= width and 0 <= y <= 300 for x, y in pixels(node))
    for text in svg.iter("text"):
        size = 7 * len(text.text)
        start = float(text.get("x")) - {"start": 0, "middle": size / 2, "end": size}[text.get("text-anchor")]
        assert start >= -1 and start + size <= width + 4, text.text


def test_a_missing_value_breaks_the_line_and_moves_nothing():
    points = [(0, 1), (1, 2), (2, math.nan), (3, 2), (4, math.inf), (5, 1)]
    lines = kinds(drawn(Plot({"a": points}, "x", "y")), "polyline")
    assert [len(pixels(line)) for line in lines] == [2, 1, 1]


def test_log_axes_leave_out_what_they_cannot_show():
    plot = Plot({"a": [(0, 1), (1, -1), (10, 1), (100, 2)]}, "x", "y", log_x=True, log_y=True)
    (line,) = kinds(drawn(plot), "polyline")
    assert len(pixels(line)) == 2


@pytest.mark.parametrize("points", [[(1, 1)], [(1, 0), (2, 0)], [(1, 5), (1, 5)], [(0, 0)]])
def test_flat_and_single_points_are_drawn(points):
    assert kinds(drawn(Plot({"a": points}, "x", "y")), "circle")


def test_nothing_to_draw_says_so():
    assert "No finite value" in line_plot(Plot({"a": [(1, math.nan)]}, "x", "y"))


def test_thinning_keeps_ends_peaks_and_order():
    rng = random.Random(0)
    points = [(x, rng.gauss(0, 1)) for x in range(50_000)]
    points[31_234] = (31_234, 99.0)
    points[77] = (77, -99.0)
    kept = thinned(points)
    assert len(kept) <= MAX_POINTS + 4 and kept == sorted(kept)
    assert {points[0], points[-1], points[31_234], points[77]} <= set(kept) <= set(points)
    assert thinned(points[:MAX_POINTS]) == points[:MAX_POINTS]


def test_smoothing_is_the_mean_of_the_last_points():
    assert smoothed([(1, 2), (2, 4), (3, 6), (4, math.nan), (5, 8)], window=2) == [
        (1, 2),
        (2, 3),
        (3, 5),
        (4, 6),
        (5, 8),
    ]


def test_many_series_stay_distinct_and_faint_ones_lie_below():
    plot = Plot({f"run {n}": [(0, n), (1, n)] for n in range(20)}, "x", "y", faint=("run 3",))
    lines = kinds(drawn(plot), "polyline")
    assert len({(line.get("class"), line.get("stroke-dasharray")) for line in lines}) == 20
    assert "faint" in lines[0].get("class")
    assert [name for name, _ in legend(plot)] == list(plot.series)


def test_names_are_escaped():
    svg = drawn(Plot({'<a> & "b"': [(0, 1), (1, 2)]}, "<x>", "y & z"))
    assert "<x>" in [text.text for text in svg.iter("text")]
    assert svg.find(".//circle/title").text.startswith('<a> & "b": 0, 1')
