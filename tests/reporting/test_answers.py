from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from okdc.reporting import answers
from okdc.reporting.answers import MOST_CLASSES, by_class, shown_order
from okdc.runs.mistakes import confused, confusion, extremes
from okdc.runs.predictions import Answers


def made(images: int = 300, classes: int = 5, seed: int = 0) -> tuple[Answers, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(0, 1, (images, classes)).astype(np.float32)
    logits[np.arange(images), labels] += 1
    return Answers.of(rng.permutation(images) + 1000, labels, logits), logits.argmax(1) == labels


def test_a_cell_counts_the_images_of_a_class_with_an_answer() -> None:
    given, right = made()
    counted = Counter(zip(given.labels.tolist(), given.logits.argmax(1).tolist(), strict=True))
    counts = confusion(given, right)
    assert {(i, j): int(counts[i, j]) for i in range(5) for j in range(5) if counts[i, j]} == counted
    assert np.trace(counts) == right.sum()


@pytest.mark.parametrize("right", [True, False])
def test_where_float16_made_two_classes_one_the_recorded_bit_decides(right: bool) -> None:
    """Class 0 and class 1 have the same logit in the file."""
    given = Answers.of(np.array([7]), np.array([1]), np.array([[5.0, 5.0, 0.0]], np.float32))
    assert confusion(given, np.array([right])).tolist()[1] == ([0, 1, 0] if right else [1, 0, 0])
    mistakes, hits = extremes(given, np.array([right]), 3, 3)
    assert [(each.answer, each.second) for each in (*mistakes, *hits)] == [(1, 0) if right else (0, 1)]


def test_each_class_has_its_recall_precision_and_its_most_frequent_mistake() -> None:
    rows = by_class(np.array([[6, 3, 1], [0, 5, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert [row["recall_pct"] for row in rows] == [60.0, 100.0, None]
    assert [row["precision_pct"] for row in rows] == [100.0, 62.5, 0.0]
    assert [row["taken_for"] for row in rows] == ["b", None, None]
    low, high = rows[0]["interval_pct"]
    assert low < 60 < high


def test_the_most_frequent_mistakes_come_first() -> None:
    assert confused(np.array([[9, 1, 4], [0, 9, 0], [2, 0, 0]]), ["a", "b", "c"], 3) == [
        {"class": "a", "taken_for": "c", "images": 4},
        {"class": "c", "taken_for": "a", "images": 2},
        {"class": "a", "taken_for": "b", "images": 1},
    ]


def test_the_most_confident_mistakes_and_the_least_confident_hits() -> None:
    given, right = made()
    mistakes, hits = extremes(given, right, 10, 6)
    assert (len(mistakes), len(hits)) == (10, 6)
    probabilities = np.exp(given.logits) / np.exp(given.logits).sum(1, keepdims=True)
    top = 100 * probabilities.max(1)
    assert [each.confidence_pct for each in mistakes] == pytest.approx(sorted(top[~right])[::-1][:10], abs=0.02)
    assert [each.confidence_pct for each in hits] == pytest.approx(sorted(top[right])[:6], abs=0.02)
    for each in (*mistakes, *hits):
        i = int(np.flatnonzero(given.rows == each.row)[0])
        assert (each.label, each.answer) == (given.labels[i], probabilities[i].argmax())
        assert each.second == np.argsort(probabilities[i])[-2]
        assert each.label_pct == pytest.approx(100 * probabilities[i, each.label], abs=0.02)


def test_few_classes_keep_their_order() -> None:
    assert shown_order(np.eye(6, dtype=np.int64)) == list(range(6))


def test_classes_that_are_confused_stand_together() -> None:
    """Pairs 0-15, 1-16 and so on are taken for each other, and for no other class."""
    counts = np.eye(30, dtype=np.int64) * 10
    for k in range(15):
        counts[k, k + 15] = counts[k + 15, k] = 5
    order = shown_order(counts)
    assert sorted(order) == list(range(30))
    assert all(abs(order.index(k) - order.index(k + 15)) == 1 for k in range(15))


def test_of_very_many_classes_those_with_mistakes_are_shown() -> None:
    counts = np.eye(300, dtype=np.int64) * 10
    counts[250, 3] = counts[7, 299] = 2
    order = shown_order(counts)
    assert len(order) == len(set(order)) == MOST_CLASSES
    assert {250, 3, 7, 299} <= set(order)
    assert answers.ALIKE_FROM < MOST_CLASSES
