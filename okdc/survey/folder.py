"""A folder of images as a recipe for it has to know it. Sizes come from the files' headers: no image is decoded."""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from okdc.data import files
from okdc.data.images import Header, Progress, damage, header, may_pass, unreadable, wary
from okdc.data.listing import ClassesBelowError, Listing, list_images
from okdc.data.paths import legible
from okdc.data.splits import apportion, most_outside, test_images, validation_images
from okdc.errors import DataError
from okdc.survey.places import Groups, by_place

MOST = 20_000  # headers that are read: of more files, those of a sample
BEGINNING = 2**14  # bytes that files of one size are first compared by


@dataclass(frozen=True)
class Division:
    """How many images of each class train, choose and judge, as `okdc.data.datasets` divides them."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]
    val_fraction: float

    def counts(self) -> dict[str, tuple[int, ...]]:
        return {name: getattr(self, name) for name in ("train", "val", "test")}


@dataclass(frozen=True)
class Folder:
    """A folder of images, without those that are damaged already in their first bytes."""

    root: str  # as the user wrote it
    listing: Listing
    headers: tuple[Header, ...]  # of all files, or of a sample
    damaged: tuple[str, ...]  # a line `file: reason` for each
    repeated: tuple[tuple[int, ...], ...]  # rows of files with the same bytes

    @property
    def classes(self) -> tuple[str, ...]:
        return self.listing.classes

    @cached_property
    def counts(self) -> dict[str, tuple[int, ...]]:
        """Images of each class in each split that the folder has: train, val, test, or "all"."""
        counts = {}
        for split, rows in self.listing.splits.items():
            of_class = Counter(self.listing.labels[rows.start : rows.stop])
            counts[split] = tuple(of_class[label] for label in range(len(self.classes)))
        return counts

    @cached_property
    def shorter_sides(self) -> tuple[int, ...]:
        """Of each image whose header was read, in pixels, sorted."""
        return tuple(sorted(min(each.width, each.height) for each in self.headers))

    @cached_property
    def shorter_side(self) -> int:
        """The median."""
        return int(statistics.median(self.shorter_sides))

    @cached_property
    def cut_away_pct(self) -> float:
        """What the cut of the middle leaves out of the median image, in % of its area."""
        shares = [min(each.width, each.height) / max(each.width, each.height) for each in self.headers]
        return 100 * (1 - statistics.median(shares))

    @cached_property
    def one_size(self) -> int | None:
        """The side of all images, where they are squares of one size."""
        (size, *others) = {(each.width, each.height) for each in self.headers}
        return size[0] if not others and size[0] == size[1] else None

    @property
    def grey(self) -> bool:
        return all(each.grey for each in self.headers)

    def divided(self, val_fraction: float) -> Division:
        """The images as a training with this `data.val_fraction` divides them. Raises DataError where it would."""
        counts, none = self.counts, (0,) * len(self.classes)
        if "all" in counts:
            everything = counts["all"]
            test = tuple(apportion(everything, test_images(sum(everything)), "test"))
            train = tuple(n - taken for n, taken in zip(everything, test, strict=True))
        else:
            train, test = counts["train"], counts.get("test", none)
        val = counts.get("val", none)
        if not sum(val) and val_fraction:
            val = tuple(apportion(train, validation_images(val_fraction, sum(train)), "val"))
            train = tuple(n - taken for n, taken in zip(train, val, strict=True))
        return Division(train, val, test, val_fraction)

    def split(self, row: int) -> str:
        return next(name for name, rows in self.listing.splits.items() if row in rows)

    def name(self, row: int) -> str:
        """A file below the root, as text whatever its bytes are."""
        return legible(self.listing.files.name(row))

    def alike(self) -> dict[str, Groups]:
        """The groups of files with the same bytes, by where they lie."""
        return by_place(self.repeated, self.split, self.listing.labels.__getitem__)

    def facts(self) -> dict[str, Any]:
        """What `okdc new --json` says of the folder."""
        sides = self.shorter_sides
        return {
            "root": self.root,
            "images": len(self.listing.files),
            "classes": list(self.classes),
            "counts": {split: list(counts) for split, counts in self.counts.items()},
            "headers_read": len(self.headers),
            "shorter_side_px": {"smallest": sides[0], "median": self.shorter_side, "largest": sides[-1]},
            "cut_away_pct": round(self.cut_away_pct, 1),
            "grey": self.grey,
            "damaged": list(self.damaged),
            "same_bytes": {
                where: [[self.name(row) for row in rows] for rows in groups] for where, groups in self.alike().items()
            },
            "notes": list(self.listing.notes),
        }


def _nearest(path: Path) -> str:
    """The folder beside `path` whose name is nearest to its own; "" where none is near or none can be listed."""
    try:
        with os.scandir(path.parent) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return ""
    return next(iter(difflib.get_close_matches(path.name, names, n=1)), "")


def look(root: str, progress: Progress | None = None) -> Folder:
    """List a folder of images, read the files' headers, and compare the bytes of files of one size.

    Raises DataError as `list_images`, for files that the system fails to read, and where a class has no whole image.
    """
    try:
        root.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{legible(os.fsencode(root))}: the path is not UTF-8, and a recipe is", hint="rename it"
        ) from None
    path = Path(root).expanduser()
    if not os.path.isdir(path):  # noqa: PTH112  (Path.is_dir() raises for a path that is too long)
        kind = "a file" if os.path.exists(path) else "nothing"  # noqa: PTH110
        near = _nearest(path) if kind == "nothing" else ""
        beside = os.path.join(os.path.dirname(root.rstrip(os.sep)), near)  # noqa: PTH118, PTH120  (as it was typed)
        raise DataError(
            f"{root}: expected a folder of images, found {kind}",
            hint=f"{beside} is meant?" if near else "",
            corrections={(root,): (beside,)} if near else {},
        )
    try:
        listing = list_images(path)
    except ClassesBelowError as error:
        below = os.path.join(root, error.below.name)  # noqa: PTH118  (as it was typed)
        raise DataError(error.message, hint=f"{below} is meant?", corrections={(root,): (below,)}) from None
    count = len(listing.files)
    rows = range(count) if count <= MOST else [i * count // MOST for i in range(MOST)]
    headers: list[Header] = []
    damaged: dict[int, str] = {}
    passing: list[str] = []
    with wary():
        for done, row in enumerate(rows, 1):
            try:
                with files.opened(listing.files[row]) as (stream, _):
                    headers.append(header(stream))
            except MemoryError:
                raise
            except Exception as error:  # Pillow raises a dozen kinds
                damaged[row] = damage(error)
                if may_pass(error):
                    passing.append(f"{listing.files[row]}: {damaged[row]}")
            if progress and (done % 64 == 0 or done == len(rows)):
                progress(done, len(rows))
    if passing:
        raise unreadable(passing, count)
    lines = tuple(f"{legible(listing.files.name(row))}: {reason}" for row, reason in sorted(damaged.items()))
    if not headers:
        raise DataError(f"{root}: none of {count:,} files is an image, the first is {lines[0]}", details=lines)
    whole = listing.without(damaged) if damaged else listing
    return Folder(root, whole, tuple(headers), lines, tuple(_repeated(whole)))


def _repeated(listing: Listing) -> list[tuple[int, ...]]:
    """Rows of files with the same bytes. Only files of one size, and then of one beginning, are read."""
    sizes: dict[int, list[int]] = {}
    for row, (_, status) in enumerate(listing.files.stats()):
        if not isinstance(status, OSError):
            sizes.setdefault(status.st_size, []).append(row)
    groups = list(sizes.values())
    for most in (BEGINNING, files.LARGEST):
        groups = [part for group in groups if len(group) > 1 for part in _by_content(listing, group, most)]
    return sorted(tuple(group) for group in groups if len(group) > 1)


def _by_content(listing: Listing, rows: Sequence[int], most: int) -> list[list[int]]:
    """The rows, grouped by the first `most` bytes of their files. A file that cannot be read is equal to none."""
    groups: dict[bytes, list[int]] = {}
    for row in rows:
        try:
            with files.opened(listing.files[row]) as (stream, _):
                digest = hashlib.sha256(stream.read(most)).digest()
        except (OSError, files.NoFileError):
            continue
        groups.setdefault(digest, []).append(row)
    return list(groups.values())


def division(folder: Folder, val_fraction: float) -> Division:
    """The division with about this share for validation: as many images as the classes allow.

    Raises DataError where the images are too few to train on some and to judge by others.
    """
    try:
        train = folder.divided(0.0).train
    except DataError:
        raise DataError(
            f"{folder.root}: {sum(map(sum, folder.counts.values())):,} images of {len(folder.classes)} classes are too "
            "few to set a fifth of them aside for the test: each class keeps one for training",
            hint="more images of each class, or folders train and test",
        ) from None
    most, whole = most_outside(train), sum(train)
    if "val" not in folder.counts and most:
        wanted = max(1, validation_images(val_fraction, whole))
        if wanted > most or wanted != validation_images(val_fraction, whole):
            val_fraction = math.floor(1e4 * min(wanted, most) / whole) / 1e4
    elif "val" not in folder.counts:
        val_fraction = 0.0
    divided = folder.divided(val_fraction)
    if sum(divided.train) < 2 or not sum(divided.val) + sum(divided.test):
        raise DataError(
            f"{folder.root}: {whole} images are too few to train on some and to judge by others",
            hint="more images of each class",
        )
    return divided
