"""A data set as the tests read it, undivided."""

from __future__ import annotations

from pathlib import Path

from okdc.data import datasets, find
from okdc.data.datasets import Dataset
from okdc.data.images import Progress
from okdc.data.source import Request


def read_data(
    name: str,
    root: Path | str | None = None,
    size: int = 8,
    shorter_side: int | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """The data set called `name`, of images of this size."""
    return datasets.load(find(name), Request(None if root is None else str(root), size, shorter_side, progress))
