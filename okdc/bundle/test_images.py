"""The images that a bundle's numbers are from, read again and proven to be the same. No torch.

Shapes: N images, HWC pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from okdc.bundle.artefacts import Model
from okdc.bundle.bundle import BundleDir
from okdc.bundle.checks import BATCH
from okdc.bundle.layout import MANIFEST
from okdc.bundle.session import Pixels, parts
from okdc.data import DATASETS
from okdc.data import find as find_source
from okdc.data.source import Labels, Part, Request
from okdc.errors import CheckFailed, DataError, quoted
from okdc.runs.accuracy import ByClass
from okdc.runs.artefacts import Kept

SAME_PCT = 0.05  # a recorded accuracy may differ by this between machines; below 2,000 images that is no image at all


class Digest:
    """sha256 of the pixels, image after image, and of the labels: what `judged_on` in the manifest records."""

    def __init__(self) -> None:
        self._pixels = hashlib.sha256()
        self.count = 0  # images so far

    def add(self, pixels: Pixels) -> None:
        self._pixels.update(np.ascontiguousarray(pixels).tobytes())
        self.count += len(pixels)

    def of(self, labels: Labels) -> str:
        """After the last image."""
        whole = self._pixels.copy()
        whole.update(np.asarray(labels, dtype="<i8").tobytes())
        return whole.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Where they are


class NoImagesError(Exception):
    """The reason why no image can be read, in words: no fault of the bundle."""


def data_set(bundle: BundleDir) -> object:
    """`data.name` of the recipe, of whatever type it is in the file."""
    data = bundle.manifest.recipe.get("data")
    return data.get("name") if isinstance(data, dict) else None


def _skips_damaged(bundle: BundleDir) -> bool:
    """`data.skip_damaged` of the recipe."""
    data = bundle.manifest.recipe.get("data")
    return isinstance(data, dict) and data.get("skip_damaged") is True


def come_with_a_package(bundle: BundleDir) -> bool:
    """Whether the images are the same on every machine, without a root."""
    name = data_set(bundle)
    return isinstance(name, str) and name in DATASETS and not find_source(name).files


def find(bundle: BundleDir, data_root: str | None) -> Part:
    """The images that `judged_on` names, not yet proven. A Source reads them from `data_root`, else OKDC_DATA_ROOT,
    else where a recipe looks for this data set. The manifest, which a stranger wrote, never chooses the place.

    Files are decoded when their rows are read. Raises NoImagesError where there are none, DataError for other ones.
    """
    name, judged_on = data_set(bundle), bundle.manifest.judged_on
    if isinstance(name, str) and ":" in name:
        # A bundle that names its maker's code would have it run here, with the working directory on the path.
        raise NoImagesError(f"its images come from code ({quoted(name, 80)}), which is not run on a bundle's word")
    if not isinstance(name, str) or name not in DATASETS:
        raise NoImagesError(f"this okdc knows no data set {quoted(name, 80)}")
    source = find_source(name)
    root = (data_root or os.environ.get("OKDC_DATA_ROOT") or source.root) if source.files else None
    if (root is None and source.needs_root) or (root is not None and not Path(root).expanduser().is_dir()):
        if data_root is not None:
            raise DataError(f"--data-root: expected a folder of images at {Path(data_root).absolute()}, found none")
        raise NoImagesError("no images; --data-root DIR")
    request = Request(root, bundle.size, bundle.shorter_side, skip_damaged=_skips_damaged(bundle))
    part = source.part(request, judged_on.part)
    rows, count = judged_on.rows, len(part.labels)
    if rows is None:
        return part
    if rows and max(rows) >= count:
        raise DataError(
            f"the bundle was judged on image {max(rows):,} of {judged_on.part!r}, there are {count:,} of them"
        )
    return part.take(rows)


# ---------------------------------------------------------------------------------------------------------------------
# Whether they are the same


def proven(bundle: BundleDir, part: Part) -> Iterator[tuple[Pixels, Labels]]:
    """(pixels, labels) a batch at a time, each image decoded once. Only all batches together prove the images.

    Raises DataError, after the last batch at the latest, where they are not the images that judged the bundle.
    """
    count, where = bundle.manifest.accuracy.images, bundle.folder
    if len(part.labels) != count:
        raise DataError(f"{where} was judged on {count:,} images, here are {len(part.labels):,}")
    proof = Digest()
    for pixels in parts(part.images, BATCH):
        start = proof.count
        proof.add(pixels)
        yield pixels, part.labels[start : proof.count]
    expected = bundle.manifest.judged_on.sha256
    if (sha256 := proof.of(part.labels)) != expected:
        raise DataError(
            f"the images are not those of {where}: pixels or labels {sha256[:12]}, expected {expected[:12]}",
            hint="--data-root DIR says where its own are",
        )


class Comparison(NamedTuple):
    """A share of the images that was counted here, beside the recorded one, in percent."""

    name: str  # what it is, before the number; empty: top-1
    value: float
    recorded: float
    allowed: float = SAME_PCT

    @property
    def differs(self) -> bool:
        """By more than another machine may."""
        return abs(self.value - self.recorded) > self.allowed


def accuracies(counts: ByClass, recorded: Kept | Model) -> list[Comparison]:
    """Both accuracies. One image of the smallest class may move the balanced one by more than SAME_PCT."""
    allowed = max(SAME_PCT, counts.balanced_step)
    return [
        Comparison("", counts.top1_pct, recorded.top1_pct),
        Comparison("balanced accuracy ", counts.balanced_pct, recorded.balanced_accuracy_pct, allowed),
    ]


def check_labels(bundle: BundleDir, part: Part) -> None:
    """Raises CheckFailed ("labels") where the images' classes are not the bundle's labels, in order."""
    classes, labels = set(part.classes), set(bundle.labels)
    if classes != labels:
        other = next(name for name in (*part.classes, *bundle.labels) if name not in classes & labels)
        raise CheckFailed(
            "labels",
            f"{bundle.folder / MANIFEST}: the images are of another data set: {len(classes & labels)} of "
            f"{len(labels)} classes in common, not {other!r}",
            hint="--data-root DIR says where its own are",
        )
    if list(part.classes) != bundle.labels:
        swapped = next(
            (pair for pair in zip(part.classes, bundle.labels, strict=False) if pair[0] != pair[1]), ("none", "one")
        )
        raise CheckFailed(
            "labels",
            f"{bundle.folder / MANIFEST}: a class of the images is {swapped[0]!r}, of the labels {swapped[1]!r}",
            hint="labels in another order name every prediction wrongly",
        )
