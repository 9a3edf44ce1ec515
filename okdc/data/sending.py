"""Pixels from the host's memory to a GPU, a batch at a time, while the GPU works on the batches before.

The copy to the device runs on a stream of its own, from pinned memory: the host waits for no copy, and a copy waits
for no step. A buffer is written again when the device has read it, so the host is at most AHEAD batches ahead.
Where the system gives no pinned memory the buffers are ordinary memory: the host then waits for each copy.

Shapes: B images of a batch, HWC pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

AHEAD = 3  # buffers: two full batches are ready on the device while the host fills the next one


def buffer(count: int) -> Tensor:
    """`count` bytes of pinned memory, or of ordinary memory where there is none; `is_pinned()` tells them apart."""
    with torch.inference_mode(False):  # or a buffer of an evaluation could not be written in a training
        try:
            return torch.empty(count, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # cudaHostAlloc's error: RAM is short, or what a process may lock
            return torch.empty(count, dtype=torch.uint8)


@dataclass
class _Slot:
    """A buffer, and the place in the work of the device at which it has been read."""

    bytes: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    read: torch.cuda.Event = field(default_factory=torch.cuda.Event)


class Sender:
    """Copies batches of pixels to one GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies = torch.cuda.Stream(device)
        self._slots = [_Slot() for _ in range(AHEAD)]
        self._next = 0

    def filled(self, shape: tuple[int, ...], fill: Callable[[Tensor], object]) -> Tensor:
        """The uint8 pixels that `fill` writes into a tensor of this shape on the host: on the device."""
        slot, count = self._free(), torch.Size(shape).numel()
        if len(slot.bytes) < count:
            slot.bytes = buffer(count)
        pixels = slot.bytes[:count].view(shape)
        fill(pixels)
        return self._copied(pixels, slot)

    def send(self, pixels: Tensor) -> Tensor:
        """A copy on the device of pixels that torch's DataLoader has pinned. Nobody writes into them again."""
        return self._copied(pixels, self._free())

    def _free(self) -> _Slot:
        """The next slot, which the device has read."""
        slot = self._slots[self._next]
        self._next = (self._next + 1) % AHEAD
        if not slot.read.query():
            slot.read.synchronize()  # the device has AHEAD batches before it: it does not run dry meanwhile
        return slot

    def _copied(self, pixels: Tensor, slot: _Slot) -> Tensor:
        steps = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            sent = pixels.to(self.device, non_blocking=True)
        steps.wait_stream(self._copies)
        sent.record_stream(steps)  # its memory is the copies' again after what the steps do with it
        slot.read.record(steps)
        return sent
