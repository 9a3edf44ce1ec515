"""The images that show a quantiser how far activations reach: drawn by class and by seed. No torch.

Training images without augmentation, never those that judge the result. From one image the ranges cost some points of
accuracy, from 64 on none that could be measured; a class that is missing can only be missed in its own activations, so
every class gives the same number as far as it has them.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from okdc.bundle.session import Images, parts
from okdc.errors import DataError

COUNT = 512
FEWEST = 64


def choose(labels: npt.NDArray[np.int64], count: int = COUNT, seed: int = 0) -> npt.NDArray[np.int64]:
    """Positions in `labels`, sorted: `count` of them or all there are, one class after the other in turn.

    A class that has too few gives all it has. The same everywhere: RandomState's stream is frozen (NumPy's NEP 19).

    Raises DataError for a count below 64 or fewer than 64 labels.
    """
    if count < FEWEST:
        raise DataError(f"calibration: {count} images are asked for; expected at least {FEWEST}")
    if len(labels) < FEWEST:
        raise DataError(
            f"calibration: the training split has {len(labels)} images; int8 needs at least {FEWEST} to calibrate on",
            hint="add images, or export without int8",
        )
    random = np.random.RandomState(seed)
    classes = random.permutation(np.unique(labels))  # who is served in the last round depends on the seed alone
    rows = [random.permutation(np.flatnonzero(labels == c)) for c in classes]
    turn = np.concatenate([np.arange(len(members)) for members in rows])
    order = np.argsort(turn, kind="stable")  # the first of each class, then the second of each, ...
    return np.sort(np.concatenate(rows)[order][:count]).astype(np.int64)


def pixels_sha256(images: Images) -> str:
    """Of the pixels as they were taken: N×H×W×3 uint8, image after image."""
    digest = hashlib.sha256()
    for part in parts(images, 64):
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()
