"""The plain convolutional network that most kinds vary in one place."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Layer = Callable[[], nn.Module]
Norm = Callable[[int], nn.Module]

CHANNELS = 64  # of the last map


def block(inputs: int, outputs: int, stride: int = 1, act: Layer = nn.ReLU, norm: Norm = nn.BatchNorm2d) -> nn.Module:
    """Convolution, norm, activation."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, norm(outputs), act())


class Trunk(nn.Module):
    """Three stages of 16, 32 and 64 channels, a mean over the last map, one linear layer: N3HW -> NK.

    A kind overrides the method that it is about: `features`, `pool` or `forward`.
    """

    def __init__(self, classes: int, act: Layer = nn.ReLU, norm: Norm = nn.BatchNorm2d, inputs: int = 3) -> None:
        super().__init__()
        self.stem = block(inputs, 16, 1, act, norm)
        self.middle = block(16, 32, 2, act, norm)
        self.last = block(32, CHANNELS, 2, act, norm)
        self.fc: nn.Module = nn.Linear(CHANNELS, classes)

    def features(self, x: Tensor) -> Tensor:
        """The last map, N×64×H/4×W/4."""
        map_: Tensor = self.last(self.middle(self.stem(x)))
        return map_

    def pool(self, x: Tensor) -> Tensor:
        """The last map as one vector an image."""
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.pool(self.features(x)))
        return logits


class After(Trunk):
    """A trunk with one more module behind its last map, which keeps the 64 channels."""

    def __init__(self, classes: int, extra: nn.Module) -> None:
        super().__init__(classes)
        self.extra = extra

    def features(self, x: Tensor) -> Tensor:
        map_: Tensor = self.extra(super().features(x))
        return map_


def plain(classes: int) -> nn.Module:
    """The trunk as it is."""
    return Trunk(classes)
