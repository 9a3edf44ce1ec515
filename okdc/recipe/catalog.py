"""Finds the recipes and runners that ship with okdc, in a checkout or in an installed wheel."""

from __future__ import annotations

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
    """The shipped recipe that `word` names, with or without folder and `.toml`."""
    return recipes().get(Path(word).name.removesuffix(".toml"))
