"""A compact list of files: tens of megabytes for a million of them, where Path objects take half a gigabyte."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np


class Paths(Sequence[Path]):
    """Files below the folder `root`, in order. Indexing makes the Path; a slice is a view.

    One array of bytes, not a million objects: a forked worker copies every object whose references it counts.
    """

    def __init__(self, root: Path, names: Sequence[bytes]) -> None:
        self.root = root
        self._names = np.array(names, np.bytes_)  # N, relative to `root`, as the file system spells them

    @classmethod
    def of(cls, root: Path, files: Sequence[Path]) -> Paths:
        """`files` that lie below `root`, unchanged where they are such a list already."""
        if isinstance(files, Paths) and files.root == root:
            return files
        # relative_to() is slow for a million files.
        start = len(os.fsencode(os.path.join(root, ""))) if root.parts else 0  # noqa: PTH118
        return cls(root, [os.fsencode(file)[start:] for file in files])

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, row: int) -> Path: ...
    @overload
    def __getitem__(self, row: slice) -> Paths: ...
    def __getitem__(self, row: int | slice) -> Path | Paths:
        if isinstance(row, slice):
            part = Paths.__new__(Paths)
            part.root, part._names = self.root, self._names[row]
            return part
        return self.root / os.fsdecode(self._names[row])

    def names(self) -> Iterator[bytes]:
        """Each file relative to the root."""
        for start in range(0, len(self), 4096):
            yield from self._names[start : start + 4096].tolist()

    def stats(self) -> Iterator[tuple[bytes, os.stat_result | OSError]]:
        """Each file relative to the root, with its stat or the error: one system call a file."""
        root = os.path.join(os.fsencode(self.root), b"")  # noqa: PTH118
        for name in self.names():
            try:
                yield name, os.stat(root + name)  # noqa: PTH116  (a Path costs more than the call)
            except OSError as error:
                yield name, error
