"""The second start of a folder: what it reads of the files, which may be a hundred thousand."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from asking import write_tree
from lookalike import write_cinic
from PIL import Image

from okdc.assembly import job as assembly
from okdc.assembly.resolve import ResolvedRecipe, resolve
from okdc.data.cache import load
from okdc.data.images import ENDINGS
from okdc.data.listing import list_images
from okdc.data.ondemand import OnDemand
from okdc.errors import DataError
from okdc.recipe.draft import load as read_recipe


def recipe_for(name: str, root: Path) -> ResolvedRecipe:
    words = [f"data.name={name}", f"data.root={root}", "data.image_size=8", "optim.batch_size=4"]
    return resolve(read_recipe(words))


def a_folder() -> ResolvedRecipe:
    return recipe_for("folder", write_tree(Path("images"), {"train": {"a": 9, "b": 8}, "test": {"a": 1, "b": 2}}))


def one_folder_of_classes() -> ResolvedRecipe:
    return recipe_for("folder", write_tree(Path("images"), {"a": 9, "b": 8}))


def cinic() -> ResolvedRecipe:
    return recipe_for("cinic10", write_cinic(Path("images")))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the file system was asked about each image."""
    counted: Counter[str] = Counter()

    def counting(call: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def wrapped(path: str | bytes | Path | int, **more: object) -> os.stat_result:
            if not isinstance(path, int) and os.fsdecode(path).endswith(tuple(ENDINGS)):
                counted[os.fsdecode(path)] += 1
            return call(path, **more)

        return wrapped

    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, counting(getattr(os, name)))
    return counted


def refused(*_: object, **__: object) -> None:
    raise AssertionError("an image was opened")


@pytest.mark.parametrize("make", [a_folder, one_folder_of_classes, cinic])
def test_a_second_start_opens_no_image_and_asks_once_about_each(
    make: Callable[[], ResolvedRecipe], opened: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make()
    first = assembly.job(recipe, lambda: assembly.dataset(recipe))
    opened.clear()
    monkeypatch.setattr(Image, "open", refused)
    monkeypatch.setattr(Path, "read_bytes", refused)
    second = assembly.job(recipe, lambda: assembly.dataset(recipe))
    assert len(opened) == len(first.dataset.labels)
    assert set(opened.values()) == {1}
    assert second.dataset.fingerprint == first.dataset.fingerprint
    assert second.dataset.images.equal(first.dataset.images)
    assert second.recipe == first.recipe


@pytest.mark.parametrize("make", [a_folder, cinic])
def test_a_first_start_asks_once_about_each(make: Callable[[], ResolvedRecipe], opened: Counter[str]) -> None:
    recipe = make()
    opened.clear()
    data = assembly.dataset(recipe)
    assert len(opened) == len(data.labels)
    assert set(opened.values()) == {1}


def test_a_link_to_nothing_is_named_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(Path("images"), {"train": {"a": 2, "b": 2}})
    (root / "train/a/zz.png").symlink_to("nowhere")
    (root / "train/b/zz.png").symlink_to("nowhere")
    monkeypatch.setattr(Image, "open", refused)
    with pytest.raises(DataError, match=r"2 of 6 images cannot be read, .*/train/a/zz\.png: No such file") as caught:
        load(list_images(root), 8)
    assert len(caught.value.details) == 2


def test_names_that_are_no_text_and_of_any_length_are_kept() -> None:
    root = write_tree(Path("images"), {"train": {"a": 2, "b": 2}})
    odd = [os.fsdecode(b"\xff\xfe.png"), "ü" * 100 + ".png", " .png"]
    for name in odd:
        (root / "train/b/000.png").rename(root / "train/b" / name)
        listing = list_images(root)
        assert [path.name for path in listing.files] == ["000.png", "001.png", *sorted(["001.png", name])]
        assert [path.name for path in listing.files[2:]] == sorted(["001.png", name])
        pixels = load(listing, 8).pixels
        assert np.array_equal(OnDemand(listing.root, listing.files, 8)[:], pixels)
        assert np.array_equal(OnDemand(listing.root, [listing.files[3], listing.files[0]], 8)[:], pixels[[3, 0]])
        (root / "train/b" / name).rename(root / "train/b/000.png")
