"""Images of a data set as the page embeds them: data URLs, small ones pixel by pixel."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import torch
from PIL import Image

from okdc.data.datasets import Dataset

SIDE = 112  # pixels of a large image on the page
SMALL = 48  # up to which nothing is lost: a photograph of more pixels is a JPEG file


def data_urls(dataset: Dataset, rows: Sequence[int]) -> dict[int, str]:
    """By row, the image as the network gets it, but no larger than SIDE. Raises DataError for an unreadable file."""
    unique = sorted(set(rows))
    if not unique:
        return {}
    pixels = dataset.pixels(torch.tensor(unique)).cpu().numpy()
    return {row: _url(Image.fromarray(image)) for row, image in zip(unique, pixels, strict=True)}


def _url(image: Image.Image) -> str:
    stream, kind = io.BytesIO(), "png"
    if max(image.size) > SMALL:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        image.save(stream, "JPEG", quality=85)
        kind = "jpeg"
    else:
        image.save(stream, "PNG", optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
