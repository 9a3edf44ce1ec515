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
    asked = keys.brightness or keys.contrast or keys.saturation or keys.grey or keys.policy == "trivial"
    linear = LINEAR if asked else ()
    return (*linear, "hue") if keys.hue else linear


def drawn(keys: Augment, n: int, stream: Stream, of_policy: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The columns of `columns`, N float64 each; `of_policy` is what a policy drew."""
    numbers = {}
    if columns(keys)[:1] == LINEAR[:1]:
        for name in LINEAR:
            most: float = getattr(keys, name)
            numbers[name] = uniform(n, 1 - most, 1 + most, stream(name)) * of_policy.get(name, 1.0)
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
    largest, smallest = (each(each(red, green), blue) for each in (torch.maximum, torch.minimum))
    spread = largest - smallest
    sixth = spread.clamp(min=1e-6).reciprocal_()  # grey has no hue, and stays grey whatever it would be
    hue = (red - green).mul_(sixth).add_(4)
    # lerp by 0 or 1 chooses, several times as fast on a CPU as where: by which channel is the largest.
    hue.lerp_((blue - red).mul_(sixth).add_(2), (green - largest).sign_().add_(1))
    hue.lerp_((green - blue).mul_(sixth), (red - largest).sign_().add_(1))
    hue.add_(6 * turns[:, None, None])
    hue.sub_((hue / 6).floor_().mul_(6))  # 0..6: red at 0, green at 2, blue at 4
    changed = torch.empty_like(planes)
    for channel, place in enumerate((3, 2, 4)):
        torch.sub(hue, place, out=changed[:, channel])
    changed.abs_()
    changed[:, 0].sub_(1)
    changed[:, 1:].neg_().add_(2)
    return changed.clamp_(0, 1).mul_(spread[:, None]).add_(smallest[:, None])
