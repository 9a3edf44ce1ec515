"""Where the images of a training lie: on its device, or in the host's memory, where they are too large for a GPU.

The rule: resident images take at most half of the GPU's memory that is free once the networks are there. The other
half is for gradients, the optimiser and the maps of a batch. Batches are the same to the bit wherever the images lie,
so a run may be resumed on a GPU of another size.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from okdc.data.batches import eval_batch
from okdc.data.datasets import Dataset
from okdc.data.sending import Sender, buffer


def place(dataset: Dataset, device: torch.device) -> tuple[Dataset, str]:
    """The data set as its batches are drawn for `device`, and where its images lie in words; nothing for a CPU."""
    if device.type != "cuda":
        return dataset.to(device), ""
    free, size = free_bytes(device), dataset.images.nbytes
    if dataset.files is None and fits(size, free):
        return dataset.to(device), f"images on the GPU: {_size(size)} of {_size(free)} free"
    placed = replace(dataset, labels=dataset.labels.to(device), sender=Sender(device))
    if dataset.files is not None:
        where = "images in files"
    else:
        where = f"images in the host's memory: {_size(size)} are more than half of {_size(free)} free on the GPU"
    channels, height, width = dataset.size
    if buffer(eval_batch(height, width) * height * width * channels).is_pinned():
        return placed, f"{where}; sent batch by batch from pinned memory"
    return placed, f"{where}; sent batch by batch, and the host waits for each: the system gives no pinned memory"


def fits(size: int, free: int) -> bool:
    """Whether images of `size` bytes may move to a GPU that has `free` bytes left."""
    return 2 * size <= free


def free_bytes(device: torch.device) -> int:
    """What a training can still take of a GPU's memory: what is free, and what torch keeps of it for reuse."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _size(count: int) -> str:
    value, unit = (count / 1e6, "MB") if count < 1e9 else (count / 1e9, "GB")
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:,.1f} {unit}"
