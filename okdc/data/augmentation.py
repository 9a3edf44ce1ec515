"""Augmentation of training images, and the draws of an epoch that it follows from.

Every draw is a function of the seed and the epoch alone, so that any step can be repeated, by any number of processes.
Resident images are changed a batch at a time: a CPU copies rectangles of single images, which is several times faster
than a gather; a GPU gathers a whole batch in one call without a host read. Both give the same pixels (tested). Images
in files are changed one by one, as they are decoded.

Shapes: B images of a batch, HWC pixels; `rows` are indices into the data set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from okdc.data.images import Pixels, to_rgb
from okdc.recipe.schema import Data
from okdc.seeds import generator, seeded

SCALE, RATIO = [0.08, 1.0], [3 / 4, 4 / 3]  # of a file's crop: share of the area, width to height


@dataclass(frozen=True)
class Draws:
    """The draws of one epoch, or of a batch of it: the order of the images, and the shift and mirroring of each."""

    table: Tensor  # N×4 int64, in one tensor: one transfer an epoch, one copy a batch

    @classmethod
    def of(cls, rows: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Draws:
        return cls(torch.stack([rows, top, left, flip.long()], 1))

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
        return self.table[:, 3].bool()

    def to(self, device: torch.device) -> Draws:
        return Draws(self.table.to(device, non_blocking=True))

    def __getitem__(self, part: slice) -> Draws:
        return Draws(self.table[part])


def order(rows: Tensor, epoch: int, seed: int) -> Tensor:
    """The rows in the order of an epoch."""
    return rows[torch.randperm(len(rows), generator=generator(seed, "epoch", epoch, "order"))]


@dataclass(frozen=True)
class Augmentation:
    """The augmentation that a recipe's `[data]` asks for."""

    padding: int  # pixels of zeros around a resident image before its crop; a file's crop needs none
    flip: bool  # whether half of the images are mirrored

    @classmethod
    def of(cls, data: Data) -> Augmentation:
        return cls(data.crop_padding, data.flip)

    def draw(self, rows: Tensor, epoch: int, seed: int) -> Draws:
        """The draws of an epoch for resident images, on the CPU."""
        n = len(rows)
        corner = generator(seed, "epoch", epoch, "crop")
        mirrored = torch.rand(n, generator=generator(seed, "epoch", epoch, "flip")) < 0.5
        return Draws.of(
            rows=order(rows, epoch, seed),
            top=torch.randint(2 * self.padding + 1, (n,), generator=corner),
            left=torch.randint(2 * self.padding + 1, (n,), generator=corner),
            flip=mirrored if self.flip else torch.zeros(n, dtype=torch.bool),
        )

    def of_batch(self, images: Tensor, batch: Draws) -> Tensor:
        """The changed images of a batch, B×H×W×3 uint8, of resident `images`, N×H×W×3; both on one device."""
        crop = _crop_by_slices if images.device.type == "cpu" else _crop_by_gather
        return crop(images, batch, self.padding)

    def of_file(self, image: Image.Image, size: int, seed: int, epoch: int, row: int) -> Pixels:
        """One file's image, size×size×3 uint8: RandomResizedCrop as torchvision draws it, mirrored half of the time.

        The draws are those of (seed, epoch, row); without `flip` the crops are the same.
        """
        from torchvision.transforms import InterpolationMode, RandomResizedCrop  # seconds to import
        from torchvision.transforms import functional as transforms

        image = to_rgb(image)
        with seeded(seed, "epoch", epoch, "image", row):
            box = RandomResizedCrop.get_params(image, SCALE, RATIO)
            mirrored = bool(torch.rand(1) < 0.5) and self.flip  # the transforms' own order of draws
        image = transforms.resized_crop(image, *box, [size, size], InterpolationMode.BILINEAR)
        return np.asarray(transforms.hflip(image) if mirrored else image, dtype=np.uint8)


def _crop_by_slices(images: Tensor, batch: Draws, padding: int) -> Tensor:
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


def _crop_by_gather(images: Tensor, batch: Draws, padding: int) -> Tensor:
    """The same pixels in one gather of padded images; mirroring reverses the order of the columns."""
    height, width = images.shape[1:3]
    padded = F.pad(images[batch.rows], (0, 0, padding, padding, padding, padding))
    across = torch.arange(width, device=images.device)
    columns = batch.left[:, None] + torch.where(batch.flip[:, None], width - 1 - across, across)
    rows = batch.top[:, None] + torch.arange(height, device=images.device)
    batch_index = torch.arange(len(batch.rows), device=images.device)
    return padded[batch_index[:, None, None], rows[:, :, None], columns[:, None, :]]
