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


SOURCES: dict[str, Callable[[Data, Progress | None], Dataset]] = {"digits": _digits, "folder": _folder}


def load(data: Data, progress: Progress | None = None) -> Dataset:
    """The images of `data.name` with the splits that they bring. Raises DataError where they are not to be had."""
    return SOURCES[data.name](data, progress)
