"""onnx.reference, a second engine beside onnxruntime: written for clarity, without its kernels and fusions.

It lacks some operators, or some of their attributes: GridSample with linear interpolation, ConvTranspose in groups.
That it cannot run a file says nothing about the file; where it can, its answers have to agree.

Shapes: N images, K classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator

from okdc.bundle.session import Floats, Pixels
from okdc.bundle.structure import INPUT, LOGITS
from okdc.errors import one_line


def logits_of(model: Path | ModelProto, images: Pixels) -> tuple[Floats | None, str]:
    """N×K logits; or None, and the reason for which the engine cannot run the model."""
    try:
        (logits,) = ReferenceEvaluator(str(model) if isinstance(model, Path) else model).run([LOGITS], {INPUT: images})
    except MemoryError:
        raise
    except Exception as error:  # it raises whatever numpy raises
        return None, one_line(error)
    return np.asarray(logits), ""
