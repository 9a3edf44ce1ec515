"""Geometry of the page's figures: from numbers to places in an SVG. The templates draw them.

Places are in units of a figure's view box, x from the left and y from above, as text with one decimal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from okdc.units import number

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 386, 22, 214  # of the plot within the figure
COLOURS = 10  # of style.css: k0 to k9
DASH = 8  # length of a line of one value
MOST_COLUMNS = 120  # strips that answer to the pointer

Values = Sequence[float | None]


class Tick(NamedTuple):
    place: float
    text: str


@dataclass(frozen=True)
class Axis:
    """From values to places along one direction."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False  # ticks are integers

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[Tick]:
        values = _decades(self.low, self.high) if self.log else _steps(self.low, self.high, self.whole)
        return [Tick(self(value), number(value)) for value in values]


def _steps(low: float, high: float, whole: bool, count: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, about `count` of them."""
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    if whole:
        step = max(1, round(step))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(step * k, 12) for k in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten; where there are fewer than two, 1, 2 and 5 times them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1,), (1, 2, 5), range(1, 10)):
        values = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
        inside = [value for value in values if low <= value <= high]
        if len(inside) > 1:
            return inside[:: max(1, len(inside) // 5)]
    return [low, high]


def around(values: Iterable[float], floor: float | None = None, ceiling: float | None = None) -> tuple[float, float]:
    """Ends that leave some room on both sides of the values, within floor and ceiling."""
    listed = list(values)
    low, high = min(listed), max(listed)
    reach = (high - low) or max(abs(high) * 0.05, 1e-3)
    low, high = low - 0.06 * reach, high + 0.06 * reach
    return (low if floor is None else max(floor, low)), (high if ceiling is None else min(ceiling, high))


@dataclass(frozen=True)
class Line:
    name: str
    colour: int
    path: str
    last: float | None  # its last value


class Entry(NamedTuple):
    """Of the legend."""

    name: str
    colour: int
    last: str  # the last value, as the figure writes values; empty where there is none


@dataclass(frozen=True)
class Strip:
    """A part of the plot that shows its values while the pointer is over it."""

    x: float
    width: float
    middle: float
    tip: str


@dataclass(frozen=True)
class LineChart:
    x: Axis
    y: Axis
    unit: str
    lines: list[Line]
    strips: list[Strip]
    legend: list[Entry]
    marks: list[Tick] = field(default_factory=list)  # vertical lines with a name
    shade: str = ""  # the path of an area from 0 to 1 behind the lines


def lines(
    xs: Sequence[int],
    series: Mapping[str, Values],
    unit: str,
    form: str,
    last_x: int | None = None,
    groups: Mapping[str, str] | None = None,
    marks: Mapping[str, float] | None = None,
    shade: Sequence[float] | None = None,
    ceiling: float | None = None,
    colours: Mapping[str, int] | None = None,
) -> LineChart | None:
    """One line a series over `xs`, which ends at `last_x`; None where there is no value.

    `form` is how a value is written, such as ".2f".

    Series of one of the `groups` have one colour, and one entry of the legend with the mean of their last values.
    `colours` of groups, where other figures have the same groups; else in their order.
    """
    known = [value for values in series.values() for value in values if value is not None]
    if not known or not xs:
        return None
    last = max(last_x or 0, xs[-1], xs[0] + 1)
    x = Axis(xs[0] if len(xs) > 1 else max(0, xs[0] - 1), last, LEFT, RIGHT, whole=True)
    y = Axis(*around(known, 0.0 if min(known) >= 0 else None, ceiling), BOTTOM, TOP)
    group_of = {name: (groups or {}).get(name, name) for name in series}
    named = dict.fromkeys(group_of.values())
    colours = {group: colours[group] for group in named} if colours else in_order(named)
    drawn = [
        Line(name, colours[group_of[name]], _path(xs, values, x, y), _last(values)) for name, values in series.items()
    ]
    return LineChart(
        x=x,
        y=y,
        unit=unit,
        lines=drawn,
        strips=_strips(xs, series, x, form),
        legend=[_entry(group, colour, drawn, group_of, form) for group, colour in colours.items()],
        marks=[Tick(x(at), name) for name, at in (marks or {}).items()],
        shade=_area(xs, shade, x) if shade else "",
    )


def in_order(names: Iterable[str]) -> dict[str, int]:
    """A colour a name; of many names some have the same."""
    return {name: k % COLOURS for k, name in enumerate(names)}


def _entry(group: str, colour: int, drawn: Sequence[Line], group_of: Mapping[str, str], form: str) -> Entry:
    ends = [line.last for line in drawn if group_of[line.name] == group and line.last is not None]
    return Entry(group, colour, format(sum(ends) / len(ends), form) if ends else "")


def _last(values: Values) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)


def _path(xs: Sequence[int], values: Values, x: Axis, y: Axis) -> str:
    """A gap where a value is missing. A value without neighbours is a short dash."""
    words: list[str] = []
    for k, (at, value) in enumerate(zip(xs, values, strict=True)):
        if value is None:
            continue
        before, after = (0 <= i < len(values) and values[i] is not None for i in (k - 1, k + 1))
        start = f"M{x(at)} {y(value)}" if after else f"M{round(x(at) - DASH / 2, 1)} {y(value)}h{DASH}"
        words.append(f"L{x(at)} {y(value)}" if before else start)
    return "".join(words)


def _area(xs: Sequence[int], shares: Sequence[float], x: Axis) -> str:
    height = BOTTOM - TOP
    points = [f"L{x(at)} {round(BOTTOM - share * height, 1)}" for at, share in zip(xs, shares, strict=True)]
    return f"M{x(xs[0])} {BOTTOM}{''.join(points)}L{x(xs[-1])} {BOTTOM}z"


def _strips(xs: Sequence[int], series: Mapping[str, Values], x: Axis, form: str) -> list[Strip]:
    step = -(-len(xs) // MOST_COLUMNS)
    chosen = [i for i in range(len(xs)) if i % step == 0 or i == len(xs) - 1]
    places = [x(xs[i]) for i in chosen]
    edges = [LEFT, *((a + b) / 2 for a, b in pairwise(places)), RIGHT]
    strips = []
    for k, i in enumerate(chosen):
        words = [f"{name} {values[i]:{form}}" for name, values in series.items() if values[i] is not None]
        left, right = edges[k], edges[k + 1]
        strips.append(Strip(round(left, 1), round(right - left, 1), places[k], f"epoch {xs[i]}: {', '.join(words)}"))
    return strips


class Point(NamedTuple):
    """A value with its interval."""

    name: str
    value: float
    low: float
    high: float
    colour: int
    tip: str
    at: float = 0.0  # the other coordinate, of a scatter
    front: bool = False


class Placed(NamedTuple):
    point: Point
    x: float
    low: float
    high: float
    y: float


@dataclass(frozen=True)
class Dots:
    """Rows of points with whiskers, one below the other."""

    x: Axis
    rows: list[Placed]
    height: int
    zero: float | None = None  # the place of no difference


ROW = 26
NAMES = 132  # width of the names


def dots(points: Sequence[Point], floor: float | None, ceiling: float | None, zero: bool = False) -> Dots | None:
    """One row a point; with `zero` the axis holds 0, and a line stands there."""
    if not points:
        return None
    ends = [end for point in points for end in (point.low, point.high)] + ([0.0] if zero else [])
    x = Axis(*around(ends, floor, ceiling), NAMES, RIGHT)
    rows = [Placed(p, x(p.value), x(p.low), x(p.high), TOP + ROW * (k + 0.5)) for k, p in enumerate(points)]
    return Dots(x, rows, TOP + ROW * len(points) + 34, x(0.0) if zero else None)


class Spot(NamedTuple):
    point: Point
    x: float
    y: float
    low: float  # y of the interval's ends
    high: float
    letter: str
    letter_y: float


@dataclass(frozen=True)
class Scatter:
    x: Axis
    y: Axis
    x_unit: str
    y_unit: str
    spots: list[Spot]
    front: str  # the path through the Pareto front


LETTER = 13  # height of a letter


def scatter(points: Sequence[Point], x_unit: str, y_unit: str) -> Scatter | None:
    """Values over `at`, each with a letter. The front's path goes to the right and up, in steps."""
    if not points:
        return None
    ats = [p.at for p in points]
    log = min(ats) > 0 and max(ats) / min(ats) > 20
    if log:
        x = Axis(min(ats) / 1.3, max(ats) * 1.3, LEFT, RIGHT, log=True)
    else:
        x = Axis(*around([*ats, 0.0]), LEFT, RIGHT)
        x = Axis(max(0.0, x.low), x.high, LEFT, RIGHT)
    y = Axis(*around([end for p in points for end in (p.low, p.high)], 0.0, 100.0), BOTTOM, TOP)
    spots, taken = [], list[tuple[float, float]]()
    for k, p in enumerate(points):
        place_x, place_y = x(p.at), y(p.value)
        letter_y = place_y + 4
        while any(abs(place_x - other_x) < LETTER and abs(letter_y - other_y) < LETTER for other_x, other_y in taken):
            letter_y += LETTER
        taken.append((place_x, letter_y))
        spots.append(Spot(p, place_x, place_y, y(p.low), y(p.high), letter(k), round(letter_y, 1)))
    front = sorted((s for s in spots if s.point.front), key=lambda s: (s.x, -s.point.value))
    path = "".join(f"M{s.x} {s.y}" if k == 0 else f"H{s.x}V{s.y}" for k, s in enumerate(front))
    return Scatter(x, y, x_unit, y_unit, spots, path)


def letter(k: int) -> str:
    """A to Z, then A2 and so on."""
    return chr(65 + k % 26) + (str(k // 26 + 1) if k >= 26 else "")


class Cell(NamedTuple):
    row: int
    column: int
    level: int  # of its colour, 1 to LEVELS
    images: int
    tip: str
    right: bool


LEVELS = 8


def cells(counts: Sequence[Sequence[int]], order: Sequence[int], classes: Sequence[str]) -> list[Cell]:
    """The cells of a matrix that are not empty. A colour follows from the share of the row: its square root, so that
    few mistakes can be seen."""
    found = []
    for i, label in enumerate(order):
        whole = sum(counts[label])
        for j, answer in enumerate(order):
            if count := counts[label][answer]:
                share = count / whole
                found.append(
                    Cell(
                        i,
                        j,
                        max(1, math.ceil(LEVELS * math.sqrt(share) - 1e-9)),
                        count,
                        f"{classes[label]} taken for {classes[answer]}: {count:,} of {whole:,} ({100 * share:.1f} %)"
                        if i != j
                        else f"{classes[label]}: {count:,} of {whole:,} right ({100 * share:.1f} %)",
                        i == j,
                    )
                )
    return found


def cloud(points: Sequence[Sequence[float]], labels: Sequence[int], classes: int, side: int) -> list[tuple[int, str]]:
    """Of each class that occurs, the path of its points in a square of `side`: each a line of no length with a round
    cap, the shortest way to write thousands."""
    pad = 6
    paths: dict[int, list[str]] = {}
    for (x, y), label in zip(points, labels, strict=True):
        paths.setdefault(label, []).append(f"M{pad + x * (side - 2 * pad):.1f} {pad + y * (side - 2 * pad):.1f}h0")
    return [(label, "".join(paths[label])) for label in range(classes) if label in paths]


def hue(k: int, count: int) -> str:
    """The colour class of a label: one of COLOURS for few classes, else one of 24 hues around the circle."""
    return f"k{k}" if count <= COLOURS else f"h{round(24 * k / count) % 24}"
