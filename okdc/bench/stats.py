"""The median of ratios and how sure it is, without any assumption on how they are distributed. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

CONFIDENCE = 0.95
FEWEST = 6  # pairs: of five, the smallest and the largest hold the median with 93.75 % only
WIDEST = 0.5  # of the median: an interval that is wider says too little


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """An interval that holds the median of what the values are drawn from in at least 95 % of all cases.

    How many of n independent values lie below the median is binomial (n, 1/2), whatever their distribution. So the
    k-th smallest and the k-th largest miss it with probability 2·P(B < k); k is the largest for which that is at most
    5 % (Conover, Practical Nonparametric Statistics, section 3.2). None of fewer than six values.
    """
    n, ordered = len(values), sorted(values)
    missed, k = 0.0, 0
    while (missed := missed + 2 * math.comb(n, k) / 2**n) <= 1 - CONFIDENCE:
        k += 1
    return (ordered[k - 1], ordered[n - k]) if k else None


def judged(ratios: Sequence[float]) -> tuple[dict[str, Any] | None, str]:
    """`{"median", "low", "high", "n"}` of ratios of pairs, or None and why they do not tell."""
    n, interval = len(ratios), median_interval(ratios)
    if interval is None:
        return None, f"{n} pair{'' if n == 1 else 's'} in its share of the time, an interval needs {FEWEST}"
    median, (low, high) = statistics.median(ratios), interval
    if not high - low <= WIDEST * abs(median):  # also where something is not a number
        told = f"the median is {median:.3g}, its 95 % interval {low:.3g} to {high:.3g}"
        return None, f"too noisy: {told}, wider than half of it (n = {n})"
    return {"median": rounded(median), "low": rounded(low), "high": rounded(high), "n": n}, ""


def rounded(value: float) -> float:
    """To four digits, which is more than any of these times has."""
    return float(f"{value:.4g}")
