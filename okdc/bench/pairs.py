"""Two sides measured in turn, so that whatever slows the machine slows both. No torch.

A pair is one stretch of each side, one right after the other. Which side goes first alternates (AB, BA, AB, ...), so
that a drift (a processor that gets warm, another program that starts) pulls the ratios of two pairs to different sides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from okdc.bench.stats import FEWEST

STRETCH_S = 0.25  # at least: on a busy machine another program has the core for tens of milliseconds at a time
MOST = 60  # pairs: more would not make an interval much narrower
COUPLE = 2  # pairs if there is no time for six: enough to say how long each takes


def nothing() -> None:
    """Most sides have nothing to prepare."""


@dataclass(frozen=True)
class Side:
    """One side of a pair: `run` does one unit of it (a step, a batch), which is `images` images."""

    name: str
    run: Callable[[], object]
    images: int = 1
    units: int | None = None  # of a stretch; left out: as many as fill one
    prepare: Callable[[], object] = nothing  # before each stretch, not timed


@dataclass
class Taken:
    """Seconds per image of both sides in each pair that counts, and the time that a measurement cost besides."""

    pairs: list[tuple[float, float]] = field(default_factory=list)
    warm_up_s: float = 0.0  # the first unit of each side: allocation, autotuning, compilation
    pair_s: float = 0.0  # of one pair with its preparation, as far as it was measured
    ready_s: float = 0.0  # until the first pair


@dataclass(frozen=True)
class Watch:
    """The clock, and how to wait for the device before reading it."""

    clock: Callable[[], float] = time.perf_counter
    wait: Callable[[], object] = nothing  # until the device has finished its work

    def stretch(self, side: Side, units: int) -> float:
        """Seconds of so many units."""
        side.prepare()
        self.wait()
        began = self.clock()
        for _ in range(units):
            side.run()
        self.wait()
        return self.clock() - began


def measure(
    first: Side, second: Side, seconds: float, watch: Watch, tick: Callable[[], object] = nothing, free: bool = False
) -> Taken:
    """As many pairs as fit into `seconds`, warm-up included, unless the warm-up is `free`. `tick` is called between.

    If six pairs do not fit, two are taken, to tell how long each side takes, and the rest of the time is left.
    """
    taken = Taken()
    start = watch.clock()
    for side in (first, second):
        tick()
        watch.stretch(side, 1)
    taken.warm_up_s = taken.ready_s = watch.clock() - start
    until = start + seconds + (taken.warm_up_s if free else 0)
    taken.pair_s = 0 if free else taken.warm_up_s
    if watch.clock() >= until:
        return taken
    fitted = [_fitted(side, watch) for side in (first, second)]  # a second pair that is not counted
    units = [n for n, _ in fitted]
    taken.pair_s = sum(spent for _, spent in fitted)
    taken.ready_s = watch.clock() - start
    count = min(MOST, int((until - watch.clock()) / max(taken.pair_s, 1e-9)))
    count = count // 2 * 2 if count >= FEWEST else min(COUPLE, count)  # as many AB as BA
    slowest = taken.pair_s
    for number in range(count):
        tick()
        began = watch.clock()
        if number % 2 == 0 and began + min(2, count - number) * slowest > until:  # the machine has become slower
            taken.pair_s = slowest
            break
        turn = ((0, first), (1, second)) if number % 2 == 0 else ((1, second), (0, first))
        seconds_per_image = [0.0, 0.0]
        for place, side in turn:
            seconds_per_image[place] = watch.stretch(side, units[place]) / (units[place] * side.images)
        taken.pairs.append((seconds_per_image[0], seconds_per_image[1]))
        slowest = max(slowest, watch.clock() - began)
    return taken


def _fitted(side: Side, watch: Watch) -> tuple[int, float]:
    """How many units fill a stretch, and the seconds that such a stretch takes with its preparation."""
    units = side.units or 1
    while True:
        began = watch.clock()
        took = watch.stretch(side, units)
        if side.units or took >= STRETCH_S:
            return units, watch.clock() - began
        units = max(2 * units, math.ceil(units * min(STRETCH_S / max(took, 1e-9), 100)))
