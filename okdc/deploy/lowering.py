"""A network rewritten for export into operators that ONNX has, with the same outputs.

Some things in a foreign network would become arithmetic on sizes, or have no form in ONNX: adaptive pooling to a size
that does not divide the map's (vgg at 64 pixels: 2×2 -> 7×7), distances, the mean slope of RReLU, writes under a mask,
`.data`, and a head whose pooling leaves the memory format of its input behind (convnext). Sizes are known, since the
file is for one image size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from okdc.blocks import MatrixPool
from okdc.cohort import Backbone
from okdc.errors import CheckFailed

Module = TypeVar("Module", bound=nn.Module)
Size = tuple[int, int]


class Contiguous(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous()


def in_float32(network: Module) -> Module:
    """The network with float32 parameters, changed in place.

    Where they are, nothing changes: a buffer of another type is part of what its author computes.
    """
    if all(p.dtype == torch.float32 for p in network.parameters() if p.is_floating_point()):
        return network
    return network.float()


def plain(network: Backbone) -> Backbone:
    """Rewrite `network`, a copy in eval mode, in place: what follows the last stage gets it in NCHW memory format."""
    network.head = nn.Sequential(Contiguous(), network.head)
    return network


class Rewritten(TorchFunctionMode):
    """Replaces, in what runs inside, the functions that have no plain form in ONNX.

    It is entered twice: for a pass over an example, in which the pooling matrices are made, and for the exporter's,
    which takes them for constants. Raises CheckFailed ("structure") for a forward under torch.autocast.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pools: dict[tuple[Size, Size], MatrixPool] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if torch.is_autocast_enabled("cpu"):
            raise CheckFailed(
                "structure",
                "the forward switches torch.autocast on: a file has no such switch, and its convolutions are float32",
                hint="leave torch.autocast out of the forward; the recipe's dtype says what training computes in",
            )
        rewrite = REWRITES.get(func)
        rewritten = rewrite(self, *args, **(kwargs or {})) if rewrite else NotImplemented
        return func(*args, **(kwargs or {})) if rewritten is NotImplemented else rewritten

    def average(self, x: Tensor, output_size: Any) -> Any:
        size, target = _sizes(x, output_size)
        if _divides(size, target):
            return NotImplemented
        if (size, target) not in self.pools:
            self.pools[size, target] = MatrixPool(size, target)
        return self.pools[size, target](x)

    def largest(self, x: Tensor, output_size: Any, return_indices: bool = False) -> Any:
        """Adaptive max pooling: the rows of each window, then the columns."""
        size, target = _sizes(x, output_size)
        if return_indices or _divides(size, target):
            return NotImplemented
        for axis, length, count in ((-2, size[0], target[0]), (-1, size[1], target[1])):
            windows = [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
            x = torch.cat([x.narrow(axis, start, end - start).amax(axis, True) for start, end in windows], axis)
        return x

    def distances(self, x: Tensor, y: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Any:
        del compute_mode
        if p != 2:
            return NotImplemented
        return (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1).sqrt()

    def mean_slope(
        self, x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
    ) -> Any:
        del inplace
        return NotImplemented if training else F.leaky_relu(x, (lower + upper) / 2)

    def masked(self, x: Tensor, key: Any, value: Any) -> Any:
        """`x[x < 0] = 0`: written into the places of a mask, not into as many places as values are."""
        if not isinstance(key, Tensor) or key.dtype != torch.bool or not isinstance(value, int | float):
            return NotImplemented
        x.masked_fill_(key[(..., *[None] * (x.ndim - key.ndim))], value)
        return None

    def without_gradient(self, x: Tensor) -> Tensor:
        """`x.data`, which the exporter takes for a constant."""
        return x.detach()


REWRITES: dict[Any, Callable[..., Any]] = {
    F.adaptive_avg_pool2d: Rewritten.average,
    F.adaptive_max_pool2d: Rewritten.largest,
    F.rrelu: Rewritten.mean_slope,
    torch.cdist: Rewritten.distances,
    Tensor.__setitem__: Rewritten.masked,
    Tensor.data.__get__: Rewritten.without_gradient,  # type: ignore[attr-defined]
}


def _sizes(x: Tensor, target: Any) -> tuple[Size, Size]:
    """The size of a map and the size that it is pooled to, where None keeps the map's."""
    height, width = int(x.shape[-2]), int(x.shape[-1])
    rows, columns = target if isinstance(target, tuple | list) else (target, target)
    return (height, width), (rows or height, columns or width)


def _divides(size: Size, target: Size) -> bool:
    return size[0] % target[0] == 0 and size[1] % target[1] == 0
