"""A network rewritten for export into operators that every runtime has, with the same outputs.

Two things in a foreign network would become arithmetic on sizes: adaptive pooling to a size that does not
divide the map's (vgg at 64 pixels: 2×2 -> 7×7), and a head whose pooling leaves the memory format of its input behind
(convnext). Sizes are known, since the file is for one image size.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from okdc.blocks import MatrixPool
from okdc.cohort import Backbone

Module = TypeVar("Module", bound=nn.Module)


class Contiguous(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous()


def in_float32(network: Module) -> Module:
    """The network with float32 parameters, changed in place.

    Where they are, nothing changes: a buffer of another type is part of what its author computes.
    """
    parameters = list(network.parameters())
    if all(p.dtype == torch.float32 for p in parameters if p.is_floating_point()):
        return network
    return network.float()


@torch.no_grad()
def plain(network: Backbone, example: Tensor) -> Backbone:
    """Rewrite `network`, a copy in eval mode, in place. `example` is a batch of its inputs."""
    seen: dict[nn.Module, tuple[int, int]] = {}

    def remember(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[module] = (inputs[0].shape[-2], inputs[0].shape[-1])

    pools = {name: module for name, module in network.named_modules() if isinstance(module, nn.AdaptiveAvgPool2d)}
    hooks = [module.register_forward_pre_hook(remember) for module in pools.values()]
    network(example)
    for hook in hooks:
        hook.remove()
    for name, module in pools.items():
        if module not in seen:  # nothing reads it
            continue
        height, width = seen[module]
        sizes = module.output_size if isinstance(module.output_size, tuple) else (module.output_size,) * 2
        rows, columns = sizes[0] or height, sizes[1] or width  # None keeps the map's
        if height % rows or width % columns:
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, MatrixPool((height, width), (rows, columns)))
    network.head = nn.Sequential(Contiguous(), network.head)
    return network
