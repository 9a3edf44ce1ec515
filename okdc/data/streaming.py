"""Training batches of images in files, which worker processes decode batch by batch.

Order, crop and flip follow from (seed, epoch, row) alone, as they do for resident images: any number of workers, or
none, gives the same pixels, and any step of an epoch can be repeated.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils import data as loading
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from okdc.data import workers
from okdc.data.batches import Normalise, order, part_of_batch
from okdc.data.datasets import Dataset
from okdc.data.images import Pixels, to_rgb, wary
from okdc.data.ondemand import OnDemand, UnreadableError
from okdc.distributed import ALONE, Ranks
from okdc.errors import DataError
from okdc.seeds import generator, seeded

SCALE, RATIO = [0.08, 1.0], [3 / 4, 4 / 3]  # of the crop: share of the area, width to height
AHEAD = 2  # batches that a worker prepares before the loop asks for them

Step = tuple[int, list[int]]  # the epoch, and the rows of one batch


def augmented(image: Image.Image, size: int, flip: bool, seed: int, epoch: int, row: int) -> Pixels:
    """One training image: RandomResizedCrop as torchvision draws it, resized, mirrored half of the time.

    size×size×3 uint8. The draws are those of (seed, epoch, row); without `flip` the crops are the same.
    """
    image = to_rgb(image)
    with seeded(seed, "epoch", epoch, "image", row):
        box = RandomResizedCrop.get_params(image, SCALE, RATIO)
        mirrored = bool(torch.rand(1) < 0.5) and flip  # the transforms' own order of draws
    image = F.resized_crop(image, *box, [size, size], InterpolationMode.BILINEAR)
    return np.asarray(F.hflip(image) if mirrored else image, dtype=np.uint8)


class StreamBatches:
    """Augmented, normalised training batches of one size, as `TrainBatches`. A partial last batch is dropped.

    The first epoch starts the workers, and they stay until `close()`. A new epoch ends the one before.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        flip: bool,
        normalise: Normalise,
        seed: int,
        workers: int,
        ranks: Ranks = ALONE,
    ) -> None:
        self.dataset, self.batch_size, self.normalise, self.seed = dataset, batch_size, normalise, seed
        self.workers, self.ranks = workers, ranks
        assert dataset.files is not None
        self._decoder = _Decoder(dataset.files, flip, seed)
        self._plan: list[Step] = []
        self._loader: loading.DataLoader[Any] | None = None

    @property
    def steps(self) -> int:
        return len(self.dataset.train) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(images NCHW float32, labels N) from step `start` of the epoch on, on the device of the labels.

        Raises a DataError that names the file, instead of a batch with a damaged image.
        """
        rows = order(self.dataset.train, epoch, self.seed)
        labels = self.dataset.labels[rows.to(self.dataset.labels.device)]  # one transfer an epoch
        parts = [part_of_batch(step, self.batch_size, self.ranks) for step in range(start, self.steps)]
        self._plan[:] = [(epoch, rows[part].tolist()) for part in parts]
        batches = self._planned()
        for part in parts:
            pixels = next(batches)
            if isinstance(pixels, str):  # a worker's exception would arrive as the text of its traceback
                raise DataError(f"an image cannot be read: {pixels}", hint="restore this file")
            yield self.normalise(pixels), labels[part]

    def _planned(self) -> Iterator[Tensor | str]:
        """The batches of the plan. Starts the workers where none run yet."""
        if self._loader is None:
            options: dict[str, Any] = {}
            if self.workers:
                options = {
                    # A fork shares the names of a million files, and its start costs nothing.
                    "multiprocessing_context": "fork",
                    "persistent_workers": True,
                    "prefetch_factor": AHEAD,
                    "worker_init_fn": partial(workers.of_loader, os.getpid()),
                }
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about more workers than cores, which the recipe chose
                self._loader = loading.DataLoader(
                    self._decoder,
                    batch_size=None,  # an index is a whole batch
                    sampler=self._plan,
                    num_workers=self.workers,
                    pin_memory=self.normalise.mean.device.type == "cuda",
                    generator=generator(self.seed, "workers"),  # the default reads the global generator
                    **options,
                )
        with workers.forking():
            return iter(self._loader)

    def close(self) -> None:
        """End the workers and wait for them. Another epoch starts new ones."""
        loader, self._loader = self._loader, None
        workers.end(loader)


class _Decoder(loading.Dataset[Any]):
    """A worker's task: one step of an epoch to B×size×size×3 uint8, or to the error of one of its files."""

    def __init__(self, files: OnDemand, flip: bool, seed: int) -> None:
        self.files, self.flip, self.seed = files, flip, seed

    def __getitem__(self, step: Step) -> Tensor | str:
        epoch, rows = step
        size = self.files.size
        pixels = np.empty((len(rows), size, size, 3), np.uint8)

        def decode(row: int) -> Pixels:
            return self.files.decode(row, lambda image: augmented(image, size, self.flip, self.seed, epoch, row))

        with wary():
            try:
                for i, row in enumerate(rows):
                    pixels[i] = decode(row)
            except UnreadableError as error:
                return str(error)
        return torch.from_numpy(pixels)
