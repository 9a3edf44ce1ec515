"""Is a file sound in itself: what is compared, and what counts as infinitely far."""

from __future__ import annotations

import numpy as np
import pytest

from okdc.bundle import checks as soundness
from okdc.bundle.checks import largest, number, per_class, probabilities_off, probe

LOGITS = np.array([[2.0, 0.0, -1.0], [0.5, 0.5, 90.0]], np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - 90)
    found: np.ndarray = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
    return found


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_far_even_from_itself(strange: float) -> None:
    assert largest(np.array([1.0, strange]), np.array([1.0, strange])) == np.inf
    assert largest(np.array([1.0, strange]), np.array([1.0, 2.0])) == np.inf
    logits = LOGITS.copy()
    logits[0, 0] = strange
    assert probabilities_off(logits, softmax(LOGITS)) > 0.1


def test_probabilities_are_those_of_the_logits_and_sum_to_one() -> None:
    assert probabilities_off(LOGITS, softmax(LOGITS)) < 1e-6
    assert probabilities_off(LOGITS, softmax(LOGITS) + np.float32(0.25)) == pytest.approx(0.75)
    many = np.zeros((1, 1000), np.float32)  # each within rounding, and all together not
    assert probabilities_off(many, softmax(many) + np.float32(9e-6)) == pytest.approx(9e-3, rel=0.01)


@pytest.mark.parametrize("count", [1, 134, 135, 1000])
def test_the_probe_is_the_first_images_repeated_where_they_are_few(count: int) -> None:
    images = np.arange(count * 3, dtype=np.uint8).reshape(count, 1, 1, 3)
    assert np.array_equal(probe(images), np.resize(images, (soundness.PROBE, 1, 1, 3)))


def test_answers_of_two_threads_are_compared_with_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Threaded:
        """Answers alike in every batch, and otherwise with two threads."""

        def __init__(self, model: bytes, threads: int = 1) -> None:
            self.off = (threads - 1) * float(model)

        def __call__(self, images: np.ndarray, batch: int | None = None) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG002
            logits = np.zeros((len(images), 3)) + self.off
            return logits, logits

    monkeypatch.setattr(soundness, "Session", Threaded)
    found = soundness.invariance(b"0.25", np.zeros((4, 1, 1, 3), np.uint8), (2, 3))
    assert found == {"batch_2": 0.0, "batch_3": 0.0, "2_threads": 0.25}


def test_classes_without_images_are_no_row() -> None:
    labels, before, after = np.array([0, 0, 2, 2]), np.array([1, 1, 0, 1]), np.array([1, 0, 1, 1])
    rows = per_class(["a", "b", "c"], labels, before.astype(bool), after.astype(bool))
    assert [(row.class_, row.images, row.change_pct) for row in rows] == [("a", 2, -50.0), ("c", 2, 50.0)]


def test_json_is_given_no_infinity() -> None:
    assert [number(value) for value in (np.inf, np.nan, np.float32(0.5))] == [None, None, 0.5]
