"""CIFAR-10 and CIFAR-100 as torchvision keeps them: `root/cifar-10-batches-py`, `root/cifar-100-python`.

The files are pickles. torchvision compares each one's MD5 with the published one before it opens any, so nothing but
the makers' own files is ever unpickled. Nothing is downloaded here: `okdc.data.download` does that when it is asked to.
"""

from __future__ import annotations

import shlex
import warnings
from pathlib import Path
from typing import Any

from okdc.data.datasets import Dataset, of_arrays
from okdc.errors import DataError


def source(name: str) -> Any:
    """torchvision's class: it knows the folder, the files and their MD5, the archive and its address."""
    from torchvision import datasets  # slow to import

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def cifar(name: str, root: Path) -> Dataset:
    """The 50,000 training and 10,000 test images, 32×32, with the published split and class names.

    Raises DataError for files that are missing or not the published ones, all of them by name.
    """
    kind = source(name)
    wrong = damage(name, root)
    if wrong:
        raise _unusable(name, root, wrong)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy 2.4.0 to 2.4.4, of pickles this old: github.com/numpy/numpy/pull/29301
        train, test = kind(str(root), train=True), kind(str(root), train=False)
    splits = {"train": train, "test": test}
    return of_arrays(name, train.classes, {split: (part.data, part.targets) for split, part in splits.items()})


def damage(name: str, root: Path) -> list[str]:
    """One line for each file that is missing or not the published one; none: the data set is whole."""
    from torchvision.datasets.utils import calculate_md5

    kind, lines = source(name), []
    for file, md5 in [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]:
        path = root / kind.base_folder / file
        if not path.is_file():
            lines.append(f"{path.absolute()}: missing")
        elif (found := calculate_md5(path)) != md5:
            lines.append(f"{path.absolute()}: expected MD5 {md5}, found {found}")
    return lines


def _unusable(name: str, root: Path, wrong: list[str]) -> DataError:
    kind = source(name)
    folder = root.absolute() / kind.base_folder
    files = [file for file, _ in [*kind.train_list, *kind.test_list]] + [kind.meta["filename"]]
    hint = f"okdc download {name} --data-root {shlex.quote(str(root))} brings {kind.base_folder}/{{{','.join(files)}}}"
    if folder.is_dir():
        return DataError(f"{name}: {len(wrong)} of {len(files)} files are missing or damaged", details=wrong, hint=hint)
    if all((root / file).is_file() for file in files):
        hint = f"data.root is the folder above: data.root={shlex.quote(str(root.parent))}"
    elif (root / "train").is_dir():
        hint = f"image files in class folders are data.name=folder; {hint}"
    return DataError(f"{name}: expected a folder {folder}, found none", hint=hint)
