"""Batches of images: order, crop and flip of an epoch drawn from its number and a seed, normalised on the device.

This module makes the batches of resident images; `okdc.data.streaming` makes those of images in files. A CPU copies
rectangles of single images, which is several times faster than a gather; a GPU gathers a whole batch in one call
without a host read. Both give the same pixels (tested).

Shapes: B images of a batch, HWC pixels; `rows` are indices into the data set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from okdc.data.datasets import Dataset
from okdc.distributed import ALONE, Ranks
from okdc.recipe.schema import Data
from okdc.seeds import generator

EVAL_BATCH = 500  # images in every evaluation; a recorded accuracy depends on it, so parity uses it too
EVAL_PIXELS = 100 * 224 * 224  # in an evaluation's batch at most: the maps of 500 large images are gigabytes


def eval_batch(height: int, width: int) -> int:
    """The number of images of this size in an evaluation's batch."""
    return max(1, min(EVAL_BATCH, EVAL_PIXELS // (height * width)))


class Batches(Protocol):
    """Training batches as the loop reads them, of resident images or of files."""

    @property
    def dataset(self) -> Dataset: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def normalise(self) -> Normalise: ...
    @property
    def steps(self) -> int: ...
    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...
    def close(self) -> None: ...


class Normalise:
    """uint8 NHWC -> float32 NCHW, (x / 255 - mean) / std: the transform of training and of evaluation."""

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device)
        self.std = torch.tensor(std, dtype=torch.float32, device=device)
        self.memory_format = memory_format

    def __call__(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.mean.device, non_blocking=True)  # as bytes: a quarter of the transfer
        n, height, width, channels = pixels.shape
        # By whole rows of pixels: three channels at a time are five times slower on a CPU.
        rows = pixels.to(torch.float32, copy=True).reshape(n * height, width * channels)
        rows.div_(255).sub_(self.mean.repeat(width)).div_(self.std.repeat(width))
        return rows.view(pixels.shape).permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format)


@dataclass(frozen=True)
class Epoch:
    """The draws of one epoch: the order of the images, and the shift and mirroring of each. All on the CPU."""

    rows: Tensor  # N indices into the data set
    top: Tensor  # N, 0 .. 2·padding: the crop's corner in the padded image
    left: Tensor
    flip: Tensor  # N bool


def part_of_batch(step: int, batch_size: int, ranks: Ranks) -> slice:
    """The places of this process's images of a step in the order of the epoch. `batch_size` counts all processes."""
    part = batch_size // ranks.count
    start = step * batch_size + ranks.rank * part
    return slice(start, start + part)


def order(rows: Tensor, epoch: int, seed: int) -> Tensor:
    """The rows in the order of an epoch."""
    return rows[torch.randperm(len(rows), generator=generator(seed, "epoch", epoch, "order"))]


def draw(rows: Tensor, epoch: int, padding: int, flip: bool, seed: int) -> Epoch:
    """The draws of an epoch: a function of (seed, epoch) alone, so that any step can be repeated."""
    n = len(rows)
    corner = generator(seed, "epoch", epoch, "crop")
    mirrored = torch.rand(n, generator=generator(seed, "epoch", epoch, "flip")) < 0.5
    return Epoch(
        rows=order(rows, epoch, seed),
        top=torch.randint(2 * padding + 1, (n,), generator=corner),
        left=torch.randint(2 * padding + 1, (n,), generator=corner),
        flip=mirrored if flip else torch.zeros(n, dtype=torch.bool),
    )


