"""Batch statistics over the batch of all processes, as one process would have them.

On a GPU that is torch.nn.SyncBatchNorm, which refuses a CPU; there the same is written out, in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.nn import functional as collective
from torch.nn.modules.batchnorm import _BatchNorm

from okdc.errors import DeviceError


class SyncedBatchNorm(_BatchNorm):
    """nn.BatchNorm whose training statistics are those of all processes. NC or NC×space, any device.

    Every process brings as many images: means of means are then the mean.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and torch.distributed.is_initialized()):
            return super().forward(input)
        assert self.track_running_stats
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        over = [d for d in range(input.dim()) if d != 1]
        x = input.float()
        count = torch.distributed.get_world_size()
        mean = collective.all_reduce(x.mean(over)) / count
        shape = [1, -1] + [1] * (input.dim() - 2)
        centred = x - mean.view(shape)  # two passes: E[x²] - E[x]² loses the digits of a large mean
        var = collective.all_reduce(centred.square().mean(over)) / count
        with torch.no_grad():
            n = count * x.numel() // x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (n / max(n - 1, 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        normed: Tensor = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed.to(input.dtype)


def convert(method: nn.Module, device: str) -> None:
    """Let every batch normalisation below `method` see all processes; weights, statistics and names stay.

    Raises DeviceError for a layer that is more than a batch normalisation.
    """
    found = [m for m in method.modules() if isinstance(m, _BatchNorm)]
    other = sorted({type(m).__name__ for m in found} - {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d"})
    if other:
        raise DeviceError(
            f"engine.sync_batchnorm: {', '.join(other)} does more than normalise, and would keep to its own process",
            hint="engine.sync_batchnorm=false",
        )
    if device == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(method)
        return
    made = {id(norm): _like(norm) for norm in found}  # one that two owners share stays one
    for owner in list(method.modules()):
        for name, inner in list(owner.named_children()):
            if id(inner) in made:
                setattr(owner, name, made[id(inner)])


def _like(norm: _BatchNorm) -> SyncedBatchNorm:
    """With the same tensors."""
    made = SyncedBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    made.weight, made.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        setattr(made, name, buffer)
    return made.train(norm.training)
