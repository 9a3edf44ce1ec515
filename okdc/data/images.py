"""Image files to uint8 arrays: listing, the class map, decoding, the resize rule, the cache. numpy and Pillow only.

The rule for one image, stated in every manifest: upright by its EXIF tag, RGB (16-bit grey scaled to 8 bits,
transparency over black), the shorter side resized to the size wanted, or to `shorter_side` where a recipe names one
(Pillow's antialiased bilinear), the centre cut. An image that has the very size is left as it is.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from okdc.data import workers
from okdc.data.paths import Paths
from okdc.errors import DataError, nearest

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
# What a file may be, whatever its name. Pillow knows more: for PostScript (EPS, also inside an IPTC file) it starts
# Ghostscript, and a stranger's image must not start a program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO", "QOI")
RESIZE = "exif-upright, rgb, shorter side to size (pillow bilinear, antialiased), centre crop"
RESIZE_LARGER = "exif-upright, rgb, shorter side to shorter_side (pillow bilinear, antialiased), centre crop"
LARGEST = 2**30 // 12  # pixels: what Pillow takes for an attack in a file is no size to resize one to either
_PART = 64  # files that a worker decodes at a time, fewer of large images
_PART_BYTES = 2**22
_CACHE_VERSION = 2  # raise it with any change of what the same files decode to

Pixels = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]


# ---------------------------------------------------------------------------------------------------------------------
# One image


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
    """What `fit` does, as student.json and the manifest say it. Only a client that knows the words may read images."""
    if shorter_side in (None, size):
        return {"size": size, "resize": RESIZE}
    return {"size": size, "shorter_side": shorter_side, "resize": RESIZE_LARGER}


def read(content: bytes, transform: Callable[[Image.Image], Pixels]) -> Pixels:
    """The pixels that `transform` makes of a file's content, which is of one of FORMATS.

    Raises whatever Pillow does; `damage` has words for it.
    """
    if not content:
        raise ValueError("zero bytes")
    with Image.open(io.BytesIO(content), formats=_formats()) as image:
        return transform(image)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that the installed Pillow has a reader of: of another it raises KeyError."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def wary() -> Iterator[None]:
    """An image so large that it looks like an attack is an error, in all threads: the filters are global."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def damage(error: Exception) -> str:
    """Why a file is no whole image, in a line. Pillow raises a dozen kinds, down to SyntaxError and struct.error."""
    if isinstance(error, UnidentifiedImageError):  # its own words hold an address in memory
        return "not an image of a known format"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]


