"""The draws of an epoch, from which its augmentation follows.

Every draw is a function of the seed, the epoch and the image's place in it alone, so that any step can be repeated, by
any number of processes. Each key of `[augment]` draws from a stream of its own: turning one off changes no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from okdc.recipe.schema import Augment
from okdc.seeds import generator

Stream = Callable[[str], torch.Generator]  # the generator of an epoch for a purpose


@dataclass(frozen=True)
class Draws:
    """The draws of one epoch, or of a batch of it: the order of the images, the shift and mirroring of each, and more.

    All of the usual draws are in one tensor: one transfer an epoch, one copy a batch.
    """

    table: Tensor  # N×4 int64
    numbers: Tensor | None = None  # N×P float32, what the further operations take; None where there are none

    @classmethod
    def of(cls, rows: Tensor, top: Tensor, left: Tensor, flip: Tensor, vertical_flip: Tensor | None = None) -> Draws:
        flips = flip.long() if vertical_flip is None else flip.long() + 2 * vertical_flip.long()
        return cls(torch.stack([rows, top, left, flips], 1))

    @property
    def rows(self) -> Tensor:
        """N indices into the data set."""
        return self.table[:, 0]

    @property
    def top(self) -> Tensor:
        """N, 0 .. 2·padding: where the crop begins in the padded image."""
        return self.table[:, 1]

    @property
    def left(self) -> Tensor:
        """N, 0 .. 2·padding."""
        return self.table[:, 2]

    @property
    def flip(self) -> Tensor:
        """N bool: whether the image is mirrored."""
        return (self.table[:, 3] & 1).bool()

    @property
    def vertical_flip(self) -> Tensor:
        """N bool: whether the image is turned upside down in a mirror."""
        return (self.table[:, 3] & 2).bool()

    def tensors(self) -> tuple[Tensor, ...]:
        """What `Draws(*tensors)` takes."""
        return (self.table,) if self.numbers is None else (self.table, self.numbers)

    def of_own_rows(self, images: int) -> Draws:
        """The same of so many images that lie in the order of the draws, which begins anew with each further view."""
        return self.of_rows(torch.arange(len(self.table), device=self.table.device) % images)

    def of_rows(self, rows: Tensor) -> Draws:
        """The same of images that lie in other rows."""
        return Draws(torch.cat([rows[:, None], self.table[:, 1:]], 1), self.numbers)

    def to(self, device: torch.device) -> Draws:
        return Draws(*(tensor.to(device, non_blocking=True) for tensor in self.tensors()))

    def __getitem__(self, part: slice) -> Draws:
        return Draws(*(tensor[part] for tensor in self.tensors()))

    @classmethod
    def joined(cls, parts: Sequence[Draws]) -> Draws:
        """One after the other."""
        if len(parts) == 1:  # of all but a few methods: nothing is copied
            return parts[0]
        return cls(*map(torch.cat, zip(*(part.tensors() for part in parts), strict=True)))


def of_view(view: int) -> tuple[str | int, ...]:
    """What tells the draws of a further view of the images from those of the first, which a run has in any case."""
    return ("view", view) if view else ()


def order(rows: Tensor, epoch: int, seed: int) -> Tensor:
    """The rows in the order of an epoch."""
    return rows[torch.randperm(len(rows), generator=generator(seed, "epoch", epoch, "order"))]


def usual(keys: Augment, rows: Tensor, stream: Stream) -> Draws:
    """Shift and mirroring of each of the `rows`, which are in their order."""
    n, corner = len(rows), stream("crop")
    padding = keys.padding if keys.crop == "pad" else 0
    return Draws.of(
        rows=rows,
        top=torch.randint(2 * padding + 1, (n,), generator=corner),
        left=torch.randint(2 * padding + 1, (n,), generator=corner),
        flip=_half(n, keys.flip, stream("flip")),
        vertical_flip=_half(n, keys.vertical_flip, stream("vertical_flip")),
    )


def _half(n: int, wanted: bool, stream: torch.Generator) -> Tensor:
    """N bool, half of them true; all false where it is not wanted."""
    half = torch.rand(n, generator=stream) < 0.5
    return half if wanted else torch.zeros(n, dtype=torch.bool)


def uniform(n: int, low: float, high: float, stream: torch.Generator) -> Tensor:
    """N float64 between two bounds."""
    return low + (high - low) * torch.rand(n, generator=stream, dtype=torch.float64)


def chosen(n: int, probability: float, stream: torch.Generator) -> Tensor:
    """N bool, each true with this probability."""
    return torch.rand(n, generator=stream) < probability
