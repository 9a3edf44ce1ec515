"""Brightness, contrast, saturation and hue, of many images at once, each by its own number.

The first three are one linear map of an image's colours, and are computed in one pass: in this order, cut off at black
and white once, at the end. torchvision's ColorJitter has an order of its own for each image, and cuts off after each.
Each of them alone is torchvision's function of the same name, which rounds down to whole numbers, too.

Shapes: B images of a batch, N of an epoch; planes are B×3×H×W float32, 0..255.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from okdc.data.augmentation.draws import Stream, chosen, uniform
from okdc.recipe.schema import Augment

LINEAR = ("brightness", "contrast", "saturation")  # factors; 1 leaves an image as it is
GREY = (0.2989, 0.587, 0.114)  # of red, green and blue, as torchvision has them


def columns(keys: Augment) -> tuple[str, ...]:
    """The numbers that `changed` takes."""
    linear = LINEAR if keys.brightness or keys.contrast or keys.saturation or keys.grey else ()
    return (*linear, "hue") if keys.hue else linear


def drawn(keys: Augment, n: int, stream: Stream) -> dict[str, Tensor]:
    """The columns of `columns`, N float64 each."""
    numbers = {}
    if columns(keys)[:1] == LINEAR[:1]:
        for name in LINEAR:
            most: float = getattr(keys, name)
            numbers[name] = uniform(n, max(0.0, 1 - most), 1 + most, stream(name))
        grey = chosen(n, keys.grey, stream("grey"))
        numbers["saturation"] = torch.where(grey, 0.0, numbers["saturation"])
    if keys.hue:
        numbers["hue"] = uniform(n, -keys.hue, keys.hue, stream("hue"))
    return numbers


def changed(planes: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
    """The planes after what the numbers ask for. The given planes may be overwritten."""
    if LINEAR[0] in numbers:
        planes = _linear(planes, *(numbers[name][:, None, None, None] for name in LINEAR))
    if "hue" in numbers:
        planes = hue_turned(planes, numbers["hue"])
    return planes


def grey_of(planes: Tensor) -> Tensor:
    """B×1×H×W."""
    red, green, blue = planes[:, :1], planes[:, 1:2], planes[:, 2:]
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def _linear(planes: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """s·(c·b·x + (1 - c)·b·mean) + (1 - s)·(the grey of that); the mean is that of the image's grey."""
    grey = grey_of(planes)
    mean = grey.mean((2, 3), keepdim=True)
    both = brightness * contrast
    toward_grey = grey.mul_((1 - saturation) * both).add_((1 - contrast) * brightness * mean)
    return planes.mul_(saturation * both).add_(toward_grey).clamp_(0, 255)


def hue_turned(planes: Tensor, turns: Tensor) -> Tensor:
    """The planes with their hues turned by so many whole turns, B numbers from -0.5 to 0.5.

    By the hexagon of HSV without a conversion to it: the largest and the smallest channel stay, and each channel lies
    between them by its distance to the hue.
    """
    red, green, blue = planes.unbind(1)
    largest, smallest = planes.amax(1), planes.amin(1)
    spread = largest - smallest
    sixth = 1 / spread.clamp(min=1e-6)  # grey has no hue, and stays grey whatever it would be
    of_red, of_green = (green - blue) * sixth, (blue - red) * sixth + 2
    hue = torch.where(largest == red, of_red, torch.where(largest == green, of_green, (red - green) * sixth + 4))
    hue += 6 * turns[:, None, None]
    channels = []
    for place in (5, 3, 1):
        k = torch.remainder(hue + place, 6)
        channels.append(largest - spread * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, 1)
