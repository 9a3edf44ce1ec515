"""A folder comes into place whole: built aside by one process at a time, then exchanged with what was there.

    .NAME.lock          held by the process that writes NAME, and removed by it
    .NAME.<hex>.new     what it builds; after the exchange, for a moment, what was there before
    .NAME.old           what was there before, where the file system cannot exchange two names in one step

A killed process leaves such names behind. The next one that writes NAME removes them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from okdc.errors import RunError
from okdc.runs import locks
from okdc.runs.files import sync_folder, writing

Tell = Callable[[str], object]
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def target_of(out: Path) -> Path:
    """The folder that `out` means: with a name to build beside, which `.` lacks, and at the end of its links."""
    if out.is_symlink():
        return Path(os.path.realpath(out))
    return Path(os.path.abspath(out)) if out.name in ("", "..") else out  # noqa: PTH100  (resolve() follows links)


@contextlib.contextmanager
def whole(out: Path, is_kind: Callable[[Path], bool], kind: str, tell: Tell | None = None) -> Iterator[Path]:
    """A folder to build in, moved to `out` at the end: `out` is always whole, the old or the new. Raises as `alone`."""
    out = target_of(out)
    with alone(out, is_kind, kind, tell), built(out) as aside:
        yield aside


@contextlib.contextmanager
def alone(out: Path, is_kind: Callable[[Path], bool], kind: str, tell: Tell | None = None) -> Iterator[None]:
    """No other process writes `out` while the block runs; what a killed one left is put in order first, and told.

    Raises RunError where another process writes it or `out` holds something that is no `kind`, DiskError where nothing
    can be written.
    """
    _refuse(out, is_kind, kind)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with locks.written(out) as locked:
        if locked:
            _put_in_order(out, tell)
        _refuse(out, is_kind, kind)  # again: another process may have written it meanwhile
        yield


@contextlib.contextmanager
def built(out: Path) -> Iterator[Path]:
    """A folder of its own to build in, moved to `out` at the end. The caller is `alone`."""
    aside = _aside(out)
    with writing(out):
        aside.mkdir()
    try:
        yield aside
        put(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def put(aside: Path, out: Path) -> None:
    """Move a folder to `out`, in the place of one that is there. Raises DiskError with the earlier one in its place."""
    with writing(out):
        if not out.exists():
            aside.rename(out)
        elif not _exchange(aside, out):
            _replace(aside, out)
        sync_folder(out.parent)
    shutil.rmtree(aside, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a folder, of which a process that is killed meanwhile leaves nothing under its name."""
    with contextlib.suppress(OSError):
        aside = folder.rename(_aside(folder))
        shutil.rmtree(aside, ignore_errors=True)


def earlier(out: Path) -> Path:
    """Where a folder lies while another one comes into its place, if the two names cannot be exchanged."""
    return out.with_name(f".{out.name}.old")


def _aside(out: Path) -> Path:
    return out.with_name(f".{out.name}.{secrets.token_hex(4)}.new")


def _refuse(out: Path, is_kind: Callable[[Path], bool], kind: str) -> None:
    if out.exists() and not (out.is_dir() and (is_kind(out) or not any(out.iterdir()))):
        raise RunError(f"{out} exists and is no {kind}", hint="choose another -o")


def _put_in_order(out: Path, tell: Tell | None) -> None:
    """Nobody else is here: whatever is half done is left from a process that was killed."""
    with writing(out):
        if earlier(out).is_dir() and not out.exists():
            earlier(out).rename(out)
            if tell:
                tell(f"a process was killed as it replaced {out}: what was there is in its place again")
    shutil.rmtree(earlier(out), ignore_errors=True)
    name = re.compile(rf"\.{re.escape(out.name)}(\.rejected)?\.[0-9a-f]{{8}}\.new")
    with writing(out):
        left = [path for path in out.parent.iterdir() if name.fullmatch(path.name)]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step. False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):  # not Linux, or a C library without it
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0)


def _replace(aside: Path, out: Path) -> None:
    """The same in two steps: the old folder steps aside first, and back where the new one cannot come."""
    old = earlier(out)
    shutil.rmtree(old, ignore_errors=True)
    out.rename(old)
    try:
        aside.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
