"""CIFAR-10 and CIFAR-100 as torchvision keeps them: `root/cifar-10-batches-py`, `root/cifar-100-python`.

Nothing is downloaded here: `okdc.data.download` does that when it is asked to.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from okdc.data import published
from okdc.data.datasets import Dataset, of_arrays
from okdc.errors import DataError


def cifar(name: str, root: Path) -> Dataset:
    """The 50,000 training and 10,000 test images, 32×32, with the published split and class names.

    Raises DataError for files that are missing or not the published ones, all of them by name.
    """
    splits = {}
    try:
        for split in ("train", "test"):
            classes, pixels, labels = published.cifar(name, root, split)
            splits[split] = pixels, labels.tolist()
    except DataError:  # of the first file alone
        if wrong := published.damage(name, root):
            raise _unusable(name, root, wrong) from None
        raise
    return of_arrays(name, classes, splits)


def _unusable(name: str, root: Path, wrong: list[str]) -> DataError:
    of = published.CIFAR[name]
    folder, files = root.absolute() / of.folder, list(of.files)
    hint = f"okdc download {name} --data-root {shlex.quote(str(root))} brings {of.folder}/{{{','.join(files)}}}"
    if folder.is_dir():
        return DataError(f"{name}: {len(wrong)} of {len(files)} files are missing or damaged", details=wrong, hint=hint)
    if all((root / file).is_file() for file in files):
        hint = f"data.root is the folder above: data.root={shlex.quote(str(root.parent))}"
    elif (root / "train").is_dir():
        hint = f"image files in class folders are data.name=folder; {hint}"
    return DataError(f"{name}: expected a folder {folder}, found none", hint=hint)
