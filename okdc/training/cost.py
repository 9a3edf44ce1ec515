"""What a training step costs: its multiply-adds, forward and backward.

Equal epochs are not equal work: a step of two students with a fused classifier costs more than twice that of one
network. Torch's counter follows the method's own losses, so what a method detaches, freezes or runs twice counts as it
is. The tensors have sizes and no data: no device computes anything.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch

from okdc.methods.base import Batch, Method
from okdc.products import counted

META = torch.device("meta")


def step_macs(method: Method, images: int, epochs: int | None = None) -> int | None:
    """Multiply-adds of a step of so many images: of convolutions, linear layers and matrix products alone.

    The mean over the parts of a training, weighted by their lengths; with `epochs`, by their lengths in whole epochs.
    Augmentation and optimiser are not counted, nor the training of a teacher, whose forward pass is. `method` is as it
    was built, and is left as it is.

    None where it cannot be counted: an operator has no count, or a method from outside okdc reads numbers on the host.
    """
    starts = method.parts
    if epochs and method.by_epoch:
        starts = tuple(first / epochs for first in method.first_epochs(epochs))
    parts = part_macs(method, images, starts)
    if parts is None:
        return None
    ends = (*starts[1:], 1.0)
    return round(sum(macs * (end - start) for macs, start, end in zip(parts, starts, ends, strict=True)))


def part_macs(method: Method, images: int, starts: Sequence[float]) -> list[int] | None:
    """As `step_macs`, of a step in each of the parts that begin at these fractions of a training."""
    method = copy.deepcopy(method).to(META).train()
    first, *views = (torch.empty(images, *method.images, device=META) for _ in range(1 + method.views))
    batch = Batch(first, torch.empty(images, dtype=torch.int64, device=META), views=tuple(views))

    def learn(done: float) -> None:
        method.begin(done)
        step = method(batch, torch.full((), done, device=META))
        torch.stack(list(step.losses.values())).sum().backward()

    macs = []
    for start in starts:
        try:
            products = counted(partial(learn, start))
        except Exception:  # of a stranger's code, which may need data
            return None
        if products.uncounted:
            return None
        macs.append(products.macs)
    return macs
