"""Batches of resident images, normalised on the device; `okdc.data.streaming` makes those of images in files.

Shapes: B images of a batch, HWC pixels; `rows` are indices into the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from okdc.data import balance
from okdc.data.augmentation import Augmentation, Draws, Examples, order
from okdc.data.datasets import Dataset
from okdc.distributed import ALONE, Ranks

EVAL_BATCH = 500  # images in every evaluation; a recorded accuracy depends on it, so parity uses it too
EVAL_PIXELS = 20 * 224 * 224  # in an evaluation's batch at most: an image of 224 pixels has maps of 10 MB and more


def eval_batch(height: int, width: int) -> int:
    """The number of images of this size in an evaluation's batch."""
    return max(1, min(EVAL_BATCH, EVAL_PIXELS // (height * width)))


Drawn = tuple[Tensor, ...]  # what a batch is made of


class Source(Protocol):
    """Where batches come from: what the host draws, and what the device makes of it, which a CUDA graph may hold."""

    def drawn(self, epoch: int, start: int = 0) -> Iterator[Drawn]: ...
    def made(self, *drawn: Tensor) -> Examples: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Examples]:
        """The examples of each step, on the device, from step `start` of the epoch on. Raises as `drawn`."""
        return (self.made(*drawn) for drawn in self.drawn(epoch, start))


class Batches(Source, Protocol):
    """Training batches as the loop reads them, of resident images or of files."""

    @property
    def dataset(self) -> Dataset: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def normalise(self) -> Normalise: ...
    @property
    def steps(self) -> int: ...
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

    def planes(self, pixels: Tensor) -> Tensor:
        """The same of float32 NCHW pixels, 0..255, on the device. They may be overwritten."""
        mean, std = self.mean[:, None, None], self.std[:, None, None]
        return pixels.div_(255).sub_(mean).div_(std).contiguous(memory_format=self.memory_format)


def rows_of_epoch(dataset: Dataset, epoch: int, seed: int, balanced: bool) -> Tensor:
    """The training images in the order of an epoch, on the CPU: each once, or of each class equally many."""
    if balanced:
        return balance.order(dataset.train, dataset.labels[dataset.train.to(dataset.labels.device)].cpu(), epoch, seed)
    return order(dataset.train, epoch, seed)


def part_of_batch(step: int, batch_size: int, ranks: Ranks) -> slice:
    """The places of this process's images of a step in the order of the epoch. `batch_size` counts all processes."""
    part = batch_size // ranks.count
    start = step * batch_size + ranks.rank * part
    return slice(start, start + part)


@dataclass(frozen=True)
class TrainBatches(Source):
    """Augmented, normalised training batches of one size. A partial last batch is dropped: it might be a single image.

    Each of several processes has its part of every batch; all parts together are the batch of a single process.
    """

    dataset: Dataset
    batch_size: int
    augmentation: Augmentation
    normalise: Normalise
    seed: int
    ranks: Ranks = ALONE
    balanced: bool = False
    views: int = 0  # further augmentations of each image

    @property
    def steps(self) -> int:
        return len(self.dataset.train) // self.batch_size

    def drawn(self, epoch: int, start: int = 0) -> Iterator[Drawn]:
        """The draws of each batch from step `start` of the epoch on, B×4 and more, on the device of the labels.

        Those of further views follow, B×4 each. Images that are not there come before all of them: B×H×W×3 uint8.
        """
        rows = rows_of_epoch(self.dataset, epoch, self.seed, self.balanced)
        views = self.augmentation.views(rows, epoch, self.seed, self.dataset.size[1:], self.views)
        on_device = [draws.to(self.dataset.labels.device) for draws in views]
        for step in range(start, self.steps):
            part = part_of_batch(step, self.batch_size, self.ranks)
            sent = () if self.dataset.sender is None else (self.dataset.pixels(rows[part]),)
            yield (*sent, *Draws.joined([draws[part] for draws in on_device]).tensors())

    def made(self, *drawn: Tensor) -> Examples:
        """The examples of what `drawn` gave. Without a host read."""
        sent = () if self.dataset.sender is None else drawn[:1]
        batch, images = Draws(*drawn[len(sent) :]), self.dataset.images
        labels = self.dataset.labels[batch.rows[: len(batch.rows) // (1 + self.views)]]
        if sent:  # the batch alone is on the device: its images are rows 0 to B - 1
            (images,), batch = sent, batch.of_own_rows(len(labels))
        elif self.dataset.places is not None:
            batch = batch.of_rows(self.dataset.places_of(batch.rows))
        return self.augmentation.examples(images, batch, labels, self.normalise)

    def close(self) -> None:
        """Nothing is open."""


def eval_batches(
    dataset: Dataset, rows: Tensor, normalise: Callable[[Tensor], Tensor], batch_size: int, ranks: Ranks = ALONE
) -> Iterator[tuple[Tensor, Tensor]]:
    """`in_order`, with fewer images in a batch where they are large."""
    return in_order(dataset, rows, normalise, min(batch_size, eval_batch(*dataset.size[1:])), ranks)


def in_order(
    dataset: Dataset, rows: Tensor, normalise: Callable[[Tensor], Tensor], batch_size: int, ranks: Ranks = ALONE
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images NCHW float32, labels N) in the order of `rows`, the last batch partial.

    Several processes take the batches of a single process in turn. Raises DataError for a damaged file.
    """
    for picked in rows.split(batch_size)[ranks.rank :: ranks.count]:
        yield normalise(dataset.pixels(picked)), dataset.labels[picked.to(dataset.labels.device)]
