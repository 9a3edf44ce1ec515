"""Many image files to one uint8 array, each decoded once, on all cores. numpy and Pillow only."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from okdc.data import workers
from okdc.data.images import Pixels, Progress, damage, fit, read, unreadable, wary
from okdc.data.paths import Paths
from okdc.errors import DataError

_PART = 64  # files that a worker decodes at a time, fewer of large images
_PART_BYTES = 2**22


def decode(
    files: Sequence[Path], size: int, progress: Progress | None = None, shorter_side: int | None = None
) -> tuple[Pixels, str]:
    """All files as one N×size×size×3 array, and the sha256 of their contents. On all cores.

    Raises DataError that lists every file which is not a whole image.
    """
    paths = files if isinstance(files, Paths) else Paths.of(Path(), files)
    pixels = np.empty((len(paths), size, size, 3), np.uint8)
    digests = np.empty((len(paths), hashlib.sha256().digest_size), np.uint8)
    bad: list[str] = []
    step = max(1, min(_PART, _PART_BYTES // (size * size * 3))) if len(paths) >= workers.MANY else 1
    starts = range(0, len(paths), step)
    decode_part = functools.partial(_decode_part, size=size, shorter_side=shorter_side)
    try:
        with wary(), workers.pool(len(paths)) as pool:
            for start, part in zip(starts, pool.map(decode_part, (paths[i : i + step] for i in starts)), strict=True):
                done = min(start + step, len(paths))
                pixels[start:done], digests[start:done] = part[:2]
                bad += part[2]
                if progress and (done // 64 > start // 64 or done == len(paths)):
                    progress(done, len(paths))
    except BrokenProcessPool:
        raise DataError(
            f"a process that decodes the {len(paths):,} images was killed",
            hint="usually for lack of memory: a smaller data.image_size needs less",
        ) from None
    if bad:
        raise unreadable(bad, len(paths))
    return pixels, hashlib.sha256(digests.data).hexdigest()


def _decode_part(paths: Paths, size: int, shorter_side: int | None) -> tuple[Pixels, Pixels, list[str]]:
    """A worker's task: the pixels of some files, the sha256 of each, and a line for each that is no whole image."""
    pixels = np.zeros((len(paths), size, size, 3), np.uint8)
    digests = np.zeros((len(paths), hashlib.sha256().digest_size), np.uint8)
    bad: list[str] = []
    for i, path in enumerate(paths):
        if workers.stopped():
            break
        try:
            content = path.read_bytes()
            digests[i] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
            pixels[i] = read(content, lambda image: fit(image, size, shorter_side))
        except MemoryError:
            raise
        except Exception as error:
            bad.append(f"{path}: {damage(error)}")
    return pixels, digests, bad
