from __future__ import annotations

import numpy as np
import pytest

from okdc.reporting import calibration
from okdc.reporting.calibration import BINS, ece_pct, nll, reliability, temperature
from okdc.runs.mistakes import softmax
from okdc.runs.predictions import Answers


def logits_of(seed: int, images: int = 400, classes: int = 7, scale: float = 3.0) -> calibration.Logits:
    return np.random.default_rng(seed).normal(0, scale, (images, classes))


def labels_of(logits: calibration.Logits, t: float, seed: int = 0) -> np.ndarray:
    """Labels that are drawn from softmax(logits / t): a classifier with these logits is calibrated at t."""
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(len(p), p=p) for p in softmax(logits / t)], np.int64)


def slow_ece_pct(logits: calibration.Logits, labels: np.ndarray) -> float:
    """Equation 3 of Guo et al., image by image."""
    confidences = [max(p) for p in softmax(logits)]
    right = [int(z.argmax()) == label for z, label in zip(logits, labels, strict=True)]
    whole = 0.0
    for m in range(BINS):
        inside = [i for i, c in enumerate(confidences) if m / BINS < c <= (m + 1) / BINS]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            confidence = sum(confidences[i] for i in inside) / len(inside)
            whole += len(inside) / len(labels) * abs(accuracy - confidence)
    return 100 * whole


@pytest.mark.parametrize("t", [0.5, 1.0, 2.5])
def test_the_error_is_that_of_the_paper(t: float) -> None:
    logits = logits_of(1)
    labels = labels_of(logits, t)
    bins = reliability(logits, labels)
    assert sum(each.images for each in bins) == len(labels)
    assert ece_pct(bins) == pytest.approx(slow_ece_pct(logits, labels), abs=1e-3)


def test_a_confidence_on_an_edge_is_of_the_bin_below_and_one_of_the_last() -> None:
    third = np.log(np.array([[1 / 3, 1 / 3, 1 / 3]]))
    assert [k for k, each in enumerate(reliability(third, np.array([0]))) if each.images] == [BINS // 3 - 1]
    sure = np.array([[0.0, -2000.0]])
    assert reliability(sure, np.array([0]))[-1].images == 1


@pytest.mark.parametrize("t", [0.3, 1.0, 4.0])
def test_the_temperature_is_found_and_no_other_is_better(t: float) -> None:
    logits = logits_of(2, 3000)
    labels = labels_of(logits, t)
    best = temperature(logits, labels)
    assert best == pytest.approx(t, rel=0.12)
    assert best is not None
    for other in (*np.linspace(0.2, 6, 30), best * 1.01, best / 1.01):
        assert nll(logits / best, labels) <= nll(logits / other, labels) + 1e-9


def test_there_is_none_where_every_answer_is_right() -> None:
    logits = logits_of(3)
    assert temperature(logits, logits.argmax(1)) is None


def test_the_validation_images_fit_it_and_the_judging_images_measure_it() -> None:
    logits, chosen = logits_of(4, 600), logits_of(5, 600)
    judging = Answers.of(np.arange(600), labels_of(logits, 2.0), logits.astype(np.float32))
    validation = Answers.of(np.arange(600), labels_of(chosen, 2.0), chosen.astype(np.float32))
    facts = calibration.calibration(judging, validation)
    stored = validation.logits.astype(np.float64)
    assert facts["temperature"] == pytest.approx(temperature(stored, validation.labels), abs=1e-4)
    assert facts["plain"]["ece_pct"] == pytest.approx(
        slow_ece_pct(judging.logits.astype(np.float64), judging.labels), abs=0.05
    )
    assert facts["fitted"]["ece_pct"] < facts["plain"]["ece_pct"]
    assert facts["fitted"]["mean_confidence_pct"] < facts["plain"]["mean_confidence_pct"]


def test_images_that_choose_and_judge_fit_nothing() -> None:
    logits = logits_of(6, 50)
    facts = calibration.calibration(Answers.of(np.arange(50), labels_of(logits, 1), logits.astype(np.float32)), None)
    assert facts["temperature"] is facts["fitted"] is None
