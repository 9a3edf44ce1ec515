from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask
from lookalike import KINDS, write_cifar

from okdc.assembly import job as build
from okdc.assembly.resolve import resolve
from okdc.data.cifar import cifar
from okdc.errors import DataError, RecipeError
from okdc.recipe.draft import load
from okdc.runs.files import read_json


@pytest.mark.parametrize(("name", "batches", "classes"), [("cifar10", 5, 10), ("cifar100", 1, 100)])
def test_the_images_are_torchvisions_in_the_published_split(
    monkeypatch: pytest.MonkeyPatch, name: str, batches: int, classes: int
) -> None:
    root = write_cifar(Path("data"), monkeypatch, name, train=120, test=100)
    found = cifar(name, root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train, test = KINDS[name](root, train=True), KINDS[name](root, train=False)
    assert found.images.shape == (batches * 120 + 100, 32, 32, 3)
    assert found.images.dtype == torch.uint8
    assert found.images.is_contiguous()  # a batch is slices of it
    assert np.array_equal(found.images[found.train].numpy(), train.data)
    assert np.array_equal(found.images[found.test].numpy(), test.data)
    assert found.labels[found.train].tolist() == train.targets
    assert found.labels[found.test].tolist() == test.targets
    assert found.classes == tuple(train.classes)
    assert len(found.classes) == classes
    assert len(found.val) == 0
    assert found.name == name


def test_a_channel_is_a_plane_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the format says: 1,024 bytes of red, of green, of blue, row by row."""
    root = write_cifar(Path("data"), monkeypatch, train=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = pickle.loads((root / "cifar-10-batches-py/data_batch_1").read_bytes())["data"][0]
    image = cifar("cifar10", root).images[0]
    assert [image[0, 0, c].item() for c in range(3)] == [row[0], row[1024], row[2048]]
    assert image[1, 0, 0] == row[32]


def test_validation_is_held_out_of_train_and_the_test_split_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(Path("data"), monkeypatch)
    words = ["cifar10_resnet20", "data.name=cifar10", "data.root=data", "optim.batch_size=8"]
    recipe = resolve(load(words)).recipe
    found = build.dataset(recipe)
    assert [len(found.train), len(found.val), len(found.test)] == [180, 20, 20]
    assert found.test.tolist() == list(range(200, 220))


def test_the_fingerprint_is_that_of_the_pixels_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        first = cifar("cifar10", write_cifar(Path("one"), patch, train=40)).fingerprint
    with monkeypatch.context() as patch:
        assert cifar("cifar10", write_cifar(Path("two"), patch, train=40)).fingerprint == first
    with monkeypatch.context() as patch:
        assert cifar("cifar10", write_cifar(Path("three"), patch, train=41)).fingerprint != first


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
        cifar("cifar10", root / "cifar-10-batches-py")
    assert caught.value.hint == "data.root is the folder above: data.root='a b'"


def test_image_files_in_class_folders_are_told_their_name() -> None:
    Path("data/train").mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        cifar("cifar10", Path("data"))
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
        cifar("cifar10", root)
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
    assert facts["data_sha256"] == cifar("cifar10", Path("data")).fingerprint
