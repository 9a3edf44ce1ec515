"""Data sets in torch: which images train, choose and judge.

The splits never mix: `train` moves weights, `val` chooses the student and the epoch, `test` is read once, at the end.
Those that okdc draws are stratified and use a fixed seed, so that all runs on the same images are tested on the same
images; only the subset `train_images` follows the recipe's seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from okdc.data.ondemand import OnDemand
from okdc.data.sending import Sender
from okdc.data.source import Colour, Content, Labels, Needed, Request, Source
from okdc.data.splits import TEST_SHARE, apportion, test_images, validation_images
from okdc.errors import DataError
from okdc.plugins import no_exit
from okdc.progress import WARNING
from okdc.seeds import generator

SPLIT_SEED = 0  # of every split that okdc makes itself
NAMED = 5  # classes that a note names
SAMPLE = 4096  # images from which mean and deviation follow where decoding all of them may take hours


@dataclass(frozen=True)
class Dataset:
    """Labelled uint8 images in memory, or in files; the splits are indices into them.

    Images and labels are on one device, unless a `sender` brings batches of the images to the device of the labels.
    """

    name: str
    classes: tuple[str, ...]
    images: Tensor  # NHWC uint8; N = 0 where the images are in `files`
    labels: Tensor  # N int64
    train: Tensor  # indices, int64
    val: Tensor
    test: Tensor
    fingerprint: str  # sha256 of the contents, the classes, the labels and the splits that the data brings
    notes: tuple[str, ...] = ()
    published: tuple[Colour, Colour] | None = None  # mean and deviation of the channels, where the makers publish them
    files: OnDemand | None = None
    parts: Mapping[str, range] = field(default_factory=dict)  # rows of each part that the data brings
    skipped: tuple[str, ...] = ()  # a line `file: reason` for each damaged image that was left out
    sender: Sender | None = None  # of images that are not on the device of the labels (`okdc.data.placement`)
    places: Tensor | None = None  # of each row in `images`, int64, where these are not all; on their device
    sums: Tensor | None = None  # N×6 int64: of the channels of images in files, and of their squares

    @property
    def size(self) -> torch.Size:
        """CHW of one image."""
        height, width, channels = self.images.shape[1:]
        return torch.Size((channels, height, width))

    def pixels(self, rows: Tensor) -> Tensor:
        """The images of `rows`, B×H×W×C uint8, on the device of the labels.

        Raises DataError for a file that cannot be read.
        """
        if self.sender is not None:
            shape = (len(rows), *self.images.shape[1:])
            return self.sender.filled(shape, lambda out: self._read(rows.cpu(), out))
        if self.files is not None:
            return torch.from_numpy(self.files[rows.cpu().numpy()])
        return self.images[self.places_of(rows.to(self.images.device))]

    def places_of(self, rows: Tensor) -> Tensor:
        """Where `rows` lie in `images`; both on the device of the images."""
        return rows if self.places is None else self.places[rows]

    def _read(self, rows: Tensor, out: Tensor) -> None:
        """Write the images of `rows` into `out`, on the CPU."""
        if self.files is not None:
            self.files.read(rows.numpy(), out.numpy())
        else:
            torch.index_select(self.images, 0, self.places_of(rows), out=out)

    @property
    def final_split(self) -> tuple[str, Tensor]:
        """The split that final numbers are read from, with its name: test, or validation where there is no test."""
        return ("test", self.test) if len(self.test) else ("validation", self.val)

    def part_of(self, rows: Tensor) -> tuple[str, list[int] | None]:
        """The part of the data that holds `rows`, and their places in it; None: all of the part, in order.

        "all" is the whole data set, where okdc drew the split.
        """
        for name, part in self.parts.items():
            if len(rows) and part.start <= int(rows.min()) and int(rows.max()) < part.stop:
                places = [row - part.start for row in rows.tolist()]
                return name, None if places == list(range(len(part))) else places
        return "all", rows.tolist()

    def to(self, device: torch.device) -> Dataset:
        places = None if self.places is None else self.places.to(device)
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), places=places)

    def moments(self) -> tuple[Colour, Colour]:
        """Mean and deviation of each channel of the training images, scaled to 0..1, exact to six decimals.

        Of files that nobody has measured they are those of SAMPLE training images, drawn by a fixed seed.
        """
        height, width = self.images.shape[1:3]
        rows = self.train
        if self.sums is not None:
            total, squares = self.sums[rows].sum(0).numpy().reshape(2, 3)
        else:
            if self.files is not None and len(rows) > SAMPLE:  # of another package's files nothing is measured
                rows = rows[torch.randperm(len(rows), generator=generator(SPLIT_SEED, "moments"))[:SAMPLE]]
            total, squares = self._sums(rows)
        n = len(rows) * height * width
        means, deviations = [], []
        for s, q in zip(total.tolist(), squares.tolist(), strict=True):
            mean = s / n
            variance = q / n - mean**2
            means.append(round(mean / 255, 6))
            deviations.append(round(max(variance, 1.0) ** 0.5 / 255, 6))  # a constant channel is left alone
        (r, g, b), (r_sd, g_sd, b_sd) = means, deviations
        return (r, g, b), (r_sd, g_sd, b_sd)

    def _sums(self, rows: Tensor) -> tuple[Labels, Labels]:
        """The sums of the three channels of these images, and of their squares."""
        height, width = self.images.shape[1:3]
        total, squares = np.zeros(3, np.int64), np.zeros(3, np.int64)
        for part in rows.split(max(1, 2**14 // height)):  # so many rows of pixels: their squares fit in 32 bits
            pixels = self.pixels(part).numpy().reshape(-1, width * 3).astype(np.uint16)
            total += pixels.sum(0, np.uint32).reshape(-1, 3).sum(0, np.int64)
            pixels *= pixels
            squares += pixels.sum(0, np.uint32).reshape(-1, 3).sum(0, np.int64)
        return total, squares


def load(source: Source, request: Request) -> Dataset:
    """A data set with the splits that it brings. Raises DataError where it cannot be read."""
    with no_exit(f"data set {source.name}", DataError):
        content = source.read(request)
    if not isinstance(content, Content):
        raise DataError(f"data set {source.name}: expected okdc.data.source.Content, found {type(content).__name__}")
    return dataset_of(source.name, content)


def dataset_of(name: str, content: Content) -> Dataset:
    """A data set of this content. okdc draws a test split where the content is one part, "all"."""
    files = content.images if isinstance(content.images, OnDemand) else None
    pixels = np.empty((0, *content.images.shape[1:]), np.uint8) if files is not None else content.images
    labels = torch.from_numpy(content.labels)
    splits = {split: torch.arange(rows.start, rows.stop) for split, rows in (content.splits or content.parts).items()}
    notes, nothing = content.notes, torch.empty(0, dtype=torch.int64)
    if "all" in splits:
        everything, count = splits["all"], content.test_images
        if count is None:
            count = test_images(len(everything))
            notes += (f"one folder of classes: {TEST_SHARE:.0%} are the test split, drawn with seed {SPLIT_SEED}",)
        splits["test"] = stratified(labels, everything, count, SPLIT_SEED, "test")
        judged = set(labels[splits["test"]].tolist())
        if without := [name for label, name in enumerate(content.classes) if label not in judged]:
            more = f" and {len(without) - NAMED:,} more" if len(without) > NAMED else ""
            named = ", ".join(map(repr, without[:NAMED]))
            notes += (f"{WARNING}no test image is of the classes {named}{more}: they have too few",)
        splits["train"] = _without(everything, splits["test"])
    return Dataset(
        name=name,
        classes=content.classes,
        images=torch.from_numpy(pixels),
        labels=labels,
        train=splits["train"],
        val=splits.get("val", nothing),
        test=splits.get("test", nothing),
        fingerprint=content.fingerprint,
        notes=notes,
        published=content.moments,
        files=files,
        parts=content.parts,
        skipped=content.skipped,
        places=None if content.rows is None else _places(content.rows, len(labels)),
        sums=None if content.measures is None else torch.from_numpy(content.measures.sums),
    )


def _places(rows: Labels, count: int) -> Tensor:
    """Where each of `count` rows lies, of images that are those of `rows`; the end for those that are not there."""
    places = torch.full((count,), len(rows))
    places[torch.from_numpy(rows)] = torch.arange(len(rows))
    return places


def needed(val_fraction: float, train_images: int | None, seed: int) -> Needed | None:
    """Which images a training reads, as `divide` draws them: those held out, then those that train. None: all."""
    if train_images is None:
        return None

    def of(classes: Sequence[str], labels: Labels, parts: Mapping[str, range]) -> list[Labels]:
        blank = Content(tuple(classes), np.empty((0, 1, 1, 3), np.uint8), labels, parts, fingerprint="")
        divided = divide(dataset_of("", blank), val_fraction, train_images, seed)
        held_out = torch.cat([divided.val, divided.test]).sort().values
        return [held_out.numpy(), divided.train.numpy()]

    return of


def divide(dataset: Dataset, val_fraction: float, train_images: int | None, seed: int) -> Dataset:
    """Hold out a validation split where the data brings none, then keep a stratified subset for training."""
    train, val, notes = dataset.train, dataset.val, list(dataset.notes)
    if not len(val) and val_fraction:
        count = validation_images(val_fraction, len(train))
        val = stratified(dataset.labels, train, count, SPLIT_SEED, "val")
        train = _without(train, val)
        notes.append(f"{len(val):,} training images are held out for validation, drawn with seed {SPLIT_SEED}")
    if train_images is not None:
        if train_images > len(train):
            raise DataError(f"data.train_images: expected at most {len(train)}, found {train_images}")
        if train_images < len(train):
            train = stratified(dataset.labels, train, train_images, seed, "train_images", everyone=True)
    present = set(dataset.labels[train].tolist())
    missing = [c for i, c in enumerate(dataset.classes) if i not in present]
    if missing:
        raise DataError(f"no training image is left of class {missing[0]!r} after the splits", details=missing)
    return replace(dataset, train=train, val=val, notes=tuple(notes))


def stratified(labels: Tensor, rows: Tensor, count: int, seed: int, purpose: str, everyone: bool = False) -> Tensor:
    """`count` of `rows`, each class in proportion by largest remainders, sorted.

    Each class keeps an image outside the subset; with `everyone`, each has an image in the subset instead.
    Raises DataError where that is impossible.
    """
    classes = labels[rows]
    by_class = [rows[classes == c] for c in range(int(labels.max()) + 1)]
    take = apportion([len(members) for members in by_class], count, purpose, everyone)
    order = generator(seed, "split", purpose)
    picked = [
        members[torch.randperm(len(members), generator=order)[:n]] for members, n in zip(by_class, take, strict=True)
    ]
    return torch.cat(picked).sort().values


def _without(rows: Tensor, taken: Tensor) -> Tensor:
    return rows[~torch.isin(rows, taken)]


def same_classes(expected: Sequence[str], dataset: Dataset, where: str) -> None:
    """Raises DataError unless a data set has the classes that `where` was trained with, in order."""
    if tuple(expected) != dataset.classes:
        raise DataError(
            f"{where} was trained on {len(expected)} classes, the data has {len(dataset.classes)} or other names",
            details=[f"trained: {', '.join(expected)}", f"found: {', '.join(dataset.classes)}"],
        )
