"""Files are never half written: each is written aside, synced and moved into place."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from okdc.errors import DiskError, RunError, UsageError


@contextlib.contextmanager
def writing(path: Path, hint: str = "") -> Iterator[None]:
    """Turns the operating system's refusal to write `path` into a DiskError."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{path}: cannot be written: {error.strerror or error}", hint=hint) from error


def write(path: Path, content: bytes | memoryview, previous: Path | None = None) -> None:
    """Replace `path` by `content` in one step; with `previous` the old file moves there.

    A process that dies at any moment leaves the old file or the new one at `path`, or the old one at `previous`.
    Raises DiskError with the old file in place.
    """
    aside = path.with_name(f".{path.name}.new")
    with writing(path, hint="nothing that was there is lost; free some space or choose another folder"):
        try:
            with aside.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            if previous is None or not path.exists():
                aside.replace(path)
            else:
                path.replace(previous)
                try:
                    aside.replace(path)
                except OSError:
                    previous.replace(path)
                    raise
            sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """A rename is on disk when its folder is. Not every system lets a folder be opened."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_json(path: Path, tables: dict[str, Any]) -> None:
    write(path, (json.dumps(tables, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The tables of a JSON file, whatever is in them. Raises RunError for a file that is missing or no JSON object."""
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # nested a thousand deep
        raise RunError(f"{path}: not JSON: {error}") from None
    if not isinstance(tables, dict):
        raise RunError(f"{path}: expected a JSON object")
    return tables


def refuse_other(file: Path, is_own: Callable[[Path], bool], option: str, kind: str) -> None:
    """Raises UsageError where something else than a `kind` of okdc's would be replaced, which `is_own` tells; DiskError
    where there is no folder for the file. `option` is the word of the command that named it.
    """
    if not file.parent.is_dir():
        raise DiskError(
            f"{file}: cannot be written: {file.parent} is no folder", hint=f"make it, or choose another {option}"
        )
    if not file.exists():
        return
    if not file.is_file():  # a device would be replaced by a file
        there, hint = ("a folder", "name a file in it") if file.is_dir() else ("a device or pipe", "")
        raise UsageError(f"{option} {file}: expected a file, found {there}", hint=hint)
    if not is_own(file):
        raise UsageError(f"{option} {file}: it exists and is no {kind}", hint="choose another name")
