"""TEMP"""

from __future__ import annotations

import torch
from torch import Tensor


def global_average(x: Tensor) -> Tensor:
    """Global average pooling, NCHW -> NC, whose gradient lies in memory as x does: contiguous or channels_last.

    The gradient of a mean over H and W lies in contiguous memory whatever x does. Under channels_last the layers before
    it then mix both formats: 2 of 40 ms in the side paths of FEFR (ResNet-20, batch 128, two threads).
    """
    # Compiler, export and torch.fx, whose stand-ins have no strides, find one operator.
    if torch.compiler.is_compiling() or not isinstance(x, Tensor) or x.is_contiguous():
        return x.mean((2, 3))
    return x.permute(0, 2, 3, 1).mean((1, 2))
