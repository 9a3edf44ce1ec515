"""CINIC-10 (Darlow et al., arXiv:1810.03505): `root/{train,valid,test}/<class>/*.png`, 90,000 images a split.

Image files in class folders, with notes on what is wrong with the published splits.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from okdc.data.folder import decoded, read_part
from okdc.data.images import endings
from okdc.data.listing import Listing, list_images
from okdc.data.source import Archive, Content, Request, Source
from okdc.errors import DataError

SPLITS = ("train", "valid", "test")
PER_SPLIT = 90_000
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Of the whole set, from its README (github.com/BayesWatch/cinic-10).
MEAN = (0.47889522, 0.47227842, 0.43047404)
STD = (0.24205776, 0.23828046, 0.25874835)
CAUTION = (
    "CINIC-10: its test split holds all CIFAR-10 test images and 10,000 CIFAR-10 training images: a teacher or weights "
    "from CIFAR-10 have seen images that judge them (github.com/BayesWatch/cinic-10, README); it has duplicates within "
    "and between splits, and blank images (github.com/BayesWatch/cinic-10/issues/5)."
)


def read(request: Request) -> Content:
    """Its own three splits. Raises DataError for a missing folder or other classes than its ten."""
    root = request.folder
    missing = [split for split in SPLITS if not (root / split).is_dir()]
    if missing:
        raise DataError(
            f"cinic10: expected the folders {', '.join(SPLITS)} in {root.absolute()}, "
            f"found {'no ' + ', no '.join(missing) if root.is_dir() else 'nothing there'}",
            hint=f"okdc download cinic10 --data-root {shlex.quote(str(root))} brings <split>/<class>/*.png",
        )
    listing = list_images(root)
    if listing.classes != CLASSES:
        raise DataError(
            f"cinic10: expected ten classes in {listing.root / 'train'}, found {len(listing.classes)} or other names",
            hint="other images in class folders are data.name=folder",
            details=[f"expected: {', '.join(CLASSES)}", f"found: {', '.join(listing.classes)}"],
        )
    content = decoded(listing, request, _differences)
    return replace(content, notes=(*content.notes, CAUTION, duplicates(content)), moments=(MEAN, STD))


def count(root: Path) -> dict[str, int]:
    """How many image files each split has; a missing split has none."""
    return {split: sum(file.suffix.lower() in endings() for file in (root / split).glob("*/*")) for split in SPLITS}


def is_whole(root: Path) -> bool:
    """Whether every split has the published number of images."""
    return set(count(root).values()) == {PER_SPLIT}


def duplicates(content: Content) -> str:
    """How many images of one split another has too, pixel by pixel: a sentence on those that were decoded."""
    digests: dict[str, list[bytes]] = {"test": [], "val": [], "train": []}
    for row, digest in _digests(content):
        split = next(split for split, rows in content.parts.items() if row in rows)
        digests[split].append(digest)
    shares = []
    for split, other in combinations(digests, 2):
        present = set(digests[other])
        shares.append(
            f"{sum(d in present for d in digests[split]):,} of {len(digests[split]):,} {split} images are in {other}"
        )
    return f"equal pixels: {', '.join(shares)}"


def _digests(content: Content) -> Iterator[tuple[int, bytes]]:
    """Each image that was decoded, with the sha256 of its pixels."""
    if content.measures is not None:
        every = content.measures.digests
        yield from ((row, digest.tobytes()) for row, digest in enumerate(every) if digest.any())
        return
    images = content.images
    assert isinstance(images, np.ndarray)
    rows = range(len(images)) if content.rows is None else content.rows.tolist()
    for row, pixels in zip(rows, images, strict=True):
        yield row, hashlib.sha256(pixels.data).digest()


def _differences(listing: Listing, _: Content) -> list[str]:
    """A note for each way in which these files are not the published ones."""
    notes = []
    counts = {split: len(rows) for split, rows in listing.splits.items()}
    if set(counts.values()) != {PER_SPLIT}:
        numbers = ", ".join(f"{n:,} {split}" for split, n in counts.items())
        notes.append(f"not the whole of CINIC-10: expected {PER_SPLIT:,} images a split, found {numbers}")
    lossy = sum(not name.lower().endswith(b".png") for name in listing.files.names())
    if lossy:
        notes.append(
            f"not the published CINIC-10: {lossy:,} of {len(listing.files):,} files are not PNG; where they were "
            "compressed again, numbers do not compare with published ones"
        )
    return notes


SOURCE = Source(
    name="cinic10",
    read=read,
    read_part=read_part,
    root="data/cinic10",
    classes=len(CLASSES),
    may_stream=True,
    counts=(90_000, 90_000, 90_000),
    archive=Archive(
        url="https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz",
        md5="6ee4d0c996905fe93221de577967a372",
        size=687_544_992,
        unpacked=1_110_000_000,
        folders=SPLITS,
        is_whole=is_whole,
        may_replace=False,
    ),
    caution=CAUTION,
    hub="flwrlabs/cinic10",
)
