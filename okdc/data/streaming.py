"""Training batches of images in files, which worker processes decode batch by batch; `batches_of` for any data set.

Order and augmentation follow from (seed, epoch, row) alone, as they do for resident images: any number of workers, or
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

from okdc.data import balance, workers
from okdc.data.augmentation import Augmentation, Draws, Examples
from okdc.data.augmentation.crops import of_file
from okdc.data.augmentation.pipeline import with_views
from okdc.data.batches import Batches, Drawn, Normalise, Source, TrainBatches, part_of_batch, rows_of_epoch
from okdc.data.datasets import Dataset
from okdc.data.images import Pixels, fit, unreadable, wary
from okdc.data.ondemand import OnDemand, UnreadableError
from okdc.data.sending import buffer
from okdc.distributed import ALONE, Ranks
from okdc.recipe.schema import Augment
from okdc.seeds import generator

AHEAD = 2  # batches that a worker prepares before the loop asks for them

Step = tuple[int, list[int], list[int]]  # the epoch, the rows of one batch, and the numbers that their crops follow


def batches_of(
    dataset: Dataset,
    batch_size: int,
    augmentation: Augmentation,
    normalise: Normalise,
    seed: int,
    workers: int,
    ranks: Ranks = ALONE,
    balanced: bool = False,
    views: int = 0,
) -> Batches:
    """This process's training batches of a data set. Images in files are decoded by `workers` processes.

    `balanced`: an epoch has equally many images of each class (`okdc.data.balance`). `views`: further augmentations of
    each image, which come with it.
    """
    if dataset.files is not None:
        return StreamBatches(dataset, batch_size, augmentation, normalise, seed, workers, ranks, balanced, views)
    return TrainBatches(dataset, batch_size, augmentation, normalise, seed, ranks, balanced, views)


class StreamBatches(Source):
    """Augmented, normalised training batches of one size, as `TrainBatches`. A partial last batch is dropped.

    The first epoch starts the workers, and they stay until `close()`. A new epoch ends the one before.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        augmentation: Augmentation,
        normalise: Normalise,
        seed: int,
        workers: int,
        ranks: Ranks = ALONE,
        balanced: bool = False,
        views: int = 0,
    ) -> None:
        self.dataset, self.batch_size, self.normalise, self.seed = dataset, batch_size, normalise, seed
        self.workers, self.ranks, self.balanced, self.views = workers, ranks, balanced, views
        assert dataset.files is not None
        self._decoder = _Decoder(dataset.files, augmentation.keys, seed, views)
        self.augmentation = augmentation.after_decoding()
        self._plan: list[Step] = []
        self._loader: loading.DataLoader[Any] | None = None

    @property
    def steps(self) -> int:
        return len(self.dataset.train) // self.batch_size

    def drawn(self, epoch: int, start: int = 0) -> Iterator[Drawn]:
        """(pixels B×H×W×3 uint8, labels B, and the draws of what is left to do) from step `start` of the epoch on.

        Raises a DataError that names every damaged image of a batch, instead of that batch.
        """
        rows = rows_of_epoch(self.dataset, epoch, self.seed, self.balanced)
        # An image that comes again in an epoch is cropped anew: its draws are then those of a row that no image has.
        draws_of = rows + balance.times_before(rows) * len(self.dataset.labels) if self.balanced else rows
        labels = self.dataset.labels[rows.to(self.dataset.labels.device)]  # one transfer an epoch
        parts = [part_of_batch(step, self.batch_size, self.ranks) for step in range(start, self.steps)]
        self._plan[:] = [(epoch, rows[part].tolist(), draws_of[part].tolist()) for part in parts]
        draws: list[Draws] = []
        if self.augmentation is not None:
            drawn = self.augmentation.views(rows, epoch, self.seed, self.dataset.size[1:], self.views)
            draws = [of_view.to(self.dataset.labels.device) for of_view in drawn]
        batches = self._planned()
        for part in parts:
            pixels = next(batches)
            if isinstance(pixels, list):  # a worker's exception would arrive as the text of its traceback
                raise unreadable(pixels, len(rows[part]))
            sender = self.dataset.sender
            left = Draws.joined([of_view[part] for of_view in draws]).tensors() if draws else ()
            yield (sender.send(pixels) if sender else pixels, labels[part], *left)

    def made(self, *drawn: Tensor) -> Examples:
        """The examples of what `drawn` gave, on the device of the labels."""
        pixels, labels, *left = drawn
        if self.augmentation is not None:
            return self.augmentation.examples(pixels, Draws(*left).of_own_rows(len(pixels)), labels, self.normalise)
        images = self.normalise(pixels)
        return with_views(images, labels) if len(images) > len(labels) else Examples(images, labels)

    def _planned(self) -> Iterator[Tensor | list[str]]:
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
                    pin_memory=self._pins(),
                    generator=generator(self.seed, "workers"),  # the default reads the global generator
                    **options,
                )
        with workers.forking():
            return iter(self._loader)

    def _pins(self) -> bool:
        """Whether decoded batches go to a GPU through pinned memory."""
        to_gpu, (channels, height, width) = self.normalise.mean.device.type == "cuda", self.dataset.size
        return to_gpu and buffer(self.batch_size // self.ranks.count * height * width * channels).is_pinned()

    def close(self) -> None:
        """End the workers and wait for them. Another epoch starts new ones."""
        loader, self._loader = self._loader, None
        workers.end(loader)


class _Decoder(loading.Dataset[Any]):
    """A worker's task: one step of an epoch to B×size×size×3 uint8, or a line for each file that is no whole image.

    The crop `resized` reads the file at its full resolution, once for all views: the images of further views follow
    those of the first. For every other crop the image is what an evaluation sees, and all views are made of it.
    """

    def __init__(self, files: OnDemand, keys: Augment, seed: int, views: int = 0) -> None:
        self.files, self.keys, self.seed = files, keys, seed
        self.views = range(1 + views) if keys.crop == "resized" else range(1)

    def __getitem__(self, step: Step) -> Tensor | list[str]:
        epoch, rows, draws_of = step
        size = self.files.size
        pixels, bad = np.empty((len(self.views), len(rows), size, size, 3), np.uint8), list[str]()

        def decode(row: int, number: int) -> Pixels:
            def cropped(image: Image.Image) -> Pixels:
                views = [of_file(image, size, self.keys, self.seed, epoch, number, view) for view in self.views]
                return np.stack(views)

            if self.keys.crop == "resized":
                return self.files.decode(row, cropped)
            return self.files.decode(row, lambda image: fit(image, size, self.files.shorter_side))

        with wary():
            for i, (row, number) in enumerate(zip(rows, draws_of, strict=True)):
                try:
                    pixels[:, i] = decode(row, number)
                except UnreadableError as error:
                    bad.append(str(error))
        return bad or torch.from_numpy(pixels.reshape(-1, size, size, 3))
