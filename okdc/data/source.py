"""What a data set is to okdc: one `Source`, which describes it and reads it. numpy only, no torch.

    SOURCE = Source(name="blobs", read=read, classes=3, image_size=16)

    def read(request: Request) -> Content:
        return of_arrays(["red", "green", "blue"], {"train": (images, labels), "test": (images, labels)})

Shapes: N images of H×W pixels, three channels last, uint8; labels are integers from 0 to classes - 1.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from okdc.data.decoding import Measures
from okdc.data.images import Pixels, Progress
from okdc.data.listing import class_names, list_images
from okdc.data.ondemand import OnDemand
from okdc.data.splits import test_images
from okdc.errors import DataError

if TYPE_CHECKING:
    from okdc.recipe.schema import Data

Labels = npt.NDArray[np.int64]
# From classes, N labels and the parts: groups of rows that a training reads. Those of one group are read together.
Needed = Callable[[Sequence[str], Labels, Mapping[str, range]], Sequence[npt.NDArray[np.int64]]]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Request:
    """Which images a recipe, or the verification of a bundle, wants from a data set."""

    root: str | None = None  # `data.root` as the recipe has it
    image_size: int = 32
    shorter_side: int | None = None  # None: image_size
    progress: Progress | None = None
    skip_damaged: bool = False  # leave out files that are no whole images, instead of an error
    streamed: bool | None = None  # whether image files stay files; None: where their pixels take more than `room`
    room: int | None = None  # bytes of memory for pixels; None: as many as `okdc.data.memory` finds
    needed: Needed | None = None  # which images a training needs; None: all

    @property
    def folder(self) -> Path:
        """The root of a data set that has one."""
        assert self.root is not None
        return Path(self.root).expanduser()


@dataclass(frozen=True)
class Part:
    """Labelled images without a role in training, such as the test split that a bundle is verified on."""

    classes: tuple[str, ...]
    images: Pixels | OnDemand  # N×H×W×3 uint8; OnDemand: files, which are decoded when their rows are read
    labels: Labels  # N

    def take(self, rows: Sequence[int]) -> Part:
        """The images at these places, in this order."""
        images, chosen = self.images, list(rows)
        picked = images.take(chosen) if isinstance(images, OnDemand) else images[chosen]
        return Part(self.classes, picked, self.labels[chosen])


@dataclass(frozen=True)
class Content(Part):
    """All images of a data set, before okdc divides them.

    The splits of `parts` are train, val and test, or "all" alone, of which okdc draws a stratified test split.
    """

    parts: Mapping[str, range]  # rows of each part that the data brings, under the data's own names
    fingerprint: str  # sha256 of the contents, the classes, the labels and the parts
    notes: tuple[str, ...] = ()
    moments: tuple[Colour, Colour] | None = None  # mean and deviation of the channels, where the makers publish them
    splits: Mapping[str, range] | None = None  # rows of train, val and test, where the parts are named otherwise
    skipped: tuple[str, ...] = ()  # a line `file: reason` for each damaged image that was left out
    test_images: int | None = None  # how many of "all" okdc draws for the test split; None: a fifth
    rows: npt.NDArray[np.int64] | None = None  # the rows that `images` has, in its order; None: all, in theirs
    measures: Measures | None = None  # of images in files: of all rows, zeros of those that nobody needs


@dataclass(frozen=True)
class Archive:
    """A published .tar.gz, and the folders that it leaves below the root."""

    url: str
    md5: str
    size: int  # bytes
    unpacked: int  # bytes on disk, about
    folders: tuple[str, ...]
    is_whole: Callable[[Path], bool]  # whether all of the data set lies below a root
    may_replace: bool = True  # False: the folders have everyday names and may hold the user's own images


@dataclass(frozen=True)
class Source:
    """A data set. Every field but `name` and `read` has a default that suits a package's own data."""

    name: str  # `data.name`
    read: Callable[[Request], Content]  # raises DataError where the images are missing or damaged
    read_part: Callable[[Request, str], Part] | None = None  # one part alone; None: `read`, and the rest is dropped
    root: str | None = None  # where the images are looked for, and downloaded to, without `data.root`
    needs_root: bool = False  # there is no default, and `data.root` has to be set
    files: bool = True  # False: the images come with a package, and `data.root` has no meaning
    classes: int | None = None  # how many, where that is known before any image is read
    class_folders: bool = False  # images of any size in folders that name their classes; data.shorter_side applies
    image_size: int | None = None  # of every image, H = W; None: images are resized to data.image_size
    streamed: bool = False  # decoded batch by batch in training, never whole in memory
    may_stream: bool = False  # the same where memory is short, or the recipe wants it: `data.stream` applies
    archive: Archive | None = None  # for `okdc download`
    by_hand: str = ""  # how to fetch a published data set without an archive
    caution: str = ""  # a sentence for the model card
    hub: str | None = None  # the data set's name on huggingface.co
    fixed: bool = False  # its content is one published content, in every copy
    counts: tuple[int, int, int] | None = None  # training, validation and test images, where they are published

    def part(self, request: Request, name: str) -> Part:
        """The images of one part. Raises DataError where there is none of this name."""
        if self.read_part is not None:
            return self.read_part(request, name)
        content = self.read(request)
        return content.take(part_rows(content.parts, name, self.name))

    def count_classes(self, root: str | None) -> int | None:
        """How many classes, without a look at any image. None: unknown."""
        if self.class_folders and root is not None:
            with contextlib.suppress(DataError):
                return len(class_names(Path(root).expanduser()))
        return self.classes

    def count_images(self, root: str | None) -> tuple[int, int, int] | None:
        """Training, validation and test images, without a look at any of them. None: unknown.

        A folder without splits has a fifth for the test, and one without `val` has none of it yet.
        """
        if self.counts is None and self.class_folders and root is not None:
            with contextlib.suppress(DataError):
                splits = {name: len(rows) for name, rows in list_images(Path(root).expanduser()).splits.items()}
                if whole := splits.get("all"):
                    return whole - test_images(whole), 0, test_images(whole)
                return splits.get("train", 0), splits.get("val", 0), splits.get("test", 0)
        return self.counts

    def problems(self, data: Data, needs_data: bool) -> list[str]:
        """A line `key: problem` for each key of `[data]` that does not fit this data set."""
        lines = []
        if needs_data and self.needs_root and data.root is None:
            lines.append("data.root: missing; expected a folder of images: data.root=path/to/images")
        if self.image_size not in (None, data.image_size):
            size = f"{self.image_size}×{self.image_size}"
            lines.append(f"data.image_size: the images of {self.name} are {size}, found {data.image_size}")
        if data.shorter_side is not None:
            if not self.class_folders:
                lines.append(f"data.shorter_side: the images of {self.name} are not cut; leave it out")
            elif data.shorter_side < data.image_size:
                lines.append(
                    f"data.shorter_side: expected at least data.image_size ({data.image_size}), "
                    f"found {data.shorter_side}"
                )
        if data.stream == "on" and not (self.streamed or self.may_stream):
            lines.append(f"data.stream: {self.name} has no image files that could stay files")
        elif data.stream == "off" and self.streamed:
            lines.append(f"data.stream: {self.name} is always decoded batch by batch; data.name=folder need not be")
        if data.skip_damaged and not self.class_folders:
            lines.append(f"data.skip_damaged: {self.name} has no image files of which one could be left out")
        elif data.skip_damaged and self.streamed:
            lines.append(
                f"data.skip_damaged: {self.name} is decoded batch by batch, and which images are damaged is not known "
                "before the training has met them; remove those that an error names"
            )
        return lines


