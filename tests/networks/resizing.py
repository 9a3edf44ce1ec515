"""Maps and images made larger, padded, moved and sampled anew."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunk import CHANNELS, Trunk, block

Padding = Literal["reflect", "replicate", "circular"]


class _UpAndDown(Trunk):
    """The last map twice as large, and back by a convolution of stride 2."""

    def __init__(self, classes: int, larger: nn.Module, channels: int = CHANNELS) -> None:
        super().__init__(classes)
        self.larger, self.back = larger, block(channels, CHANNELS, 2)

    def features(self, x: Tensor) -> Tensor:
        map_: Tensor = self.back(self.larger(super().features(x)))
        return map_


def transposed(classes: int) -> nn.Module:
    return _UpAndDown(classes, nn.Sequential(nn.ConvTranspose2d(CHANNELS, 32, 2, 2), nn.ReLU()), 32)


def transposed_grouped(classes: int) -> nn.Module:
    grouped = nn.ConvTranspose2d(CHANNELS, 32, 2, 2, groups=4, bias=False)
    return _UpAndDown(classes, nn.Sequential(grouped, nn.BatchNorm2d(32), nn.ReLU()), 32)


def upsample_bilinear(classes: int) -> nn.Module:
    return _UpAndDown(classes, nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))


def upsample_nearest(classes: int) -> nn.Module:
    return _UpAndDown(classes, nn.Upsample(scale_factor=2, mode="nearest"))


def upsample_bicubic(classes: int) -> nn.Module:
    return _UpAndDown(classes, nn.Upsample(scale_factor=2, mode="bicubic"))


class _ResizedImages(Trunk):
    def __init__(self, classes: int, side: int, antialias: bool = False) -> None:
        super().__init__(classes)
        self.side, self.antialias = side, antialias

    def forward(self, x: Tensor) -> Tensor:
        size = (self.side, self.side)
        return super().forward(
            F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=self.antialias)
        )


def images_larger(classes: int) -> nn.Module:
    """The forward resizes its own input."""
    return _ResizedImages(classes, 48)


def images_smaller_antialiased(classes: int) -> nn.Module:
    """ONNX has `antialias` of Resize since opset 18."""
    return _ResizedImages(classes, 24, antialias=True)


class _PaddedBy(nn.Module):
    """Convolutions whose border is not of zeros."""

    def __init__(self, classes: int, mode: Padding) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 16, 1), (16, 32, 2), (32, CHANNELS, 2)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, padding_mode=mode), nn.ReLU()]
        self.maps = nn.Sequential(*layers)
        self.classifier = nn.Linear(CHANNELS, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.maps(x).mean((2, 3)))
        return logits


def pad_reflect(classes: int) -> nn.Module:
    return _PaddedBy(classes, "reflect")


def pad_replicate(classes: int) -> nn.Module:
    return _PaddedBy(classes, "replicate")


def pad_circular(classes: int) -> nn.Module:
    return _PaddedBy(classes, "circular")


def _same(classes: int, kernels: tuple[int, int, int]) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs, kernel in zip((3, 16, 32), (16, 32, CHANNELS), kernels, strict=True):
        layers += [nn.Conv2d(inputs, outputs, kernel, padding="same"), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if outputs < CHANNELS else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, classes))


def pad_same(classes: int) -> nn.Module:
    return _same(classes, (3, 3, 3))


def pad_same_even(classes: int) -> nn.Module:
    """An even kernel: one more row of zeros on one side than on the other."""
    return _same(classes, (3, 4, 3))


def pixel_unshuffle(classes: int) -> nn.Module:
    stages = (nn.PixelUnshuffle(2), block(12, 16), block(16, 32, 2), block(32, CHANNELS, 2))
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, classes))


class _Rolled(Trunk):
    def features(self, x: Tensor) -> Tensor:
        return super().features(x).roll(shifts=(1, 1), dims=(-2, -1))


def roll(classes: int) -> nn.Module:
    return _Rolled(classes)


class _SpatialTransformer(Trunk):
    """Each image turned and shifted by what a linear layer says, the identity at first."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.locate = nn.Linear(3, 6)
        self.locate.weight.data.zero_()
        self.locate.bias.data = torch.eye(2, 3).flatten()

    def forward(self, x: Tensor) -> Tensor:
        matrices = self.locate(self.pool(x)).unflatten(1, (2, 3))
        grid = F.affine_grid(matrices, list(x.shape), align_corners=False)
        return super().forward(F.grid_sample(x, grid, align_corners=False))


def spatial_transformer(classes: int) -> nn.Module:
    return _SpatialTransformer(classes)
