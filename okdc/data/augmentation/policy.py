"""TrivialAugmentWide: for each image one operation of fourteen, with one magnitude of 31, both drawn evenly.

Müller and Hutter, ICCV 2021; the operations, their magnitudes and their signs are torchvision's. Those that move pixels
are matrices of `geometry`, and so are bilinear, and part of the image's one resample. Brightness, colour and contrast
are factors of `colour`. The other five are here.

Shapes: B images of a batch, N of an epoch; planes are B×3×H×W float32, 0..255.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from okdc.data.augmentation.draws import Stream
from okdc.recipe.schema import Augment

OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "saturation", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
BINS = 31
WIDE, DEGREES, PIXELS = 0.99, 135.0, 32.0  # the largest magnitudes: of most operations, of rotate and of translate
SIGNED = OPERATIONS[1:10]

COLUMNS = ("sharpness", "step", "threshold", "autocontrast", "equalize")  # numbers that `changed` takes


def columns(keys: Augment) -> tuple[str, ...]:
    return COLUMNS if keys.policy == "trivial" else ()


def drawn(n: int, stream: Stream) -> dict[str, Tensor]:
    """The magnitude of each operation, N float64 each, for the images that it was drawn for; for others, none.

    None is 0 for an operation that moves pixels, 1 for a factor, and for the others what changes nothing.
    """
    operation = torch.randint(len(OPERATIONS), (n,), generator=stream("policy"))
    level = torch.randint(BINS, (n,), generator=stream("policy_magnitude"))
    sign = torch.where(torch.rand(n, generator=stream("policy_sign")) < 0.5, -1.0, 1.0).double()

    def magnitude(first: float, last: float) -> Tensor:
        """By float32 steps, as torchvision's: in its bin 15 of 30, 32 pixels are 15.999999, cut off to 15."""
        return torch.linspace(first, last, BINS)[level].double()

    def of(name: str, magnitude: Tensor, none: float = 0.0) -> Tensor:
        return torch.where(operation == OPERATIONS.index(name), magnitude, none)

    most = dict.fromkeys(SIGNED, WIDE) | {"rotate": DEGREES, "translate_x": PIXELS, "translate_y": PIXELS}
    numbers = {name: of(name, sign * magnitude(0, most[name])) for name in SIGNED}
    for name in ("translate_x", "translate_y"):
        numbers[name] = numbers[name].trunc()
    for name in ("brightness", "saturation", "contrast", "sharpness"):
        numbers[name] += 1
    bits = (8 - level / ((BINS - 1) / 6)).round().double()
    return numbers | {
        "step": of("posterize", 2 ** (8 - bits), 1.0),
        "threshold": of("solarize", 255 * magnitude(1, 0), 256.0),
        "autocontrast": of("autocontrast", torch.ones_like(sign)),
        "equalize": of("equalize", torch.ones_like(sign)),
    }


# ---------------------------------------------------------------------------------------------------------------------
# On the device


def changed(planes: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
    """The planes after what the numbers ask for. The given planes may be overwritten."""
    for name, none, change in (
        ("sharpness", 1, sharpened),
        ("step", 1, posterized),
        ("threshold", 256, solarized),
        ("autocontrast", 0, autocontrasted),
        ("equalize", 0, equalized),
    ):
        planes = of_some(planes, numbers[name], none, change)
    return planes


def of_some(planes: Tensor, number: Tensor, none: float, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The planes with those images changed whose number is not `none`.

    A GPU changes every image and keeps some results: only the device knows which images drew the operation.
    """
    asked = number != none
    if planes.device.type != "cpu":
        return torch.where(asked[:, None, None, None], change(planes, number), planes)
    rows = asked.nonzero()[:, 0]
    return planes.index_copy_(0, rows, change(planes[rows], number[rows])) if len(rows) else planes


def sharpened(planes: Tensor, factor: Tensor) -> Tensor:
    """Away from a smoothed image, or toward it, by B factors; the outermost pixels stay.

    By slices: a convolution on a GPU may be in TF32.
    """
    middle = planes[..., 1:-1, 1:-1]
    three = planes[..., :-2] + planes[..., 1:-1] + planes[..., 2:]
    smoothed = (three[..., :-2, :] + three[..., 1:-1, :] + three[..., 2:, :] + 4 * middle).div_(13)
    whole = planes.clone()
    whole[..., 1:-1, 1:-1] = torch.lerp(smoothed, middle, factor[:, None, None, None]).clamp_(0, 255)
    return whole


def posterized(planes: Tensor, step: Tensor) -> Tensor:
    """Rounded down to multiples of B steps, which are powers of two."""
    step = step[:, None, None, None]
    return planes.round().div_(step).floor_().mul_(step)


def solarized(planes: Tensor, threshold: Tensor) -> Tensor:
    """Inverted from B thresholds on."""
    planes = planes.round()
    return torch.where(planes >= threshold[:, None, None, None], 255 - planes, planes)


def autocontrasted(planes: Tensor, _: Tensor) -> Tensor:
    """Each channel stretched to 0..255, or as it is where it has one value."""
    low, high = planes.amin((2, 3), keepdim=True), planes.amax((2, 3), keepdim=True)
    flat = low == high
    return (planes - low.masked_fill(flat, 0)).mul_(255).div_((high - low).masked_fill(flat, 255))


def equalized(planes: Tensor, _: Tensor) -> Tensor:
    """Each channel mapped so that its values are spread evenly, by Pillow's rule, which torchvision has too."""
    n, channels, height, width = planes.shape
    values = planes.round().clamp_(0, 255).long().flatten(2)  # of a channel in a row
    counts = torch.zeros(n, channels, 256, dtype=torch.int32, device=planes.device)
    counts.scatter_add_(2, values, torch.ones_like(values, dtype=torch.int32))  # of integers: in any order the same
    below = counts.cumsum(2)
    last = counts.gather(2, below.argmax(2, keepdim=True))  # the number of pixels with the largest value
    step = (height * width - last).div(255, rounding_mode="floor")
    table = (below + step // 2).div(step.clamp(min=1), rounding_mode="floor").clamp_(0, 255)
    table = torch.cat([torch.zeros_like(table[..., :1]), table[..., :-1]], 2)
    spread = torch.where(step > 0, table.gather(2, values), values)
    return spread.to(planes.dtype).view_as(planes)