def unreadable(bad: Sequence[str], count: int) -> DataError:
    """The error for files that are no whole images: one line each in `bad`, of `count` that were read."""
    bad = sorted(bad)
    return DataError(
        f"{len(bad)} of {count} images cannot be read, the first is {bad[0]}",
        hint="remove or replace these files",
        details=bad,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Listing: which file is of which class, in which split


@dataclass
class Listing:
    """The images of a folder: files in a fixed order, their classes and their splits."""

    root: Path
    classes: tuple[str, ...]
    files: Paths
    labels: list[int] = field(default_factory=list)
    splits: dict[str, range] = field(default_factory=dict)  # train, val, test, or "all" for one folder of classes
    notes: list[str] = field(default_factory=list)


_TREE = "root/<split>/<class>/*.{png,jpg,jpeg,bmp,webp} with the splits train, valid|val, test; or root/<class>/*"


def listing(root: Path) -> Listing:
    """List `root/<split>/<class>/*` or `root/<class>/*`. The class map comes from train, by name.

    Raises DataError for a missing folder, an empty class, fewer than two classes, a class that train lacks.
    """
    root = Path(os.path.abspath(root))  # noqa: PTH100  (resolve() would follow links: the user's own path stays readable)
    if not root.is_dir():
        there = "a file" if root.exists() else "nothing"
        raise DataError(f"data.root: expected a folder of images at {root}, found {there}", hint=f"expected: {_TREE}")
    folders = {f.name: f for f in _folders(root)}
    if "train" not in folders:
        stray = sorted({"valid", "val", "test"} & set(folders))
        if stray:
            raise DataError(f"{root}: expected a folder train beside {', '.join(stray)}, found none", hint=_TREE)
        return _list(root, {"all": root})
    if {"valid", "val"} <= set(folders):
        raise DataError(f"{root}: both valid and val are there; one validation split is expected")
    names = {"train": "train", "valid": "val", "val": "val", "test": "test"}
    splits = {names[name]: folders[name] for name in names if name in folders}
    found = _list(root, splits)
    for name in sorted(set(folders) - set(names)):
        found.notes.append(f"{root / name} is not read{nearest(name, names)}; the splits are train, valid|val, test")
    return found


def class_names(root: Path) -> tuple[str, ...]:
    """The class map that `listing` would find, from the folders alone. Raises DataError where there is no such map."""
    first = root / "train" if (root / "train").is_dir() else root
    found = tuple(folder.name for folder in _folders(first)) if first.is_dir() else ()
    if len(found) < 2:
        raise DataError(f"{first}: expected at least two class folders, found {len(found)}", hint=f"expected: {_TREE}")
    return found


def _folders(folder: Path) -> list[Path]:
    """Sub-folders by name; hidden ones (.ipynb_checkpoints, .git) are nobody's class."""
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _images(folder: Path) -> list[str]:
    """The names of the images in a folder. Paths would take longer than all else of a listing."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.name.lower().endswith(EXTENSIONS) and not e.name.startswith("."))


def _list(root: Path, splits: dict[str, Path]) -> Listing:
    first = next(iter(splits.values()))
    found, paths = Listing(root, tuple(f.name for f in _folders(first)), Paths(root, ())), list[bytes]()
    if len(found.classes) < 2:
        loose = len(_images(first))
        raise DataError(
            f"{first}: expected at least two class folders, found {len(found.classes)}"
            + (f" ({found.classes[0]})" if found.classes else "")
            + (f" and {loose} loose images" if loose else ""),
            hint=f"expected: {_TREE}",
        )
    empty: list[str] = []
    for split, folder in splits.items():
        names = [f.name for f in _folders(folder)]
        unknown = [name for name in names if name not in found.classes]
        if unknown:
            raise DataError(
                f"{folder}: class {unknown[0]!r} is not in {first}{nearest(unknown[0], found.classes)}",
                hint="every split has the classes of train, by name",
                details=[str(folder / name) for name in unknown],
            )
        start = len(paths)
        for label, name in enumerate(found.classes):
            files = _images(folder / name) if name in names else []
            inside = os.fsencode((folder / name).relative_to(root)) + b"/"
            paths += [inside + os.fsencode(file) for file in files]
            found.labels += [label] * len(files)
            if not files and folder is first:
                empty.append(str(folder / name))
            elif not files:
                found.notes.append(f"{folder / name}: no images of this class in {split}")
        found.splits[split] = range(start, len(paths))
        if loose := len(_images(folder)):
            found.notes.append(f"{folder}: {loose} images outside any class folder are not read")
        if len(found.splits[split]) == 0 and folder is not first:
            beside = f" ({loose:,} lie beside them)" if loose else ""
            raise DataError(f"{folder}: expected images in its class folders, found none{beside}", hint=_TREE)
    if empty:
        raise DataError(
            f"{len(empty)} of {len(found.classes)} classes have no images, the first is {empty[0]}",
            hint="remove the folder, or put " + ", ".join(EXTENSIONS) + f" files in it; expected: {_TREE}",
            details=empty,
        )
    found.files = Paths(root, paths)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Decoding, once


def decode(
    files: Sequence[Path], size: int, progress: Progress | None = None, shorter_side: int | None = None
) -> tuple[Pixels, str]:
    """All files as one N×size×size×3 array, and the sha256 of their contents. On all cores.

    Raises DataError that lists every file which is not a whole image.
    """
    paths = files if isinstance(files, Paths) else Paths.of(Path(), files)
    pixels = np.empty((len(paths), size, size, 3), np.uint8)
    digests = np.empty((len(paths), hashlib.sha256().digest_size), np.uint8)
    bad: list[str] = []
    step = max(1, min(_PART, _PART_BYTES // (size * size * 3))) if len(paths) >= workers.MANY else 1
    starts = range(0, len(paths), step)
    some = functools.partial(_decode_some, size=size, shorter_side=shorter_side)
    try:
        with wary(), workers.pool(len(paths)) as pool:
            for start, part in zip(starts, pool.map(some, (paths[i : i + step] for i in starts)), strict=True):
                done = min(start + step, len(paths))
                pixels[start:done], digests[start:done] = part[:2]
                bad += part[2]
                if progress and (done // 64 > start // 64 or done == len(paths)):
                    progress(done, len(paths))
    except BrokenProcessPool:
        raise DataError(
            f"a process that decodes the {len(paths):,} images was killed",
            hint="mostly for want of memory: a smaller data.image_size",
        ) from None
    if bad:
        raise unreadable(bad, len(paths))
    return pixels, hashlib.sha256(digests.data).hexdigest()


def _decode_some(paths: Paths, size: int, shorter_side: int | None) -> tuple[Pixels, Pixels, list[str]]:
    """What a worker does: the pixels of some files, the sha256 of each, and a line for each that is no whole image."""
    pixels = np.zeros((len(paths), size, size, 3), np.uint8)
    digests = np.zeros((len(paths), hashlib.sha256().digest_size), np.uint8)
    bad: list[str] = []
    for i, path in enumerate(paths):
        if workers.stopped():
            break
        try:
            content = path.read_bytes()
            digests[i] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
            pixels[i] = read(content, lambda image: fit(image, size, shorter_side))
        except MemoryError:
            raise
        except Exception as error:
            bad.append(f"{path}: {damage(error)}")
    return pixels, digests, bad


# ---------------------------------------------------------------------------------------------------------------------
# The cache


@dataclass
class Decoded:
    pixels: Pixels  # N×size×size×3
    sha256: str  # of the files' contents, in order
    notes: list[str]


def cache_folder() -> Path:
    """OKDC_CACHE, else okdc in the user's cache folder."""
    named = os.environ.get("OKDC_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "okdc"


def load(found: Listing, size: int, progress: Progress | None = None, shorter_side: int | None = None) -> Decoded:
    """The pixels of a listing, from the cache where these very files (path, size, mtime) were decoded before.

    A cache that is damaged is made again; one that cannot be written costs a note, not the run.
    """
    entry = cache_folder() / "images" / _key(found, size, shorter_side)
    cached = _read(entry, (len(found.files), size, size, 3))
    if cached:
        return Decoded(*cached, [f"{len(found.files):,} decoded images from the cache"])
    pixels, sha256 = decode(found.files, size, progress, shorter_side)
    try:
        _write(entry, pixels, sha256)
    except OSError as error:
        return Decoded(pixels, sha256, [f"the decoded images are not cached: {entry}: {error.strerror or error}"])
    return Decoded(pixels, sha256, [f"decoded {len(found.files):,} images, cached in {entry}"])


def _key(found: Listing, size: int, shorter_side: int | None) -> str:
    digest = hashlib.sha256(json.dumps([_CACHE_VERSION, PIL.__version__, rule(size, shorter_side)]).encode())
    gone = []
    for name, stat in found.files.stats():
        if isinstance(stat, OSError):
            gone.append(f"{found.root / os.fsdecode(name)}: {damage(stat)}")
        else:
            digest.update(b"%s\0%d %d\n" % (name, stat.st_size, stat.st_mtime_ns))
    if gone:  # a link to nothing, or taken away meanwhile
        raise unreadable(gone, len(found.files))
    return digest.hexdigest()[:32]


def _read(entry: Path, shape: tuple[int, ...]) -> tuple[Pixels, str] | None:
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        with (entry / "images.npy").open("rb") as stream:
            pixels = np.lib.format.read_array(stream, allow_pickle=False)
        sha256 = meta["sha256"]
    except Exception:  # of a damaged header numpy raises ValueError, TokenError, MemoryError, ...
        return None
    if pixels.shape != shape or pixels.dtype != np.uint8 or not isinstance(sha256, str):
        return None
    return pixels, sha256


def _write(entry: Path, pixels: Pixels, sha256: str) -> None:
    """Built aside and moved into place, so that a reader never sees half of it."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".new-", dir=entry.parent))
    try:
        np.save(aside / "images.npy", pixels, allow_pickle=False)
        (aside / "meta.json").write_text(json.dumps({"sha256": sha256}), encoding="utf-8")
        shutil.rmtree(entry, ignore_errors=True)
        aside.rename(entry)
    except OSError:
        if not entry.is_dir():  # another process may have been first: its entry is as good
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
