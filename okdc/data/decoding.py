"""Many image files to one uint8 array, each read once, on all cores. numpy and Pillow only.

A file becomes a row of that array: its pixels; where these stay in the file, what has to be known of them (`Measures`);
or the sha256 of its bytes alone.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from okdc.data import workers
from okdc.data.files import read as read_file
from okdc.data.images import Pixels, Progress, damage, fit, may_pass, read, unreadable, wary
from okdc.data.paths import Paths
from okdc.errors import DataError

Kind = Literal["pixels", "measures", "contents"]

_DIGEST = 32  # bytes of a sha256
_SUMS = np.dtype("<i8")
_PART = 64  # files that a worker decodes at a time, fewer of large images
_PART_BYTES = 2**22
_MOVED_BYTES = 2**24  # that move at once where damaged images leave gaps: numpy buffers as many


@dataclass(frozen=True)
class Making:
    """What a file becomes: a row of bytes."""

    kind: Kind
    size: int = 0
    shorter_side: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row."""
        if self.kind == "pixels":
            return (self.size, self.size, 3)
        return (_DIGEST,) if self.kind == "contents" else (_SUMS.itemsize * 6 + _DIGEST,)

    def row(self, content: bytes, sha256: bytes) -> Pixels:
        """Raises whatever Pillow does where `content` is no whole image and is decoded."""
        if self.kind == "contents":
            return np.frombuffer(sha256, np.uint8)
        pixels = read(content, lambda image: fit(image, self.size, self.shorter_side))
        return pixels if self.kind == "pixels" else _measured(pixels)


class Measures(NamedTuple):
    """What is known of N images whose pixels are not in memory."""

    sums: npt.NDArray[np.int64]  # N×6: of the values of each channel, then of their squares
    digests: Pixels  # N×32: sha256 of the pixels

    @classmethod
    def of(cls, rows: Pixels) -> Measures:
        """From the rows of the kind "measures"."""
        sums, digests = np.split(rows, [rows.shape[1] - _DIGEST], axis=1)
        return cls(np.ascontiguousarray(sums).view(_SUMS), digests)


def _measured(pixels: Pixels) -> Pixels:
    flat = pixels.reshape(-1, 3).astype(np.int64)
    sums = np.concatenate([flat.sum(0), (flat * flat).sum(0)]).astype(_SUMS)
    digest = np.frombuffer(hashlib.sha256(np.ascontiguousarray(pixels).data).digest(), np.uint8)
    return np.concatenate([sums.view(np.uint8), digest])


class Decoding(NamedTuple):
    pixels: Pixels  # N×size×size×3, of the files that are whole images; or the rows of another kind
    sha256: str  # of the contents of those files, in order
    damaged: dict[int, str]  # index of a file that has no pixels here, and the reason


class _Bad(NamedTuple):
    """A file that is no whole image."""

    row: int
    reason: str
    may_pass: bool


def decode(
    files: Sequence[Path],
    size: int,
    progress: Progress | None = None,
    shorter_side: int | None = None,
    skip_damaged: bool = False,
    kind: Kind = "pixels",
) -> Decoding:
    """All files as one array. On all cores.

    Raises DataError that lists every file which is not a whole image; with `skip_damaged` only where the system itself
    refused to read one.
    """
    paths = files if isinstance(files, Paths) else Paths.of(Path(), files)
    making = Making(kind, size, shorter_side)
    pixels = np.empty((len(paths), *making.shape), np.uint8)
    digests = np.empty((len(paths), _DIGEST), np.uint8)
    bad: list[_Bad] = []
    step = max(1, min(_PART, _PART_BYTES // max(1, size * size * 3))) if len(paths) >= workers.MANY else 1
    starts = range(0, len(paths), step)
    decode_part = functools.partial(_decode_part, making=making)
    try:
        with wary(), workers.pool(len(paths)) as pool:
            for start, part in zip(starts, pool.map(decode_part, (paths[i : i + step] for i in starts)), strict=True):
                done = min(start + step, len(paths))
                pixels[start:done], digests[start:done] = part[:2]
                bad += [file._replace(row=start + file.row) for file in part[2]]
                if progress and (done // 64 > start // 64 or done == len(paths)):
                    progress(done, len(paths))
    except BrokenProcessPool:
        raise DataError(
            f"a process that decodes the {len(paths):,} images was killed",
            hint="usually for lack of memory: a smaller data.image_size needs less",
        ) from None
    if bad and (not skip_damaged or any(file.may_pass for file in bad)):
        raise unreadable([f"{paths[file.row]}: {file.reason}" for file in bad], len(paths), skip_damaged)
    damaged = {file.row: file.reason for file in bad}
    pixels, digests = _without(pixels, damaged), _without(digests, damaged)
    return Decoding(pixels, hashlib.sha256(digests.data).hexdigest(), damaged)


def _without(rows: Pixels, gone: Collection[int]) -> Pixels:
    """The array without some rows: the others move up in place, since a copy would double the memory."""
    step = max(1, _MOVED_BYTES // rows[:1].nbytes) if len(rows) else 1
    kept = start = 0
    for stop in (*sorted(gone), len(rows)):
        for first in range(start, stop, step):
            count = min(step, stop - first)
            if kept < first:
                rows[kept : kept + count] = rows[first : first + count]
            kept += count
        start = stop + 1
    return rows[:kept]


def _decode_part(paths: Paths, making: Making) -> tuple[Pixels, Pixels, list[_Bad]]:
    """A worker's task: the rows of some files, the sha256 of each, and those that are no whole images."""
    pixels = np.zeros((len(paths), *making.shape), np.uint8)
    digests = np.zeros((len(paths), _DIGEST), np.uint8)
    bad: list[_Bad] = []
    for i, path in enumerate(paths):
        if workers.stopped():
            break
        try:
            content = read_file(path)
            sha256 = hashlib.sha256(content).digest()
            digests[i] = np.frombuffer(sha256, np.uint8)
            pixels[i] = making.row(content, sha256)
        except MemoryError:
            raise
        except Exception as error:
            bad.append(_Bad(i, damage(error), may_pass(error)))
    return pixels, digests, bad
