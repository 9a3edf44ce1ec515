"""The trunk with another normalisation."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunk import Norm, Trunk, block


def groupnorm(classes: int) -> nn.Module:
    return Trunk(classes, norm=partial(nn.GroupNorm, 4))


def groupnorm_sequential(classes: int) -> nn.Module:
    """One nn.Sequential from the images to the logits."""
    return _sequential(classes, partial(nn.GroupNorm, 4))


def leaky_sequential(classes: int) -> nn.Module:
    return _sequential(classes, nn.BatchNorm2d, negative_slope=0.1)


def _sequential(classes: int, norm: Norm, negative_slope: float = 0.0) -> nn.Module:
    act = partial(nn.LeakyReLU, negative_slope) if negative_slope else nn.ReLU
    stages = [block(3, 16, 1, act, norm), block(16, 32, 2, act, norm), block(32, 64, 2, act, norm)]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def instancenorm(classes: int) -> nn.Module:
    return Trunk(classes, norm=partial(nn.InstanceNorm2d, affine=True))


def instancenorm_running(classes: int) -> nn.Module:
    """With running statistics: per image in training, fixed in evaluation."""
    return Trunk(classes, norm=partial(nn.InstanceNorm2d, affine=True, track_running_stats=True))


def batchnorm_without_statistics(classes: int) -> nn.Module:
    """Normalises by the batch in evaluation too: an image's answer depends on its neighbours."""
    return Trunk(classes, norm=partial(nn.BatchNorm2d, track_running_stats=False))


def batchnorm_without_weights(classes: int) -> nn.Module:
    return Trunk(classes, norm=partial(nn.BatchNorm2d, affine=False))


def batchnorm_cumulative(classes: int) -> nn.Module:
    return Trunk(classes, norm=partial(nn.BatchNorm2d, momentum=None))


def sync_batchnorm(classes: int) -> nn.Module:
    """BatchNorm over the images of all processes, here of one."""
    return Trunk(classes, norm=nn.SyncBatchNorm)


def local_response(classes: int) -> nn.Module:
    return Trunk(classes, norm=lambda _: nn.LocalResponseNorm(5))


class _LayerNorm2d(nn.LayerNorm):
    """Over the channels of each place."""

    def forward(self, x: Tensor) -> Tensor:
        places = x.permute(0, 2, 3, 1)
        return F.layer_norm(places, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def layernorm2d(classes: int) -> nn.Module:
    return Trunk(classes, norm=_LayerNorm2d)


class _RMSNorm2d(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.movedim(1, -1))
        return normed.movedim(-1, 1)


def rmsnorm(classes: int) -> nn.Module:
    return Trunk(classes, norm=_RMSNorm2d)


class _OnImages(nn.Module):
    """BatchNorm of the images in front of the trunk."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.trunk = Trunk(classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.trunk(self.norm(x))
        return logits


def batchnorm_of_images(classes: int) -> nn.Module:
    return _OnImages(classes)


def dead_channels(classes: int) -> nn.Module:
    """A BatchNorm over channels that are always 0: a variance of 0 to divide by."""
    network = Trunk(classes)
    first = next(network.middle.parameters())
    first.data[:8] = 0
    return network


def outlier_channel(classes: int) -> nn.Module:
    """One channel a thousand times as large as the others: hard to quantise."""
    network = Trunk(classes)
    norm = next(m for m in network.last.modules() if isinstance(m, nn.BatchNorm2d))
    norm.weight.data[0] = 1000.0
    return network
