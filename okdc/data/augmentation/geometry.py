"""Crop, mirroring, rotation, shift, zoom and shear as one matrix an image, and one bilinear resample for all of them.

A 3×3 matrix takes a place of the changed image to the place in the image that its pixel is read from, both in pixels
from the middle. Angles, shears and their order are those of torchvision's `affine`. What lies outside is black.

Shapes: B images of a batch, N of an epoch, HWC or CHW pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from okdc.data.augmentation import boxes
from okdc.data.augmentation.draws import Draws, Stream, uniform
from okdc.recipe.schema import Augment

MATRIX = ("xx", "xy", "x", "yx", "yy", "y")  # columns of a matrix's first two rows, in halves of a side
BOX = ("box_left", "box_right", "box_top", "box_bottom")  # first and last pixel that a crop reads, likewise


def resamples(keys: Augment) -> bool:
    """Whether anything moves pixels by other steps than whole ones."""
    return keys.crop == "resized" or _turns(keys) or keys.policy == "trivial"


def _turns(keys: Augment) -> bool:
    return bool(keys.rotation or keys.translate or keys.shear or keys.zoom != (1, 1))


def columns(keys: Augment) -> tuple[str, ...]:
    """The numbers that `resampled` takes."""
    if not resamples(keys):
        return ()
    return (*MATRIX, *BOX) if _crops_alone(keys) else MATRIX


def _crops_alone(keys: Augment) -> bool:
    """Whether pixels beyond a crop have no say in its edge: a rotated image shows what is there instead of black."""
    return keys.crop == "resized" and not resamples(keys.model_copy(update={"crop": "pad"}))


def drawn(
    keys: Augment, draws: Draws, size: tuple[int, int], stream: Stream, of_policy: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The columns of `columns`, N float64 each, for images of a height and width; `of_policy` is what a policy drew."""
    if not resamples(keys):
        return {}
    height, width = size
    n = len(draws.table)
    box = {}
    if keys.crop == "resized":
        top, left, tall, wide = boxes.drawn(n, size, keys.scale, keys.ratio, stream("resized"))
        whole = cropped(top, left, tall, wide, size)
        if _crops_alone(keys):
            edges = (left, left + wide - 1, top, top + tall - 1)
            sides = (width, width, height, height)
            box = {name: (2 * edge + 1) / side - 1 for name, edge, side in zip(BOX, edges, sides, strict=True)}
    else:
        whole = shifted(draws.left.double() - keys.padding, draws.top.double() - keys.padding)
    whole = whole @ mirrored(draws.flip, draws.vertical_flip)
    if of_policy:
        whole = whole @ of_operations(of_policy, size)
    if _turns(keys):
        whole = whole @ affine(
            angle=uniform(n, -keys.rotation, keys.rotation, stream("rotation")),
            right=uniform(n, -keys.translate * width, keys.translate * width, stream("translate_x")),
            down=uniform(n, -keys.translate * height, keys.translate * height, stream("translate_y")),
            scale=uniform(n, *keys.zoom, stream("zoom")),
            shear_x=uniform(n, -keys.shear, keys.shear, stream("shear")),
        )
    halves = torch.tensor([width / 2, height / 2, 1.0], dtype=torch.float64)
    entries = (whole * halves / halves[:, None])[:, :2].flatten(1)  # N×6
    return dict(zip(MATRIX, entries.unbind(1), strict=True)) | box


# ---------------------------------------------------------------------------------------------------------------------
# Matrices, N×3×3 float64


def affine(
    angle: Tensor,
    right: Tensor | None = None,
    down: Tensor | None = None,
    scale: Tensor | None = None,
    shear_x: Tensor | None = None,
    shear_y: Tensor | None = None,
) -> Tensor:
    """The inverse of torchvision's `affine`: rotated clockwise and sheared (degrees), scaled, then shifted (pixels)."""
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rotation = torch.deg2rad(angle)
    sx, sy = (torch.deg2rad(zero if shear is None else shear) for shear in (shear_x, shear_y))
    a = torch.cos(rotation - sy) / torch.cos(sy)
    b = -a * torch.tan(sx) - torch.sin(rotation)
    c = torch.sin(rotation - sy) / torch.cos(sy)
    d = -c * torch.tan(sx) + torch.cos(rotation)
    inverse = _matrix(d, -b, zero, -c, a, zero) / (one if scale is None else scale)[:, None, None]
    inverse[:, 2, 2] = 1
    return inverse @ shifted(-(zero if right is None else right), -(zero if down is None else down))


def of_operations(numbers: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
    """The operations of a policy that move pixels. Shears keep the corner at the top left where it is."""
    height, width = size
    zero = torch.zeros_like(numbers["rotate"])
    to_corner = shifted(zero + width / 2, zero + height / 2)
    from_corner = shifted(zero - width / 2, zero - height / 2)
    shear_x, shear_y = (torch.rad2deg(torch.atan(numbers[name])) for name in ("shear_x", "shear_y"))
    sheared = from_corner @ affine(zero, shear_x=shear_x) @ affine(zero, shear_y=shear_y) @ to_corner
    turned = affine(-numbers["rotate"], numbers["translate_x"], numbers["translate_y"])
    return sheared @ turned


def shifted(x: Tensor, y: Tensor) -> Tensor:
    """Reads x pixels further right and y further down."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _matrix(one, zero, x, zero, one, y)


def mirrored(flip: Tensor, vertical_flip: Tensor) -> Tensor:
    """Reads from the other side where the N bools say so."""
    x, y = (1 - 2 * side.double() for side in (flip, vertical_flip))
    zero = torch.zeros_like(x)
    return _matrix(x, zero, zero, zero, y, zero)


def cropped(top: Tensor, left: Tensor, tall: Tensor, wide: Tensor, size: tuple[int, int]) -> Tensor:
    """Reads a rectangle, N of each number in pixels, in place of the whole image."""
    height, width = size
    zero = torch.zeros_like(top)
    return _matrix(wide / width, zero, left + wide / 2 - width / 2, zero, tall / height, top + tall / 2 - height / 2)


def _matrix(xx: Tensor, xy: Tensor, x: Tensor, yx: Tensor, yy: Tensor, y: Tensor) -> Tensor:
    zero, one = torch.zeros_like(xx), torch.ones_like(xx)
    return torch.stack([xx, xy, x, yx, yy, y, zero, zero, one], 1).view(-1, 3, 3)


# ---------------------------------------------------------------------------------------------------------------------
# On the device


def resampled(images: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
    """Images B×H×W×3 read where the matrices say, bilinearly: B×3×H×W float32, 0..255."""
    height, width = images.shape[1:3]
    xx, xy, x, yx, yy, y = (numbers[name][:, None] for name in MATRIX)
    across, down = (
        (2 * torch.arange(side, device=images.device, dtype=torch.float32) + 1) / side - 1 for side in (width, height)
    )
    # Not by affine_grid: its matrix product may be in TF32, whose places are wrong by a tenth of a pixel.
    grid = torch.empty(len(images), height, width, 2, device=images.device)
    torch.add((xx * across)[:, None], (xy * down + x)[:, :, None], out=grid[..., 0])
    torch.add((yx * across)[:, None], (yy * down + y)[:, :, None], out=grid[..., 1])
    if BOX[0] in numbers:
        left, right, top, bottom = (numbers[name][:, None, None] for name in BOX)
        grid[..., 0].clamp_(left, right)
        grid[..., 1].clamp_(top, bottom)
    planes = images.permute(0, 3, 1, 2).contiguous().float()
    return F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
