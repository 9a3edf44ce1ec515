"""CINIC-10 (Darlow et al., arXiv:1810.03505): `root/{train,valid,test}/<class>/*.png`, 90,000 images a split.

Image files in class folders as any others, with what is known of this set said aloud: who trains on it should know
that its splits are not clean.
"""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from okdc.data import images
from okdc.data.datasets import Dataset, of_files
from okdc.errors import DataError

SPLITS = ("train", "valid", "test")
PER_SPLIT = 90_000
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Of the whole set, from its README (github.com/BayesWatch/cinic-10).
MEAN = (0.47889522, 0.47227842, 0.43047404)
STD = (0.24205776, 0.23828046, 0.25874835)
KNOWN = (
    "CINIC-10: its test split holds all CIFAR-10 test images and 10,000 CIFAR-10 training images: a teacher or weights "
    "from CIFAR-10 have seen what they are judged on (github.com/BayesWatch/cinic-10, README)",
    "CINIC-10: it has duplicates within and between splits and blank images (github.com/BayesWatch/cinic-10/issues/5)",
)


def cinic(root: Path, size: int, progress: images.Progress | None = None) -> Dataset:
    """Its own three splits. Raises DataError for a missing folder or other classes than its ten."""
    missing = [split for split in SPLITS if not (root / split).is_dir()]
    if missing:
        raise DataError(
            f"cinic10: expected the folders {', '.join(SPLITS)} in {root.absolute()}, "
            f"found {'no ' + ', no '.join(missing) if root.is_dir() else 'nothing there'}",
            hint=f"okdc download cinic10 --data-root {shlex.quote(str(root))} brings <split>/<class>/*.png",
        )
    listed = images.listing(root)
    if listed.classes != CLASSES:
        raise DataError(
            f"cinic10: expected ten classes in {listed.root / 'train'}, found {len(listed.classes)} or other names",
            hint="other images in class folders are data.name=folder",
            details=[f"expected: {', '.join(CLASSES)}", f"found: {', '.join(listed.classes)}"],
        )
    found = of_files(listed, size, progress)
    notes = [*found.notes, *_unlike_the_published(listed), *KNOWN, duplicates(found)]
    return replace(found, name="cinic10", notes=tuple(notes), published=(MEAN, STD))


def count(root: Path) -> dict[str, int]:
    """How many image files each split has; a split that is not there has none."""
    found = {split: (root / split).glob("*/*") for split in SPLITS}
    return {split: sum(f.name.lower().endswith(images.EXTENSIONS) for f in files) for split, files in found.items()}


def _unlike_the_published(listed: images.Listing) -> list[str]:
    notes = []
    counts = {split: len(rows) for split, rows in listed.splits.items()}
    if set(counts.values()) != {PER_SPLIT}:
        told = ", ".join(f"{n:,} {split}" for split, n in counts.items())
        notes.append(f"not the whole of CINIC-10: expected {PER_SPLIT:,} images a split, found {told}")
    lossy = sum(not name.lower().endswith(b".png") for name in listed.files.names())
    if lossy:
        notes.append(
            f"not the published CINIC-10: {lossy:,} of {len(listed.files):,} files are not PNG; where they were "
            "compressed again, numbers do not compare with published ones"
        )
    return notes


def duplicates(dataset: Dataset) -> str:
    """How many images of one split another has too, pixel by pixel: a sentence."""
    splits = {"test": dataset.test, "val": dataset.val, "train": dataset.train}
    pixels = dataset.images.numpy()
    digests = {
        split: [hashlib.blake2b(pixels[row], digest_size=16).digest() for row in rows.tolist()]
        for split, rows in splits.items()
    }
    told = []
    for one, other in combinations(splits, 2):
        known = set(digests[other])
        told.append(f"{sum(d in known for d in digests[one]):,} of {len(digests[one]):,} {one} images are in {other}")
    return f"equal pixels: {', '.join(told)}"
