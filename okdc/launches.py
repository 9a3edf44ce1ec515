"""The same training step with fewer launches of kernels on a GPU.

A step of small images launches a thousand kernels of a few microseconds each, and the host takes as long to launch one.
Three kinds of them do the same to every layer, and are a launch or three for all layers here:

    Casts          weights to the type of autocast before the forward pass, their gradients back after the backward pass
    BatchCounts    num_batches_tracked of every batch normalisation
    blend          weights towards others: means of weights, their fusion, and weights that are put back

FEFR with two ResNet-32 in bfloat16, batch 128, has 170 parameters: 1,123 launches a step without this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---------------------------------------------------------------------------------------------------------------------
# Weights towards others


def blend(tensors: Sequence[Tensor], others: Sequence[Tensor], weight: Tensor) -> None:
    """tensor ← (1 - weight)·tensor + weight·other, in place, for all tensors alike. `weight` is 0-d, on their device.

    Exact at both ends: a finite tensor stays as it is with weight 0 and equals the other with weight 1. Called without
    gradients.
    """
    moved = torch._foreach_mul(list(others), weight)
    torch._foreach_mul_(list(tensors), 1 - weight)
    torch._foreach_add_(list(tensors), moved)


# ---------------------------------------------------------------------------------------------------------------------
# Weights in the type of autocast

Cast = tuple[Tensor, Tensor, Tensor | None]  # the parameter, and the copies of weight and bias of this step


class _CastConv2d(nn.Conv2d):
    cast: Cast | None = None

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = _cast_of(self)
        y: Tensor = self._conv_forward(input, weight, bias)
        return y


class _CastLinear(nn.Linear):
    cast: Cast | None = None

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = _cast_of(self)
        return F.linear(input, weight, bias)


def _cast_of(layer: Any) -> tuple[Tensor, Tensor | None]:
    """The copies of a layer's weight and bias; both themselves where torch.func.functional_call has put in others."""
    cast: Cast | None = layer.cast
    return cast[1:] if cast and cast[0] is layer.weight else (layer.weight, layer.bias)


CASTING: dict[type[nn.Module], Any] = {nn.Conv2d: _CastConv2d, nn.Linear: _CastLinear}


class _CastAll(torch.autograd.Function):
    """Copies of tensors in another type, by one launch for many; likewise their gradients. Strides stay."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.like = tensors
        ctx.set_materialize_grads(False)  # a layer that took no part has no gradient, and gets none
        return tuple(_copies(tensors, dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        taken = [(like, g) for like, g in zip(ctx.like, gradients, strict=True) if g is not None]
        copies = [torch.empty_like(like) for like, _ in taken]
        torch._foreach_copy_(copies, [g for _, g in taken])
        left = iter(copies)
        return None, *(None if g is None else next(left) for g in gradients)


def _copies(tensors: tuple[Tensor, ...] | list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, tensors)
    return copies


class Casts:
    """The convolutions and linear layers of a network whose parameters autocast would cast one by one.

    Weights, their names and what is computed are the same. A layer whose class is not torch's own, or whose weight is
    computed (a parametrisation, a hook), is left alone.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.layers: list[Any] = []
        for layer in network.modules():
            cast = CASTING.get(type(layer))
            if cast and isinstance(layer._parameters.get("weight"), nn.Parameter) and not _hooked(layer):
                layer.__class__ = cast
                self.layers.append(layer)
        named = [p for layer in self.layers for p in (layer.weight, layer.bias) if p is not None]
        self.parameters = list({id(p): p for p in named}.values())  # once each, where layers share one

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The layers take the copies of this step, inside the block alone."""
        trained = [p for p in self.parameters if p.requires_grad]
        frozen = [p for p in self.parameters if not p.requires_grad]  # whose copies want no gradient either
        copies = [*(_CastAll.apply(self.dtype, *trained) if trained else ()), *_copies(frozen, self.dtype)]
        by_id = dict(zip(map(id, (*trained, *frozen)), copies, strict=True))
        for layer in self.layers:
            bias = None if layer.bias is None else by_id[id(layer.bias)]
            layer.cast = layer.weight, by_id[id(layer.weight)], bias
        try:
            yield
        finally:
            for layer in self.layers:
                layer.cast = None


def _hooked(layer: nn.Module) -> bool:
    """Whether a hook may look at the layer, or change its weight before it runs."""
    return bool(layer._forward_pre_hooks)


# ---------------------------------------------------------------------------------------------------------------------
# num_batches_tracked


class _CountedLater:
    """Mixed into a batch normalisation: the training forward counts its calls on the host.

    Not those with the tensors of torch.func.functional_call, whose count is not the layer's.
    """

    calls = 0
    counted: tuple[Tensor, ...] = ()  # num_batches_tracked; in a tuple, or it would be a second buffer

    def forward(self: Any, input: Tensor) -> Tensor:
        if not self.training:
            normed: Tensor = super().forward(input)  # type: ignore[misc]
            return normed
        self._check_input_dim(input)
        self.calls += self.num_batches_tracked is self.counted[0]
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
        )


class _BatchNorm1d(_CountedLater, nn.BatchNorm1d):
    pass


class _BatchNorm2d(_CountedLater, nn.BatchNorm2d):
    pass


class _BatchNorm3d(_CountedLater, nn.BatchNorm3d):
    pass


LATER: dict[type[nn.Module], Any] = {
    nn.BatchNorm1d: _BatchNorm1d,
    nn.BatchNorm2d: _BatchNorm2d,
    nn.BatchNorm3d: _BatchNorm3d,
}


class BatchCounts:
    """The batch normalisations of a network whose batches are counted by one launch for all of them.

    Left alone: those without running statistics, those that average over all batches so far (momentum=None needs the
    number), and subclasses.
    """

    def __init__(self, network: nn.Module) -> None:
        self.layers: list[Any] = []
        for layer in network.modules():
            later = LATER.get(type(layer))
            if later and layer.num_batches_tracked is not None and layer.momentum is not None:
                layer.__class__ = later
                self.layers.append(layer)
                self.layers[-1].counted = (layer.num_batches_tracked,)

    def add(self) -> None:
        """Count what the layers have normalised since the last call."""
        called = [layer for layer in self.layers if layer.calls]
        counts = [layer.num_batches_tracked for layer in called]
        if counts:
            torch._foreach_add_(counts, [layer.calls for layer in called])
        self.forget()

    def forget(self) -> None:
        """Count nothing of what the layers have normalised since the last call."""
        for layer in self.layers:
            layer.calls = 0
