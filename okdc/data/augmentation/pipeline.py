"""A batch's images and draws to normalised pixels, on the device where both are.

    crop and mirroring by whole pixels, or one bilinear resample  ->  colour  ->  normalisation

Nothing is rounded to whole numbers in between. Where only crop and mirroring are asked for, pixels stay bytes.

Shapes: B images of a batch, N of an epoch or a data set, HWC pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from okdc.data.augmentation import colour, crops, draws, geometry
from okdc.data.augmentation.draws import Draws
from okdc.recipe.schema import Augment
from okdc.seeds import generator

CACHED = 2**16  # pixels that a CPU changes at a time: their floats stay in its cache


class Normalising(Protocol):
    """What makes a network's input of pixels, on its device."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """B×H×W×3 uint8 -> B×3×H×W float32."""

    def planes(self, pixels: Tensor) -> Tensor:
        """B×3×H×W float32, 0..255 -> B×3×H×W float32. The given pixels may be overwritten."""


@dataclass(frozen=True)
class Augmentation:
    """The augmentation that a recipe's `[augment]` asks for."""

    keys: Augment = field(default_factory=Augment)

    @property
    def columns(self) -> tuple[str, ...]:
        """The numbers that are drawn for each image beside its crop and mirroring."""
        return geometry.columns(self.keys) + colour.columns(self.keys)

    def after_decoding(self) -> Augmentation | None:
        """What is left for images of files, whose crop `resized` a worker has taken and mirrored. None: nothing.

        Rotation and its kin then resample a second time, at the size of the training; the worker's reduction is
        antialiased, as no batch of full-size images could be.
        """
        nothing, keys = Augment(padding=0, flip=False), self.keys
        if keys.crop == "resized":
            done = ("crop", "padding", "scale", "ratio", "flip")
            keys = keys.model_copy(update={name: getattr(nothing, name) for name in done})
        return None if keys == nothing else Augmentation(keys)

    def draw(self, rows: Tensor, epoch: int, seed: int, size: Sequence[int]) -> Draws:
        """The draws of an epoch, on the CPU. `rows` are in its order, of images of this height and width."""
        height, width = size

        def stream(purpose: str) -> torch.Generator:
            return generator(seed, "epoch", epoch, purpose)

        usual = draws.usual(self.keys, rows, stream)
        columns = self.columns
        if not columns:
            return usual
        numbers = geometry.drawn(self.keys, usual, (height, width), stream) | colour.drawn(self.keys, len(rows), stream)
        return Draws(usual.table, torch.stack([numbers[name].float() for name in columns], 1))

    def of_batch(self, images: Tensor, batch: Draws, normalise: Normalising) -> Tensor:
        """The changed images of a batch, B×3×H×W float32, of `images`, N×H×W×3 uint8; all on one device."""
        if batch.numbers is None:
            return normalise(crops.crop(images, batch, self.keys.padding))
        if images.device.type != "cpu":
            return self._changed(images, batch, normalise)
        each = max(1, CACHED // (images.shape[1] * images.shape[2]))
        parts = [batch[start : start + each] for start in range(0, len(batch.table), each)]
        return torch.cat([self._changed(images, part, normalise) for part in parts])

    def _changed(self, images: Tensor, batch: Draws, normalise: Normalising) -> Tensor:
        assert batch.numbers is not None
        numbers = dict(zip(self.columns, batch.numbers.unbind(1), strict=True))
        if geometry.resamples(self.keys):
            planes = geometry.resampled(images[batch.rows], numbers)
        else:
            planes = crops.crop(images, batch, self.keys.padding).permute(0, 3, 1, 2).contiguous().float()
        return normalise.planes(colour.changed(planes, numbers))
