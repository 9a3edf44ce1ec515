"""The user's own images: `data.name = "package.module:callable"`, or an entry point that leads to a callable.

    def load(*, root: str | None, image_size: int) -> dict:
        return {
            "classes": ["cat", "dog"],
            "train": (images, labels),      # N×image_size×image_size×3 uint8, N integers from 0 to classes - 1
            "val": (images, labels),        # optional; without it data.val_fraction of train is held out
            "test": (images, labels),       # optional
        }

numpy arrays or torch tensors. `root` is `data.root`, and None where the recipe has none. The module may lie in the
working directory. okdc checks the whole result before it trains on any of it. No torch.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from okdc.data import DATASETS
from okdc.data.images import Pixels
from okdc.data.source import Content, Labels, Request, Source, of_arrays
from okdc.errors import DataError, OkdcError, nearest, one_line
from okdc.plugins import working_directory_first

KEYS = ("classes", "train", "val", "test")
_EXPECTED = "a mapping with classes, train and, if you like, val and test"


def source(name: str) -> Source:
    """The data set of the callable `name`, which is imported when the images are read."""
    return Source(name=name, read=partial(read, name))


def read(name: str, request: Request) -> Content:
    """The result of the callable `name`, checked. Raises DataError for the first thing wrong with either."""
    size = request.image_size
    with working_directory_first():  # the callable may import modules beside its own
        load = DATASETS.load(name)
        if not callable(load):
            raise DataError(f"{name}: expected something to call, found {type(load).__name__}")
        result = _call(name, load, root=request.root, image_size=size)
    if not isinstance(result, Mapping):
        raise DataError(f"{name}: expected {_EXPECTED}, found {type(result).__name__}", hint="see okdc.data.custom")
    for key in result:
        if key not in KEYS:
            raise DataError(f"{name}: unknown key {key!r}{nearest(str(key), KEYS)}; expected {_EXPECTED}")
    missing = [key for key in ("classes", "train") if key not in result]
    if missing:
        raise DataError(f"{name}: {missing[0]!r} is missing; expected {_EXPECTED}")
    classes = _classes(name, result["classes"])
    splits = {split: _split(name, split, result[split], size, len(classes)) for split in KEYS[1:] if split in result}
    if not len(splits["train"][0]):
        raise DataError(f"{name}: train: expected images, found none")
    return of_arrays(classes, splits)


def _call(name: str, load: Callable[..., object], **arguments: object) -> object:
    with contextlib.suppress(ValueError):  # a callable written in C has no signature
        signature = inspect.signature(load)
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise DataError(f"{name}{signature} cannot be called with root= and image_size=: {error}") from error
    try:
        return load(**arguments)
    except OkdcError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"{name} raised {one_line(error)}", hint="okdc --debug shows where") from error


def _classes(name: str, names: object) -> list[str]:
    if not isinstance(names, list | tuple) or not all(isinstance(c, str) for c in names):
        raise DataError(f"{name}: classes: expected a list of names, found {_shown(names)}")
    if len(names) < 2:
        raise DataError(f"{name}: classes: expected at least two, found {len(names)}")
    twice = [c for i, c in enumerate(names) if c in names[:i]]
    if twice:
        raise DataError(f"{name}: classes: expected each once, found {twice[0]!r} twice")
    return list(names)


def _split(name: str, split: str, pair: object, size: int, classes: int) -> tuple[Pixels, Labels]:
    """(images, labels) of one split, or a DataError that names the first thing wrong."""
    where = f"{name}: {split}"
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise DataError(f"{where}: expected (images, labels), found {_shown(pair)}")
    images, labels = _array(f"{where} images", pair[0]), _array(f"{where} labels", pair[1])
    if images.dtype != np.uint8:
        raise DataError(f"{where} images: expected uint8, 0 to 255, found {images.dtype}")
    if images.ndim != 4 or images.shape[3] != 3:
        other = "; channels come last" if images.ndim == 4 and images.shape[1] == 3 else ""
        raise DataError(f"{where} images: expected the shape (N, {size}, {size}, 3), found {images.shape}{other}")
    if images.shape[1:3] != (size, size):
        height, width = images.shape[1:3]
        hint = f"data.image_size={height}" if height == width else "resize them to squares"
        raise DataError(f"{where} images: data.image_size is {size}, found {height}×{width}", hint=hint)
    if labels.size and not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{where} labels: expected integers, found {labels.dtype}")
    if labels.shape != (len(images),):
        raise DataError(
            f"{where} labels: expected one for each of {len(images)} images, found the shape {labels.shape}"
        )
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        at = int(outside[0])
        raise DataError(f"{where} labels: expected 0 to {classes - 1}, found {labels[at]} at {at}")
    return images, labels.astype(np.int64)


def _array(where: str, values: Any) -> Any:
    try:
        # Torch's tensors may live on a device, and numpy converts no tensor that requires a gradient.
        return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: expected an array, found {_shown(values)}: {error}") from None


def _shown(thing: object) -> str:
    """A value in a message: its type, and itself where it is short."""
    text = repr(thing)
    return f"{type(thing).__name__} {text}" if len(text) <= 40 else type(thing).__name__
