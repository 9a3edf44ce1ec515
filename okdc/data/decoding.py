"""Many image files to one uint8 array, each decoded once, on all cores. numpy and Pillow only."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from okdc.data import workers
from okdc.data.files import read as read_file
from okdc.data.images import Pixels, Progress, damage, fit, may_pass, read, unreadable, wary
from okdc.data.paths import Paths
from okdc.errors import DataError

_PART = 64  # files that a worker decodes at a time, fewer of large images
_PART_BYTES = 2**22
_MOVED_BYTES = 2**24  # that move at once where damaged images leave gaps: numpy buffers as many


class Decoding(NamedTuple):
    pixels: Pixels  # N×size×size×3, of the files that are whole images
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
) -> Decoding:
    """All files as one array. On all cores.

    Raises DataError that lists every file which is not a whole image; with `skip_damaged` only where the system itself
    refused to read one.
    """
    paths = files if isinstance(files, Paths) else Paths.of(Path(), files)
    pixels = np.empty((len(paths), size, size, 3), np.uint8)
    digests = np.empty((len(paths), hashlib.sha256().digest_size), np.uint8)
    bad: list[_Bad] = []
    step = max(1, min(_PART, _PART_BYTES // (size * size * 3))) if len(paths) >= workers.MANY else 1
    starts = range(0, len(paths), step)
    decode_part = functools.partial(_decode_part, size=size, shorter_side=shorter_side)
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


def _decode_part(paths: Paths, size: int, shorter_side: int | None) -> tuple[Pixels, Pixels, list[_Bad]]:
    """A worker's task: the pixels of some files, the sha256 of each, and those that are no whole images."""
    pixels = np.zeros((len(paths), size, size, 3), np.uint8)
    digests = np.zeros((len(paths), hashlib.sha256().digest_size), np.uint8)
    bad: list[_Bad] = []
    for i, path in enumerate(paths):
        if workers.stopped():
            break
        try:
            content = read_file(path)
            digests[i] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
            pixels[i] = read(content, lambda image: fit(image, size, shorter_side))
        except MemoryError:
            raise
        except Exception as error:
            bad.append(_Bad(i, damage(error), may_pass(error)))
    return pixels, digests, bad
