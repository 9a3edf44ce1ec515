"""The 95 % interval of a difference holds the true one in 94 of 100 comparisons at least, whatever the chances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from coverage_of_intervals import DEVIATIONS, IMAGES, SEEDS, Coverage, covered

TRIALS = {60: 900, 300: 900, 1000: 300, 10_000: 90}  # by images; thousands of trials are `coverage_of_intervals.py`


@pytest.mark.parametrize("seeds", SEEDS)
def test_the_interval_covers_at_least_94_of_100(seeds: int) -> None:
    """Each deviation of the seeds over all numbers of images; and each cell, within the chance of so few trials."""
    trials = {(seeds, images, deviation): TRIALS[images] for images in IMAGES for deviation in DEVIATIONS}
    cells = covered(trials, np.random.default_rng(0))
    for deviation in DEVIATIONS:
        assert together([found for (_, _, of), found in cells.items() if of == deviation]).pct >= 94
    for cell, found in cells.items():
        assert found.pct >= 94 - 200 * math.sqrt(0.94 * 0.06 / found.trials), (cell, found)
    assert together(list(cells.values())).seeds_pct < 93, "an interval of the seeds alone would not do"


def together(cells: list[Coverage]) -> Coverage:
    return Coverage(
        trials=sum(cell.trials for cell in cells),
        held=sum(cell.held for cell in cells),
        held_by_seeds=sum(cell.held_by_seeds for cell in cells),
    )
