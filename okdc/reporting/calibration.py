"""How far a classifier's confidence is to be believed: reliability, expected calibration error, fitted temperature.

C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017, sections 2 and 4.2.
Confidence is the probability of the answer. Shapes: N images, K classes. No torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from okdc.runs.mistakes import softmax
from okdc.runs.predictions import Answers

BINS = 15  # as in the paper
COLDEST, HOTTEST = 0.05, 20.0  # temperatures between which one is looked for

Logits = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """The images whose confidence lies above `low` and at `high` or below."""

    low: float
    high: float
    images: int
    confidence_pct: float | None  # means; None without images
    accuracy_pct: float | None


def calibration(judging: Answers, validation: Answers | None) -> dict[str, Any]:
    """The report's table. The temperature is fitted on `validation`; None: no images but those that judge."""
    logits, labels = judging.logits.astype(np.float64), judging.labels
    facts: dict[str, Any] = {"bins": BINS, "plain": _measured(logits, labels), "temperature": None, "fitted": None}
    if validation is not None and len(validation.labels):
        t = temperature(validation.logits.astype(np.float64), validation.labels)
        if t is not None:
            facts |= {"temperature": round(t, 4), "fitted": _measured(logits / t, labels)}
    return facts


def _measured(logits: Logits, labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    bins = reliability(logits, labels)
    return {
        "ece_pct": round(ece_pct(bins), 4),
        "nll": round(nll(logits, labels), 6),
        "mean_confidence_pct": round(100 * float(softmax(logits).max(1).mean()), 4),
        "reliability": [asdict(each) for each in bins],
    }


def nll(logits: Logits, labels: npt.NDArray[np.int64]) -> float:
    """The mean negative log-likelihood of the labels, in nats."""
    below = logits - logits.max(1, keepdims=True)
    return float((np.log(np.exp(below).sum(1)) - below[np.arange(len(labels)), labels]).mean())


def reliability(logits: Logits, labels: npt.NDArray[np.int64]) -> list[Bin]:
    """BINS bins of equal width, the least confident first. A confidence on an edge belongs to the bin below."""
    confidence, right = softmax(logits).max(1), logits.argmax(1) == labels
    edges = np.linspace(0, 1, BINS + 1)
    places = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, BINS - 1)
    bins = []
    for k in range(BINS):
        inside = places == k
        n = int(inside.sum())
        means = [round(100 * float(values[inside].mean()), 4) if n else None for values in (confidence, right)]
        bins.append(Bin(round(float(edges[k]), 4), round(float(edges[k + 1]), 4), n, *means))
    return bins


def ece_pct(bins: list[Bin]) -> float:
    """Σ n_b/N · |accuracy_b - confidence_b| in percentage points (equation 3)."""
    gaps = [
        (each.images, abs(each.accuracy_pct - each.confidence_pct))
        for each in bins
        if each.accuracy_pct is not None and each.confidence_pct is not None
    ]
    return sum(n * gap for n, gap in gaps) / sum(n for n, _ in gaps)


def temperature(logits: Logits, labels: npt.NDArray[np.int64]) -> float | None:
    """T that minimises the likelihood's loss of softmax(logits / T), from COLDEST to HOTTEST.

    None where there is no such T: all answers are right, and ever more confidence would be better still; or they are no
    better than chance, and ever less would be.

    The loss is convex in 1/T. Its derivative, the mean of Σ_k p_k z_k - z_y, is zero at the best T.
    """
    from scipy.optimize import brentq

    own = logits[np.arange(len(labels)), labels]

    def slope(log_t: float) -> float:
        t = float(np.exp(log_t))
        return float(((softmax(logits / t) * logits).sum(1) - own).mean())

    low, high = np.log(COLDEST), np.log(HOTTEST)
    if slope(low) < 0 or slope(high) > 0:  # no zero between them
        return None
    return float(np.exp(brentq(slope, low, high, xtol=1e-6)))
