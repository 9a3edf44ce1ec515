"""DenseNet for small images (Huang et al., 2017, sections 3 and 4.2): three dense blocks, two transitions between them.

The papers' "DenseNet-40-12" is the BC variant (0.18 M parameters), not the one without bottlenecks (1.02 M). Without
dropout. Transitions halve the map, so images have at least 4×4 pixels.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from okdc.backbones.parts import PoolLinear, he_fan_out
from okdc.cohort import Backbone
from okdc.errors import RecipeError


class DenseLayer(nn.Module):
    """BN-ReLU-conv 3×3 to `growth` channels, behind the input's own: C -> C + growth channels.

    With `bottleneck`, a BN-ReLU-conv 1×1 to 4·growth channels comes first.
    """

    def __init__(self, inputs: int, growth: int, bottleneck: bool) -> None:
        super().__init__()
        self.bn1: nn.Module = nn.Identity()
        self.conv1: nn.Module = nn.Identity()
        self.bottleneck = bottleneck
        if bottleneck:
            self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
            inputs = 4 * growth
        self.bn2 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x))) if self.bottleneck else x
        y = self.conv2(F.relu(self.bn2(y)))
        return torch.cat((x, y), 1)


class Transition(nn.Module):
    """BN-ReLU-conv 1×1, then the mean of each 2×2 pixels: the map is halved (an odd last row or column is dropped)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Raises RecipeError for a map of less than 2×2."""
        if min(x.shape[2:]) < 2:
            raise RecipeError(
                f"a map of {x.shape[2]}×{x.shape[3]} pixels cannot be halved; DenseNet takes images of 4×4 or more",
                hint="larger images: data.image_size",
            )
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


def densenet_bc(depth: int, growth: int, classes: int) -> Backbone:
    """DenseNet-BC: (depth - 4) / 6 bottleneck layers a block, compression 0.5, a stem of 2·growth channels.

    Raises ValueError for a depth that is not 6n+4.
    """
    n, rest = divmod(depth - 4, 6)
    if rest or n < 1:
        raise ValueError(f"a DenseNet-BC has 6n+4 layers (10, 16, ..., 40, ...), not {depth}")
    return _densenet(n, growth, 2 * growth, classes, bottleneck=True, compression=2)


def densenet(depth: int, growth: int, classes: int) -> Backbone:
    """DenseNet: (depth - 4) / 3 layers a block, no bottleneck, no compression, a stem of 16 channels.

    Raises ValueError for a depth that is not 3n+4.
    """
    n, rest = divmod(depth - 4, 3)
    if rest or n < 1:
        raise ValueError(f"a DenseNet has 3n+4 layers (7, 10, ..., 40, ...), not {depth}")
    return _densenet(n, growth, 16, classes, bottleneck=False, compression=1)


def _densenet(n: int, growth: int, stem: int, classes: int, bottleneck: bool, compression: int) -> Backbone:
    """Stages: stem, block 1 and its transition, block 2 and its transition, block 3 with the last BN-ReLU.

    Maps are tapped behind the transitions, as CMFF does: a block's own end has four times the pixels and, in the BC
    form, twice the channels. They are no residual sums and so not `raw`. Convolutions start as in the authors' code:
    `he_fan_out`.
    """
    stages: list[nn.Module] = [nn.Conv2d(3, stem, 3, 1, 1, bias=False)]
    channels = [stem]
    for block in range(3):
        inputs = channels[-1]
        width = inputs + n * growth
        layers: list[nn.Module] = [DenseLayer(inputs + i * growth, growth, bottleneck) for i in range(n)]
        if block < 2:
            layers.append(Transition(width, width // compression))
            channels.append(width // compression)
        else:
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            channels.append(width)
        stages.append(nn.Sequential(*layers))
    network = Backbone(stages, PoolLinear(channels[-1], classes), channels, (1, 2, 4, 4))
    he_fan_out(network)
    return network


# The networks that recipes name: each is called with the number of classes.
densenet40_12 = partial(densenet_bc, 40, 12)
densenet40_12_vanilla = partial(densenet, 40, 12)
