"""MobileNetV2 (Sandler et al., 2018) in the form for small images of github.com/kuangliu/pytorch-cifar.

It differs from the paper's: ReLU in place of ReLU6; stride 1 in the stem and where 24 channels begin; the first block
has its expansion layer too; a shortcut wherever the stride is 1 (a 1×1 convolution with BN where channels differ).
Images of any size.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from okdc.backbones.parts import PoolLinear, he_fan_out
from okdc.cohort import Backbone

STEM, LAST = 32, 1280
# Expansion, output channels, blocks, stride of the first block: Table 2 but for the stride of its 24 channels.
ROWS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
CUTS = (0, 6, 13, 17)  # blocks 0 to 5, 6 to 12 and 13 to 16: a stage each, with one halving each


class InvertedResidual(nn.Module):
    """1×1 conv to expansion · inputs channels, 3×3 depthwise conv, 1×1 conv to `outputs`: linear (BN, no ReLU)."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = expansion * inputs
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module | None = None
        if stride == 1:
            self.shortcut = nn.Identity()
            if inputs != outputs:
                self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        out: Tensor = self.bn3(self.conv3(y))
        return out if self.shortcut is None else out + self.shortcut(x)


class WidePoolLinear(PoolLinear):
    """1×1 conv-BN-ReLU to `width` channels, global average pooling, a linear classifier: NCHW -> NK."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__(width, classes)
        self.conv = nn.Conv2d(channels, width, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu(self.bn(self.conv(x))))


def mobilenetv2(classes: int) -> Backbone:
    """Stages of 32, 32, 96, 320 channels at 1, 1/2, 1/4, 1/8 of the size; all but the stem end linear (may be < 0).

    The expansion to 1280 channels belongs to the head, so that a fused map has 320.
    Convolutions start with `he_fan_out`, as torchvision's MobileNetV2 does (kuangliu's start as PyTorch makes them).
    """
    blocks: list[nn.Module] = []
    inputs = STEM
    for expansion, outputs, count, stride in ROWS:
        for i in range(count):
            blocks.append(InvertedResidual(inputs, outputs, expansion, 1 if i else stride))
            inputs = outputs
    stages: list[nn.Module] = [nn.Sequential(nn.Conv2d(3, STEM, 3, 1, 1, bias=False), nn.BatchNorm2d(STEM), nn.ReLU())]
    stages += [nn.Sequential(*blocks[a:b]) for a, b in pairwise(CUTS)]
    network = Backbone(stages, WidePoolLinear(inputs, LAST, classes), (STEM, 32, 96, inputs), (1, 2, 4, 8))
    he_fan_out(network)
    return network
