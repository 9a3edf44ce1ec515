"""Mixup and CutMix: images mixed with their neighbours in the batch, and the share of each label.

mixup   share·x + (1 - share)·x'                  Zhang et al., ICLR 2018
CutMix  a rectangle of x' in x, 1 - share of it   Yun et al., ICCV 2019

The order of an epoch is random, so that neighbours are random pairs. In the balanced sampler's order they are never of
one class, so a recipe cannot ask for both. The share is drawn for each image, from Beta(α, α), and is at least a half:
the larger part of a mixed image is the image itself, and its own label the larger one. For mixup that is the same
distribution of mixed images, since both of a pair are equally likely to be either. CutMix never draws a rectangle of
more than half of the image.

Shapes: B images of a batch, N of an epoch, CHW pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from okdc.data.augmentation import boxes
from okdc.data.augmentation.draws import Stream, chosen
from okdc.recipe.schema import Augment

COLUMNS = ("mix", "share", *boxes.named("cut"))  # of the label, of a pixel outside the rectangle, the rectangle


def columns(keys: Augment) -> tuple[str, ...]:
    """The numbers that `mixed` takes."""
    return COLUMNS if keys.mixup or keys.cutmix else ()


def drawn(keys: Augment, n: int, size: tuple[int, int], stream: Stream) -> dict[str, Tensor]:
    """The columns of `columns`, N float64 each. Where both are asked for, half of the images get either."""
    height, width = size
    cut = chosen(n, 0.5 if keys.mixup else 1.0, stream("cutmix")) & bool(keys.cutmix)
    share = torch.where(cut, _shares(n, keys.cutmix, stream("cutmix_share")), _shares(n, keys.mixup, stream("mixup")))
    side = (1 - share).sqrt()  # of the rectangle, as a share of the image's
    y, x = (
        (length * torch.rand(n, generator=stream(f"cutmix_{axis}"), dtype=torch.float64)).floor()
        for length, axis in ((height, "y"), (width, "x"))
    )
    tall, wide = (side * height / 2).floor(), (side * width / 2).floor()
    first = (y - tall).clamp(min=0), (x - wide).clamp(min=0)
    beyond = (y + tall).clamp(max=height), (x + wide).clamp(max=width)
    top, left, bottom, right = (torch.where(cut, edge, 0.0) for edge in first + beyond)
    area = (bottom - top) * (right - left) / (height * width)
    mix, outside = torch.where(cut, 1 - area, share), torch.where(cut, 1.0, share)
    return dict(zip(COLUMNS, (mix, outside, top, left, bottom, right), strict=True))


def _shares(n: int, alpha: float, stream: torch.Generator) -> Tensor:
    """N float64 of Beta(α, α), each or its rest, whichever is larger; 1 where α is 0.

    numpy's RandomState: torch draws none of Beta from a generator, and this one's draws stay what they are.
    """
    if not alpha:
        return torch.ones(n, dtype=torch.float64)
    seed = stream.initial_seed() % 2**64
    drawn = torch.from_numpy(np.random.RandomState([seed % 2**32, seed >> 32]).beta(alpha, alpha, n))
    return torch.maximum(drawn, 1 - drawn)


def mixed(images: Tensor, labels: Tensor, numbers: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Mixed images B×3×H×W, the other labels B, and the share of the images' own labels B.

    Of an odd number the last image is its own neighbour, and stays what it is.
    """
    n, _, height, width = images.shape
    neighbour = (torch.arange(n, device=images.device) ^ 1).clamp_(max=n - 1)
    others = torch.empty_like(images).copy_(images.index_select(0, neighbour))  # in the same memory format
    cut = boxes.inside("cut", numbers, height, width)
    share = torch.where(cut, 0.0, numbers["share"][:, None, None])[:, None]
    return torch.lerp(others, images, share), labels[neighbour], numbers["mix"]
