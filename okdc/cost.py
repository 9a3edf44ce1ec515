"""What one image costs a network, by torch's own counter: cheap enough for the end of every run.

`okdc.deploy.count` is the thorough form, which checks this number against fvcore's.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def macs(module: nn.Module, *inputs: torch.Tensor) -> int:
    """Multiply-adds of convolutions and linear layers. `module` is in eval mode: training would move its statistics."""
    assert not module.training
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    total: int = counter.get_total_flops()
    return total // 2
