"""How long a training still takes: its steps, its validations, and the judging at its end."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence

WINDOW_S = 60.0  # steps that the estimate looks back on: another program's work on this machine may begin or end
FORWARD = 1 / 3  # of a step's time: an evaluation computes no gradients
# Passes over the images that judge, in those of a validation: one of the whole method, one of each student from its
# file, which together are about the method again.
JUDGING = 2.0


class Work:
    """What each step of a training costs, as a multiple of the first one's cost."""

    def __init__(self, steps: int, firsts: Sequence[int] = (0,), macs: Sequence[float] | None = None) -> None:
        """`firsts`: the first step of each part; `macs`: the multiply-adds of a step of it, None for all alike."""
        costs = [1.0] * len(firsts) if macs is None or not all(macs) else [each / macs[0] for each in macs]
        self._parts = [(*span, cost) for span, cost in zip(itertools.pairwise((*firsts, steps)), costs, strict=True)]

    def of(self, step: int) -> float:
        """Of the step with this number, from 0 on."""
        return next(cost for _, end, cost in self._parts if step < end)

    def left(self, done: int) -> float:
        """Of all steps after the first `done`."""
        return sum(max(0, end - max(first, done)) * cost for first, end, cost in self._parts)


class Pace:
    """The seconds that are left, from the steps and validations that this process has taken. The host's clock alone.

    Steps are counted by their `Work`: a second of cheap steps tells how long dear ones will take.
    """

    def __init__(
        self,
        batch_size: int,
        validation: int,
        judging: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`validation` and `judging` images."""
        self.batch_size, self.validation, self.judging = batch_size, validation, judging
        self._clock = clock
        self._recent: deque[tuple[float, float]] = deque()  # work and its seconds, in pieces of about a second
        self._warm = False  # the first step compiles, starts workers, fills caches
        self._began, self._taken = clock(), 0.0
        self._validated: float | None = None  # seconds of the last validation

    def begin(self) -> None:
        """Steps are taken from now on."""
        self._began, self._taken = self._clock(), 0.0

    def step(self, work: float = 1.0) -> bool:
        """A step was taken. Returns whether a second has passed, after which it is worth to ask again."""
        if not self._warm:
            self._warm = True
            self.begin()
            return False
        self._taken += work
        if (seconds := self._clock() - self._began) < 1:
            return False
        self._keep(seconds)
        return True

    def end(self) -> None:
        """No more steps are taken for now."""
        if self._taken:
            self._keep(self._clock() - self._began)

    def validated(self, seconds: float) -> None:
        """A validation took so long."""
        self._validated = seconds

    def left(self, work: float, validations: int) -> float | None:
        """The seconds of so much work, of validations and of the judging; None before two steps have been taken."""
        taken, seconds = sum(done for done, _ in self._recent), sum(seconds for _, seconds in self._recent)
        if not taken:
            return None
        step = seconds / taken
        validation = self._validated
        if validation is None:  # not yet seen
            validation = self.validation * step / self.batch_size * FORWARD
        an_image = validation / self.validation if self.validation else step / self.batch_size * FORWARD
        judging = (JUDGING * self.judging + self.validation) * an_image  # the kept student answers both splits
        return work * step + validations * validation + judging

    def _keep(self, seconds: float) -> None:
        self._recent.append((self._taken, seconds))
        while sum(seconds for _, seconds in self._recent) - self._recent[0][1] > WINDOW_S:
            self._recent.popleft()
        self.begin()
