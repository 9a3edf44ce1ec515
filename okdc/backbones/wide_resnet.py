"""Wide ResNet (Zagoruyko & Komodakis, 2016, section 2, Table 1): 6n+4 layers of pre-activation blocks, k times as wide.

No dropout: the knowledge distillation papers use none. Images of any size.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from okdc.backbones.parts import PoolLinear, he_fan_out
from okdc.cohort import Backbone


class PreActivationBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv, added to the input (He et al., 2016, "Identity mappings"). The sum is not normalised.

    Where channels change, the shortcut is a 1×1 convolution, without BN, of the input after its BN-ReLU.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Raises ValueError for a stride without a change of channels: the sum would not fit."""
        super().__init__()
        if stride != 1 and inputs == outputs:
            raise ValueError(f"a stride of {stride} needs other channels than {inputs} behind it")
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(y)
        change: Tensor = self.conv2(F.relu(self.bn2(self.conv1(y))))
        return kept + change


def wide_resnet(depth: int, k: int, classes: int, added: int = 0) -> Backbone:
    """WRN-`depth`-`k`: stages of 16, 16k, 32k and 64k channels. Raises ValueError unless `depth` is 6n+4.

    The first three maps are raw: the next block begins with the BN-ReLU that they lack. The last stage ends in its own.
    `added` blocks more are in the last stage. Convolutions start as the authors' code has them: `he_fan_out`.
    """
    n, rest = divmod(depth - 4, 6)
    if rest or n < 1:
        raise ValueError(f"a wide ResNet has 6n+4 layers (10, 16, 22, ...), not {depth}")
    if k < 1:
        raise ValueError(f"a wide ResNet is at least 1 times as wide as a plain one, not {k}")
    channels = (16, 16 * k, 32 * k, 64 * k)
    stages: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    for stage, (inputs, outputs) in enumerate(pairwise(channels)):
        blocks: list[nn.Module] = [PreActivationBlock(inputs, outputs, 2 if stage else 1)]
        blocks += [PreActivationBlock(outputs, outputs, 1) for _ in range(n - 1 + (added if stage == 2 else 0))]
        if stage == 2:
            blocks += [nn.BatchNorm2d(outputs), nn.ReLU()]
        stages.append(nn.Sequential(*blocks))
    network = Backbone(stages, PoolLinear(channels[-1], classes), channels, (1, 1, 2, 4), raw=(True, True, True, False))
    he_fan_out(network)
    return network


# The networks that recipes name: each is called with the number of classes.
wrn16_1 = partial(wide_resnet, 16, 1)
wrn16_2 = partial(wide_resnet, 16, 2)
wrn16_8 = partial(wide_resnet, 16, 8)
wrn40_2 = partial(wide_resnet, 40, 2)
