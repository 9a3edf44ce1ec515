"""Image files in class folders: `root/<split>/<class>/*` or `root/<class>/*`, resized and decoded once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from okdc.data import cache
from okdc.data.listing import Listing, list_images
from okdc.data.ondemand import OnDemand
from okdc.data.source import Content, Part, Request, Source, fingerprint_of, part_rows


def read(request: Request) -> Content:
    """Raises DataError for a missing folder, an empty class, a file that is no whole image."""
    return decoded(list_images(request.folder), request)


def decoded(listing: Listing, request: Request, notes: Sequence[str] = ()) -> Content:
    """The listed images, resized as the request says, with the splits that their folders name."""
    images = cache.load(listing, request.image_size, request.progress, request.shorter_side)
    labels = np.asarray(listing.labels, np.int64)
    return Content(
        classes=listing.classes,
        images=images.pixels,
        labels=labels,
        parts=listing.splits,
        fingerprint=fingerprint_of(images.sha256, listing.classes, labels, listing.splits),
        notes=(*listing.notes, *images.notes, *notes),
    )


def read_part(request: Request, name: str) -> Part:
    """One split, or "all" of a tree without splits, in files that are decoded when their rows are read."""
    listing = list_images(request.folder)
    rows = part_rows(listing.splits, name, request.folder)
    files = listing.files[rows.start : rows.stop]
    images = OnDemand(listing.root, files, request.image_size, request.shorter_side)
    return Part(listing.classes, images, np.asarray(listing.labels[rows.start : rows.stop], np.int64))


SOURCE = Source(name="folder", read=read, read_part=read_part, needs_root=True, class_folders=True)
