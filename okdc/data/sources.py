"""Every data set that a recipe may name, by `data.name`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from okdc.data import datasets
from okdc.data.datasets import Dataset
from okdc.data.images import Progress, class_names
from okdc.errors import DataError
from okdc.recipe.schema import STREAMED, Data


def _digits(data: Data, progress: Progress | None) -> Dataset:  # noqa: ARG001
    return datasets.digits()


def _folder(data: Data, progress: Progress | None) -> Dataset:
    assert data.root is not None
    return datasets.folder(Path(data.root).expanduser(), data.image_size, progress, data.shorter_side)


def _cifar(data: Data, progress: Progress | None) -> Dataset:  # noqa: ARG001
    from okdc.data.cifar import cifar

    assert data.root is not None
    return cifar(data.name, Path(data.root).expanduser())


def _cinic(data: Data, progress: Progress | None) -> Dataset:
    from okdc.data.cinic10 import cinic

    assert data.root is not None
    return cinic(Path(data.root).expanduser(), data.image_size, progress)


def _imagenet(data: Data, progress: Progress | None) -> Dataset:
    from okdc.data.imagenet import imagenet

    assert data.root is not None
    return imagenet(Path(data.root).expanduser(), data.image_size, data.shorter_side, progress)


def _yours(data: Data, progress: Progress | None) -> Dataset:  # noqa: ARG001
    from okdc.data.custom import yours

    return yours(data.name, data.root, data.image_size)


SOURCES: dict[str, Callable[[Data, Progress | None], Dataset]] = {
    "digits": _digits,
    "folder": _folder,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "cinic10": _cinic,
    "imagenet": _imagenet,
}
CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "cinic10": 10, "imagenet": 1000}  # known without the images


def count_classes(data: Data) -> int | None:
    """How many classes, without a look at any image: as many as there are folders, or as is known. None: unknown."""
    if data.name in ("folder", *STREAMED) and data.root is not None:
        with contextlib.suppress(DataError):
            return len(class_names(Path(data.root).expanduser()))
    return CLASSES.get(data.name)


def load(data: Data, progress: Progress | None = None) -> Dataset:
    """The images of `data.name` with the splits that they bring. Raises DataError where they are not to be had."""
    source = _yours if ":" in data.name else SOURCES[data.name]
    return source(data, progress)
