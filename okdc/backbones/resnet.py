"""ResNet for small images (He et al., 2016, section 4.2): 6n+2 layers of two-convolution blocks in three stages.

Shortcuts that change the shape are 1×1 convolutions, as in the public code of FFL, whose parameter counts the papers'
baselines have; ResNet-56 and -110 use the same blocks (not the bottlenecks of the ONE and OKDDip code).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from okdc.cohort import Backbone


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, added to the input, then ReLU. Out of place: later modules may tap any map."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class PoolLinear(nn.Module):
    """Global average pooling and a linear classifier: NCHW -> NK."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def cifar_resnet(depth: int, classes: int, width: int = 16) -> Backbone:
    """ResNet of `depth` 6n+2 whose stages have width, 2·width and 4·width channels. Raises ValueError otherwise."""
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1:
        raise ValueError(f"a CIFAR ResNet has 6n+2 layers (8, 14, 20, ...), not {depth}")
    stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    stages: list[nn.Module] = [stem]
    inputs = width
    for stage in range(3):
        outputs = width * 2**stage
        blocks = [BasicBlock(inputs, outputs, 2 if stage else 1)]
        blocks += [BasicBlock(outputs, outputs, 1) for _ in range(n - 1)]
        stages.append(nn.Sequential(*blocks))
        inputs = outputs
    network = Backbone(stages, PoolLinear(inputs, classes), (width, width, 2 * width, 4 * width), (1, 1, 2, 4))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # He et al., 2015, as FFL's code does: deviation sqrt(2 / (k² · outputs))
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
