"""Ways to make a map smaller, and to end it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunk import CHANNELS, Trunk, block


class _AdaptiveHead(Trunk):
    """The last map (8×8 for images of 32×32) pooled to a size of its own, all of it classified."""

    def __init__(self, classes: int, pooling: nn.Module, places: int) -> None:
        super().__init__(classes)
        self.pooling = pooling
        self.fc = nn.Linear(CHANNELS * places, classes)

    def pool(self, x: Tensor) -> Tensor:
        return torch.flatten(self.pooling(x), 1)


def adaptive_uneven(classes: int) -> nn.Module:
    """8×8 to 3×3: the windows differ in size."""
    return _AdaptiveHead(classes, nn.AdaptiveAvgPool2d(3), 9)


def adaptive_larger(classes: int) -> nn.Module:
    """8×8 to 10×10."""
    return _AdaptiveHead(classes, nn.AdaptiveAvgPool2d(10), 100)


def adaptive_max_uneven(classes: int) -> nn.Module:
    return _AdaptiveHead(classes, nn.AdaptiveMaxPool2d(3), 9)


def adaptive_one_side(classes: int) -> nn.Module:
    """One side keeps its size."""
    return _AdaptiveHead(classes, nn.AdaptiveAvgPool2d((None, 3)), 8 * 3)


class _Pooled(nn.Module):
    """Three convolutions of stride 1 with a pooling layer after the first and the second."""

    def __init__(self, classes: int, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.maps = nn.Sequential(block(3, 16), first, block(16, 32), second, block(32, CHANNELS))
        self.classifier = nn.Linear(CHANNELS, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.maps(x).mean(dim=(-2, -1)))
        return logits


def ceil_mode(classes: int) -> nn.Module:
    return _Pooled(classes, nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3, 2, ceil_mode=True))


def average_with_padding(classes: int) -> nn.Module:
    """Windows at the border whose padding counts, and does not."""
    without = nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)
    return _Pooled(classes, without, nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=True))


def lp_pool(classes: int) -> nn.Module:
    return _Pooled(classes, nn.LPPool2d(2, 2), nn.MaxPool2d(2))


def fractional(classes: int) -> nn.Module:
    """Windows drawn at random, in evaluation too."""
    return _Pooled(classes, nn.FractionalMaxPool2d(2, output_ratio=0.5), nn.MaxPool2d(2))


class _GeM(Trunk):
    """Generalised mean with an exponent that is trained."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.exponent = nn.Parameter(torch.full((1,), 3.0))

    def pool(self, x: Tensor) -> Tensor:
        powers = x.clamp(min=1e-6) ** self.exponent
        return (F.avg_pool2d(powers, x.shape[-2:]) ** (1 / self.exponent)).flatten(1)


def gem(classes: int) -> nn.Module:
    return _GeM(classes)


class _TopPlaces(Trunk):
    """The mean of each channel's eight largest values."""

    def pool(self, x: Tensor) -> Tensor:
        largest, _ = torch.topk(x.flatten(2), 8, dim=-1)
        return largest.mean(-1)


def topk(classes: int) -> nn.Module:
    return _TopPlaces(classes)


class _MeanAndDeviation(Trunk):
    def pool(self, x: Tensor) -> Tensor:
        return torch.mean(x, (2, 3)) + torch.std(x, (2, 3))


def standard_deviation(classes: int) -> nn.Module:
    return _MeanAndDeviation(classes)


class _Softmaxed(Trunk):
    """Each channel's mean, weighed by a softmax over its places, beside the norm of the channel."""

    def pool(self, x: Tensor) -> Tensor:
        places = x.flatten(2)
        norms: Tensor = torch.linalg.vector_norm(places, dim=-1)
        return (places * places.softmax(-1)).sum(-1) + norms


def soft_places(classes: int) -> nn.Module:
    return _Softmaxed(classes)
