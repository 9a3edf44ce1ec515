"""The images that a bundle's numbers are from. No torch.

Shapes: N images, HWC pixels.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from okdc.bundle.session import Images, parts

BATCH = 500


def digest(images: Images, labels: npt.NDArray[np.int64]) -> str:
    """sha256 of the pixels, image after image, and of the labels: what `judged_on` in the manifest says."""
    found = hashlib.sha256()
    for part in parts(images, BATCH):
        found.update(np.ascontiguousarray(part).tobytes())
    found.update(np.asarray(labels, dtype="<i8").tobytes())
    return found.hexdigest()
