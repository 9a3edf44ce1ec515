"""Means, deviations and Student's t of a handful of seeds. Everything is in percent, differences in points of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

CONFIDENCE_PCT = 95.0


def sample(by_seed: Mapping[int, float]) -> dict[str, Any]:
    """Mean and deviation (n - 1 in the denominator; None of one value) of an accuracy over seeds."""
    values = list(by_seed.values())
    return {
        "mean_top1_pct": round(statistics.fmean(values), 4),
        "sd_top1_pct": round(statistics.stdev(values), 4) if len(values) > 1 else None,
        "n": len(values),
        "top1_pct_by_seed": {str(seed): value for seed, value in by_seed.items()},
    }


def paired(row: Mapping[int, float], base: Mapping[int, float]) -> dict[str, Any] | None:
    """The difference `row` - `base` over the seeds that both have; None where they have none.

    A seed gives both the same order of images and the same first weights, so its pair differs by less than two
    strangers do: the interval is of the mean of the differences.
    """
    seeds = sorted(row.keys() & base.keys())
    if not seeds:
        return None
    # Accuracies are kept to four decimals: what lies below is the rounding of binary fractions.
    differences = [round(row[seed] - base[seed], 4) for seed in seeds]
    interval = t_interval(differences)
    return {
        "mean_points": round(statistics.fmean(differences), 4),
        "sd_points": round(statistics.stdev(differences), 4) if len(seeds) > 1 else None,
        "interval_points": None if interval is None else [round(end, 4) for end in interval],
        "n": len(seeds),
        "seeds": seeds,
        "verdict": verdict(differences, interval),
    }


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """mean ± t(n - 1) · sd / √n at 95 %, two-sided; of one value there is none, of equal ones it has no width."""
    n = len(values)
    if n < 2:
        return None
    from scipy.special import stdtrit  # scipy.stats would take seconds to import

    centre = statistics.fmean(values)
    t = float(stdtrit(n - 1, 0.5 + CONFIDENCE_PCT / 200))
    reach = t * statistics.stdev(values) / math.sqrt(n)
    return centre - reach, centre + reach


def verdict(differences: Sequence[float], interval: tuple[float, float] | None) -> str:
    """In words; an interval that holds 0, its ends included, resolves nothing."""
    if interval is None:
        return "not resolved (one seed)"
    if not any(differences):
        return "no difference"
    low, high = interval
    return "better" if low > 0 else "worse" if high < 0 else "not resolved"
