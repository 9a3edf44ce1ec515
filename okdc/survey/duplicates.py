"""Images that occur twice, as a network sees them: equal pixels, and pictures that only look the same.

Equal pixels are those of the resized image, whatever file holds them. Pictures that look the same have perceptual
hashes (pHash: the signs of 64 low frequencies, by the package `imagehash`) that differ in a few bits. Of the 1.8
billion pairs of CIFAR-10's images (JPEG copy) 157 do; of these 24 were looked at, and each was one photograph twice.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from okdc.data import workers
from okdc.data.datasets import Dataset
from okdc.data.images import Pixels, Progress, unreadable
from okdc.errors import DataError

NEAR_BITS = 3  # of 64 that the hashes of two pictures of the same thing may differ in
SMALLEST = 16  # pixels: smaller images have no 64 frequencies that tell them apart
MOST = 100_000  # images whose hashes are compared each with each
PART = 256  # images that are read at a time
BLOCK = 2**22  # hashes that are compared at a time
SHOWN = 1000  # pairs that are kept, of more only their number
INSTALL = "pip install 'okdc[duplicates]'"

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Pair:
    """Two images of a data set, by their rows."""

    first: int
    second: int


@dataclass(frozen=True)
class Duplicates:
    """Groups of rows with equal pixels, and pairs of rows that look the same and are not equal."""

    equal: tuple[tuple[int, ...], ...]
    near: tuple[Pair, ...]
    near_count: int
    near_not_looked_for: str  # the reason, where near ones were not looked for

    @property
    def looked_near(self) -> bool:
        return not self.near_not_looked_for


def find(dataset: Dataset, progress: Progress | None = None) -> Duplicates:
    """Look through all images that train, choose or judge.

    Raises DataError that lists every file which is no whole image, of images that a training would read batch by batch.
    """
    rows = torch.cat([dataset.train, dataset.val, dataset.test]).sort().values.tolist()
    reason = _no_near(len(rows), dataset.size[1])
    digests: dict[bytes, list[int]] = {}
    hashes: list[Hashes] = []
    hashed: list[int] = []
    damaged: list[str] = []
    parts = [rows[i : i + PART] for i in range(0, len(rows), PART)]
    with workers.pool(0 if reason else len(rows)) as pool:
        done = 0
        for part in parts:
            whole, pixels, bad = _read(dataset, part)
            damaged += bad
            for row, image in zip(whole, pixels, strict=True):
                digests.setdefault(hashlib.sha256(image.tobytes()).digest(), []).append(row)
            if not reason and whole:
                step = max(1, len(whole) // workers.cores())
                hashes += pool.map(_hashes, [pixels[i : i + step] for i in range(0, len(whole), step)])
                hashed += whole
            done += len(part)
            if progress:
                progress(done, len(rows))
    if damaged:
        raise unreadable(damaged, len(rows))
    equal = sorted(tuple(group) for group in digests.values() if len(group) > 1)
    if reason:
        return Duplicates(tuple(equal), (), 0, reason)
    alike = {row: number for number, group in enumerate(equal) for row in group}
    pairs, count = _near(np.concatenate(hashes), hashed, alike)
    return Duplicates(tuple(equal), tuple(pairs), count, "")


def _no_near(count: int, size: int) -> str:
    """Why no near duplicates are looked for, or nothing."""
    if size < SMALLEST:
        return f"images of {size}×{size} pixels are too small for a perceptual hash"
    if count > MOST:
        return f"{count:,} images are more than the {MOST:,} that are compared each with each"
    if importlib.util.find_spec("imagehash") is None:
        return f"imagehash is not installed: {INSTALL}"
    return ""


def _read(dataset: Dataset, rows: list[int]) -> tuple[list[int], Pixels, list[str]]:
    """The rows that can be read, their pixels B×H×W×3, and a line for each that cannot."""
    try:
        return rows, dataset.pixels(torch.tensor(rows)).numpy(), []
    except DataError as error:
        if dataset.files is None:
            raise
        bad = list(error.details)
    names = {str(dataset.files.path(row)): row for row in rows}
    gone = {row for name, row in names.items() if any(line.startswith(f"{name}: ") for line in bad)}
    whole = [row for row in rows if row not in gone]
    if not whole:
        return [], np.empty((0, 1, 1, 3), np.uint8), bad
    return whole, dataset.pixels(torch.tensor(whole)).numpy(), bad


def _hashes(pixels: Pixels) -> Hashes:
    """pHash of each image, N uint64."""
    import imagehash

    bits = [imagehash.phash(Image.fromarray(image)).hash.reshape(64) for image in pixels]
    return np.packbits(np.array(bits), axis=1).view(np.uint64).reshape(-1)


def _near(hashes: Hashes, rows: Sequence[int], alike: dict[int, int]) -> tuple[list[Pair], int]:
    """Pairs of rows whose hashes differ in few bits, without those of one group of equal images; and how many."""
    pairs, count = list[Pair](), 0
    groups = np.array([alike.get(row, -1 - i) for i, row in enumerate(rows)])
    block = max(1, BLOCK // len(hashes))
    for start in range(0, len(hashes), block):
        stop = min(start + block, len(hashes))
        differ = np.bitwise_count(hashes[start:stop, None] ^ hashes[None, :])
        near = (differ <= NEAR_BITS) & (groups[start:stop, None] != groups[None, :])
        near &= np.arange(len(hashes))[None, :] > np.arange(start, stop)[:, None]  # each pair once
        firsts, seconds = np.nonzero(near)
        count += len(firsts)
        for i, j in zip(firsts[: SHOWN - len(pairs)], seconds, strict=False):
            pairs.append(Pair(rows[start + int(i)], rows[int(j)]))
    return pairs, count
