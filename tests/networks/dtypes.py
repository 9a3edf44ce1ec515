"""Networks that change the type of what they compute with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from networks.trunk import Trunk


class _Float(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def float_of_images(classes: int) -> nn.Module:
    """`x.float()` in front: nothing for float32 images."""
    return _Float(classes)


class _DoubleBuffer(Trunk):
    scale: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x * self.scale).to(torch.float32))


def double_buffer(classes: int) -> nn.Module:
    return _DoubleBuffer(classes)


class _Half(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(torch.float16).to(torch.float32))


def half_and_back(classes: int) -> nn.Module:
    """Pixels rounded to eleven bits."""
    return _Half(classes)


class _Autocast(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            logits = super().forward(x)
        return logits.float()


def autocast(classes: int) -> nn.Module:
    """An autocast of the network's own."""
    return _Autocast(classes)


def double_network(classes: int) -> nn.Module:
    """All weights float64: it takes no float32 images."""
    return Trunk(classes).double()


def channels_last(classes: int) -> nn.Module:
    return Trunk(classes).to(memory_format=torch.channels_last)
