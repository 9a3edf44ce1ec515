"""Image files in class folders: `root/<split>/<class>/**` or `root/<class>/**`, resized and decoded once.

Where their pixels would not fit in memory they are decoded once to be measured, and then batch by batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from okdc.data import cache, memory
from okdc.data.decoding import Kind, Making, Measures
from okdc.data.images import DamagedError, Pixels, unreadable
from okdc.data.listing import Listing, list_images
from okdc.data.ondemand import OnDemand
from okdc.data.paths import legible
from okdc.data.source import Content, Labels, Part, Request, Source, fingerprint_of, part_rows

NAMED = 5  # damaged images that a note names
Notes = Callable[[Listing, Content], Sequence[str]]  # of the listed images that are used, and what was read


def read(request: Request) -> Content:
    """Raises DataError for a missing folder, an empty class, a file that is no whole image."""
    return decoded(list_images(request.folder), request)


def decoded(listing: Listing, request: Request, notes: Notes = lambda *_: ()) -> Content:
    """The listed images, resized as the request says, with the splits that their folders name.

    Their pixels are in memory, of the images that are needed alone; where they would take too much of it they stay in
    their files. Either way the content is identified by the bytes of all files: a run is comparable with one that had
    them elsewhere. `notes` says what there is to say of the images that are used: damaged ones may be left out.
    """
    labels = np.asarray(listing.labels, np.int64)
    groups = None  # all
    # Which images are damaged is not known before all are decoded, and the splits are drawn from the others.
    if request.needed and not request.skip_damaged:
        groups = request.needed(listing.classes, labels, listing.splits)
    count = len(labels) if groups is None else sum(map(len, groups))
    streamed, reason = _streams(request, count)
    if groups is not None and not streamed and not _streams(request, len(labels))[0]:
        has_all = cache.has(listing, request.image_size, request.shorter_side)
        groups = None if has_all else groups
    # Held before they are read: one that is written meanwhile is not what identifies the data.
    files = OnDemand(listing.root, listing.files, request.image_size, request.shorter_side).hold() if streamed else None
    read = _loaded(listing, request, groups, "measures" if streamed else "pixels")
    used = listing.without(read.damaged) if read.damaged else listing
    labels = np.asarray(used.labels, np.int64)
    skipped = tuple(f"{legible(listing.files.name(row))}: {reason}" for row, reason in sorted(read.damaged.items()))
    if files is not None and read.damaged:
        files = files.take([row for row in range(len(files)) if row not in read.damaged])
    content = Content(
        classes=used.classes,
        images=read.rows if files is None else files,
        labels=labels,
        parts=used.splits,
        fingerprint=fingerprint_of(read.sha256, used.classes, labels, used.splits),
        notes=(*used.notes, *read.notes, *([reason] if streamed else []), *_left_out(skipped, len(listing.files))),
        skipped=skipped,
        rows=None if streamed or groups is None else np.concatenate(groups),
        measures=_of_all(read.rows, groups, len(labels)) if streamed else None,
    )
    return replace(content, notes=(*content.notes, *notes(used, content)))


def _streams(request: Request, count: int) -> tuple[bool, str]:
    """Whether so many images stay in their files, and the reason why."""
    size, side = count * request.image_size**2 * 3, request.image_size
    where = "they stay in their files and are decoded batch by batch (data.stream)"
    if request.streamed is not None:
        return request.streamed, f"{count:,} images of {side}×{side}: {where}"
    free = memory.room() if request.room is None else request.room
    words = f"{count:,} images of {side}×{side} would take {_size(size)}, and {_size(free)} are free for them"
    return size > free, f"{words}: {where}"


class _Loaded(NamedTuple):
    """The rows of the files that are needed, group after group, and what is known of all files."""

    rows: Pixels
    sha256: str  # of the contents of all files but the damaged ones
    notes: Sequence[str]
    damaged: Mapping[int, str]


def _loaded(listing: Listing, request: Request, groups: Sequence[Labels] | None, kind: Kind) -> _Loaded:
    """Raises DataError that lists every file which is no whole image, unless the request says to leave them out."""

    def load(part: Listing, kind: Kind) -> cache.Decoded:
        return cache.load(part, request.image_size, request.progress, request.shorter_side, request.skip_damaged, kind)

    if groups is None:
        whole = load(listing, kind)
        return _Loaded(whole.pixels, whole.sha256, whole.notes, whole.damaged)
    contents = load(listing, "contents")
    shape = Making(kind, request.image_size).shape
    rows = np.empty((sum(map(len, groups)), *shape), np.uint8)
    notes, start, bad = list(contents.notes), 0, list[str]()
    for group in filter(len, groups):
        try:
            part = load(replace(listing, files=listing.files.take(group.tolist())), kind)
        except DamagedError as error:
            bad += error.details
        else:
            rows[start : start + len(group)] = part.pixels
            notes += part.notes
        start += len(group)
    if bad:
        raise unreadable(bad, len(listing.files), request.skip_damaged)
    return _Loaded(rows, contents.sha256, notes, {})


def _of_all(rows: Pixels, groups: Sequence[Labels] | None, count: int) -> Measures:
    """The measures of all images; zeros of those that are in no group."""
    if groups is not None:
        everything = np.zeros((count, rows.shape[1]), np.uint8)
        everything[np.concatenate(groups)] = rows
        rows = everything
    return Measures.of(rows)


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _left_out(skipped: Sequence[str], count: int) -> list[str]:
    """The note on damaged images, or none."""
    if not skipped:
        return []
    more = f" and {len(skipped) - NAMED:,} more" if len(skipped) > NAMED else ""
    return [
        f"{len(skipped):,} of {count:,} images are damaged and left out (data.skip_damaged): "
        f"{'; '.join(skipped[:NAMED])}{more}"
    ]


def read_part(request: Request, name: str) -> Part:
    """One split, or "all" of a tree without splits, in files that are decoded when their rows are read.

    Where damaged images are left out, each is decoded first: which ones these are is not known before.
    """
    if request.skip_damaged:
        content = read(request)
        rows = part_rows(content.parts, name, request.folder)
        return content.take(rows)
    listing = list_images(request.folder)
    rows = part_rows(listing.splits, name, request.folder)
    files = listing.files[rows.start : rows.stop]
    images = OnDemand(listing.root, files, request.image_size, request.shorter_side)
    return Part(listing.classes, images, np.asarray(listing.labels[rows.start : rows.stop], np.int64))


SOURCE = Source(name="folder", read=read, read_part=read_part, needs_root=True, class_folders=True, may_stream=True)
