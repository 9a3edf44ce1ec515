"""A compact list of files: tens of megabytes for a million of them, where Path objects take half a gigabyte."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np


def legible(name: bytes) -> str:
    """A path or a name for people; one that is no UTF-8 with its bytes escaped."""
    return name.decode(errors="backslashreplace")


class Paths(Sequence[Path]):
    """Files below the folder `root`, in order. Indexing makes the Path.

    One run of bytes, not a million objects: a forked worker copies every object whose references it counts. Each name
    takes its own length, so that one long name among a million short ones costs nothing.
    """

    def __init__(self, root: Path, names: Sequence[bytes]) -> None:
        self.root = root
        self._text = b"".join(names)  # relative to `root`, as the file system spells them
        self._bounds = np.zeros(len(names) + 1, np.int64)  # name i is _text[_bounds[i] : _bounds[i + 1]]
        np.cumsum(np.fromiter(map(len, names), np.int64, len(names)), out=self._bounds[1:])

    @classmethod
    def of(cls, root: Path, files: Sequence[Path]) -> Paths:
        """`files` that lie below `root`, unchanged where they are such a list already."""
        if isinstance(files, Paths) and files.root == root:
            return files
        # relative_to() is slow for a million files.
        start = len(os.fsencode(os.path.join(root, ""))) if root.parts else 0  # noqa: PTH118
        return cls(root, [os.fsencode(file)[start:] for file in files])

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, row: int) -> Path: ...
    @overload
    def __getitem__(self, row: slice) -> Paths: ...
    def __getitem__(self, row: int | slice) -> Path | Paths:
        if isinstance(row, slice):
            return self.take(range(len(self))[row])
        return self.root / os.fsdecode(self.name(row))

    def take(self, rows: Sequence[int]) -> Paths:
        """The files at these places, in this order."""
        return Paths(self.root, [self.name(row) for row in rows])

    def name(self, row: int) -> bytes:
        """One file relative to the root."""
        row = range(len(self))[row]
        return self._text[self._bounds[row] : self._bounds[row + 1]]

    def names(self) -> Iterator[bytes]:
        """Each file relative to the root."""
        return map(self.name, range(len(self)))

    def stats(self) -> Iterator[tuple[bytes, os.stat_result | OSError]]:
        """Each file relative to the root, with its stat or the error: one system call a file."""
        root = os.path.join(os.fsencode(self.root), b"")  # noqa: PTH118
        for name in self.names():
            try:
                yield name, os.stat(root + name)  # noqa: PTH116  (a Path costs more than the call)
            except OSError as error:
                yield name, error
