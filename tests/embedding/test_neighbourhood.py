"""Numbers that say how far classes lie apart, against their definitions image by image."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from asking import tried
from hypothesis import given
from hypothesis import strategies as st

from okdc.embedding.neighbourhood import knn_pct, silhouette, tsne


def made(n: int, classes: int, seed: int, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """N×3 features around a centre for each class."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = random.normal(size=(classes, 3)) * apart
    return (centres[labels] + random.normal(size=(n, 3))).astype(np.float32), labels


@given(n=st.integers(8, 40), classes=st.integers(1, 4), k=st.integers(1, 7), seed=st.integers(0, 1000))
@tried
def test_an_image_is_classified_by_the_majority_of_its_nearest_others(n: int, classes: int, k: int, seed: int) -> None:
    features, labels = made(n, classes, seed)
    right = 0
    for i in range(n):
        distances = [(float(np.square(features[i].astype(float) - features[j]).sum()), j) for j in range(n) if j != i]
        nearest = [int(labels[j]) for _, j in sorted(distances)[:k]]
        counts = Counter(nearest)
        most = max(counts.values())
        right += next(label for label in nearest if counts[label] == most) == labels[i]
    assert knn_pct(features, labels, k) == round(100 * right / n, 4)


def test_an_image_is_not_its_own_neighbour() -> None:
    """Two pairs of equal features whose labels differ: each image's nearest is of the other class."""
    features = np.array([[0, 0], [0, 0], [9, 9], [9, 9]], np.float32)
    assert knn_pct(features, np.array([0, 1, 0, 1]), 1) == 0
    assert knn_pct(features, np.array([0, 0, 1, 1]), 1) == 100


def test_more_neighbours_than_other_images_are_an_error() -> None:
    features, labels = made(5, 2, 0)
    assert knn_pct(features, labels, 4) >= 0
    with pytest.raises(ValueError, match="6 images"):
        knn_pct(features, labels, 5)


def test_the_silhouette_is_its_definition() -> None:
    features, labels = made(30, 3, 0, 3.0)
    distances = np.sqrt(np.square(features[:, None].astype(float) - features[None]).sum(2))
    values = []
    for i in range(30):
        own = (labels == labels[i]) & (np.arange(30) != i)
        a = distances[i, own].mean()
        b = min(distances[i, labels == other].mean() for other in set(labels.tolist()) - {int(labels[i])})
        values.append((b - a) / max(a, b))
    assert silhouette(features, labels) == pytest.approx(np.mean(values), abs=1e-4)


def test_one_class_or_one_image_a_class_has_no_silhouette() -> None:
    features, _ = made(6, 1, 0)
    assert silhouette(features, np.zeros(6, int)) is None
    assert silhouette(features, np.arange(6)) is None


def test_a_map_has_a_place_for_each_image_repeats_with_its_seed_and_keeps_classes_apart() -> None:
    features, labels = made(60, 3, 0, 20.0)
    flat = tsne(features, 3)
    assert flat.shape == (60, 2)
    assert flat.dtype == np.float32
    assert np.array_equal(flat, tsne(features, 3))
    assert knn_pct(flat, labels, 5) == 100


def test_constant_features_have_a_map_too() -> None:
    """Of a network that has died: its features say nothing, and nothing is raised."""
    assert np.isfinite(tsne(np.ones((12, 4), np.float32), 0)).all()
    assert np.isfinite(tsne(np.ones((12, 1), np.float32), 0)).all()
