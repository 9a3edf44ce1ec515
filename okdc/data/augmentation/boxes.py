"""Rectangles within images: those that are drawn, and the pixels of those of a batch.

Shapes: B images of a batch, N of an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

TRIES = 10  # rectangles that are drawn for an image, of which the first that lies in it is taken
EDGES = ("top", "left", "bottom", "right")  # in pixels; bottom and right are beyond the last ones


def drawn(
    n: int, size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], stream: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width of rectangles as torchvision's RandomResizedCrop draws them, N float64 each.

    `scale` is the share of the area, `ratio` width to height, each from and to. Where no try fits, it is the largest
    rectangle of an allowed shape, in the middle.
    """
    height, width = size
    draw = torch.rand(4, n, TRIES, generator=stream, dtype=torch.float64)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draw[0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = torch.exp(low + (high - low) * draw[1])
    wide, tall = (area * shape).sqrt().round(), (area / shape).sqrt().round()
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    first = fits.int().argmax(1, keepdim=True)  # of equal ones, the first
    wide, tall = (side.gather(1, first)[:, 0] for side in (wide, tall))
    widest, tallest = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    wide, tall = torch.where(fits.any(1), wide, widest), torch.where(fits.any(1), tall, tallest)
    corner = []
    for share, whole, side in ((draw[2], height, tall), (draw[3], width, wide)):
        placed = ((whole - side + 1) * share.gather(1, first)[:, 0]).floor()
        corner.append(torch.where(fits.any(1), placed, ((whole - side) / 2).round()))
    return corner[0], corner[1], tall, wide


def named(prefix: str) -> tuple[str, ...]:
    """The names of the columns that hold a rectangle for this purpose."""
    return tuple(f"{prefix}_{edge}" for edge in EDGES)


def inside(prefix: str, numbers: Mapping[str, Tensor], height: int, width: int) -> Tensor:
    """Which pixels lie in the rectangles of a batch: B×H×W bool."""
    top, left, bottom, right = (numbers[name][:, None] for name in named(prefix))
    down = torch.arange(height, device=top.device)
    across = torch.arange(width, device=top.device)
    rows, columns = (down >= top) & (down < bottom), (across >= left) & (across < right)
    return rows[:, :, None] & columns[:, None, :]
