"""Figures as every part of okdc states them: the error of an accuracy, the size of a map."""

from __future__ import annotations

import math
from collections.abc import Iterable


def standard_error_pct(top1_pct: float, images: int) -> float:
    """Of one accuracy on one set of n images, in percent: the binomial's √(p(1-p)/n)."""
    share = top1_pct / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def by(sizes: Iterable[int | str]) -> str:
    """`3×32×32`."""
    return "×".join(map(str, sizes))
