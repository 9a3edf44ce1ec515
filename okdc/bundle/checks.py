"""Checks of an ONNX file of any precision: its soundness, its classes, and the machine that ran it. No torch.

Shapes: N images, K classes.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from okdc.bundle.artefacts import ClassChange, Processor
from okdc.bundle.session import Floats, Images, Pixels, Session
from okdc.runs import provenance

BATCH = 64  # images that onnxruntime gets at a time
PROBE = 135  # images of the batch and thread checks: 135 = 2·64 + 7 leaves a partial last batch at every size but 1
FLOOR = 1e-5  # of a difference between logits, and of a softmax's rounding: below it nothing fails

Right = npt.NDArray[np.bool_]


def largest(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """max |a - b|; what is not finite counts as infinitely far."""
    with np.errstate(invalid="ignore"):  # infinity less infinity
        difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max(initial=0.0))


def mean(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """The mean of |a - b|; not finite where either is not."""
    with np.errstate(invalid="ignore"):
        return float(np.abs(a - b).mean())


def probabilities_off(logits: Floats, probabilities: Floats) -> float:
    """How far the second output is from the softmax of the first, and its rows from a sum of 1."""
    with np.errstate(invalid="ignore"):  # logits that are not finite: the difference is infinite then
        softmax = np.exp(logits - logits.max(1, keepdims=True))
        softmax /= softmax.sum(1, keepdims=True)
        return max(largest(probabilities, softmax), largest(probabilities.sum(1), np.ones(len(logits))))


def probe(images: Images) -> Pixels:
    """The images of `invariance`: the first 135, repeated where there are fewer."""
    pixels: Pixels = images[np.arange(PROBE) % len(images)]
    return pixels


def invariance(model: bytes | Path, images: Pixels, batches: Sequence[int]) -> dict[str, float]:
    """max |d| of the logits at each batch size, and with two threads, against one image at a time."""
    session = Session(model)
    single, _ = session(images, 1)
    differences = {f"batch_{batch}": largest(session(images, batch)[0], single) for batch in batches}
    differences["2_threads"] = largest(Session(model, threads=2)(images, BATCH)[0], single)
    return differences


def per_class(classes: Sequence[str], labels: npt.NDArray[np.int64], before: Right, after: Right) -> list[ClassChange]:
    """The change of the accuracy of each class that has images, in points."""
    rows = []
    for c, name in enumerate(classes):
        if count := int((members := labels == c).sum()):
            change = round(100 * float(after[members].mean() - before[members].mean()), 4)
            rows.append(ClassChange.model_validate({"class": name, "images": count, "change_pct": change}))
    return rows


def machine() -> dict[str, Any]:
    """The packages, platform and processor of a report."""
    return {
        "versions": {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        "platform": platform.platform(),
        "processor": processor(),
    }


def processor() -> Processor:
    """The processor's name, and its flags by which onnxruntime chooses kernels."""
    return Processor(name=provenance.processor()[0], flags=provenance.kernel_flags())


def number(value: Any) -> float | None:
    """JSON has no infinity."""
    return float(value) if np.isfinite(value) else None
