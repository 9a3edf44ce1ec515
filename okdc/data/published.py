"""Published images that are read without torch: scikit-learn's digits, and the pickles of CIFAR-10 and CIFAR-100.

A file of CIFAR is opened only after its MD5 was found to be the published one, and by an unpickler that knows nothing
but arrays: torchvision's opens all that a pickle names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from okdc.data.images import Pixels
from okdc.errors import DataError

Labels = npt.NDArray[np.int64]

DIGITS = tuple(str(digit) for digit in range(10))


def digits() -> tuple[Pixels, Labels]:
    """scikit-learn's 1,797 handwritten digits, N×8×8×3 and their labels."""
    # scikit-learn itself takes a second to import, for SciPy, which reading its table does not need.
    spec = importlib.util.find_spec("sklearn")
    table = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz" if spec and spec.origin else None
    if table and table.is_file():
        rows = np.loadtxt(table, np.uint8, delimiter=",")  # 64 values from 0 to 16, and the digit
    else:
        from sklearn.datasets import load_digits

        found = load_digits()
        rows = np.column_stack([found.data, found.target]).astype(np.uint8)
    grey = np.round(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=3), rows[:, -1].astype(np.int64)


# ---------------------------------------------------------------------------------------------------------------------
# CIFAR (cs.toronto.edu/~kriz/cifar.html)


@dataclass(frozen=True)
class Cifar:
    """One of the two: its archive, and where its files lie below a root, with their MD5."""

    url: str
    md5: str  # of the archive
    folder: str
    parts: dict[str, dict[str, str]]  # the files of each split, in order, with their MD5
    meta: dict[str, str]
    labels: str  # the key in each file
    names: str  # the key in the meta file

    @property
    def files(self) -> dict[str, str]:
        return self.parts["train"] | self.parts["test"] | self.meta


CIFAR = {
    "cifar10": Cifar(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
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
        labels="labels",
        names="label_names",
    ),
    "cifar100": Cifar(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        parts={
            "train": {"train": "16019d7e3df5f24257cddd939b257f8d"},
            "test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        },
        meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
        labels="fine_labels",
        names="fine_label_names",
    ),
}


def cifar(name: str, root: Path, part: str) -> tuple[tuple[str, ...], Pixels, Labels]:
    """(classes, N×32×32×3 images, labels) of one split, "train" or "test".

    Raises DataError for a file that is missing or not the published one.
    """
    of = CIFAR[name]
    folder = root / of.folder
    pixels, labels = [], []
    for file, md5 in of.parts[part].items():
        content = _unpickled(folder / file, md5)
        pixels.append(np.asarray(content["data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels += content[of.labels]
    ((file, md5),) = of.meta.items()
    names = _unpickled(folder / file, md5)[of.names]
    return tuple(names), np.ascontiguousarray(np.concatenate(pixels)), np.asarray(labels, np.int64)


def damage(name: str, root: Path) -> list[str]:
    """One line for each file that is missing or not the published one; none: the data set is whole."""
    of, lines = CIFAR[name], []
    for file, md5 in of.files.items():
        path = root / of.folder / file
        if not path.is_file():
            lines.append(f"{path.absolute()}: missing")
            continue
        try:
            _read(path, md5)
        except DataError as error:
            lines.append(error.message)
    return lines


def _read(path: Path, md5: str) -> bytes:
    """The published bytes, or DataError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.absolute()}: cannot be read: {error.strerror}") from None
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(f"{path.absolute()}: expected MD5 {md5}, found {found}")
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
