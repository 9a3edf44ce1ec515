"""Every data set that a recipe may name, by `data.name`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from okdc.data import datasets
from okdc.data.datasets import Dataset
from okdc.data.images import Progress
from okdc.recipe import Data


def _digits(data: Data, progress: Progress | None) -> Dataset:  # noqa: ARG001
    return datasets.digits()


def _folder(data: Data, progress: Progress | None) -> Dataset:
    assert data.root is not None
    return datasets.folder(Path(data.root).expanduser(), data.image_size, progress)


def _cifar(data: Data, progress: Progress | None) -> Dataset:  # noqa: ARG001
    from okdc.data.cifar import cifar

    assert data.root is not None
    return cifar(data.name, Path(data.root).expanduser())


def _cinic(data: Data, progress: Progress | None) -> Dataset:
    from okdc.data.cinic import cinic

    assert data.root is not None
    return cinic(Path(data.root).expanduser(), data.image_size, progress)


def _yours(data: Data, progress: Progress | None) -> Dataset:  # noqa: ARG001
    from okdc.data.yours import yours

    return yours(data.name, data.root, data.image_size)


SOURCES: dict[str, Callable[[Data, Progress | None], Dataset]] = {
    "digits": _digits,
    "folder": _folder,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "cinic10": _cinic,
}


def load(data: Data, progress: Progress | None = None) -> Dataset:
    """The images of `data.name` with the splits that they bring. Raises DataError where they are not to be had."""
    source = _yours if ":" in data.name else SOURCES[data.name]
    return source(data, progress)
