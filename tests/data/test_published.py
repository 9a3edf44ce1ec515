"""Published images without torch: their files are those that torchvision knows, and no others are opened."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lookalike import KINDS, write_cifar

from okdc.data import published
from okdc.data.datasets import digits
from okdc.errors import DataError


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_files_and_their_hashes_are_torchvisions(name: str) -> None:
    kind, ours = KINDS[name], published.CIFAR[name]
    assert (ours.url, ours.md5) == (kind.url, kind.tgz_md5)
    assert (ours.folder, ours.names) == (kind.base_folder, kind.meta["key"])
    assert [list(pair) for pair in ours.parts["train"].items()] == kind.train_list
    assert [list(pair) for pair in ours.parts["test"].items()] == kind.test_list
    assert ours.meta == {kind.meta["filename"]: kind.meta["md5"]}


def test_what_numpy_says_of_pickles_so_old_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy 2.4.0 to 2.4.4 warn of each dtype."""
    find = published._Arrays.find_class

    def warning(self: Any, module: str, name: str) -> Any:
        found = find(self, module, name)

        def dtype(*what: Any) -> Any:
            warnings.warn("align should be passed as Python or NumPy boolean", stacklevel=1)
            return found(*what)

        return dtype if name == "dtype" else found

    root = write_cifar(Path("data"), monkeypatch, train=30, test=20)
    monkeypatch.setattr(published._Arrays, "find_class", warning)
    assert published.cifar("cifar10", root, "test")[1].shape == (20, 32, 32, 3)


def test_only_the_split_that_is_asked_for_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(Path("data"), monkeypatch, train=30, test=20)
    (root / "cifar-10-batches-py" / "data_batch_2").unlink()
    assert len(published.cifar("cifar10", root, "test")[1]) == 20
    with pytest.raises(DataError, match=r"data_batch_2: cannot be read: No such file"):
        published.cifar("cifar10", root, "train")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("unpickled"),)  # type: ignore[return-value]


def test_another_file_is_never_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(Path("data"), monkeypatch)
    path = root / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match=r"test_batch: expected MD5 [0-9a-f]{32}, found"):
        published.cifar("cifar10", root, "test")
    assert not Path("unpickled").exists()


def test_a_file_of_the_right_hash_may_call_nothing_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(Path("data"), monkeypatch)
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
