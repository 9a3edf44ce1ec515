"""How often the interval of `okdc compare` holds the true difference: simulated, with the function that compare uses.

Two methods, n seeds each, m images. A seed's network has an accuracy drawn about its method's, with a deviation of 0,
0.3 or 1 points. Whether it is right on an image follows from the difficulty of the image, which all networks share,
from a part that the networks of one method share, and from one of its own (a Gaussian copula: each accuracy is met
exactly).

    python tests/coverage_of_intervals.py [TRIALS]    the table, of 4,000 trials a cell (about ten minutes on one core)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from okdc.comparison.stats import half_width

SEEDS, IMAGES, DEVIATIONS = (3, 5, 10), (60, 300, 1000, 10_000), (0.0, 0.3, 1.0)
ACCURACIES = ((60.0, 60.0), (80.0, 78.0), (90.0, 90.0), (95.0, 94.0), (99.0, 99.0))  # of both methods, in percent
SHARED = ((0.6, 0.1), (0.2, 0.0), (0.3, 0.5))  # variance that all networks share, and that those of one method share
AT_ONCE = 60_000  # answers of one method: so many stay in a core's cache

Cell = tuple[int, int, float]  # seeds, images, deviation in points
Means = npt.NDArray[np.float64]


@dataclass
class Coverage:
    """Trials, and those in which an interval held the true difference."""

    trials: int = 0
    held: int = 0  # by the interval of seeds and images
    held_by_seeds: int = 0  # by one that knows the seeds alone

    @property
    def pct(self) -> float:
        return 100 * self.held / self.trials

    @property
    def seeds_pct(self) -> float:
        return 100 * self.held_by_seeds / self.trials


def covered(trials: Mapping[Cell, int], rng: np.random.Generator) -> dict[Cell, Coverage]:
    """The coverage of each cell, in about as many trials, over all accuracies and kinds of difficulty."""
    cells = {cell: Coverage() for cell in trials}
    kinds = [(accuracies, shared) for accuracies in ACCURACIES for shared in SHARED]
    for cell, count in trials.items():
        for accuracies, shared in kinds:
            true = (accuracies[0] - accuracies[1]) / 100
            for by_seed, by_image in _drawn(cell, accuracies, shared, -(-count // len(kinds)), rng):
                off = np.abs(by_seed.mean(1) - true)
                cells[cell].trials += len(off)
                cells[cell].held += int((off <= half_width(by_seed, by_image)).sum())
                cells[cell].held_by_seeds += int((off <= _of_seeds(by_seed)).sum())
    return cells


def _of_seeds(by_seed: Means) -> Means:
    """Student's interval, half of it, as if there were no other images."""
    n = by_seed.shape[1]
    reach: Means = stdtrit(n - 1, 0.975) * by_seed.std(1, ddof=1) / np.sqrt(n)
    return reach


def _drawn(
    cell: Cell, accuracies: tuple[float, float], shared: tuple[float, float], count: int, rng: np.random.Generator
) -> Iterator[tuple[Means, Means]]:
    """Trials: their differences as means over images, one a seed, and as means over seeds, one an image."""
    (n, m, deviation), (of_all, of_method) = cell, shared
    while count:
        some = min(count, max(1, AT_ONCE // (n * m)))
        count -= some
        difficulty = np.sqrt(of_all) * rng.standard_normal((some, 1, m), np.float32)

        def right(accuracy: float) -> npt.NDArray[np.int8]:
            percent = np.clip(accuracy + deviation * rng.standard_normal((some, n, 1)), 0.001, 99.999)  # noqa: B023
            own = rng.standard_normal((some, n, m), np.float32)  # noqa: B023
            own *= np.float32(np.sqrt(1 - of_all - of_method))
            own += difficulty + np.sqrt(of_method) * rng.standard_normal((some, 1, m), np.float32)  # noqa: B023
            answers: npt.NDArray[np.int8] = (own < ndtri(percent / 100)).view(np.int8)
            return answers

        difference = right(accuracies[0]) - right(accuracies[1])
        yield difference.mean(2), difference.sum(1, np.int8) / n


def main(trials: int) -> None:
    cells = {(n, m, deviation): trials for n in SEEDS for m in IMAGES for deviation in DEVIATIONS}
    print("seeds  images  deviation  trials  covered %  by the seeds alone %")  # noqa: T201
    for cell, count in cells.items():
        found = covered({cell: count}, np.random.default_rng(0))[cell]
        n, m, deviation = cell
        print(  # noqa: T201
            f"{n:5}  {m:6}  {deviation:9.1f}  {found.trials:6}  {found.pct:9.2f}  {found.seeds_pct:20.2f}", flush=True
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
