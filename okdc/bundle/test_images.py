"""The images that a bundle's numbers are from, found again and proven. No torch.

Shapes: N images, HWC pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from okdc.bundle.artefacts import JudgedOn
from okdc.bundle.bundle import Bundle
from okdc.bundle.checks import BATCH
from okdc.bundle.layout import MANIFEST
from okdc.bundle.session import Images, Pixels, parts
from okdc.data import images as image_files
from okdc.data import published
from okdc.data.ondemand import OnDemand
from okdc.errors import CheckFailed, DataError, quoted
from okdc.recipe.schema import DATASETS, ROOTS

DIGITS = "digits"  # the data set that everybody has
SAME_PCT = 0.05  # a recorded accuracy may differ by this between machines; below 2,000 images that is no image at all

Labels = npt.NDArray[np.int64]


class Digest:
    """sha256 of the pixels, image after image, and of the labels: what `judged_on` in the manifest says."""

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


@dataclass(frozen=True)
class Judged:
    """Images that may be those of a bundle: right in number, and not yet proven."""

    classes: tuple[str, ...]
    images: Images
    labels: Labels


class NotHereError(Exception):
    """Why no image can be had, in words: no fault of the bundle."""


def data_set(bundle: Bundle) -> object:
    """`data.name` of the recipe, whatever stands there."""
    data = bundle.manifest.recipe.get("data")
    return data.get("name") if isinstance(data, dict) else None


def find(bundle: Bundle, data_root: str | None) -> Judged:
    """The images that `judged_on` names: scikit-learn's, or files below `data_root` (else OKDC_DATA_ROOT, or where a
    recipe looks for this data set). The manifest itself never says where: it is somebody else's.

    Files are decoded as they are asked for. Raises NotHereError where there are none, DataError for other ones.
    """
    name, judged = data_set(bundle), bundle.manifest.judged_on
    if name == DIGITS:
        return _chosen(published.DIGITS, *published.digits(), judged)
    if isinstance(name, str) and ":" in name:
        # A bundle that names code of its maker's would have it run here, with the working directory on the path.
        raise NotHereError(f"its images come from code ({quoted(name, 80)}), which is not run on a bundle's word")
    if not isinstance(name, str) or name not in DATASETS:
        raise NotHereError(f"this okdc knows no data set {quoted(name, 80)}")
    given = data_root or os.environ.get("OKDC_DATA_ROOT") or ROOTS.get(name)
    root = Path(given).expanduser() if given else None
    if root is None or not root.is_dir():
        if data_root is not None:
            raise DataError(f"--data-root: expected a folder of images at {Path(data_root).absolute()}, found none")
        raise NotHereError("no images; --data-root DIR")
    if name in published.CIFAR:
        part = judged.part
        if part not in published.CIFAR[name].parts:
            raise DataError(f"{name} has no split {part!r}")
        return _chosen(*published.cifar(name, root, part), judged)
    return _files(bundle, root, judged)


def _files(bundle: Bundle, root: Path, judged: JudgedOn) -> Judged:
    """Of a tree of image files, the part and the places in it."""
    listed = image_files.listing(root)
    part, rows = judged.part, judged.rows
    if part not in listed.splits:
        raise DataError(f"{root} has no split {part!r}, there is: {', '.join(listed.splits)}")
    there = listed.splits[part]
    wanted = list(there) if rows is None else [there[row] for row in _within(rows, len(there), part)]
    files = OnDemand(listed.root, [listed.files[i] for i in wanted], bundle.size, bundle.shorter_side)
    return Judged(listed.classes, files, np.asarray([listed.labels[i] for i in wanted], np.int64))


def _chosen(classes: tuple[str, ...], pixels: Pixels, labels: Labels, judged: JudgedOn) -> Judged:
    rows = judged.rows
    if rows is not None:
        places = list(_within(rows, len(labels), judged.part))
        pixels, labels = pixels[places], labels[places]
    return Judged(classes, pixels, labels)


def _within(rows: Sequence[int], count: int, part: str) -> Sequence[int]:
    if rows and max(rows) >= count:
        raise DataError(f"the bundle was judged on image {max(rows):,} of {part!r}, there are {count:,} of them")
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Are these the ones?


def proven(bundle: Bundle, found: Judged) -> Iterator[tuple[Pixels, Labels]]:
    """(pixels, labels) a batch at a time, each image decoded once. Whoever takes them all knows that they are right.

    Raises DataError, after the last batch at the latest, where they are not the images that judged the bundle.
    """
    count, where = bundle.manifest.accuracy.images, bundle.folder
    if len(found.labels) != count:
        raise DataError(f"{where} was judged on {count:,} images, here are {len(found.labels):,}")
    proof = Digest()
    for pixels in parts(found.images, BATCH):
        start = proof.count
        proof.add(pixels)
        yield pixels, found.labels[start : proof.count]
    expected = bundle.manifest.judged_on.sha256
    if (sha256 := proof.of(found.labels)) != expected:
        raise DataError(
            f"the images are not those of {where}: pixels or labels {sha256[:12]}, expected {expected[:12]}",
            hint="--data-root DIR says where its own are",
        )


def check_labels(bundle: Bundle, found: Judged) -> None:
    """Raises CheckFailed ("labels") where the images' classes are not the bundle's labels, in order."""
    if list(found.classes) != bundle.labels:
        swapped = next(
            (pair for pair in zip(found.classes, bundle.labels, strict=False) if pair[0] != pair[1]), ("none", "one")
        )
        raise CheckFailed(
            "labels",
            f"{bundle.folder / MANIFEST}: a class of the images is {swapped[0]!r}, of the labels {swapped[1]!r}",
            hint="labels in another order name every prediction wrongly",
        )
