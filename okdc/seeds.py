"""Where randomness comes from: one stream for each purpose, derived from the recipe's seed and nothing else.

No global generator is read but as `seeded` lends it, so an extra evaluation or a resumed run cannot shift anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """64 bits for a purpose such as ("epoch", 3, "crop"). Not Python's hash, which differs between processes."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for the purpose: the same draws on every device and in every process."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


@contextmanager
def seeded(seed: int, *purpose: str | int, device: torch.device | None = None) -> Iterator[None]:
    """Module constructors and dropout draw from the global generators: lend them, seeded, and give them back untouched.

    They are the CPU's and, for a GPU as `device`, its own. No host waits for that.
    """
    gpus = []
    if device is not None and device.type == "cuda":
        gpus = [torch.cuda.current_device() if device.index is None else device.index]
    with torch.random.fork_rng(devices=gpus):
        number = derive(seed, *purpose)
        for drawing in (torch.default_generator, *(torch.cuda.default_generators[gpu] for gpu in gpus)):
            drawing.manual_seed(number)
        yield
