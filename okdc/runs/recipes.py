"""The recipe.toml of a run or a series, proven to be the recipe that it began with. No torch."""

from __future__ import annotations

import contextlib
import copy
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from okdc.errors import DiskError, RecipeError, RunError, quoted
from okdc.recipe.draft import read
from okdc.recipe.schema import without_places
from okdc.runs.files import write

_ABSENT = object()


def write_recipe(path: Path, tables: Mapping[str, Any]) -> None:
    """Raises DiskError."""
    write(path, tomli_w.dumps(tables).encode())


def read_proven(path: Path, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of the recipe at `path`, equal to those `recorded` at the start but for the places of files.

    A file that is missing is written again. Raises RunError that names every key with another value, and RunError for a
    file that is no recipe any more.
    """
    if not path.exists():  # killed between its first two files
        with contextlib.suppress(DiskError):
            write_recipe(path, recorded)
        return copy.deepcopy(dict(recorded))
    restore = "put the values back"
    try:
        tables = read(path)
    except RecipeError as error:
        raise RunError(error.message, hint="restore the file, or remove it: run.json has what was in it") from None
    changed = list(changes(without_places(recorded), without_places(tables), ("when it began", "now")))
    if changed:
        raise RunError(
            f"{path} was edited: it is not the recipe that {path.parent} began with",
            hint=f"{restore}; or train them on purpose, in a new run: okdc distill {shlex.quote(str(path))}",
            details=changed,
        )
    return tables


def changes(then: Mapping[str, Any], now: Mapping[str, Any], sides: tuple[str, str], place: str = "") -> Iterator[str]:
    """`optim.lr: 0.1 when it began, 0.2 now`, for each key with another value; `sides` are the words behind both."""
    for key in dict.fromkeys((*then, *now)):
        name = f"{place}{key}"
        old, new = then.get(key, _ABSENT), now.get(key, _ABSENT)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from changes(old, new, sides, f"{name}.")
        elif old != new or isinstance(old, bool) is not isinstance(new, bool):  # to Python, true is 1
            shown = name if name.isprintable() else quoted(name)
            yield f"{shown}: {_short(old)} {sides[0]}, {_short(new)} {sides[1]}"


def _short(value: object) -> str:
    return "nothing" if value is _ABSENT else quoted(value, 80)
