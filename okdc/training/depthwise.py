"""Depthwise convolutions that a CPU is slow at in bfloat16 are computed in float32.

oneDNN has fast bfloat16 kernels for depthwise convolutions of 3×3 with stride 1. The gradient of others falls to its
reference code: on a processor with avx512_bf16, batch 32, channels_last, one thread (torch 2.14.1, milliseconds of the
gradients of input and weights together):

    96 channels, 3×3, stride 2, 32×32     3.2 in float32     58 in bfloat16
    576 channels, 3×3, stride 2, 8×8      0.7                83
    96 channels, 5×5, stride 2, 16×16     2.3                50
    96 channels, 5×5, stride 1, 16×16     5.8                15
    960 channels, 3×3, stride 1, 2×2      1.6                13
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn


def out_of_bfloat16(network: nn.Module) -> int:
    """Let the depthwise convolutions of `network` decide by what they get, under autocast on a CPU; how many there are.

    Their outputs are bfloat16 as before, rounded from float32. Weights and their names stay as they are.
    """
    found = [m for m in network.modules() if isinstance(m, nn.Conv2d) and 1 < m.groups == m.in_channels]
    for conv in found:
        conv.forward = functools.partial(_forward, conv)  # type: ignore[method-assign]
    return len(found)


def _forward(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Of `conv`, NCHW -> NCHW."""
    plain = type(conv).forward
    if not torch.is_autocast_enabled("cpu") or fast(conv, x):
        return plain(conv, x)
    with torch.autocast("cpu", enabled=False):
        return plain(conv, x.float()).to(torch.get_autocast_dtype("cpu"))


def fast(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether there is a bfloat16 kernel for this depthwise convolution: 3×3 of stride 1, of no smaller a map."""
    return max(conv.kernel_size) <= 3 and max(conv.stride) == 1 and min(x.shape[2:]) >= max(conv.kernel_size)
