"""Finds the recipes and runners that ship with okdc, in a checkout or in an installed wheel; names for completion."""

from __future__ import annotations

import os
import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def folder(name: str) -> Path:
    """`recipes` or `export`: inside the package in a wheel, beside it in a checkout."""
    shipped = _PACKAGE / "_shipped" / name
    return shipped if shipped.is_dir() else _PACKAGE.parent / name


def recipes() -> dict[str, Path]:
    """Every shipped recipe by its bare name, sorted."""
    return {path.stem: path for path in sorted(folder("recipes").glob("*.toml"))}


def find_recipe(word: str) -> Path | None:
    """The shipped recipe that `word` names: with or without folder and `.toml`, also with capitals and hyphens."""
    return recipes().get(Path(word).name.lower().removesuffix(".toml").replace("-", "_"))


def recipe_of(root: Path) -> Path:
    """How `okdc new` names the recipe of a folder of images: a name that every shell and command takes as it is."""
    name = os.fsencode(root.expanduser().absolute().resolve().name).decode(errors="replace")
    return Path((re.sub(r"[^\w.-]+", "_", name).strip("._-") or "recipe") + ".toml")


def keys() -> list[str]:
    """Every key of a recipe's tables, as an override writes it. A method's own keys need its module, and torch."""
    from okdc.recipe.reference import keys as keys_of
    from okdc.recipe.schema import Recipe

    return [key.key for key in keys_of(Recipe)]
