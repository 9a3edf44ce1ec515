"""The memory that a training's steps need, in bytes: counted, since a process on a CPU cannot tell what is a step's.

What the process has had at most is told beside it: kernels need room of their own, and freed memory stays with it.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from okdc.data.batches import in_order
from okdc.methods.base import Batch
from okdc.training.loop import Training

SMALL = (2, 4)  # images of the two passes from which those of a whole batch follow: maps grow with the batch


@dataclass(frozen=True)
class Memory:
    images: int  # resident ones, as uint8
    weights: int  # parameters and buffers, those that are discarded included, and their average
    gradients: int
    optimiser: int  # momenta
    maps: int  # what the forward pass of a batch keeps for the backward pass

    @property
    def whole(self) -> int:
        return sum(asdict(self).values())


def needed(training: Training) -> Memory:
    """Of a training that has taken steps of each of its parts: that of the part that needs the most."""
    each = []
    for first in training.job.changes:
        training.step.begin(first)
        each.append(_now(training))
    return max(each, key=lambda memory: memory.whole)


def _now(training: Training) -> Memory:
    """In the part that the training is in."""
    method, step = training.method, training.train_step
    weights = _bytes([*method.parameters(), *method.buffers()])
    states = (tensor for state in step.optimizer.state.values() for tensor in state.values())
    few, more = (_kept(training, images) for images in SMALL)
    of_image = max(0, more - few) / (SMALL[1] - SMALL[0])
    return Memory(
        images=training.dataset.images.nbytes if training.dataset.sender is None else 0,
        weights=weights if step.average is None else 2 * weights,
        gradients=_bytes(p for p in method.parameters() if p.requires_grad),
        optimiser=_bytes(tensor for tensor in states if isinstance(tensor, Tensor)),
        maps=round(few + of_image * (training.batches.batch_size - SMALL[0])),
    )


def peak(device: torch.device) -> int:
    """The most that this process has had so far: on a GPU its tensors, else its part of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())


def _kept(training: Training, images: int) -> int:
    """Bytes that the forward pass of so many images keeps, beside the weights."""
    method = training.method.train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in method.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows = training.dataset.train[:1].repeat(images)
    (batch,) = in_order(training.dataset, rows, training.normalise, images)
    with training.settings.autocast(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step = method(Batch(*batch), training.train_step.progress)
        loss = torch.stack(list(step.losses.values())).sum()
    del loss
    return sum(kept.values())
