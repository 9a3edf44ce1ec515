"""Means, deviations and intervals of a handful of seeds. Everything is in percent, differences in points of it.

Two trainings that are compared differ by chance in two ways: other seeds would train other networks, and other images
would have judged them. Both are crossed, as every seed's networks answer to the same images. Of d[s, i], the difference
between both answers of seed s to image i (1, 0 or -1), the mean over all n seeds and m images has a variance of at most

    v/n + w/m,    v: of the means over images, one a seed;    w: of the means over seeds, one an image

(each of them contains the part of the single answers, which is so counted twice). v rests on n - 1 degrees of freedom,
w on m - 1. Satterthwaite's degrees of freedom for the sum fall short: where v happens to come out small, they believe
the seeds too much (3 seeds, 10,000 images: 92 % instead of 95). Banerjee's interval adds the squares of both Student
intervals, and holds at least 95 % whatever v and w are:

    mean ± √(t²(n - 1) · v/n + t²(m - 1) · w/m)

Two images are added to w, of which half a one differs each way, as Agresti and Min add half an image to each of the
four cells of paired answers: where all images of a few agree, the next ones still need not.

S. K. Banerjee, "Approximate confidence interval for linear functions of means of k populations when the population
variances are not equal", Sankhya 22 (1960) 357-358. A. Agresti, Y. Min, "Simple improved confidence intervals for
comparing matched proportions", Statistics in Medicine 24 (2005) 729-740.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from okdc.runs.accuracy import CONFIDENCE_PCT
from okdc.runs.predictions import Bits

ENOUGH = 3  # seeds, below which nothing is resolved

Means = npt.NDArray[np.float64]


def sample(by_seed: Mapping[int, float]) -> dict[str, Any]:
    """Mean and deviation (n - 1 in the denominator; None of one value) of an accuracy over seeds."""
    values = list(by_seed.values())
    return {
        "mean_top1_pct": round(statistics.fmean(values), 4),
        "sd_top1_pct": round(statistics.stdev(values), 4) if len(values) > 1 else None,
        "n": len(values),
        "top1_pct_by_seed": {str(seed): value for seed, value in by_seed.items()},
    }


def paired(row: Mapping[int, Bits], base: Mapping[int, Bits]) -> dict[str, Any] | None:
    """The difference `row` - `base` over the seeds that both have; None where they have none.

    Both give, by seed, whether the answer to each of the same images was right. A seed gives both the same order of
    images and the same first weights, so its pair differs by less than two strangers do.
    """
    seeds = sorted(row.keys() & base.keys())
    if not seeds:
        return None
    differences = np.stack([row[seed].astype(np.int8) - base[seed].astype(np.int8) for seed in seeds])
    by_seed, by_image = differences.mean(1), differences.mean(0)
    n, mean = len(seeds), float(by_seed.mean())
    ends = None
    if n > 1:
        reach = float(half_width(by_seed, by_image))
        ends = max(-1.0, mean - reach), min(1.0, mean + reach)
    return {
        "mean_points": _points(mean),
        "sd_points": _points(by_seed.std(ddof=1)) if n > 1 else None,
        "interval_points": None if ends is None else [_points(end) for end in ends],
        "n": n,
        "seeds": seeds,
        "images": differences.shape[1],
        "discordant_images": int((differences != 0).any(0).sum()),
        "verdict": verdict(n, ends),
    }


def half_width(by_seed: Means, by_image: Means) -> Means:
    """Half of the 95 % interval, of ...n means over images and ...m means over seeds; n and m are two or more."""
    from scipy.special import stdtrit  # scipy.stats would take seconds to import

    n, m = by_seed.shape[-1], by_image.shape[-1]
    t_seeds, t_images = stdtrit(np.array([n - 1, m - 1]), 0.5 + CONFIDENCE_PCT / 200)
    of_seeds = by_seed.var(-1, ddof=1) / n
    squares = (np.square(by_image, dtype=np.float64).sum(-1) + 1) / (m + 2)  # with the two images
    of_images = (squares - np.square(by_image.sum(-1, dtype=np.float64) / (m + 2))) / (m + 2)
    reach: Means = np.sqrt(t_seeds**2 * of_seeds + t_images**2 * of_images)
    return reach


def verdict(seeds: int, interval: tuple[float, float] | None) -> str:
    """In words; an interval that holds 0, its ends included, resolves nothing, and neither do two seeds."""
    if interval is None or seeds < ENOUGH:
        return f"not resolved ({seeds} seed{'s' if seeds > 1 else ''})"
    low, high = interval
    return "better" if low > 0 else "worse" if high < 0 else "not resolved"


def _points(share: float) -> float:
    """Rounded to what an accuracy is kept to; 0 has no sign."""
    return round(100 * float(share), 4) + 0.0
