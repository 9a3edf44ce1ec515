"""ResNet for small images (He et al., 2016): three stages as in section 4.2, and ResNet-18 and -34 with a small stem.

Shortcuts that change the shape are 1×1 convolutions, as in the public code of FFL, whose parameter counts the papers'
baselines have; ResNet-56 and -110 use the same blocks (not the bottlenecks of the ONE and OKDDip code). Images of any
size: strides are those of padded convolutions, so that one pixel stays one pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from okdc.backbones.parts import PoolLinear, he_fan_out
from okdc.cohort import Backbone

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}  # He et al., 2016, Table 1


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, added to the input, then ReLU. Nothing in place: methods read every map later."""

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


def cifar_resnet(depth: int, classes: int, width: int = 16, added: int = 0) -> Backbone:
    """ResNet of `depth` 6n+2 whose stages have width, 2·width and 4·width channels. Raises ValueError otherwise.

    `added` blocks more are in the last stage. Convolutions start as FFL's code has them: `he_fan_out`.
    """
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1:
        raise ValueError(f"a CIFAR ResNet has 6n+2 layers (8, 14, 20, ...), not {depth}")
    return _resnet((n, n, n + added), width, classes)


def resnet(depth: int, classes: int, added: int = 0) -> Backbone:
    """ResNet-18 or -34 whose stem is one 3×3 convolution of stride 1 without pooling, as usual for 32×32 pixels.

    Stages of 64, 64, 128, 256 and 512 channels (the kuangliu/pytorch-cifar repository's); `added` blocks more are in
    the last. Convolutions start with `he_fan_out`, as torchvision's do. Raises ValueError for another depth: those have
    other blocks.
    """
    if depth not in BLOCKS:
        raise ValueError(f"a ResNet of basic blocks for small images has 18 or 34 layers, not {depth}")
    *blocks, last = BLOCKS[depth]
    return _resnet((*blocks, last + added), 64, classes)


def _resnet(blocks: Sequence[int], width: int, classes: int) -> Backbone:
    """Stem and a stage for each number in `blocks`; from the second on each halves the map and doubles the channels."""
    stages: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    ]
    channels, strides = [width], [1]
    for stage, count in enumerate(blocks):
        inputs, outputs = channels[-1], width * 2**stage
        first = BasicBlock(inputs, outputs, 2 if stage else 1)
        stages.append(nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(count - 1))))
        channels.append(outputs)
        strides.append(2**stage)
    network = Backbone(stages, PoolLinear(channels[-1], classes), channels, strides)
    he_fan_out(network)
    return network


# The networks that recipes name: each is called with the number of classes.
resnet8 = partial(cifar_resnet, 8)
resnet14 = partial(cifar_resnet, 14)
resnet20 = partial(cifar_resnet, 20)
resnet32 = partial(cifar_resnet, 32)
resnet56 = partial(cifar_resnet, 56)
resnet110 = partial(cifar_resnet, 110)
resnet18 = partial(resnet, 18)
resnet34 = partial(resnet, 34)
