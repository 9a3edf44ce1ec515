"""Recipes as read: a TOML file and overrides in, tables out, which `check` makes a Recipe.

draft = load(["recipes/digits_resnet8.toml", "optim.epochs=3"])     text -> tables, overrides applied
recipe, problems = check(draft)                                     tables -> Recipe, or all that is wrong
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from okdc.errors import RecipeError, UsageError, nearest
from okdc.recipe import catalog
from okdc.recipe.explain import explain
from okdc.recipe.reference import alternatives
from okdc.recipe.schema import Recipe

DEFAULT = "digits_resnet8"
LARGEST, DEEPEST = 2**20, 32  # bytes of a recipe, levels of tables and lists in it


@dataclass(frozen=True)
class Draft:
    """A recipe as read: tables that nothing has checked yet."""

    path: Path
    tables: dict[str, Any]
    overridden: frozenset[str] = frozenset()  # dotted keys given on the command line
    problems: tuple[str, ...] = ()  # what was already wrong with the overrides
    notes: tuple[str, ...] = ()  # what was chosen on the user's behalf
    named: bool = True  # the user named the recipe; False: it is the default, and any problem is in the overrides

    @property
    def stem(self) -> str:
        """What a run is named after: the recipe's file, or for a run's own recipe.toml that run or its series."""
        folder = self.path.absolute().parent
        if (folder.parent / "series.json").is_file():
            folder = folder.parent
        of_run = any((folder / name).is_file() for name in ("run.json", "series.json"))
        return folder.name.rsplit("-", 1)[0] if of_run and self.path.name == "recipe.toml" else self.path.stem


def load(words: Sequence[str]) -> Draft:
    """Read the recipe that the first word without `=` names (none: the default) and apply the other words.

    Raises UsageError for a second recipe, RecipeError for a file that is missing or not TOML.
    """
    named = [word for word in words if "=" not in word]
    if len(named) > 1:
        raise UsageError(
            f"two recipes were given, {named[0]!r} and {named[1]!r}; one is expected",
            hint="an override is written key=value, without spaces",
        )
    path, notes = _find(named[0]) if named else (catalog.recipes()[DEFAULT], [f"no recipe named: {DEFAULT}"])
    tables = read(path)
    problems: list[str] = []
    overridden: set[str] = set()
    for word in words:
        if "=" in word:
            key, _, value = word.partition("=")
            overridden.add(key.strip())
            problems += _override(tables, key.strip(), value)
    return Draft(path, tables, frozenset(overridden), tuple(problems), tuple(notes), bool(named))


def with_values(recipe: str | Path | None, values: Mapping[str, Any]) -> Draft:
    """Read a recipe by path or name (None: the default) and replace keys: of a table by a mapping, at the top by value.

    Raises RecipeError for a file that is missing or not TOML.
    """
    path, notes = _find(str(recipe)) if recipe is not None else (catalog.recipes()[DEFAULT], [])
    tables = read(path)
    overridden: set[str] = set()
    problems = []
    for name, value in values.items():
        for key, inner in value.items() if isinstance(value, Mapping) else ((None, value),):
            overridden.add(name if key is None else f"{name}.{key}")
            problems += _set(tables, [name] if key is None else [name, key], _toml(inner))
    return Draft(path, tables, frozenset(overridden), tuple(problems), tuple(notes))


def _toml(value: Any) -> Any:
    """A Python value as TOML has it: lists for tuples, text for paths."""
    if isinstance(value, (tuple, list)):
        return [_toml(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def read(path: Path) -> dict[str, Any]:
    """The tables of one TOML file. Raises RecipeError for what is no file, or no recipe."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise RecipeError(
                f"{path}: expected a .toml file, found {'a folder' if path.is_dir() else 'a device or pipe'}"
            )
        with path.open("rb") as stream:
            content = stream.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise RecipeError(f"{path}: {path.stat().st_size:,} bytes, a recipe has {LARGEST:,} at most")
        return _parsed(content.decode())
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: not UTF-8 text; a recipe is a TOML file") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, and what tomllib lets through
        raise RecipeError(f"{path}: not TOML: {error}") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None


