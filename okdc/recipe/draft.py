"""Recipes as read: a TOML file and overrides in, tables out, which `check` makes a Recipe.

draft = load(["recipes/digits_resnet8.toml", "optim.epochs=3"])     text -> tables, overrides applied
recipe, problems = check(draft)                                     tables -> Recipe, or all that is wrong
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from okdc.errors import RecipeError, nearest
from okdc.recipe import catalog
from okdc.recipe.explain import explain, refusal
from okdc.recipe.schema import Recipe
from okdc.recipe.shorthand import is_key, items_of, leaves_of, suggestions, takes, value_of
from okdc.recipe.words import Flag, Override
from okdc.recipe.words import read as read_words

DEFAULT = "digits_resnet8"
OF_FOLDERS = "folder_resnet20"  # the recipe for a folder of images
LARGEST, DEEPEST = 2**20, 32  # bytes of a recipe, levels of tables and lists in it


@dataclass(frozen=True)
class Draft:
    """A recipe as read: tables that nothing has checked yet."""

    path: Path
    tables: dict[str, Any]
    overridden: frozenset[str] = frozenset()  # dotted keys given on the command line
    problems: tuple[str, ...] = ()  # what was already wrong with the overrides
    notes: tuple[str, ...] = ()  # what was chosen on the user's behalf
    named: bool = True  # the user named the recipe; False: it is the default
    overrides: tuple[Override, ...] = ()  # as the command line has them; the Python API's values were not typed
    method: Mapping[str, Any] = field(default_factory=dict)  # `[method]` of the file, before the overrides

    @property
    def stem(self) -> str:
        """What a run is named after: the recipe's file, or for a run's own recipe.toml that run or its series."""
        folder = self.path.absolute().parent
        if (folder.parent / "series.json").is_file():
            folder = folder.parent
        of_run = any((folder / name).is_file() for name in ("run.json", "series.json"))
        return folder.name.rsplit("-", 1)[0] if of_run and self.path.name == "recipe.toml" else self.path.stem


def load(words: Sequence[str | Flag]) -> Draft:
    """Read the recipe that the first word without `=` names (none: the default) and apply the other words.

    Raises UsageError for a second recipe, RecipeError for a file that is missing or not TOML.
    """
    given = read_words(words, lambda word: Path(word).is_file() or catalog.find_recipe(word) is not None)
    if given.recipe is None:
        path, notes = catalog.recipes()[DEFAULT], [f"recipe {DEFAULT}, the default (okdc recipes lists the others)"]
    else:
        path, notes = _find(given.recipe)
    tables = read(path)
    method = _method(tables)
    problems: list[str] = []
    for override in given.overrides:
        notes += _note(override)
        problems += _override(tables, override.key, override.value)
    keys = frozenset(override.key for override in given.overrides)
    named = given.recipe is not None
    return Draft(path, tables, keys, tuple(problems), tuple(notes), named, given.overrides, method)


def with_values(recipe: str | Path | None, values: Mapping[str, Any]) -> Draft:
    """Read a recipe by path or name (None: the default) and replace keys: of a table by a mapping, at the top by value.

    Raises RecipeError for a file that is missing or not TOML.
    """
    path, notes = _find(str(recipe)) if recipe is not None else (catalog.recipes()[DEFAULT], [])
    tables = read(path)
    method = _method(tables)
    overridden: set[str] = set()
    problems = []
    for name, value in values.items():
        for key, inner in value.items() if isinstance(value, Mapping) else ((None, value),):
            overridden.add(name if key is None else f"{name}.{key}")
            problems += _set(tables, [name] if key is None else [name, key], _toml(inner))
    return Draft(path, tables, frozenset(overridden), tuple(problems), tuple(notes), method=method)


def _method(tables: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `[method]`, if it is a table."""
    method = tables.get("method")
    return dict(method) if isinstance(method, dict) else {}


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
        raise _no_recipe(word, path)
    return shipped, [f"no file {word}: the shipped recipe {shipped.stem} is used"] if word != shipped.stem else []


def _no_recipe(word: str, path: Path) -> RecipeError:
    """The error for a word that names no recipe, with the words that would, as far as they can be guessed."""
    hint = (
        "a path to a .toml file, or one that ships with okdc: okdc recipes lists them; a method is named as "
        "method=fefr, a network as students=resnet20"
    )
    right: tuple[str, ...] = ()
    of_folder = (path / "recipe.toml", catalog.recipe_of(path), path.parent / f"{path.name}.toml")
    if path.is_dir() and (there := next((each for each in of_folder if each.is_file()), None)):
        problem, right = f"is a folder, expected a .toml file (there is {there})", (str(there),)
    elif path.is_dir():
        problem = f"is a folder, expected a .toml file; okdc new {shlex.quote(word)} writes one that fits its images"
        if any(entry.is_dir() and not entry.name.startswith(".") for entry in path.iterdir()):  # of classes, or splits
            right = (OF_FOLDERS, f"data.root={word}")
    elif re.fullmatch(r"[\w.]+:[\w.]+", word):  # timm:NAME, package.module:callable
        problem, right = "no such recipe file; it is written like the name of a network", (f"cohort.students={word}",)
    elif beside := _beside(path):
        problem, right = f"no such recipe file (did you mean {beside!r}?)", (beside,)
    else:
        names = list(catalog.recipes())
        word_of = path.stem.lower().replace("-", "_")
        inside_of = [n for n in names if n.startswith(f"{word_of}_")] or [n for n in names if word_of in n]
        problem = f"no such recipe file{nearest(path.stem, names)}"
        if len(inside_of) == 1 or not inside_of:
            right = tuple(inside_of or difflib.get_close_matches(path.stem, names, n=1))
        else:
            hint = f"one of {', '.join(inside_of)}"
    return RecipeError(f"{word}: {problem}", hint=hint, corrections={(word,): right} if right else {})


