"""A recipe as a TOML file for its user: a line for each key, and beside it the reason."""

from __future__ import annotations

import os
import shlex
from itertools import groupby
from pathlib import Path

import tomli_w

from okdc.errors import UsageError
from okdc.escaping import shown
from okdc.recipe.catalog import recipe_of
from okdc.runs.files import write
from okdc.survey.plan import Line, Plan

WIDEST = 44  # columns of a line before its comment; a longer line has the comment right behind it


def text(plan: Plan, path: Path) -> str:
    """The recipe of a plan, for the file `path`."""
    head = [f"okdc distill {shlex.quote(str(path))}", *plan.head]
    blocks = ["\n".join(f"# {_comment(line)}" for line in head)]
    for table, lines in groupby(plan.lines, lambda line: line.table):
        blocks.append("\n".join([f"[{table}]", *_aligned(list(lines))]))
    return "\n\n".join(blocks) + "\n"


def _aligned(lines: list[Line]) -> list[str]:
    settings = [f"{line.name} = {toml(line.value)}" for line in lines]
    width = max((len(setting) for setting in settings if len(setting) <= WIDEST), default=0)
    return [
        f"{setting:<{width}}  # {_comment(line.reason)}" if line.reason else setting
        for setting, line in zip(settings, lines, strict=True)
    ]


def toml(value: object) -> str:
    """A value on one line."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")


def _comment(words: str) -> str:
    """Text that a TOML comment may hold: one line, no control characters, nothing that is no UTF-8."""
    return shown(words).encode(errors="backslashreplace").decode()


def place(root: Path, out: Path | None) -> Path:
    """The file of the recipe: `out`, or the folder's name in the working directory.

    Raises UsageError where something is there already, or where no command could take the name for a recipe.
    """
    path = out or recipe_of(root)
    if "=" in str(path):
        raise UsageError(f"-o {path}: a word with = is an override of a recipe", hint="another name for the recipe")
    if not os.path.isdir(path.parent):  # noqa: PTH112  (Path.is_dir() raises for a path that is too long)
        raise UsageError(f"-o {path}: no folder {path.parent}", hint="make it first, or another -o")
    if os.path.lexists(path):
        kind = "a folder" if path.is_dir() else "a file"
        raise UsageError(f"{path}: {kind} of this name is there already", hint="-o ANOTHER.toml, or move it away")
    return path


def save(path: Path, content: str) -> None:
    """Write the recipe. Raises DiskError where that is impossible."""
    write(path, content.encode())
