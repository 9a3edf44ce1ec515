from __future__ import annotations

import hashlib
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import ask
from lookalike import KINDS, write_cifar
from reading import read_data

from okdc.assembly import job as assembly
from okdc.assembly.resolve import resolve
from okdc.data import cifar, find
from okdc.data.source import Part, Request
from okdc.errors import DataError, RecipeError
from okdc.recipe.draft import load
from okdc.runs.files import read_json


@pytest.mark.parametrize(("name", "batches", "classes"), [("cifar10", 5, 10), ("cifar100", 1, 100)])
def test_the_images_are_torchvisions_in_the_published_split(
    monkeypatch: pytest.MonkeyPatch, name: str, batches: int, classes: int
) -> None:
    root = write_cifar(Path("data"), monkeypatch, name, train=120, test=100)
    dataset = read_data(name, root, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train, test = KINDS[name](root, train=True), KINDS[name](root, train=False)
    assert dataset.images.shape == (batches * 120 + 100, 32, 32, 3)
    assert dataset.images.dtype == torch.uint8
    assert dataset.images.is_contiguous()  # a batch is slices of it
    assert np.array_equal(dataset.images[dataset.train].numpy(), train.data)
    assert np.array_equal(dataset.images[dataset.test].numpy(), test.data)
    assert dataset.labels[dataset.train].tolist() == train.targets
    assert dataset.labels[dataset.test].tolist() == test.targets
    assert dataset.classes == tuple(train.classes)
    assert len(dataset.classes) == classes
    assert len(dataset.val) == 0
    assert dataset.name == name


def test_a_channel_is_a_plane_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the format says: 1,024 bytes of red, of green, of blue, row by row."""
    root = write_cifar(Path("data"), monkeypatch, train=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = pickle.loads((root / "cifar-10-batches-py/data_batch_1").read_bytes())["data"][0]
    image = read_data("cifar10", root, 32).images[0]
    assert [image[0, 0, c].item() for c in range(3)] == [row[0], row[1024], row[2048]]
    assert image[1, 0, 0] == row[32]


def test_validation_is_held_out_of_train_and_the_test_split_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(Path("data"), monkeypatch)
    words = ["cifar10_resnet20", "data.name=cifar10", "data.root=data", "optim.batch_size=8"]
    actual = assembly.dataset(resolve(load(words)))
    assert [len(actual.train), len(actual.val), len(actual.test)] == [180, 20, 20]
    assert actual.test.tolist() == list(range(200, 220))


def test_the_fingerprint_is_that_of_the_pixels_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        first = read_data("cifar10", write_cifar(Path("one"), patch, train=40), 32).fingerprint
    with monkeypatch.context() as patch:
        assert read_data("cifar10", write_cifar(Path("two"), patch, train=40), 32).fingerprint == first
    with monkeypatch.context() as patch:
        assert read_data("cifar10", write_cifar(Path("three"), patch, train=41), 32).fingerprint != first


def test_a_recipe_without_a_root_looks_in_data_and_says_what_brings_the_files(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = ask(capsys, "distill", "data.name=cifar10", "data.image_size=32")
    assert answer.code == 2
    assert f"error[data]: cifar10: expected a folder {Path.cwd()}/data/cifar-10-batches-py, found none" in answer.err
    assert "hint: okdc download cifar10 --data-root data brings cifar-10-batches-py/{data_batch_1," in answer.err
    assert not Path("runs").exists()


def test_a_folder_that_holds_it_is_meant_and_not_the_folder_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(Path("a b"), monkeypatch)
    with pytest.raises(DataError, match="expected a folder") as caught:
        read_data("cifar10", root / "cifar-10-batches-py", 32)
    assert caught.value.hint == "data.root is the folder above: data.root='a b'"


def test_image_files_in_class_folders_are_told_their_name() -> None:
    Path("data/train").mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        read_data("cifar10", Path("data"), 32)
    assert caught.value.hint.startswith("image files in class folders are data.name=folder; okdc download cifar10")


def test_a_file_that_is_not_the_published_one_is_never_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(Path("data"), monkeypatch)
    folder = root.absolute() / "cifar-10-batches-py"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path("unpickled"),)  # type: ignore[return-value]

    (folder / "data_batch_3").write_bytes(pickle.dumps(Evil()))
    (folder / "batches.meta").write_bytes(pickle.dumps(Evil()))
    (folder / "test_batch").unlink()
    with pytest.raises(DataError, match="3 of 7 files are missing or damaged") as caught:
        read_data("cifar10", root, 32)
    assert [line.partition(": ")[0] for line in caught.value.details] == [
        f"{folder}/{file}" for file in ("data_batch_3", "test_batch", "batches.meta")
    ]
    assert "expected MD5" in caught.value.details[0]
    assert not Path("unpickled").exists()
    pickle.loads(pickle.dumps(Evil()))
    assert Path("unpickled").exists()  # it would have been


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_another_size_is_refused_before_anything_is_read(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(load([f"data.name={name}", "data.image_size=16"]))
    assert f"data.image_size: the images of {name} are 32×32, found 16" in caught.value.details


def test_a_run_on_it_is_judged_on_its_test_split(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(Path("data"), monkeypatch, train=20, test=10)
    words = ["cohort.students=['resnet8', 'resnet8']", "optim.epochs=1", "optim.batch_size=8", "data.val_fraction=0.3"]
    answer = ask(capsys, "distill", "data.name=cifar10", "data.image_size=32", *words, "data.train_images=20")
    assert answer.code == 0, answer.err
    assert "on 10 test images" in answer.out
    facts = read_json(Path("runs/digits_resnet8-1/run.json"))
    assert facts["classes"] == [f"class{c:02}" for c in range(10)]
    assert facts["data_sha256"] == read_data("cifar10", Path("data"), 32).fingerprint


# --- the reader without torch: its files are those that torchvision knows, and it opens no others


def split_of_test(root: Path) -> Part:
    return cifar.read_part("cifar10", Request(str(root)), "test")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_files_and_their_hashes_are_torchvisions(name: str) -> None:
    kind, layout, archive = KINDS[name], cifar.LAYOUTS[name], find(name).archive
    assert archive is not None
    assert (archive.url, archive.md5) == (kind.url, kind.tgz_md5)
    assert (layout.folder, layout.names_key) == (kind.base_folder, kind.meta["key"])
    assert [list(pair) for pair in layout.parts["train"].items()] == kind.train_list
    assert [list(pair) for pair in layout.parts["test"].items()] == kind.test_list
    assert layout.meta == {kind.meta["filename"]: kind.meta["md5"]}


def test_what_numpy_says_of_pickles_so_old_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy 2.4.0 to 2.4.4 warn of each dtype."""
    find_class = cifar._Arrays.find_class

    def warning(self: Any, module: str, name: str) -> Any:
        rebuild = find_class(self, module, name)

        def dtype(*what: Any) -> Any:
            warnings.warn("align should be passed as Python or NumPy boolean", stacklevel=1)
            return rebuild(*what)

        return dtype if name == "dtype" else rebuild

    root = write_cifar(Path("data"), monkeypatch, train=30, test=20)
    monkeypatch.setattr(cifar._Arrays, "find_class", warning)
    assert split_of_test(root).images.shape == (20, 32, 32, 3)


def test_only_the_split_that_is_asked_for_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(Path("data"), monkeypatch, train=30, test=20)
    (root / "cifar-10-batches-py" / "data_batch_2").unlink()
    assert len(split_of_test(root).labels) == 20
    with pytest.raises(DataError, match=r"data_batch_2: cannot be read: No such file"):
        cifar.read_part("cifar10", Request(str(root)), "train")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("unpickled"),)  # type: ignore[return-value]


def test_another_file_is_never_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(Path("data"), monkeypatch)
    path = root / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match=r"test_batch: expected MD5 [0-9a-f]{32}, found"):
        split_of_test(root)
    assert not Path("unpickled").exists()


def test_a_file_of_the_right_hash_may_call_nothing_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(Path("data"), monkeypatch)
    blob = pickle.dumps({"data": Evil(), "labels": []})
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(blob)
    layout = cifar.LAYOUTS["cifar10"]
    parts = layout.parts | {"test": {"test_batch": hashlib.md5(blob).hexdigest()}}
    monkeypatch.setitem(cifar.LAYOUTS, "cifar10", replace(layout, parts=parts))
    with pytest.raises(DataError, match="has no place in a file of images"):
        split_of_test(root)
    assert not Path("unpickled").exists()