def _beside(path: Path) -> str | None:
    """The file in the folder of `path` whose name is nearest to its own, unless a shipped recipe is nearer."""
    files = {each.stem: str(each) for each in sorted(path.parent.glob("*.toml"))} if path.parent.is_dir() else {}
    near = difflib.get_close_matches(path.stem, [*files, *catalog.recipes()], n=1)
    return files.get(near[0]) if near else None


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


def refused(draft: Draft, problems: Sequence[str]) -> RecipeError:
    """The error that says what is wrong with a draft, and blames the command line for what was given there.

    A problem is a line `key: problem`, and belongs to the words that gave that key or another that the line names.
    """
    lines, own = [], 0
    for problem in problems:
        key = problem.partition(":")[0].partition("[")[0]
        override = next((o for o in reversed(draft.overrides) if _concerns(o.key, key)), None)
        by_values = any(_concerns(given, key) or _names(problem, given) for given in draft.overridden)
        own += override is not None or by_values
        is_short = override is not None and not override.words.replace(" ", "").startswith(f"{override.key}=")
        lines.append(f"{problem} ({override.words})" if override is not None and is_short else problem)
    given = "the command line" if draft.overrides else "the given values"
    place = given if own == len(problems) else f"{draft.path} and {given}" if own else str(draft.path)
    of_tables = [o.key for o in draft.overrides if o.key in Recipe.model_fields and not is_key(o.key)]
    hint = f"okdc recipes {of_tables[0]} explains its keys" if of_tables else ""
    return refusal(place, lines, hint, _corrections(draft))


def place_of(draft: Draft) -> str:
    """Where a recipe was written, for what is wrong with it as a whole."""
    if not draft.named:
        return "the command line" if draft.overrides else DEFAULT
    return f"{draft.path} and the command line" if draft.overrides else str(draft.path)


def _concerns(given: str, key: str) -> bool:
    return given == key or given.startswith(f"{key}.") or key.startswith(f"{given}.")


def _names(problem: str, key: str) -> bool:
    """Whether a problem's line names a key of a table."""
    return "." in key and re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", problem) is not None


def _corrections(draft: Draft) -> dict[tuple[str, ...], tuple[str, ...]]:
    """For each override of a key that no table has: the words for the one key that may be meant."""
    right: dict[tuple[str, ...], tuple[str, ...]] = {}
    for override in draft.overrides:
        if is_key(override.key) or override.key.startswith("method."):
            continue
        keys = _of_table(override) if override.key in Recipe.model_fields else suggestions(override.key)
        keys = [key for key in keys if takes(key, _toml_or_text(override.value))]
        if len(keys) == 1:
            right[override.typed] = (f"{keys[0]}={override.value.strip()}",)
    return right


def _of_table(override: Override) -> list[str]:
    """The keys of a table that have the word as one of theirs, where it was given to the table."""
    keys = [f"{override.key}.{name}" for leaf in leaves_of(override.key) for name in getattr(leaf, "model_fields", ())]
    return [key for key in keys if override.value.strip() in leaves_of(key)]


# ---------------------------------------------------------------------------------------------------------------------
# Overrides


def _note(override: Override) -> list[str]:
    """What an override is read as, where it was typed in another way than a recipe has it."""
    value, is_respelt = value_of(override.key, override.value, _toml_of)
    name = override.words.replace(" ", "").partition("=")[0]
    if name == override.key and not is_respelt and len(override.typed) == 1:
        return []
    if override.typed[0].startswith("-") and not is_respelt:
        return []
    shown = json.dumps(value) if is_respelt else override.value.strip()
    return [f"{override.words} is read as {override.key}={shown}"]


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
    return _set(tables, [*path, last], value_of(key, value, _toml_of)[0])


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


def _toml_or_text(text: str) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return _toml_of(text)
    return text


def list_of(text: str) -> Any:
    """The list that the text of an override is, where its key takes lists."""
    return items_of(text, _toml_of)


def _toml_of(text: str) -> Any:
    """The TOML value that a word is. Raises ValueError or RecursionError where it is none."""
    tables = _parsed(f"value = {text}")
    if list(tables) != ["value"]:
        raise ValueError("several values")
    return tables["value"]
