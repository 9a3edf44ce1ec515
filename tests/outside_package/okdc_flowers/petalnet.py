"""A network as any PyTorch user writes one: okdc finds its stages by itself."""

from __future__ import annotations

from torch import Tensor, nn


class Petal(nn.Module):
    """conv-BN-ReLU that halves the map, with a second convolution of the same size behind it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.halve = nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
        self.refine = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        """NCHW -> N, outputs, H/2, W/2."""
        out: Tensor = self.refine(self.halve(x))
        return out


class PetalNet(nn.Module):
    """Three petals, the mean of each channel, and a linear classifier: NCHW images -> NK logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.petals = nn.Sequential(Petal(3, 8), Petal(8, 16), Petal(16, 32))
        self.classifier = nn.Linear(32, classes)

    def forward(self, images: Tensor) -> Tensor:
        """NCHW images -> NK logits."""
        logits: Tensor = self.classifier(self.petals(images).mean((2, 3)))
        return logits


def petalnet(classes: int) -> nn.Module:
    """A freshly initialised PetalNet with `classes` outputs."""
    return PetalNet(classes)
