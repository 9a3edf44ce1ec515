"""Where randomness comes from: one stream for each purpose, derived from the recipe's seed and nothing else.

No global generator is ever read, so an extra evaluation, another device or a resumed run cannot shift anything.
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
def seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """Module constructors draw from the global generator: lend it to them, seeded, and give it back untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, *purpose))
        yield
