"""What a forward hands back, other than logits alone."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunk import CHANNELS, Trunk


class _Auxiliary(Trunk):
    """A second head in the middle, which answers in training."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.early = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Any:
        middle = self.middle(self.stem(x))
        logits = self.fc(self.pool(self.last(middle)))
        return (logits, self.early(self.pool(middle))) if self.training else logits


def auxiliary_head(classes: int) -> nn.Module:
    return _Auxiliary(classes)


class _TwoAuxiliaries(Trunk):
    """As googlenet of torchvision: heads that are called in training alone, and stand apart from the path."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.aux1 = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.7), nn.Linear(16, classes))
        self.aux2 = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.7), nn.Linear(32, classes))

    def forward(self, x: Tensor) -> Any:
        stem = self.stem(x)
        first = self.aux1(stem) if self.training else None
        middle = self.middle(stem)
        second = self.aux2(middle) if self.training else None
        logits = self.fc(self.pool(self.last(middle)))
        return [logits, second, first] if self.training else logits


def two_auxiliary_heads(classes: int) -> nn.Module:
    return _TwoAuxiliaries(classes)


class _Tuple(Trunk):
    def forward(self, x: Tensor) -> Any:
        map_ = self.features(x)
        return self.fc(self.pool(map_)), map_


def tuple_with_map(classes: int) -> nn.Module:
    """Logits first, the last map beside them, in either mode."""
    return _Tuple(classes)


class _Dict(Trunk):
    def forward(self, x: Tensor) -> Any:
        return {"logits": super().forward(x)}


def dict_of_logits(classes: int) -> nn.Module:
    return _Dict(classes)


class _Softmax(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(super().forward(x), dim=1)


def softmax(classes: int) -> nn.Module:
    """Probabilities: the loss of logits takes a second softmax."""
    return _Softmax(classes)


class _LogSoftmax(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).log_softmax(dim=1)


def log_softmax(classes: int) -> nn.Module:
    return _LogSoftmax(classes)


class _Chopped(Trunk):
    """More logits than classes; the first of them are handed back."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc = nn.Linear(CHANNELS, classes + 6)
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, : self.classes]


def first_logits(classes: int) -> nn.Module:
    return _Chopped(classes)
