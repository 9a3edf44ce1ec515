"""Published images without torch: the same pixels as with it, and no file that the makers did not publish."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lookalike import KINDS, write_cifar

from okdc.data import cifar, published
from okdc.data.datasets import digits
from okdc.errors import DataError


def told_as_torchvision(patch: pytest.MonkeyPatch, name: str) -> None:
    """The look-alike's files are the published ones here, too."""
    kind = KINDS[name]
    parts = {"train": dict(kind.train_list), "test": dict(kind.test_list)}
    meta = {kind.meta["filename"]: kind.meta["md5"]}
    patch.setitem(published.CIFAR, name, replace(published.CIFAR[name], parts=parts, meta=meta))


@pytest.fixture(autouse=True)
def harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look-alike's files warn as they are unpickled, which no published one does."""
    monkeypatch.setattr("lookalike._Warning", lambda: "a batch")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_files_and_their_hashes_are_torchvisions(name: str) -> None:
    kind, ours = KINDS[name], published.CIFAR[name]
    assert (ours.folder, ours.names) == (kind.base_folder, kind.meta["key"])
    assert [list(pair) for pair in ours.parts["train"].items()] == kind.train_list
    assert [list(pair) for pair in ours.parts["test"].items()] == kind.test_list
    assert ours.meta == {kind.meta["filename"]: kind.meta["md5"]}


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_images_are_those_that_training_reads(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    root = write_cifar(Path("data"), monkeypatch, name, train=30, test=20)
    told_as_torchvision(monkeypatch, name)
    whole = cifar.cifar(name, root)
    for part, rows in (("train", whole.train), ("test", whole.test)):
        classes, pixels, labels = published.cifar(name, root, part)
        assert classes == whole.classes
        np.testing.assert_array_equal(pixels, whole.images[rows].numpy())
        np.testing.assert_array_equal(labels, whole.labels[rows].numpy())


def test_only_the_split_that_is_asked_for_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(Path("data"), monkeypatch, train=30, test=20)
    told_as_torchvision(monkeypatch, "cifar10")
    (root / "cifar-10-batches-py" / "data_batch_2").unlink()
    assert len(published.cifar("cifar10", root, "test")[1]) == 20
    with pytest.raises(DataError, match=r"data_batch_2: cannot be read: No such file"):
        published.cifar("cifar10", root, "train")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("unpickled"),)  # type: ignore[return-value]


def test_another_file_is_never_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(Path("data"), monkeypatch)
    told_as_torchvision(monkeypatch, "cifar10")
    path = root / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match=r"test_batch: expected MD5 [0-9a-f]{32}, found"):
        published.cifar("cifar10", root, "test")
    assert not Path("unpickled").exists()


def test_a_file_of_the_right_hash_may_call_nothing_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(Path("data"), monkeypatch)
    told_as_torchvision(monkeypatch, "cifar10")
    blob = pickle.dumps({"data": Evil(), "labels": []})
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(blob)
    known = published.CIFAR["cifar10"]
    parts = known.parts | {"test": {"test_batch": hashlib.md5(blob).hexdigest()}}
    monkeypatch.setitem(published.CIFAR, "cifar10", replace(known, parts=parts))
    with pytest.raises(DataError, match="has no place in a file of images"):
        published.cifar("cifar10", root, "test")
    assert not Path("unpickled").exists()


def test_the_digits_are_those_that_training_reads() -> None:
    pixels, labels = published.digits()
    whole = digits()
    np.testing.assert_array_equal(pixels, whole.images.numpy())
    np.testing.assert_array_equal(labels, whole.labels.numpy())
    assert whole.classes == published.DIGITS
    assert whole.fingerprint == hashlib.sha256(pixels[..., 0].tobytes() + labels.tobytes()).hexdigest()