# A dotted key, for which tomllib takes a time that grows with the square of its parts.
_DOTTED = re.compile(rf"(?<![\w\"'-])(?:[\w\"'-]++[ \t]*+\.[ \t]*+){{{DEEPEST}}}")


def _parsed(text: str) -> dict[str, Any]:
    """Raises ValueError or RecursionError for what is no TOML, or is nested as no recipe is."""
    too_deep = f"tables and lists are {DEEPEST} levels deep at most"
    if _DOTTED.search(text):
        raise ValueError(too_deep)
    tables = tomllib.loads(text)
    if _is_deep(tables):
        raise ValueError(too_deep)
    return tables


def _is_deep(value: Any) -> bool:
    """Whether tables and lists are nested deeper than any recipe's: Python's own recursion ends at a thousand."""
    level, depth = [value], 0
    while level:
        depth += 1
        inside = [inner.values() if isinstance(inner, dict) else inner for inner in level]
        level = [item for items in inside for item in items if isinstance(item, (dict, list))]
    return depth > DEEPEST


def _find(word: str) -> tuple[Path, list[str]]:
    path = Path(word)
    if path.is_file():
        return path, []
    shipped = catalog.find_recipe(word)
    if path.exists() and not path.is_dir():
        return path, []  # which says what it is
    if shipped is None:
        inside = f" (there is {path / 'recipe.toml'})" if (path / "recipe.toml").is_file() else ""
        problem = f"is a folder, expected a .toml file{inside}" if path.is_dir() else "no such recipe file"
        raise RecipeError(
            f"{word}: {problem}{nearest(path.stem, catalog.recipes())}",
            hint="a path to a .toml file, or one that ships with okdc: okdc recipes lists them",
        )
    return shipped, [f"no file {word}: the shipped recipe {shipped.stem} is used"]


def check(draft: Draft) -> tuple[Recipe | None, list[str]]:
    """The Recipe, or None and one line for each problem (keys of `[method]` but `name` are not looked at)."""
    problems = list(draft.problems)
    recipe = None
    try:
        recipe = Recipe.model_validate(draft.tables)
    except ValidationError as error:
        problems += explain(error, Recipe)
    method = draft.tables.get("method")
    if isinstance(method, dict) and not isinstance(method.get("name"), str):
        problems.append('method.name: missing; expected the name of a method, such as "fefr"')
    return (None if problems else recipe), problems


# ---------------------------------------------------------------------------------------------------------------------
# Overrides: the value is TOML where it parses, else the bare word; a key that holds text takes the word as it stands.


def _override(tables: dict[str, Any], key: str, value: str) -> list[str]:
    *path, last = key.split(".")
    if not last or not all(path):
        return [f"{(key + '=' + value)[:200]}: an override is written key=value, as in optim.epochs=3"]
    if len(path) > DEEPEST:
        return [f"{key[:80]}...: expected at most {DEEPEST} tables in a row, found {len(path):,}"]
    if not (key + value).isascii():
        try:
            (key + value).encode()
        except UnicodeEncodeError:  # what Python makes of bytes that are no UTF-8; no TOML file could hold it
            return [f"{key}: the value is not UTF-8 text"]
    return _set(tables, [*path, last], _value(key, value))


def _set(tables: dict[str, Any], names: Sequence[str], value: Any) -> list[str]:
    """Set the key that `names` lead to. A problem, where a key on the way holds no table."""
    *path, last = names
    table = tables
    for i, name in enumerate(path):
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            return [f"{'.'.join(names)}: {'.'.join(path[: i + 1])} is not a table"]
        table = inner
    table[last] = value
    return []


def _value(key: str, text: str) -> Any:
    try:
        tables = _parsed(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    if list(tables) != ["value"] or (_is_text(key) and not isinstance(tables["value"], str)):
        return text
    return tables["value"]


def _is_text(key: str) -> bool:
    """Whether the schema holds nothing but text at this key: `runs/3` and `12` are then words."""
    if key == "method.name":
        return True
    model: Any = Recipe
    for name in key.split("."):
        fields = getattr(model, "model_fields", {})
        if name not in fields:
            return False
        model = fields[name].annotation
    return all(leaf is str or isinstance(leaf, str) for leaf in alternatives(model))
