"""CIFAR-10 and CIFAR-100 as torchvision keeps them: `root/cifar-10-batches-py`, `root/cifar-100-python`. No torch.

cs.toronto.edu/~kriz/cifar.html. A file is opened only where its MD5 is the published one, and by an unpickler that
knows nothing but arrays: torchvision's opens all that a pickle names.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import shlex
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from okdc.data.source import Archive, Content, Part, Request, Source, of_arrays
from okdc.errors import DataError


@dataclass(frozen=True)
class Layout:
    """Where the files of one of the two lie below a root, with their MD5, and the keys in them."""

    folder: str
    parts: dict[str, dict[str, str]]  # the files of each split, in order, with their MD5
    meta: dict[str, str]
    labels_key: str
    names_key: str  # in the meta file

    @property
    def files(self) -> dict[str, str]:
        return self.parts["train"] | self.parts["test"] | self.meta


LAYOUTS = {
    "cifar10": Layout(
        folder="cifar-10-batches-py",
        parts={
            "train": {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            },
            "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
        },
        meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
        labels_key="labels",
        names_key="label_names",
    ),
    "cifar100": Layout(
        folder="cifar-100-python",
        parts={
            "train": {"train": "16019d7e3df5f24257cddd939b257f8d"},
            "test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        },
        meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
        labels_key="fine_labels",
        names_key="fine_label_names",
    ),
}


def read(name: str, request: Request) -> Content:
    """The 50,000 training and 10,000 test images, 32×32, with the published split and class names.

    Raises DataError that names every file which is missing or not the published one.
    """
    try:
        train, test = (read_part(name, request, split) for split in ("train", "test"))
    except DataError:  # of the first file alone
        if lines := damage(name, request.folder):
            raise _unusable(name, request.folder, lines) from None
        raise
    return of_arrays(train.classes, {"train": (train.images, train.labels), "test": (test.images, test.labels)})


def read_part(name: str, request: Request, split: str) -> Part:
    """One split, "train" or "test". Raises DataError for a file that is missing or not the published one."""
    layout = LAYOUTS[name]
    if split not in layout.parts:
        raise DataError(f"{name} has no split {split!r}, there is: {', '.join(layout.parts)}")
    folder = request.folder / layout.folder
    pixels, labels = [], []
    for file, md5 in layout.parts[split].items():
        table = _unpickled(folder / file, md5)
        pixels.append(np.asarray(table["data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels += table[layout.labels_key]
    ((file, md5),) = layout.meta.items()
    classes = _unpickled(folder / file, md5)[layout.names_key]
    return Part(tuple(classes), np.ascontiguousarray(np.concatenate(pixels)), np.asarray(labels, np.int64))


def damage(name: str, root: Path) -> list[str]:
    """One line for each file that is missing or not the published one; none: the data set is whole."""
    layout, lines = LAYOUTS[name], []
    for file, md5 in layout.files.items():
        path = root / layout.folder / file
        if not path.is_file():
            lines.append(f"{path.absolute()}: missing")
            continue
        try:
            _read(path, md5)
        except DataError as error:
            lines.append(error.message)
    return lines


def _unusable(name: str, root: Path, lines: list[str]) -> DataError:
    layout = LAYOUTS[name]
    folder, files = root.absolute() / layout.folder, list(layout.files)
    hint = f"okdc download {name} --data-root {shlex.quote(str(root))} brings {layout.folder}/{{{','.join(files)}}}"
    if folder.is_dir():
        return DataError(f"{name}: {len(lines)} of {len(files)} files are missing or damaged", details=lines, hint=hint)
    if all((root / file).is_file() for file in files):
        hint = f"data.root is the folder above: data.root={shlex.quote(str(root.parent))}"
    elif (root / "train").is_dir():
        hint = f"image files in class folders are data.name=folder; {hint}"
    return DataError(f"{name}: expected a folder {folder}, found none", hint=hint)


def _read(path: Path, md5: str) -> bytes:
    """The published bytes, or DataError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.absolute()}: cannot be read: {error.strerror}") from None
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != md5:
        raise DataError(f"{path.absolute()}: expected MD5 {md5}, found {digest}")
    return content


def _unpickled(path: Path, md5: str) -> Any:
    content = _read(path, md5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy 2.4.0 to 2.4.4, of pickles this old: github.com/numpy/numpy/pull/29301
        try:
            return _Arrays(io.BytesIO(content), encoding="latin1").load()
        except pickle.UnpicklingError as error:
            raise DataError(f"{path}: {error}") from None


class _Arrays(pickle.Unpickler):
    """Lists, dictionaries, text, numbers and arrays, as numpy has pickled them since its first version."""

    def find_class(self, module: str, name: str) -> Any:
        rebuild = np.empty(0).__reduce__()[0]
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return rebuild
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of images")


def _source(name: str, classes: int, url: str, md5: str, size: int, caution: str) -> Source:
    return Source(
        name=name,
        read=partial(read, name),
        read_part=partial(read_part, name),
        root="data",  # torchvision's own root: the folder that holds cifar-10-batches-py
        classes=classes,
        image_size=32,
        counts=(50_000, 0, 10_000),
        archive=Archive(
            url=url,
            md5=md5,
            size=size,
            unpacked=187_000_000,
            folders=(LAYOUTS[name].folder,),
            is_whole=lambda root: not damage(name, root),
        ),
        caution=caution,
        hub=f"uoft-cs/{name}",
        fixed=True,
    )


CIFAR10 = _source(
    "cifar10",
    classes=10,
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    size=170_498_071,
    caution="CIFAR-10: about 3 % of its test images have near-duplicates among the training images (arXiv 1902.00423).",
)
CIFAR100 = _source(
    "cifar100",
    classes=100,
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    size=169_001_437,
    caution="CIFAR-100: about 10 % of its test images have near-duplicates among the training images "
    "(arXiv 1902.00423).",
)
