"""What the processes of one training exchange within a step: batch statistics, as one process would have them, and
gradients.

torch.nn.SyncBatchNorm is not used for the first: it refuses a CPU, and on a GPU it drops processes without an image by
a mask, for which the host waits in every layer (github.com/pytorch/pytorch/issues/78549), and where a compiled step
breaks. Here no process is without one. Shapes: R processes, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.futures import Future
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from okdc.distributed import Ranks, gathered
from okdc.errors import DeviceError


class SyncedBatchNorm(_BatchNorm):
    """nn.BatchNorm whose training statistics are those of all processes. NC or NC×space, any device.

    Every process brings as many images: means of means are then the mean.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and distributed.is_initialized()):
            return super().forward(input)
        assert self.track_running_stats
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        over = [d for d in range(input.dim()) if d != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = input.float()
        own_var, own_mean = torch.var_mean(x, over, correction=0)
        means_RC, vars_RC = _gathered(torch.stack([own_mean, own_var])).unbind(1)
        mean = means_RC.mean(0)
        var = (vars_RC + (means_RC - mean).square()).mean(0)  # E[x²] - E[x]² loses the digits of a large mean
        with torch.no_grad():
            n = len(means_RC) * x.numel() // x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (n / max(n - 1, 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        normed: Tensor = (x - mean.view(shape)) * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed.to(input.dtype)


class _Gather(torch.autograd.Function):
    """R×… of what each process brings; the gradient of a part is what all processes have for it, summed."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:  # noqa: ARG004
        return gathered(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        (gradient,) = gradients
        whole = gradient.contiguous()
        distributed.all_reduce(whole)
        return whole[distributed.get_rank()]


def _gathered(own: Tensor) -> Tensor:
    parts: Tensor = _Gather.apply(own)
    return parts


def has_shared_buffers(method: nn.Module) -> bool:
    """Whether a step may read what an earlier one wrote into a buffer, so that all processes need the first one's.

    A step reads the running statistics of a normalisation where a backbone is fixed (`optim.freeze_epochs`): they are
    then those of its trained weights, the same in all processes. Relay's means read theirs while they teach, when they
    no longer change: the wrapper that is made for that part sends them once. So the wrapper need not send any buffer
    before each step. A checkpoint has the first process's statistics, and every process gets them before a validation.
    A whole number without axes counts steps, and is the same in every process.
    """
    statistics = {id(b) for m in method.modules() if isinstance(m, _NormBase) for b in m.buffers(recurse=False)}
    kept = method.state_dict(keep_vars=True).values()  # what no file keeps does not change
    return any(not isinstance(t, nn.Parameter) and id(t) not in statistics and not _counts(t) for t in kept)


def _counts(buffer: Any) -> bool:
    return isinstance(buffer, Tensor) and not buffer.ndim and not buffer.is_floating_point()


def convert(method: nn.Module) -> None:
    """Let every batch normalisation below `method` see all processes; weights, statistics and names stay.

    Raises DeviceError for a layer that is more than a batch normalisation.
    """
    norms = [m for m in method.modules() if isinstance(m, _BatchNorm)]
    other = sorted({type(m).__name__ for m in norms} - {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d"})
    if other:
        raise DeviceError(
            f"engine.sync_batchnorm: {', '.join(other)} does more than normalise, and would keep to its own process",
            hint="engine.sync_batchnorm=false",
        )
    synced = {id(norm): _like(norm) for norm in norms}  # a layer that two modules share stays one
    for owner in list(method.modules()):
        for name, inner in list(owner.named_children()):
            if id(inner) in synced:
                setattr(owner, name, synced[id(inner)])


def _like(norm: _BatchNorm) -> SyncedBatchNorm:
    """The same layer, synchronised, with the same tensors: an optimiser or a checkpoint sees no difference."""
    synced = SyncedBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    synced.weight, synced.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        setattr(synced, name, buffer)
    return synced.train(norm.training)


def mean_in_order(ranks: Ranks, bucket: Any) -> Future[Tensor]:
    """The mean of a bucket of gradients over the processes, each of them added in their order: a hook of the wrapper.

    Its own ring adds a gradient in an order that follows from its place in the bucket, and it moves the places after
    the first step of a start: three processes that went on were then off by a rounding (measured). Each process adds
    up its part of the bucket for all of them, which moves as many bytes as a ring does.
    """
    flat = bucket.buffer()
    part = -(-flat.numel() // ranks.count)
    sent = F.pad(flat, (0, part * ranks.count - flat.numel()))
    received = torch.empty_like(sent)
    distributed.all_to_all_single(received, sent)
    first, *others = received.view(ranks.count, part)
    for other in others:
        first += other
    distributed.all_gather(list(sent.view(ranks.count, part)), first / ranks.count)
    done: Future[Tensor] = Future()
    done.set_result(sent[: flat.numel()])
    return done
