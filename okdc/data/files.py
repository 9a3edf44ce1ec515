"""Reading a file that a stranger may have named x.jpg: regular files only, and never without an end. No torch."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# Bytes of an image file. The largest image that Pillow opens (`okdc.data.images.LARGEST` pixels of eight bytes) has
# fewer without any compression.
LARGEST = 2**30

# Windows has none of the first two, and needs the last.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
_KINDS = (
    (stat.S_ISREG, "file"),
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


class NoFileError(Exception):
    """Something that has a file's name and is no regular file; the text says what is there."""


def kind_of(mode: int) -> str:
    """What `st_mode` says: file, folder, pipe, socket, device."""
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), "special file")


def check(status: os.stat_result) -> None:
    """Raises NoFileError for anything but a regular file of a bearable size: the reason, without the path."""
    if not stat.S_ISREG(status.st_mode):
        raise NoFileError(f"a {kind_of(status.st_mode)}, not a file")
    if status.st_size > LARGEST:
        raise NoFileError(f"{status.st_size:,} bytes, no image has more than {LARGEST:,}")


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """A regular file to read from, links followed, and its status. Raises NoFileError for another kind, and OSError.

    Opening a pipe would wait for a writer, and /dev/zero has no end. The kind is that of the opened file: another
    process may have put something else in its place since a listing looked at it.
    """
    descriptor = os.open(path, _FLAGS)
    try:
        status = os.fstat(descriptor)
        check(status)
        with open(descriptor, "rb", closefd=False) as stream:
            yield stream, status
    finally:
        os.close(descriptor)


def read(path: Path) -> bytes:
    """The bytes of a regular file. Raises as `opened`."""
    with opened(path) as (stream, status):
        return stream.read(status.st_size)  # a file that grows meanwhile has an end all the same
