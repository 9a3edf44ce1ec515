"""A few of the digits at any size: enough for every step from training to a verified bundle."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from okdc.data import digits

TRAIN, VALIDATION, TEST = 64, 32, 96  # images


def few_digits(*, root: str | None, image_size: int) -> dict[str, Any]:  # noqa: ARG001
    """The data set `networks.images:few_digits` of a recipe."""
    pixels, labels = digits.arrays()
    count = TRAIN + VALIDATION + TEST
    resized = np.stack([_resized(image, image_size) for image in pixels[:count]])
    ends = {"train": (0, TRAIN), "val": (TRAIN, TRAIN + VALIDATION), "test": (TRAIN + VALIDATION, count)}
    parts = {split: (resized[start:end], labels[start:end]) for split, (start, end) in ends.items()}
    return {"classes": list(digits.CLASSES)} | parts


def _resized(image: np.ndarray[Any, np.dtype[np.uint8]], size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
