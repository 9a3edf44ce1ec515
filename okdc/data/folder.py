"""Image files in class folders: `root/<split>/<class>/**` or `root/<class>/**`, resized and decoded once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np

from okdc.data import cache
from okdc.data.listing import Listing, list_images
from okdc.data.ondemand import OnDemand
from okdc.data.source import Content, Part, Request, Source, fingerprint_of, part_rows

NAMED = 5  # damaged images that a note names


def read(request: Request) -> Content:
    """Raises DataError for a missing folder, an empty class, a file that is no whole image."""
    return decoded(list_images(request.folder), request)


def decoded(listing: Listing, request: Request, notes: Callable[[Listing], Sequence[str]] = lambda _: ()) -> Content:
    """The listed images, resized as the request says, with the splits that their folders name.

    `notes` says what there is to say of the images that are used: damaged ones may be left out.
    """
    images = cache.load(listing, request.image_size, request.progress, request.shorter_side, request.skip_damaged)
    used = listing.without(images.damaged) if images.damaged else listing
    labels = np.asarray(used.labels, np.int64)
    skipped = tuple(
        f"{os.fsencode(listing.files.name(row)).decode(errors='backslashreplace')}: {reason}"
        for row, reason in sorted(images.damaged.items())
    )
    return Content(
        classes=used.classes,
        images=images.pixels,
        labels=labels,
        parts=used.splits,
        fingerprint=fingerprint_of(images.sha256, used.classes, labels, used.splits),
        notes=(*used.notes, *images.notes, *_left_out(skipped, len(listing.files)), *notes(used)),
        skipped=skipped,
    )


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


SOURCE = Source(name="folder", read=read, read_part=read_part, needs_root=True, class_folders=True)
