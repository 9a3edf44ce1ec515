"""An advisory lock on the folder that a process trains; the system releases it however the process ends."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from okdc.errors import RunError
from okdc.runs.files import writing

try:
    import fcntl
except ImportError:  # not on Windows: two processes on one run are then not told apart
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_held: set[int] = set()  # file descriptors


def _let_go() -> None:
    """A forked worker shares its parent's lock, and would hold it for as long as it outlives the parent."""
    for number in tuple(_held):
        os.close(number)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Nobody else trains the run or the series in `folder` meanwhile. Raises RunError where another process does."""
    with writing(folder):
        number = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    _held.add(number)
    try:
        for attempt in range(5):
            if _lock(number, exclusive=True):
                break
            if attempt == 4:
                raise RunError(f"{folder} is being trained by another process", hint="wait for it, or stop it")
            time.sleep(0.1)  # who only looks at the state holds it for a moment
        yield
    finally:
        _held.discard(number)
        os.close(number)


def is_held(folder: Path) -> bool:
    """Whether a process, this one included, holds `folder`."""
    try:
        number = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _lock(number, exclusive=False)
    finally:
        os.close(number)


def _lock(number: int, exclusive: bool) -> bool:
    """Take an advisory lock on an open file, or say that somebody has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(number, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
