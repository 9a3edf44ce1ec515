"""Image files that are indexed like one resident uint8 array, and decoded when its rows are read. No torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from okdc.data import workers
from okdc.data.files import NoFileError, check, opened
from okdc.data.images import Pixels, Progress, damage, fit, read, unreadable, wary
from okdc.data.paths import Paths

PROBE = 64  # images that are decoded at the start, so that a wrong or half-copied folder shows at once

Rows = slice | npt.NDArray[np.int64]


class UnreadableError(Exception):
    """A file that is no whole image; the text is its path and the reason."""


class _ChangedError(Exception):
    """A file is another one than when it was held."""


class OnDemand:
    """N image files below the folder `root` as N×size×size×3 uint8, by the resize rule of `okdc.data.images`.

    Nothing stays decoded: memory holds only the rows of one read. A file that is another one than at `hold` is not
    read: what identifies the data of a training was measured once, and it reads each file many times.
    """

    def __init__(self, root: Path, files: Sequence[Path], size: int, shorter_side: int | None = None) -> None:
        self.paths = Paths.of(root, files)
        self.size, self.shorter_side = size, shorter_side
        self._held: npt.NDArray[np.int64] | None = None  # N×2: size, and nanoseconds of the last change

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), self.size, self.size, 3)

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, row: int) -> Path:
        return self.paths[row]

    def __getitem__(self, rows: Rows) -> Pixels:
        """The images of `rows` in their order: B×size×size×3 uint8. Raises as `read`."""
        numbers = np.arange(len(self))[rows]
        pixels = np.empty((len(numbers), self.size, self.size, 3), np.uint8)
        self.read(numbers, pixels)
        return pixels

    def read(self, rows: npt.NDArray[np.int64], pixels: Pixels) -> None:
        """Decode the images of `rows` into `pixels`, B×size×size×3. Threads: Pillow lets go of the lock.

        Raises DataError that lists every file which is not a whole image.
        """
        numbers = rows.tolist()

        def decode_into(i: int) -> str | None:
            try:
                pixels[i] = self.decode(numbers[i], lambda image: fit(image, self.size, self.shorter_side))
            except UnreadableError as error:
                return str(error)
            return None

        with wary(), ThreadPoolExecutor(workers.cores()) as pool:
            bad = [line for line in pool.map(decode_into, range(len(numbers))) if line]
        if bad:
            raise unreadable(bad, len(numbers))

    def take(self, rows: Sequence[int]) -> OnDemand:
        """These files alone, in this order."""
        taken = OnDemand(self.paths.root, self.paths.take(rows), self.size, self.shorter_side)
        taken._held = None if self._held is None else self._held[list(rows)]
        return taken

    def hold(self) -> OnDemand:
        """Note what each file is now; one that cannot be looked at stays as unreadable as it is. Returns itself."""
        self._held = np.empty((len(self), 2), np.int64)
        for row, (_, status) in enumerate(self.paths.stats()):
            self._held[row] = _mark(status)
        return self

    def decode(self, row: int, transform: Callable[[Image.Image], Pixels]) -> Pixels:
        """One image after `transform`. Raises UnreadableError, which names the file."""
        path = self.path(row)
        try:
            with opened(path) as (stream, status):
                if self._held is not None and _mark(status) != tuple(self._held[row].tolist()):
                    raise _ChangedError("it was changed after the training began")
                content = stream.read(status.st_size)
            return read(content, transform)
        except MemoryError:
            raise
        except Exception as error:
            raise UnreadableError(f"{path}: {damage(error)}") from None

    def probe(self) -> None:
        """Decode some images, evenly spread. Raises DataError where one is damaged."""
        count = min(PROBE, len(self))
        _ = self[np.linspace(0, len(self) - 1, count).astype(np.int64)]

    def sha256_of_names(self, progress: Progress | None = None) -> str:
        """sha256 of the names and sizes of all files, in order: cheap, where reading a hundred gigabytes is not.

        Holds them, as `hold`.
        Blind to a change that keeps a file's size. Times are left out: a copy of the data set is the same data set.
        Raises DataError that lists every file which is empty, gone or no regular file.
        """
        digest, bad = hashlib.sha256(), []
        self._held = np.empty((len(self), 2), np.int64)
        for row, (name, status) in enumerate(self.paths.stats()):
            size = 0
            self._held[row] = _mark(status)
            try:
                if isinstance(status, OSError):
                    raise status
                check(status)
                size = status.st_size
                if not size:
                    raise NoFileError("zero bytes")
            except (OSError, NoFileError) as error:
                bad.append(f"{self.path(row)}: {damage(error)}")
            digest.update(name + b"\0%d\n" % size)
            if progress and ((row + 1) % 1024 == 0 or row + 1 == len(self)):
                progress(row + 1, len(self))
        if bad:
            raise unreadable(bad, len(self))
        return digest.hexdigest()


def _mark(status: os.stat_result | OSError) -> tuple[int, int]:
    return (-1, -1) if isinstance(status, OSError) else (status.st_size, status.st_mtime_ns)
