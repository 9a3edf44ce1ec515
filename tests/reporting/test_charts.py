from __future__ import annotations

import itertools
import math
import re

import pytest
from asking import tried
from hypothesis import given
from hypothesis import strategies as st

from okdc import units
from okdc.reporting import charts
from okdc.reporting.charts import BOTTOM, LEFT, RIGHT, TOP, Axis, Point


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
@tried
def test_ticks_lie_on_the_axis_in_order_a_few_of_them(low: float, reach: float) -> None:
    ticks = Axis(low, low + reach, LEFT, RIGHT).ticks
    places = [tick.place for tick in ticks]
    assert 2 <= len(ticks) <= 8
    assert places == sorted(places)
    assert all(LEFT - 0.2 <= place <= RIGHT + 0.2 for place in places)


@pytest.mark.parametrize(("low", "high"), [(900, 90_000_000), (3e5, 8e5), (0.01, 0.9)])
def test_a_logarithmic_axis_has_ticks_and_equal_factors_equal_widths(low: float, high: float) -> None:
    axis = Axis(low, high, LEFT, RIGHT, log=True)
    assert len(axis.ticks) > 1
    middle = math.sqrt(low * high)
    assert axis(middle) == pytest.approx((LEFT + RIGHT) / 2, abs=0.11)


def test_an_axis_maps_its_ends_and_the_middle() -> None:
    axis = Axis(10, 20, BOTTOM, TOP)
    assert [axis(10), axis(15), axis(20)] == [BOTTOM, (BOTTOM + TOP) / 2, TOP]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.05, "0.05"), (781_952, "782k"), (2.5e6, "2.5M"), (1e9, "1G"), (97.5, "97.5"), (5.934e13, "59.34T")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert units.number(value) == text


def test_a_missing_value_is_a_gap_and_one_alone_a_point() -> None:
    chart = charts.lines([1, 2, 3, 4], {"a": [1.0, None, 2.0, 3.0]}, "", ".1f")
    assert chart is not None
    assert [word[0] for word in re.findall(r"[MLh][^MLh]+", chart.lines[0].path)] == ["M", "h", "M", "L"]
    assert chart.legend[0].last == "3.0"
    assert [strip.tip for strip in chart.strips] == ["epoch 1: a 1.0", "epoch 2: ", "epoch 3: a 2.0", "epoch 4: a 3.0"]


def test_strips_cover_the_plot_without_a_gap() -> None:
    chart = charts.lines(list(range(1, 301)), {"a": [float(k) for k in range(300)]}, "", ".1f")
    assert chart is not None
    assert len(chart.strips) <= charts.MOST_COLUMNS + 1
    assert chart.strips[0].x == LEFT
    for before, after in itertools.pairwise(chart.strips):
        assert before.x + before.width == pytest.approx(after.x, abs=0.21)
    assert chart.strips[-1].x + chart.strips[-1].width == pytest.approx(RIGHT, abs=0.11)
    assert chart.strips[-1].tip.startswith("epoch 300:")


def test_nothing_is_drawn_of_nothing() -> None:
    assert charts.lines([], {"a": []}, "", ".1f") is None
    assert charts.lines([1], {"a": [None]}, "", ".1f") is None
    assert charts.dots([], None, None) is None
    assert charts.scatter([], "", "") is None


def test_series_of_one_group_have_one_colour_and_one_entry() -> None:
    series: dict[str, charts.Values] = {"a0": [1.0, 2.0], "a1": [1.0, 4.0], "b0": [3.0, 3.0]}
    chart = charts.lines([1, 2], series, "", ".1f", groups={"a0": "a", "a1": "a"})
    assert chart is not None
    assert [line.colour for line in chart.lines] == [0, 0, 1]
    assert [(entry.name, entry.last) for entry in chart.legend] == [("a", "3.0"), ("b0", "3.0")]


def test_letters_of_equal_points_do_not_cover_each_other_and_the_front_rises() -> None:
    def point(value: float, at: float, front: bool) -> Point:
        return Point("p", value, value - 1, value + 1, 0, "", at, front)

    points = [point(90, 10, True), point(90, 10, False), point(95, 20, True), point(92, 20, False)]
    chart = charts.scatter(points, "", "%")
    assert chart is not None
    for a, b in itertools.combinations(chart.spots, 2):
        assert abs(a.x - b.x) >= charts.LETTER or abs(a.letter_y - b.letter_y) >= charts.LETTER
    first, last = chart.spots[0], chart.spots[2]
    assert chart.front == f"M{first.x} {first.y}H{last.x}V{last.y}"
    assert [charts.letter(k) for k in (0, 25, 26)] == ["A", "Z", "A2"]


def test_a_cell_is_the_darker_the_larger_its_share_of_the_class() -> None:
    found = {(c.row, c.column): c for c in charts.cells([[99, 1], [50, 50]], [1, 0], ["a", "b"])}
    assert set(found) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert found[1, 1].level == charts.LEVELS
    assert found[0, 0].level == found[0, 1].level > found[1, 0].level >= 1
    assert (found[1, 0].right, found[1, 1].right) == (False, True)
    assert "1 of 100" in found[1, 0].tip


def test_a_cloud_has_a_point_an_image_by_class() -> None:
    clouds = dict(charts.cloud([[0, 0], [1, 1], [0.5, 0.5]], [2, 0, 2], 3, 100))
    assert {label: path.count("M") for label, path in clouds.items()} == {0: 1, 2: 2}
    assert len({charts.hue(k, 100) for k in range(100)}) == 24
    assert {charts.hue(k, 10) for k in range(10)} == {f"k{k}" for k in range(10)}
