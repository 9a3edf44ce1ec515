"""The trunk with another activation."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from networks.trunk import After, Trunk


def silu(classes: int) -> nn.Module:
    return Trunk(classes, act=nn.SiLU)


def hardswish(classes: int) -> nn.Module:
    return Trunk(classes, act=nn.Hardswish)


def hardsigmoid(classes: int) -> nn.Module:
    return Trunk(classes, act=nn.Hardsigmoid)


def mish(classes: int) -> nn.Module:
    return Trunk(classes, act=nn.Mish)


def gelu(classes: int) -> nn.Module:
    return Trunk(classes, act=nn.GELU)


def gelu_tanh(classes: int) -> nn.Module:
    return Trunk(classes, act=partial(nn.GELU, approximate="tanh"))


def elu(classes: int) -> nn.Module:
    return Trunk(classes, act=nn.ELU)


def celu(classes: int) -> nn.Module:
    return Trunk(classes, act=partial(nn.CELU, alpha=0.5))


def selu(classes: int) -> nn.Module:
    return Trunk(classes, act=nn.SELU)


def prelu(classes: int) -> nn.Module:
    return Trunk(classes, act=nn.PReLU)


def rrelu(classes: int) -> nn.Module:
    """Random slopes in training, their mean in evaluation."""
    return Trunk(classes, act=nn.RReLU)


def relu6(classes: int) -> nn.Module:
    return Trunk(classes, act=nn.ReLU6)


def hardtanh(classes: int) -> nn.Module:
    return Trunk(classes, act=partial(nn.Hardtanh, 0.0, 1.0))


def softplus(classes: int) -> nn.Module:
    return Trunk(classes, act=nn.Softplus)


def leaky(classes: int) -> nn.Module:
    return Trunk(classes, act=partial(nn.LeakyReLU, 0.1))


def threshold(classes: int) -> nn.Module:
    return Trunk(classes, act=partial(nn.Threshold, 0.1, 0.0))


def tanhshrink(classes: int) -> nn.Module:
    return Trunk(classes, act=nn.Tanhshrink)


class _Sign(torch.autograd.Function):
    """The sign, with the gradient of the identity."""

    @staticmethod
    def forward(_: object, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        return gradient


class _Binarised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        signs: Tensor = _Sign.apply(x - 0.5)
        return signs


def binary(classes: int) -> nn.Module:
    """An autograd.Function of the user's: features of -1 and 1."""
    return After(classes, _Binarised())
