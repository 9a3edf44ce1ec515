"""Your own data: `data.name = "package.module:callable"`.

    def load(*, root: str | None, image_size: int) -> dict:
        return {
            "classes": ["cat", "dog"],
            "train": (images, labels),      # N×image_size×image_size×3 uint8, N integers from 0 to classes - 1
            "val": (images, labels),        # optional; without it data.val_fraction of train is held out
            "test": (images, labels),       # optional
        }

numpy arrays or torch tensors. `root` is `data.root`, and None where the recipe has none. The working directory is
searched for the module as the installed packages are. All that comes back is checked before anything is trained.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from okdc.data.datasets import Dataset, of_arrays
from okdc.data.images import Pixels
from okdc.errors import DataError, OkdcError, nearest
from okdc.plugins import load as load_object
from okdc.plugins import one_line, working_directory_first

KEYS = ("classes", "train", "val", "test")
_EXPECTED = "a mapping with classes, train and, if you like, val and test"


def yours(name: str, root: str | None, size: int) -> Dataset:
    """What the callable `name` gives, checked. Raises DataError for whatever is wrong with it or with what it gives."""
    with working_directory_first():  # it may import what lies beside it
        load = load_object(name, DataError)
        given = _call(name, load, root=root, image_size=size)
    if not isinstance(given, Mapping):
        raise DataError(f"{name}: expected {_EXPECTED}, found {type(given).__name__}", hint="see okdc.data.custom")
    for key in given:
        if key not in KEYS:
            raise DataError(f"{name}: unknown key {key!r}{nearest(str(key), KEYS)}; expected {_EXPECTED}")
    missing = [key for key in ("classes", "train") if key not in given]
    if missing:
        raise DataError(f"{name}: {missing[0]!r} is missing; expected {_EXPECTED}")
    classes = _classes(name, given["classes"])
    splits = {split: _split(name, split, given[split], size, len(classes)) for split in KEYS[1:] if split in given}
    if not len(splits["train"][0]):
        raise DataError(f"{name}: train: expected images, found none")
    return of_arrays(name, classes, splits)


def _call(name: str, load: Callable[..., object], **arguments: object) -> object:
    with contextlib.suppress(ValueError):  # of what is written in C nobody knows the arguments
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


def _classes(name: str, given: object) -> list[str]:
    if isinstance(given, str) or not isinstance(given, list | tuple) or not all(isinstance(c, str) for c in given):
        raise DataError(f"{name}: classes: expected a list of names, found {_shown(given)}")
    if len(given) < 2:
        raise DataError(f"{name}: classes: expected at least two, found {len(given)}")
    twice = [c for i, c in enumerate(given) if c in given[:i]]
    if twice:
        raise DataError(f"{name}: classes: expected each once, found {twice[0]!r} twice")
    return list(given)


def _split(name: str, split: str, given: object, size: int, classes: int) -> tuple[Pixels, list[int]]:
    """(images, labels) of one split, or a DataError that names the first thing wrong."""
    where = f"{name}: {split}"
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise DataError(f"{where}: expected (images, labels), found {_shown(given)}")
    images, labels = _array(f"{where} images", given[0]), _array(f"{where} labels", given[1])
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
    return images, labels.tolist()


def _array(where: str, given: object) -> Any:
    if isinstance(given, Tensor):
        return given.detach().cpu().numpy()
    try:
        return np.asarray(given)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: expected an array, found {_shown(given)}: {error}") from None


def _shown(thing: object) -> str:
    """A value in a message: its type, and itself where it is short."""
    text = repr(thing)
    return f"{type(thing).__name__} {text}" if len(text) <= 40 else type(thing).__name__
