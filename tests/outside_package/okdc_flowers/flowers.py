"""Flowers that are drawn, not photographed: rings of petals whose number is the class."""

from __future__ import annotations

from typing import Any

import numpy as np

CLASSES = ["three petals", "four petals", "five petals"]


def load(*, root: str | None, image_size: int) -> dict[str, Any]:
    """300 training, 60 validation and 90 test images, N×image_size×image_size×3 uint8, the same at every call."""
    del root  # the images are computed
    rng = np.random.default_rng(0)
    return {
        "classes": CLASSES,
        "train": draw(300, image_size, rng),
        "val": draw(60, image_size, rng),
        "test": draw(90, image_size, rng),
    }


def draw(count: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(images, labels) with as many flowers of each class."""
    labels = np.arange(count) % len(CLASSES)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    angle, radius = np.arctan2(y, x), np.hypot(y, x)
    images = np.empty((count, size, size, 3), np.uint8)
    for i, label in enumerate(labels):
        petals = np.cos((label + 3) * (angle + rng.uniform(0, 2 * np.pi)))
        flower = radius < 0.55 + 0.35 * petals
        colour, background = rng.integers(128, 256, 3), rng.integers(0, 96, 3)
        noise = rng.normal(0, 12, (size, size, 3))
        images[i] = np.clip(np.where(flower[..., None], colour, background) + noise, 0, 255).astype(np.uint8)
    return images, labels.astype(np.int64)
