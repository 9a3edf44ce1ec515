"""Pairs in turn on clocks of the test's own: what is counted, in which order, and for how long."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from okdc.bench.pairs import COUPLE, MOST, STRETCH_S, Side, Taken, Watch, measure
from okdc.bench.stats import FEWEST


@dataclass
class World:
    """A clock that only moves when something runs, and what ran in which order."""

    now: float = 0.0
    ran: list[str] = field(default_factory=list)
    slower: Callable[[float], float] = lambda now: 1.0  # noqa: ARG005

    def side(self, name: str, seconds: float, images: int = 1, units: int | None = None, first: float = 0.0) -> Side:
        """Something that takes so long, and `first` more the first time."""

        def run() -> None:
            extra = 0 if name in self.ran else first
            self.now += (seconds + extra) * self.slower(self.now)
            self.ran.append(name)

        return Side(name, run, images, units, prepare=lambda: self.ran.append(f"prepare {name}"))

    def measure(self, first: Side, second: Side, seconds: float, free: bool = False) -> Taken:
        return measure(first, second, seconds, Watch(lambda: self.now), free=free)

    @property
    def order(self) -> list[str]:
        """Who prepared a stretch, in turn."""
        return [what.removeprefix("prepare ") for what in self.ran if what.startswith("prepare ")]


def test_seconds_are_per_image_of_each_side() -> None:
    world = World()
    taken = world.measure(world.side("a", 0.5, images=10), world.side("b", 1.0, images=4), 60)
    assert taken.pairs
    for a, b in taken.pairs:
        assert (a, b) == pytest.approx((0.05, 0.25))


def test_who_goes_first_changes_from_pair_to_pair() -> None:
    world = World()
    taken = world.measure(world.side("a", 1.0), world.side("b", 1.0), 30)
    counted = world.order[-2 * len(taken.pairs) :]
    assert len(taken.pairs) >= FEWEST
    assert counted == ["a", "b", "b", "a"] * (len(taken.pairs) // 2) + ["a", "b"] * (len(taken.pairs) % 2)


def test_a_drift_cancels() -> None:
    """Everything gets slower by half in the time: the ratio stays, which it would not if a always went first."""
    world = World(slower=lambda now: 1 + now / 60)
    taken = world.measure(world.side("a", 1.0), world.side("b", 1.0), 60)
    ratios = [b / a for a, b in taken.pairs]
    assert statistics.median(ratios) == pytest.approx(1, abs=0.005)
    assert max(ratios) > 1.01 > 0.99 > min(ratios)


def test_the_warm_up_is_not_counted() -> None:
    world = World()
    taken = world.measure(world.side("a", 1.0, first=7.0), world.side("b", 2.0, first=5.0), 60)
    assert taken.pairs == [(1.0, 2.0)] * len(taken.pairs)
    assert taken.warm_up_s == pytest.approx(15)


def test_short_units_are_repeated_until_a_stretch_is_long_enough() -> None:
    world = World()
    taken = world.measure(world.side("a", 0.0003), world.side("b", 0.2), 5)
    stretches = "".join(what[0] if not what.startswith("prepare") else "|" for what in world.ran).split("|")
    last = [part for part in stretches if part.startswith("a")][-len(taken.pairs) :]
    assert all(STRETCH_S <= 0.0003 * len(part) < 3 * STRETCH_S for part in last)
    assert [b / a for a, b in taken.pairs] == pytest.approx([0.2 / 0.0003] * len(taken.pairs))


def test_a_side_that_knows_its_stretch_is_given_it() -> None:
    world = World()
    taken = world.measure(world.side("a", 0.01, units=3), world.side("b", 1.0), 20)
    runs = [part.count("a") for part in "".join(w if len(w) == 1 else "|" for w in world.ran).split("|") if "a" in part]
    assert runs == [1] + [3] * (len(taken.pairs) + 1)


@pytest.mark.parametrize("seconds", [1, 5, 17, 18, 60, 500])
def test_the_time_is_kept(seconds: float) -> None:
    """Whatever it is, but for the two stretches without which nothing is known."""
    world = World()
    taken = world.measure(world.side("a", 1.0), world.side("b", 1.0), seconds)
    assert world.now <= max(seconds, 4)
    assert len(taken.pairs) <= MOST
    assert taken.pair_s == pytest.approx(2)


def test_where_six_pairs_do_not_fit_a_couple_tells_how_long_each_side_takes() -> None:
    world = World()
    taken = world.measure(world.side("a", 1.0), world.side("b", 1.0), 4 + 2 * FEWEST - 1)
    assert len(taken.pairs) == COUPLE
    assert world.now == 4 + 2 * COUPLE


def test_without_time_for_anything_how_long_it_took_to_begin_is_known() -> None:
    world = World()
    taken = world.measure(world.side("a", 1.0), world.side("b", 1.0), 0.5)
    assert (taken.pairs, taken.pair_s) == ([], 2.0)


def test_a_warm_up_that_is_free_costs_no_pairs() -> None:
    """A compilation takes a minute, and says nothing about a step."""
    found = []
    for first in (0.0, 60.0):
        world = World()
        taken = world.measure(world.side("a", 1.0, first=first), world.side("b", 1.0), 30, free=True)
        found.append(len(taken.pairs))
    assert found[0] == found[1] >= FEWEST


def test_a_machine_that_becomes_slower_ends_the_pairs_in_time() -> None:
    world = World(slower=lambda now: 1.0 if now < 10 else 3.0)
    taken = world.measure(world.side("a", 1.0), world.side("b", 1.0), 30)
    assert 3 <= len(taken.pairs) <= 8
    assert len(taken.pairs) % 2 == 0
    assert taken.pair_s == 6  # why there are so few
    assert world.now <= 30 + 8  # two pairs were begun before anybody knew


def test_the_device_is_waited_for_around_each_stretch() -> None:
    """A GPU has work left when the host is through: it belongs to the stretch that gave it."""
    queued, now = 0.0, 0.0

    def give(seconds: float) -> None:
        nonlocal queued
        queued += seconds

    def wait() -> None:
        nonlocal queued, now
        now, queued = now + queued, 0.0

    sides = Side("a", lambda: give(0.3)), Side("b", lambda: give(0.6), prepare=lambda: give(0.05))
    taken = measure(*sides, 20, Watch(lambda: now, wait))
    assert taken.pairs
    for a, b in taken.pairs:
        assert (a, b) == pytest.approx((0.3, 0.6))  # and what was prepared is in neither