def part_rows(parts: Mapping[str, range], name: str, where: object) -> range:
    """The rows of a part. Raises DataError, which says `where`, for a part that the data lacks."""
    if name not in parts:
        raise DataError(f"{where} has no split {name!r}, there is: {', '.join(parts)}")
    return parts[name]


def of_arrays(classes: Sequence[str], splits: Mapping[str, tuple[Any, Any]]) -> Content:
    """Content from arrays: (N×H×W×3 uint8, N integers) for `train`, and if the data has them for `val` and `test`."""
    pixels = np.ascontiguousarray(np.concatenate([images for images, _ in splits.values()]))  # a copy of any view
    labels = np.concatenate([np.asarray(labels, np.int64) for _, labels in splits.values()])
    parts, start = {}, 0
    for split, (images, _) in splits.items():
        parts[split] = range(start, start + len(images))
        start += len(images)
    contents = hashlib.sha256(pixels.data).hexdigest()
    return Content(tuple(classes), pixels, labels, parts, fingerprint_of(contents, classes, labels, parts))


def fingerprint_of(contents: str, classes: Sequence[str], labels: Labels, parts: Mapping[str, range]) -> str:
    """sha256 over the contents' own sha256, the classes, the labels and the parts.

    A file that moves to another class or split keeps every byte, and makes other data all the same.
    """
    bounds = {name: [rows.start, rows.stop] for name, rows in parts.items()}
    return hashlib.sha256(json.dumps([contents, list(classes), labels.tolist(), bounds]).encode()).hexdigest()
