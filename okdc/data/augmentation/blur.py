"""Gaussian blur of many images at once, each by its own deviation.

Shapes: B images of a batch, N of an epoch; planes are B×3×H×W float32, 0..255.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from okdc.data.augmentation.draws import Stream, chosen, uniform

SIGMAS = (0.1, 2.0)  # pixels, as SimCLR (Chen et al., 2020, appendix A) draws them


def kernel_size(height: int, width: int) -> int:
    """A tenth of the shorter side, as SimCLR has it, odd, and 3 at least."""
    return max(3, 2 * (min(height, width) // 20) + 1)


def drawn(n: int, probability: float, stream: Stream) -> Tensor:
    """The deviation of each image's blur in pixels, 0 for none: N float64."""
    return torch.where(chosen(n, probability, stream("blur")), uniform(n, *SIGMAS, stream("blur_sigma")), 0.0)


def blurred(planes: Tensor, sigma: Tensor) -> Tensor:
    """The planes under Gaussians of B deviations, mirrored at the edges.

    One direction after the other, by slices: a convolution on a GPU may be in TF32.
    """
    height, width = planes.shape[2:]
    size = kernel_size(height, width)
    half = size // 2
    distance = torch.arange(-half, half + 1, device=planes.device, dtype=planes.dtype)
    weights = torch.softmax(-((distance / sigma.clamp(min=SIGMAS[0])[:, None]) ** 2) / 2, 1)  # B×size
    padded = F.pad(planes, (half, half, half, half), mode="reflect")
    across = _weighted([padded[..., i : i + width] for i in range(size)], weights)
    return _weighted([across[:, :, i : i + height] for i in range(size)], weights)


def _weighted(shifted: list[Tensor], weights: Tensor) -> Tensor:
    total = shifted[0] * weights[:, 0, None, None, None]
    for i, planes in enumerate(shifted[1:], 1):
        total.addcmul_(planes, weights[:, i, None, None, None])
    return total
