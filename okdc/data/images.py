"""One image file to a uint8 array: which files are images, how they are read, the resize rule. numpy and Pillow only.

The rule, stated in every manifest: upright by its EXIF tag, RGB (16-bit grey scaled to 8 bits,
transparency over black), the shorter side resized to the recipe's image_size, or to its `shorter_side`
(Pillow's antialiased bilinear), the centre cut. An image of that very size stays as it is.
"""

from __future__ import annotations

import errno
import functools
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError, features

from okdc.errors import DataError

# The formats that a file may have, whatever its name. Pillow has more, but for PostScript (EPS, also inside an IPTC
# file) it starts Ghostscript, and a stranger's image must not start a program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO", "QOI")
# The endings of image files in folders, in any case, and the format of each.
ENDINGS = {
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".dib": "DIB",
    ".gif": "GIF",
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    **dict.fromkeys((".avif", ".avifs"), "AVIF"),
    **dict.fromkeys((".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"), "JPEG2000"),
    ".tga": "TGA",
    ".ico": "ICO",
    ".qoi": "QOI",
}
# Endings of images without a reader here: whoever has some must learn that they are not read.
_FOREIGN = (
    "heic heif hif jxl jxr wdp svg svgz psd psb eps xcf exr hdr pfm pcx dds sgi ras icns cur dcm dicom fits nii "
    "raw cr2 cr3 crw nef nrw arw srf sr2 dng raf orf rw2 pef srw x3f 3fr iiq"
)
FOREIGN = frozenset(f".{name}" for name in _FOREIGN.split())
RESIZE = "exif-upright, rgb, shorter side to size (pillow bilinear, antialiased), centre crop"
RESIZE_LARGER = "exif-upright, rgb, shorter side to shorter_side (pillow bilinear, antialiased), centre crop"
LARGEST = 2**30 // 12  # pixels: Pillow takes a larger file for an attack, and resizing makes no larger image either

Pixels = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode Pillow can open, upright and as 8-bit RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey: convert() would clip it at 255
        values = np.asarray(image, dtype=np.float64)
        image = Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return image.convert("RGB")


def fit(image: Image.Image, size: int, shorter_side: int | None = None) -> Pixels:
    """The rule at the top of this file: any image to size×size×3, uint8. `shorter_side` is at least `size`.

    Raises ValueError for an image so narrow that resizing it would fill the memory.
    """
    image = to_rgb(image)
    width, height = image.size
    if (width, height) != (size, size):
        shorter = shorter_side or size
        scale = shorter / min(width, height)
        width, height = max(shorter, round(width * scale)), max(shorter, round(height * scale))
        if width * height > LARGEST:  # a line of pixels, a few bytes in a file
            raise ValueError(f"{image.width}×{image.height} pixels would become {width}×{height}")
        # Along the rows, then down the columns: which of the two one call does first, and so how it rounds, depends on
        # Pillow's version (github.com/python-pillow/Pillow/pull/9549 changed it for tall images).
        image = image.resize((width, image.height), Image.Resampling.BILINEAR)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, dtype=np.uint8)


def rule(size: int, shorter_side: int | None = None) -> dict[str, Any]:
    """The rule of `fit` as student.json and the manifest state it. A client that does not know it must refuse."""
    if shorter_side in (None, size):
        return {"size": size, "resize": RESIZE}
    return {"size": size, "shorter_side": shorter_side, "resize": RESIZE_LARGER}


@functools.cache
def endings() -> tuple[str, ...]:
    """The ENDINGS that class folders are searched for: those of formats that the installed Pillow reads."""
    return tuple(ending for ending, name in ENDINGS.items() if name in _formats())


def read(content: bytes, transform: Callable[[Image.Image], Pixels]) -> Pixels:
    """A file's content, in one of FORMATS, as pixels after `transform`.

    Raises whatever Pillow does; `damage` turns that into words.
    """
    if not content:
        raise ValueError("zero bytes")
    with Image.open(io.BytesIO(content), formats=_formats()) as image:
        return transform(image)


class Header(NamedTuple):
    """What the first bytes of an image file say of it."""

    width: int  # pixels, as stored: an EXIF tag may turn them
    height: int
    mode: str  # Pillow's

    @property
    def grey(self) -> bool:
        return self.mode in ("1", "L", "LA", "La") or self.mode.startswith("I")


def header(stream: BinaryIO) -> Header:
    """Size and mode of an image file in one of FORMATS, without its pixels. Raises whatever Pillow does."""
    if not stream.read(1):
        raise ValueError("zero bytes")
    stream.seek(0)
    with Image.open(stream, formats=_formats()) as image:
        return Header(image.width, image.height, image.mode)


@functools.cache
def _formats() -> tuple[str, ...]:
    """The FORMATS that the installed Pillow reads; for any other it raises KeyError."""
    Image.init()
    # Pillow names this one whether or not it was built with its library.
    without = set() if features.check("jpg_2000") else {"JPEG2000"}
    return tuple(name for name in FORMATS if name in Image.OPEN and name not in without)


@contextmanager
def wary() -> Iterator[None]:
    """Images so large that they look like an attack are errors, in all threads: warning filters are global."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def damage(error: Exception) -> str:
    """The reason why a file is no whole image, in a line. Pillow raises a dozen kinds, even SyntaxError."""
    if isinstance(error, UnidentifiedImageError):  # Pillow's message holds an address in memory
        return "not an image of a known format"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]


def may_pass(error: Exception) -> bool:
    """Whether an error tells nothing of the image itself: the system refused to read the file, this time.

    A link to nothing is no such error. Pillow's own OSErrors have no number.
    """
    return isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.ELOOP)


_HINT = "remove or replace these files"


class DamagedError(DataError):
    """Files that are no whole images: `details` has a line for each."""


def unreadable(bad: Sequence[str], count: int, skip_damaged: bool | None = None) -> DamagedError:
    """The error for files that are no whole images: a line for each in `bad`, out of `count` files.

    `skip_damaged`: what the recipe says, where it could have them left out.
    """
    hints = {
        None: _HINT,
        False: f"{_HINT}; or data.skip_damaged=true leaves damaged images out and counts them",
        True: "data.skip_damaged leaves out images that are damaged, not those that the system fails to read: another "
        "start would train on other images",
    }
    bad = sorted(bad)
    return DamagedError(
        f"{len(bad)} of {count} images cannot be read, the first is {bad[0]}", hint=hints[skip_damaged], details=bad
    )