@dataclass(frozen=True)
class TrainBatches:
    """Augmented, normalised training batches of one size. A partial last batch is dropped: it might be a single image.

    Each of several processes has its part of every batch; all parts together are the batch of a single process.
    """

    dataset: Dataset
    batch_size: int
    padding: int
    flip: bool
    normalise: Normalise
    seed: int
    ranks: Ranks = ALONE

    @property
    def steps(self) -> int:
        return len(self.dataset.train) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(images NCHW float32, labels N) from step `start` of the epoch on."""
        drawn = draw(self.dataset.train, epoch, self.padding, self.flip, self.seed)
        images = self.dataset.images
        device = images.device
        if device.type == "cpu":
            crop = _crop_by_slices
        else:  # one transfer an epoch
            drawn = Epoch(*(t.to(device, non_blocking=True) for t in (drawn.rows, drawn.top, drawn.left, drawn.flip)))
            crop = _crop_by_gather
        for step in range(start, self.steps):
            picked = part_of_batch(step, self.batch_size, self.ranks)
            batch = Epoch(drawn.rows[picked], drawn.top[picked], drawn.left[picked], drawn.flip[picked])
            yield self.normalise(crop(images, batch, self.padding)), self.dataset.labels[batch.rows]

    def close(self) -> None:
        """Nothing is open."""


def batches_of(
    dataset: Dataset,
    data: Data,
    batch_size: int,
    normalise: Normalise,
    seed: int,
    workers: int,
    ranks: Ranks = ALONE,
) -> Batches:
    """This process's training batches of a data set. Images in files are decoded by `workers` processes."""
    if dataset.files is not None:
        from okdc.data.streaming import StreamBatches  # torchvision takes seconds to import

        return StreamBatches(dataset, batch_size, data.flip, normalise, seed, workers, ranks)
    return TrainBatches(dataset, batch_size, data.crop_padding, data.flip, normalise, seed, ranks)


def _crop_by_slices(images: Tensor, batch: Epoch, padding: int) -> Tensor:
    """Copy the part of each image inside its crop; the rest of the crop is zero padding."""
    source = images.numpy()
    height, width = source.shape[1:3]
    out = np.zeros((len(batch.rows), height, width, 3), np.uint8)
    drawn = zip(batch.rows.tolist(), batch.top.tolist(), batch.left.tolist(), batch.flip.tolist(), strict=True)
    for i, (row, top, left, flip) in enumerate(drawn):
        y, x = top - padding, left - padding
        target = out[i, :, ::-1] if flip else out[i]
        target[max(-y, 0) : height - max(y, 0), max(-x, 0) : width - max(x, 0)] = source[
            row, max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)
        ]
    return torch.from_numpy(out)


def _crop_by_gather(images: Tensor, batch: Epoch, padding: int) -> Tensor:
    """The same pixels in one gather of padded images; mirroring reverses the order of the columns."""
    height, width = images.shape[1:3]
    padded = F.pad(images[batch.rows], (0, 0, padding, padding, padding, padding))
    across = torch.arange(width, device=images.device)
    columns = batch.left[:, None] + torch.where(batch.flip[:, None], width - 1 - across, across)
    rows = batch.top[:, None] + torch.arange(height, device=images.device)
    batch_index = torch.arange(len(batch.rows), device=images.device)
    return padded[batch_index[:, None, None], rows[:, :, None], columns[:, None, :]]


def eval_batches(
    dataset: Dataset, rows: Tensor, normalise: Normalise, batch_size: int, ranks: Ranks = ALONE
) -> Iterator[tuple[Tensor, Tensor]]:
    """`in_order`, with fewer images in a batch where they are large."""
    return in_order(dataset, rows, normalise, min(batch_size, eval_batch(*dataset.size[1:])), ranks)


def in_order(
    dataset: Dataset, rows: Tensor, normalise: Normalise, batch_size: int, ranks: Ranks = ALONE
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images NCHW float32, labels N) in the order of `rows`, the last batch partial.

    Several processes take the batches of a single process in turn. Raises DataError for a damaged file.
    """
    for picked in rows.split(batch_size)[ranks.rank :: ranks.count]:
        yield normalise(dataset.pixels(picked)), dataset.labels[picked.to(dataset.labels.device)]
