"""What an image of a data set is called: by its file below data.root, or by its number in the data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from okdc.assembly.resolve import ResolvedRecipe
from okdc.data.datasets import Dataset
from okdc.data.listing import list_images
from okdc.data.paths import legible


def namer(resolved: ResolvedRecipe, dataset: Dataset) -> Callable[[int], str]:
    """The name of the image in a row. Raises DataError where the folder of the images cannot be listed."""
    if dataset.files is not None:
        paths = dataset.files.paths
        return lambda row: legible(paths.name(row))
    root = resolved.recipe.data.root
    if not resolved.source.class_folders or root is None:
        return lambda row: f"image {row}"
    files = list_images(Path(root).expanduser()).files
    left_out = list(dataset.skipped)  # in the order of the files
    kept = []
    for row, name in enumerate(files.names()):
        if left_out and left_out[0].startswith(f"{legible(name)}: "):
            left_out.pop(0)
        else:
            kept.append(row)
    if len(kept) != len(dataset.labels):  # a data set with an order of its own
        return lambda row: f"image {row}"
    return lambda row: legible(files.name(kept[row]))
