"""A batch's images and draws to normalised pixels, on the device where both are.

    crop and mirroring by whole pixels, or one bilinear resample
      ->  colour  ->  a policy's further operations  ->  blur  ->  normalisation  ->  erasing  ->  mixing

Nothing is rounded to whole numbers in between. Where only crop and mirroring are asked for, pixels stay bytes.

Shapes: B images of a batch, N of an epoch or a data set, HWC pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from okdc.data.augmentation import blur, colour, crops, draws, erasing, geometry, mixing, policy
from okdc.data.augmentation.draws import Draws
from okdc.recipe.schema import Augment
from okdc.seeds import generator

CACHED = 2**17  # pixels that a CPU changes at a time: their floats stay in its cache


class Normalising(Protocol):
    """What makes a network's input of pixels, on its device."""

    memory_format: torch.memory_format

    def __call__(self, pixels: Tensor) -> Tensor:
        """B×H×W×3 uint8 -> B×3×H×W float32."""

    def planes(self, pixels: Tensor) -> Tensor:
        """B×3×H×W float32, 0..255 -> B×3×H×W float32. The given pixels may be overwritten."""


class Examples(NamedTuple):
    """The images of a step and what they show, on the device.

    Where images were mixed, `mix` is the share of `labels`, at least a half, and 1 - `mix` that of `other_labels`.
    """

    images: Tensor  # B×3×H×W float32
    labels: Tensor  # B int64
    other_labels: Tensor | None = None  # B int64
    mix: Tensor | None = None  # B float32
    views: tuple[Tensor, ...] = ()  # B×3×H×W float32 each: further augmentations of the same images


@dataclass(frozen=True)
class Augmentation:
    """The augmentation that a recipe's `[augment]` asks for."""

    keys: Augment = field(default_factory=Augment)

    @property
    def columns(self) -> tuple[str, ...]:
        """The numbers that are drawn for each image beside its crop and mirroring."""
        keys = self.keys
        return (
            *geometry.columns(keys),
            *colour.columns(keys),
            *policy.columns(keys),
            *(("blur",) if keys.blur else ()),
            *(erasing.COLUMNS if keys.erasing else ()),
            *mixing.columns(keys),
        )

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

    @property
    def varies(self) -> bool:
        """Whether two views of an image may differ."""
        return self.keys.model_copy(update={"padding_mode": Augment().padding_mode}) != Augment(padding=0, flip=False)

    def views(self, rows: Tensor, epoch: int, seed: int, size: Sequence[int], further: int) -> list[Draws]:
        """The draws of an epoch for a first view of each image and so many further ones."""
        return [self.draw(rows, epoch, seed, size, view) for view in range(1 + further)]

    def draw(self, rows: Tensor, epoch: int, seed: int, size: Sequence[int], view: int = 0) -> Draws:
        """The draws of an epoch, on the CPU. `rows` are in its order, of images of this height and width."""
        height, width = size

        def stream(purpose: str) -> torch.Generator:
            return generator(seed, "epoch", epoch, *draws.of_view(view), purpose)

        usual = draws.usual(self.keys, rows, stream)
        columns = self.columns
        if not columns:
            return usual
        keys, n, images = self.keys, len(rows), (height, width)
        of_policy = policy.drawn(n, stream) if keys.policy == "trivial" else {}
        numbers = of_policy | geometry.drawn(keys, usual, images, stream, of_policy)
        numbers |= colour.drawn(keys, n, stream, of_policy)
        if keys.blur:
            numbers["blur"] = blur.drawn(n, keys.blur, stream)
        if keys.erasing:
            numbers |= erasing.drawn(n, keys.erasing, images, stream)
        if mixing.columns(keys):
            numbers |= mixing.drawn(keys, n, images, stream)
        return Draws(usual.table, torch.stack([numbers[name].float() for name in columns], 1))

    def of_batch(self, images: Tensor, batch: Draws, normalise: Normalising) -> Tensor:
        """The changed images of a batch, B×3×H×W float32, of `images`, N×H×W×3 uint8; all on one device."""
        if batch.numbers is None:
            return normalise(crops.crop(images, batch, self.keys.padding, self.keys.padding_mode))
        if images.device.type != "cpu":
            return self._changed(images, batch, normalise)
        n, height, width = len(batch.table), *images.shape[1:3]
        changed = torch.empty(n, 3, height, width).to(memory_format=normalise.memory_format)
        each = max(1, CACHED // (height * width))
        for start in range(0, n, each):
            part = slice(start, start + each)
            changed[part] = self._changed(images, batch[part], normalise)
        return changed

    def _changed(self, images: Tensor, batch: Draws, normalise: Normalising) -> Tensor:
        numbers = self._named(batch)
        if geometry.resamples(self.keys):
            planes = geometry.resampled(images[batch.rows], numbers)
        else:
            cropped = crops.crop(images, batch, self.keys.padding, self.keys.padding_mode)
            planes = cropped.permute(0, 3, 1, 2).contiguous().float()
        planes = colour.changed(planes, numbers)
        if self.keys.policy == "trivial":
            planes = policy.changed(planes, numbers)
        if "blur" in numbers:
            planes = policy.of_some(planes, numbers["blur"], 0, blur.blurred)
        changed = normalise.planes(planes)
        return erasing.erased(changed, numbers) if self.keys.erasing else changed

    def _named(self, batch: Draws) -> dict[str, Tensor]:
        assert batch.numbers is not None
        return dict(zip(self.columns, batch.numbers.unbind(1), strict=True))

    def examples(self, images: Tensor, batch: Draws, labels: Tensor, normalise: Normalising) -> Examples:
        """What a method learns from: `of_batch`, mixed where that is asked for, with all labels.

        Draws of further views follow those of the first, which are as many as the labels.
        """
        changed = self.of_batch(images, batch, normalise)
        if len(changed) > len(labels):
            return with_views(changed, labels)
        if not mixing.columns(self.keys):
            return Examples(changed, labels)
        mixed, other_labels, mix = mixing.mixed(changed, labels, self._named(batch))
        return Examples(mixed, labels, other_labels, mix)


def with_views(images: Tensor, labels: Tensor) -> Examples:
    """Examples of all views, which lie one after the other. No recipe may ask that further views are mixed."""
    first, *further = images.split(len(labels))
    return Examples(first, labels, views=tuple(further))
