from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from asking import write_tree
from lookalike import write_cinic
from PIL import Image
from reading import read_data

from okdc.assembly import job as assembly
from okdc.assembly.resolve import ResolvedRecipe, resolve
from okdc.data import cinic10 as module
from okdc.errors import DataError
from okdc.recipe.draft import load


def recipe_for(root: str, *words: str) -> ResolvedRecipe:
    fixed = ["data.name=cinic10", f"data.root={root}", "data.image_size=8", "optim.batch_size=8"]
    return resolve(load([*fixed, *words]))


def test_its_own_three_splits_are_taken_and_nothing_is_held_out() -> None:
    write_cinic(Path("cinic"))
    data = assembly.dataset(recipe_for("cinic"))
    assert [len(rows) for rows in (data.train, data.val, data.test)] == [20, 20, 20]
    assert data.classes == module.CLASSES
    assert data.name == "cinic10"
    assert data.fingerprint == read_data("folder", Path("cinic"), 8).fingerprint


def test_the_published_mean_and_deviation_are_used_where_the_recipe_names_none() -> None:
    write_cinic(Path("cinic"))
    recipe = recipe_for("cinic")
    actual = assembly.dataset(recipe)
    data = assembly.normalisation_of(recipe.recipe, actual)
    assert data.mean == pytest.approx((0.4789, 0.4723, 0.4305), abs=5e-5)
    assert data.std == pytest.approx((0.2421, 0.2383, 0.2587), abs=5e-5)
    own = recipe_for("cinic", "data.mean=[0.5, 0.5, 0.5]")
    data = assembly.normalisation_of(own.recipe, actual)
    assert data.mean == (0.5, 0.5, 0.5)
    assert data.std == module.STD
    other = read_data("folder", Path("cinic"), 8)
    assert (
        assembly.normalisation_of(recipe.recipe, other).mean == other.moments()[0]
    )  # a plain folder has none published


def test_what_is_known_of_the_set_is_always_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PER_SPLIT", 20)
    notes = read_data("cinic10", write_cinic(Path("cinic")), 8).notes
    assert any("10,000 CIFAR-10 training images" in note for note in notes)
    assert any("github.com/BayesWatch/cinic-10/issues/5" in note for note in notes)
    assert not any(note.startswith("not the") for note in notes)


def test_another_count_and_other_files_than_png_are_said() -> None:
    root = write_cinic(Path("cinic"))
    with Image.open(root / "test/cat/000.png") as image:
        image.save(root / "test/cat/000.jpg")
    (root / "test/cat/000.png").unlink()
    (root / "valid/dog/000.png").unlink()
    notes = read_data("cinic10", root, 8).notes
    assert "not the whole of CINIC-10: expected 90,000 images a split, found 20 train, 19 val, 20 test" in notes
    assert any(note.startswith("not the published CINIC-10: 1 of 59 files are not PNG") for note in notes)


def test_images_that_two_splits_share_are_counted_by_their_pixels() -> None:
    root = write_cinic(Path("cinic"))
    assert "equal pixels: 0 of 20 test images are in val, 0 of 20 test images are in train, " in str(
        read_data("cinic10", root, 8).notes
    )
    for source, target in (
        ("train/cat/000.png", "test/dog/000.png"),
        ("train/cat/000.png", "test/dog/001.png"),
        ("train/ship/001.png", "test/ship/001.png"),
        ("valid/bird/000.png", "train/bird/001.png"),
    ):
        shutil.copyfile(root / source, root / target)
    with Image.open(root / "valid/frog/000.png") as image:  # another file, the same picture
        image.save(root / "test/frog/000.png", compress_level=0)
    note = read_data("cinic10", root, 8).notes[-1]
    assert note.startswith("equal pixels: ")
    assert note.removeprefix("equal pixels: ").split(", ") == [
        "1 of 20 test images are in val",
        "3 of 20 test images are in train",
        "1 of 20 val images are in train",
    ]


@pytest.mark.parametrize(("gone", "said"), [(["test", "valid"], "no valid, no test"), (["."], "nothing there")])
def test_a_missing_folder_is_told_what_brings_it(gone: list[str], said: str) -> None:
    root = write_cinic(Path("my cinic"))
    for name in gone:
        shutil.rmtree(root / name)
    with pytest.raises(DataError) as caught:
        read_data("cinic10", root, 8)
    assert caught.value.message == (
        f"cinic10: expected the folders train, valid, test in {root.absolute()}, found {said}"
    )
    assert caught.value.hint == "okdc download cinic10 --data-root 'my cinic' brings <split>/<class>/*.png"


def test_other_classes_are_another_data_set() -> None:
    write_tree(Path("cinic"), {split: {"cat": 2, "dog": 2} for split in ("train", "valid", "test")})
    with pytest.raises(DataError, match=r"cinic10: expected ten classes in .*/cinic/train, found 2") as caught:
        read_data("cinic10", Path("cinic"), 8)
    assert "data.name=folder" in caught.value.hint
    assert caught.value.details[1] == "found: cat, dog"


def test_without_a_root_it_is_looked_for_in_data_cinic10() -> None:
    assert resolve(load(["data.name=cinic10"])).recipe.data.root == "data/cinic10"
