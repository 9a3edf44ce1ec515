"""One accuracy on one set of images: its interval, its balance between classes, and what the largest class alone gives.

Everything is in percent. No torch, no numpy: what only prints needs them not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

CONFIDENCE_PCT = 95.0
_TWO_SIDED = NormalDist().inv_cdf(0.5 + CONFIDENCE_PCT / 200)
_ONE_SIDED = NormalDist().inv_cdf(CONFIDENCE_PCT / 100)


def wilson_pct(top1_pct: float, images: int, z: float = _TWO_SIDED) -> tuple[float, float]:
    """Wilson's 95 % interval of an accuracy on n images: it has a width at 0 and at 100 %, and never leaves them.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", J. Am. Stat. Assoc. 22 (1927)
    209-212.
    """
    share = top1_pct / 100
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    reach = z / (1 + z**2 / images) * math.sqrt(share * (1 - share) / images + (z / (2 * images)) ** 2)
    return min(top1_pct, max(0.0, 100 * (centre - reach))), max(top1_pct, min(100.0, 100 * (centre + reach)))


def interval_pct(top1_pct: float, images: int) -> list[float]:
    """Wilson's interval as JSON has it."""
    return [round(end, 4) for end in wilson_pct(top1_pct, images)]


def with_interval(top1_pct: float, images: int) -> str:
    """`97.11 [95.70, 98.07]`."""
    low, high = wilson_pct(top1_pct, images)
    return f"{top1_pct:.2f} [{low:.2f}, {high:.2f}]"


def above_largest_class(top1_pct: float, images: int, largest_class_pct: float) -> bool:
    """Whether an accuracy is beyond chance above that of the answer "the largest class" to every image.

    Asked of the lower end of Wilson's one-sided 95 % interval.
    """
    return wilson_pct(top1_pct, images, _ONE_SIDED)[0] > largest_class_pct


def not_above(top1_pct: float, images: int, largest_class_pct: float) -> str:
    """The warning where `above_largest_class` does not hold; empty where it does."""
    if above_largest_class(top1_pct, images, largest_class_pct):
        return ""
    return (
        f"top-1 {top1_pct:.2f} % is not above the share of the largest class, {largest_class_pct:.2f} % of the "
        f"{images:,} images, beyond chance (one-sided 95 % Wilson bound): the same answer to every image does as well"
    )


@dataclass(frozen=True)
class ByClass:
    """Counts of each class: its images, and those of them that were answered right."""

    images: Sequence[int]
    right: Sequence[int]

    @property
    def top1_pct(self) -> float:
        return round(100 * sum(self.right) / sum(self.images), 4)

    @property
    def balanced_pct(self) -> float:
        """The mean accuracy of the classes that occur: of one answer to every image it is 100 / their number."""
        return round(100 * fmean(r / n for n, r in zip(self.images, self.right, strict=True) if n), 4)

    @property
    def balanced_step(self) -> float:
        """By how much one image changes `balanced_pct` at most, in points."""
        occurring = [n for n in self.images if n]
        return 100 / (len(occurring) * min(occurring))

    @property
    def largest_pct(self) -> float:
        """The share of the largest class in the images."""
        return round(100 * max(self.images) / sum(self.images), 4)

    @property
    def smallest_pct(self) -> float:
        """The share of the smallest class that occurs."""
        return round(100 * min(filter(None, self.images)) / sum(self.images), 4)
