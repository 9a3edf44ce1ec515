"""Weights that are shared, tied, computed from others, frozen or not there yet."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from networks.trunk import CHANNELS, After, Trunk, block


class _Recurrent(nn.Module):
    """One convolution, three times in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + self.step(x).relu()
        return x


def applied_thrice(classes: int) -> nn.Module:
    return After(classes, _Recurrent())


class _InTwoStages(Trunk):
    """One block at two resolutions."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.shared = block(32, 32)
        self.last = nn.Conv2d(32, CHANNELS, 1)

    def features(self, x: Tensor) -> Tensor:
        x = self.shared(self.middle(self.stem(x)))
        map_: Tensor = self.last(self.shared(F.max_pool2d(x, 2)))
        return map_


def in_two_stages(classes: int) -> nn.Module:
    return _InTwoStages(classes)


def tied(classes: int) -> nn.Module:
    """Two convolutions whose weight is the same tensor."""
    first, second = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2))
    second.weight = first.weight
    return After(classes, nn.Sequential(first, nn.ReLU(), second, nn.ReLU()))


def weight_norm(classes: int) -> nn.Module:
    network = Trunk(classes)
    network.fc = parametrizations.weight_norm(nn.Linear(CHANNELS, classes))
    return network


def weight_norm_by_hook(classes: int) -> nn.Module:
    """The older function: a forward pre-hook computes the weight."""
    network = Trunk(classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that it will go
        network.fc = nn.utils.weight_norm(nn.Linear(CHANNELS, classes))
    return network


def spectral_norm(classes: int) -> nn.Module:
    """Its vectors move at every forward in training."""
    network = Trunk(classes)
    convolution = parametrizations.spectral_norm(nn.Conv2d(16, 32, 3, 2, 1, bias=False))
    network.middle = nn.Sequential(convolution, nn.BatchNorm2d(32), nn.ReLU())
    return network


class _Standardised(nn.Conv2d):
    """A convolution whose kernels are standardised at every forward."""

    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (deviation + 1e-5), self.bias, self.stride, self.padding)


def weight_standardisation(classes: int) -> nn.Module:
    network = Trunk(classes)
    network.stem = nn.Sequential(_Standardised(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU())
    network.middle = nn.Sequential(_Standardised(16, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.ReLU())
    return network


def pruned(classes: int) -> nn.Module:
    """Half of a convolution's weights held at 0 by a mask."""
    convolution = nn.Conv2d(16, 32, 3, 2, 1, bias=False)
    network = Trunk(classes)
    network.middle = nn.Sequential(convolution, nn.BatchNorm2d(32), nn.ReLU())
    prune.l1_unstructured(convolution, "weight", 0.5)
    return network


def frozen_stem(classes: int) -> nn.Module:
    network = Trunk(classes)
    network.stem.requires_grad_(False)
    return network


def frozen_but_head(classes: int) -> nn.Module:
    network = Trunk(classes).requires_grad_(False)
    network.fc.requires_grad_(True)
    return network


def unused_head(classes: int) -> nn.Module:
    """A layer that the forward never calls, left of a pretraining."""
    network = Trunk(classes)
    network.pretrained_head = nn.Linear(CHANNELS, 1000)
    return network


def lazy(classes: int) -> nn.Module:
    """Layers that take their sizes from the first images."""
    layers: list[nn.Module] = [nn.LazyConv2d(16, 3, padding=1), nn.LazyBatchNorm2d(), nn.ReLU()]
    for channels in (32, CHANNELS):
        layers += [nn.LazyConv2d(channels, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(classes))


class _DetachedWeights(nn.Module):
    """`.data` in the forward: the values of a parameter without its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale[:, None, None] + x.data * self.scale.data[:, None, None]


def data_in_forward(classes: int) -> nn.Module:
    return After(classes, _DetachedWeights())
