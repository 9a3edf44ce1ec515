from __future__ import annotations

from pathlib import Path

import pytest

from okdc.recipe import catalog


def test_the_recipes_that_the_readers_were_promised_are_shipped() -> None:
    found = catalog.recipes()
    assert {"digits_resnet8", "cifar10_resnet20", "folder_resnet20"} <= set(found)
    assert list(found) == sorted(found)
    assert all(path.is_file() and path.stem == name for name, path in found.items())


@pytest.mark.parametrize(
    "word", ["digits_resnet8", "digits_resnet8.toml", "recipes/digits_resnet8", "../x/recipes/digits_resnet8.toml"]
)
def test_a_recipe_is_found_with_and_without_folder_and_ending(word: str) -> None:
    assert catalog.find_recipe(word) == catalog.recipes()["digits_resnet8"]


@pytest.mark.parametrize("word", ["digits", "digits_resnet8.tom", "digits_resnet8.toml.toml", "", "/"])
def test_other_words_find_nothing(word: str) -> None:
    assert catalog.find_recipe(word) is None


def test_an_installed_package_is_searched_inside_and_a_checkout_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "okdc"
    package.mkdir(parents=True)
    monkeypatch.setattr(catalog, "_PACKAGE", package)
    assert catalog.folder("recipes") == tmp_path / "site-packages" / "recipes"
    (package / "_shipped" / "recipes").mkdir(parents=True)
    (package / "_shipped" / "recipes" / "mine.toml").touch()
    assert catalog.folder("recipes") == package / "_shipped" / "recipes"
    assert list(catalog.recipes()) == ["mine"]
