"""Crops by whole pixels, and the crop of an image file at its full resolution.

Resident images are cropped a batch at a time: a CPU copies rectangles of single images, which is several times faster
than a gather; a GPU gathers a whole batch in one call without a host read. Both give the same pixels (tested).

Shapes: B images of a batch, HWC pixels, of N images.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from okdc.data.augmentation.draws import Draws, of_view
from okdc.data.images import Pixels, to_rgb
from okdc.recipe.schema import Augment
from okdc.seeds import seeded


def crop(images: Tensor, batch: Draws, padding: int, mode: str = "zeros") -> Tensor:
    """Cut images out of their padding and mirror them: N×H×W×3 uint8 -> B×H×W×3.

    `mode` is a `padding_mode` of the recipe. reflect repeats no edge and takes less padding than the image has pixels.
    """
    if mode == "reflect":
        return _reflected(images, batch, padding)
    return (_by_slices if images.device.type == "cpu" else _by_gather)(images, batch, padding)


def of_file(image: Image.Image, size: int, keys: Augment, seed: int, epoch: int, row: int, view: int = 0) -> Pixels:
    """One file's image, size×size×3 uint8: RandomResizedCrop as torchvision draws it, mirrored half of the time.

    The draws are those of (seed, epoch, row) and the view; without `flip` the crops are the same.
    """
    from torchvision.transforms import InterpolationMode, RandomResizedCrop  # seconds to import
    from torchvision.transforms import functional as transforms

    image = to_rgb(image)
    with seeded(seed, "epoch", epoch, *of_view(view), "image", row):
        box = RandomResizedCrop.get_params(image, list(keys.scale), list(keys.ratio))
        mirrored = bool(torch.rand(1) < 0.5) and keys.flip  # the transforms' own order of draws
    image = transforms.resized_crop(image, *box, [size, size], InterpolationMode.BILINEAR)
    return np.asarray(transforms.hflip(image) if mirrored else image, dtype=np.uint8)


def _by_slices(images: Tensor, batch: Draws, padding: int) -> Tensor:
    """Copy the part of each image inside its crop; the rest of the crop is zero padding."""
    source = images.numpy()
    height, width = source.shape[1:3]
    out = np.zeros((len(batch.rows), height, width, 3), np.uint8)
    columns = (batch.rows, batch.top, batch.left, batch.flip, batch.vertical_flip)
    drawn = zip(*(column.tolist() for column in columns), strict=True)
    for i, (row, top, left, flip, vertical_flip) in enumerate(drawn):
        y, x = top - padding, left - padding
        target = out[i, :, ::-1] if flip else out[i]
        target = target[::-1] if vertical_flip else target
        target[max(-y, 0) : height - max(y, 0), max(-x, 0) : width - max(x, 0)] = source[
            row, max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)
        ]
    return torch.from_numpy(out)


def _by_gather(images: Tensor, batch: Draws, padding: int) -> Tensor:
    """The same pixels in one gather of padded images; mirroring reverses the order of the columns."""
    padded = F.pad(images[batch.rows], (0, 0, padding, padding, padding, padding))
    rows, columns = _window(images, batch)
    batch_index = torch.arange(len(batch.rows), device=images.device)
    return padded[batch_index[:, None, None], rows[:, :, None], columns[:, None, :]]


def _reflected(images: Tensor, batch: Draws, padding: int) -> Tensor:
    """A gather that reads each pixel beyond the edge as many steps within it."""
    rows, columns = (
        last - (last - (places - padding).abs()).abs()
        for places, last in zip(_window(images, batch), (side - 1 for side in images.shape[1:3]), strict=True)
    )
    return images[batch.rows[:, None, None], rows[:, :, None], columns[:, None, :]]


def _window(images: Tensor, batch: Draws) -> tuple[Tensor, Tensor]:
    """The rows, B×H, and columns, B×W, of the padded image that each crop reads."""
    height, width = images.shape[1:3]
    across, down = torch.arange(width, device=images.device), torch.arange(height, device=images.device)
    columns = batch.left[:, None] + torch.where(batch.flip[:, None], width - 1 - across, across)
    rows = batch.top[:, None] + torch.where(batch.vertical_flip[:, None], height - 1 - down, down)
    return rows, columns
