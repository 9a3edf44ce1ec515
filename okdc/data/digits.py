"""scikit-learn's 1,797 handwritten digits: 8×8 grey pixels as N×8×8×3, with a fixed stratified test split. No torch."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from okdc.data.images import Pixels
from okdc.data.source import Content, Labels, Request, Source

CLASSES = tuple(str(digit) for digit in range(10))
TEST_IMAGES = 797  # the other 1,000 train and validate


def read(_: Request) -> Content:
    """All of them as one part, "all"."""
    pixels, labels = arrays()
    return Content(
        classes=CLASSES,
        images=pixels,
        labels=labels,
        parts={"all": range(len(labels))},
        fingerprint=hashlib.sha256(pixels[..., 0].tobytes() + labels.tobytes()).hexdigest(),
        test_images=TEST_IMAGES,
    )


def arrays() -> tuple[Pixels, Labels]:
    """The images, N×8×8×3 uint8, and their N labels."""
    # scikit-learn itself takes a second to import, for SciPy, which reading its table does not need.
    spec = importlib.util.find_spec("sklearn")
    table = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz" if spec and spec.origin else None
    if table and table.is_file():
        rows = np.loadtxt(table, np.uint8, delimiter=",")  # 64 values from 0 to 16, and the digit
    else:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        rows = np.column_stack([bunch.data, bunch.target]).astype(np.uint8)
    grey = np.round(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=3), rows[:, -1].astype(np.int64)


SOURCE = Source(
    name="digits",
    read=read,
    files=False,
    classes=len(CLASSES),
    image_size=8,
    counts=(1_000, 0, 797),
    caution="Digits: 1,797 images of 8×8 grey pixels. The split does not keep the writers apart: a hand that the "
    "model has never seen may be harder.",
    fixed=True,
)
