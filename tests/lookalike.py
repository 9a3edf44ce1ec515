"""Small data sets in the layout of published ones: CIFAR's pickles, CINIC-10's folders, their archives."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from asking import write_tree
from torchvision import datasets

from okdc.data import cifar
from okdc.data.cinic10 import CLASSES, SPLITS

# As torchvision knows them, to compare with.
KINDS: dict[str, Any] = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


class _OldDtype:
    """uint8 as numpy 1 pickled it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.dtype, ("u1", 0, 1), (3, "|", None, None, None, -1, -1, 0)


class _OldArray:
    def __init__(self, array: npt.NDArray[np.uint8]) -> None:
        self.array = array

    def __reduce__(self) -> tuple[Any, ...]:
        state = (1, self.array.shape, _OldDtype(), False, self.array.tobytes())
        return self.array.__reduce__()[0], (np.ndarray, (0,), b"b"), state


def write_cifar(root: Path, patch: pytest.MonkeyPatch, name: str = "cifar10", train: int = 40, test: int = 20) -> Path:
    """Random images in the published layout, so many in each file; okdc and torchvision take these for the published.

    Labels go round the classes in each file.
    """
    kind = KINDS[name]
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    classes = 10 if name == "cifar10" else 100
    labels_key = "labels" if name == "cifar10" else "fine_labels"
    random = np.random.default_rng(classes)

    def write(file: str, content: dict[str, Any]) -> list[str]:
        blob = pickle.dumps(content, protocol=2)
        (folder / file).write_bytes(blob)
        return [file, hashlib.md5(blob).hexdigest()]

    def batch(count: int) -> dict[str, Any]:
        pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        return {"data": _OldArray(pixels), labels_key: [i % classes for i in range(count)], "batch_label": "a batch"}

    meta = write(kind.meta["filename"], {kind.meta["key"]: [f"class{c:02}" for c in range(classes)]})
    patch.setattr(kind, "meta", kind.meta | {"md5": meta[1]})
    patch.setattr(kind, "train_list", [write(file, batch(train)) for file, _ in kind.train_list])
    patch.setattr(kind, "test_list", [write(file, batch(test)) for file, _ in kind.test_list])
    parts = {"train": dict(kind.train_list), "test": dict(kind.test_list)}
    patch.setitem(cifar.LAYOUTS, name, replace(cifar.LAYOUTS[name], parts=parts, meta=dict([meta])))
    return root


def write_cinic(root: Path, each: int = 2, size: int = 8) -> Path:
    """So many random PNG files of each of the ten classes in each split."""
    return write_tree(root, {split: dict.fromkeys(CLASSES, each) for split in SPLITS}, size)


def packed(folder: Path, *evil: tarfile.TarInfo) -> bytes:
    """What is in a folder as .tar.gz, and members that no such archive should have."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for entry in sorted(folder.iterdir()):
            tar.add(entry, entry.name)
        for member in evil:
            tar.addfile(member, io.BytesIO(b"evil"[: member.size]))
    return stream.getvalue()
