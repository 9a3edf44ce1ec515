"""Locks of folders that are trained or written. The system releases a lock however its process ends."""

from __future__ import annotations

import contextlib
import errno
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
NO_LOCKS = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)  # of a file system that keeps none

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
    descriptor, _ = _take(folder / LOCK, f"{folder} is being trained by another process")
    try:
        yield
    finally:
        _give_back(descriptor)


@contextlib.contextmanager
def written(out: Path) -> Iterator[bool]:
    """No other process is in such a block for the same `out`, a folder that need not exist. Raises RunError if one is.

    Yields whether that is certain: a file system may keep no locks.
    """
    file = out.with_name(f".{out.name}{LOCK}")
    descriptor, certain = _take(file, f"{out} is being written by another process")
    try:
        yield certain
    finally:
        with contextlib.suppress(OSError):
            file.unlink()  # before the lock is released: whoever opened the file meanwhile finds that it is gone
        _give_back(descriptor)


def _take(file: Path, refusal: str) -> tuple[int, bool]:
    """The locked file as a descriptor, and whether it is locked indeed. Raises RunError where another one holds it."""
    for attempt in range(5):
        if attempt:
            time.sleep(0.1)  # `is_held` in another process holds it for a moment, or its holder has just removed it
        with writing(file):
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        _locked.add(descriptor)
        locked = _lock(descriptor, exclusive=True)
        if locked is None:
            return descriptor, False
        if locked and _is(file, descriptor):
            return descriptor, True
        _give_back(descriptor)
    raise RunError(refusal, hint="wait for it, or stop it")


def _give_back(descriptor: int) -> None:
    _locked.discard(descriptor)
    os.close(descriptor)


def _is(file: Path, descriptor: int) -> bool:
    """Whether a file that was opened is still the one of its name."""
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except OSError:
        return False


def is_held(folder: Path) -> bool:
    """Whether a process, this one included, holds `folder`."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        return _lock(descriptor, exclusive=False) is False
    finally:
        os.close(descriptor)


def _lock(descriptor: int, exclusive: bool) -> bool | None:
    """Take an advisory lock on an open file. False if another open file has it, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise
    return True
