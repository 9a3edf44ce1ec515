"""The lock of a folder that is being trained. The system releases it however the process ends."""

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

# The files that this process has locked, by descriptor. A forked worker shares these and with them the locks, which
# would stand for as long as it outlives its parent. So each child closes them. The function that runs in a child takes
# no argument and cannot be unregistered, hence this set for the whole process. Nothing lighter is enough: O_CLOEXEC
# closes a descriptor at exec, and a fork does not exec; a lock of fcntl.lockf is not shared with a child, but is lost
# as soon as the process opens the file again and closes it, as `is_held` does.
_locked: set[int] = set()


def _close_in_child() -> None:
    for descriptor in _locked:
        os.close(descriptor)
    _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """No other process trains the run or the series in `folder` while the block runs. Raises RunError if one does."""
    with writing(folder):
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    _locked.add(descriptor)
    try:
        for attempt in range(5):
            if _lock(descriptor, exclusive=True):
                break
            if attempt == 4:
                raise RunError(f"{folder} is being trained by another process", hint="wait for it, or stop it")
            time.sleep(0.1)  # `is_held` in another process holds it for a moment
        yield
    finally:
        _locked.discard(descriptor)
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether a process, this one included, holds `folder`."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _lock(descriptor, exclusive=False)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, exclusive: bool) -> bool:
    """Take an advisory lock on an open file. False if another open file has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
