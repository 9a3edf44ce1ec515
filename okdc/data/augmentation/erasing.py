"""Random erasing: a rectangle of an image takes the mean colour (Zhong et al., AAAI 2020).

It follows the normalisation, where the mean colour is 0, as in torchvision's own recipes.

Shapes: B images of a batch, N of an epoch, CHW pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from okdc.data.augmentation import boxes
from okdc.data.augmentation.draws import Stream, chosen

SCALE, RATIO = (0.02, 0.33), (0.3, 3.3)  # share of the area and width to height, torchvision's defaults
COLUMNS = boxes.named("erase")


def drawn(n: int, probability: float, size: tuple[int, int], stream: Stream) -> dict[str, Tensor]:
    """The rectangle of each image, N float64 a column; none is empty."""
    top, left, tall, wide = boxes.drawn(n, size, SCALE, RATIO, stream("erasing_box"))
    erased = chosen(n, probability, stream("erasing"))
    edges = (top, left, torch.where(erased, top + tall, top), torch.where(erased, left + wide, left))
    return dict(zip(COLUMNS, edges, strict=True))


def erased(images: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
    """Normalised images B×3×H×W with their rectangles at 0, in place."""
    return images.masked_fill_(boxes.inside("erase", numbers, *images.shape[2:])[:, None], 0)
