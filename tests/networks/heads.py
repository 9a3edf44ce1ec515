"""What makes logits of the pooled map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunk import CHANNELS, Trunk, block


class _Cosine(Trunk):
    """Angles between the pooled map and a prototype a class, times a trained scale."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc: nn.Linear = nn.Linear(CHANNELS, classes, bias=False)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.normalize(self.pool(self.features(x)), dim=1)
        prototypes = F.normalize(self.fc.weight, dim=1)
        return self.scale * F.linear(pooled, prototypes)


def cosine(classes: int) -> nn.Module:
    return _Cosine(classes)


class _Distances(Trunk):
    """The negative distance to a prototype a class."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc = nn.Identity()
        self.prototypes = nn.Parameter(torch.randn(classes, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(super().forward(x), self.prototypes)


def distances(classes: int) -> nn.Module:
    return _Distances(classes)


class _Bilinear(Trunk):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.pairs = nn.Bilinear(CHANNELS, CHANNELS, classes)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(self.features(x))
        logits: Tensor = self.fc(pooled) + self.pairs(pooled, pooled)
        return logits


def bilinear(classes: int) -> nn.Module:
    return _Bilinear(classes)


def hidden_layer(classes: int) -> nn.Module:
    """Two linear layers with BatchNorm1d and dropout."""
    network = Trunk(classes)
    hidden = (nn.Linear(CHANNELS, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.5))
    network.fc = nn.Sequential(nn.Dropout(0.5), *hidden, nn.Linear(256, classes))
    return network


def convolution_as_head(classes: int) -> nn.Module:
    """No linear layer: a 1×1 convolution to as many channels as classes, then the mean."""
    stages = (block(3, 16), block(16, 32, 2), block(32, CHANNELS, 2))
    return nn.Sequential(*stages, nn.Conv2d(CHANNELS, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class _LeNet(nn.Module):
    """LeCun's layers: two convolutions without padding, three linear layers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.c1, self.c3 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.c5, self.f6, self.out = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 84), nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        for convolution in (self.c1, self.c3):
            x = F.max_pool2d(torch.relu(convolution(x)), (2, 2))
        x = torch.flatten(x, 1)
        for layer in (self.c5, self.f6):
            x = torch.relu(layer(x))
        logits: Tensor = self.out(x)
        return logits


def lenet(classes: int) -> nn.Module:
    return _LeNet(classes)
