"""What okdc cannot take, for a reason that holds: no network, no convolutional one, or none with an answer of its own
to each image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from networks.trunk import CHANNELS, Trunk


class _Shifted(Trunk):
    """Half of the channels come from the image before in the batch."""

    def features(self, x: Tensor) -> Tensor:
        own, shifted = super().features(x).chunk(2, dim=1)
        return torch.cat([own, shifted.roll(1, 0)], dim=1)


def coupled_by_shift(classes: int) -> nn.Module:
    return _Shifted(classes)


class _Centred(Trunk):
    def pool(self, x: Tensor) -> Tensor:
        pooled = super().pool(x)
        return pooled - pooled.mean(0, keepdim=True)


def coupled_by_mean(classes: int) -> nn.Module:
    return _Centred(classes)


class _OneConvolution(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.only, self.fc = nn.Conv2d(3, 16, 3), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.only(x).relu().mean((2, 3)))
        return logits


def one_convolution(classes: int) -> nn.Module:
    """One map: nothing to tap before the last."""
    return _OneConvolution(classes)


def mlp(classes: int) -> nn.Module:
    """No convolution."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 64), nn.ReLU(), nn.Linear(64, classes))


def grey_wanted(classes: int) -> nn.Module:
    """Its first convolution takes one channel; okdc's images have three."""
    return Trunk(classes, inputs=1)


def scripted(classes: int) -> Any:
    return torch.jit.script(Trunk(classes))


def compiled(classes: int) -> Any:
    """okdc compiles by itself where that pays."""
    return torch.compile(Trunk(classes))


def data_parallel(classes: int) -> nn.Module:
    return nn.DataParallel(Trunk(classes))


def half(classes: int) -> nn.Module:
    """All weights float16."""
    return Trunk(classes).half()


def two_arguments(classes: int, _width: int) -> nn.Module:
    """A factory that asks for more than the number of classes."""
    return Trunk(classes)


def no_arguments() -> nn.Module:
    return Trunk(10)


def other_classes(classes: int) -> nn.Module:
    """A head of its own size."""
    return Trunk(classes + 1)


def no_module(classes: int) -> Any:
    """A function in place of a network."""
    return Trunk(classes).forward


class _TwoInputs(Trunk):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x * mask)


def two_inputs(classes: int) -> nn.Module:
    return _TwoInputs(classes)


class _Raises(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError(f"expected another image than {tuple(x.shape)}")


def raising(classes: int) -> nn.Module:
    return _Raises(classes)


def tokens_only(classes: int) -> nn.Module:
    """A small vision transformer: patches at once, then tokens."""
    return _Patches(classes)


class _Patches(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, CHANNELS, 4, 4)
        self.encoder = nn.TransformerEncoderLayer(CHANNELS, 4, 128, batch_first=True)
        self.fc = nn.Linear(CHANNELS, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))
        return logits


class _Pairs(Trunk):
    """Needs an even number of images: it takes them in pairs."""

    def pool(self, x: Tensor) -> Tensor:
        pooled = super().pool(x).unflatten(0, (-1, 2))
        both: Tensor = (pooled + pooled.flip(1)).flatten(0, 1)
        return both


def in_pairs(classes: int) -> nn.Module:
    return _Pairs(classes)
