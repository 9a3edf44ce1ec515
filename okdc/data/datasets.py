"""Data sets: where the images come from and which of them train, choose and judge.

The three never mix: `train` moves weights, `val` chooses the student and the epoch, `test` is read once, at the end.
Splits that okdc makes are stratified and drawn from a fixed seed, so that every run of the same images is tested on the
same ones; only the subset `train_images` follows the recipe's seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from okdc.data import images, published
from okdc.data.ondemand import OnDemand
from okdc.errors import DataError
from okdc.seeds import generator

SPLIT_SEED = 0  # of every split that okdc makes itself
TEST_SHARE = 0.2  # of one folder of classes
DIGITS_TEST = 797  # of the 1,797 digits; the other 1,000 train and validate

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Dataset:
    """Labelled uint8 images, whole, on one device, or in files; the splits are indices into them."""

    name: str
    classes: tuple[str, ...]
    images: Tensor  # NHWC uint8; none of them where they are decoded from `files` when asked for
    labels: Tensor  # N int64
    train: Tensor  # indices, int64
    val: Tensor
    test: Tensor
    fingerprint: str  # sha256 of the contents, the classes, the labels and the splits that the data brings
    notes: tuple[str, ...] = ()
    published: tuple[Colour, Colour] | None = None  # mean and deviation of its channels, where its makers state them
    files: OnDemand | None = None
    parts: Mapping[str, range] = field(default_factory=dict)  # rows of each split that the data itself brings

    @property
    def size(self) -> torch.Size:
        """CHW of one image."""
        height, width, channels = self.images.shape[1:]
        return torch.Size((channels, height, width))

    def pixels(self, rows: Tensor) -> Tensor:
        """The images of `rows`, B×H×W×C uint8, wherever they are. Raises DataError for a file that cannot be read."""
        if self.files is not None:
            return torch.from_numpy(self.files[rows.cpu().numpy()])
        return self.images[rows.to(self.images.device)]

    @property
    def final_split(self) -> tuple[str, Tensor]:
        """The split that final numbers are read from, with its name: test, or validation where there is no test."""
        return ("test", self.test) if len(self.test) else ("validation", self.val)

    def part_of(self, rows: Tensor) -> tuple[str, list[int] | None]:
        """Which part of the data as it lies there holds `rows`, and their places in it; None: all of it, in order.

        "all" is the whole, where okdc made the split itself.
        """
        for name, part in self.parts.items():
            if len(rows) and part.start <= int(rows.min()) and int(rows.max()) < part.stop:
                places = [row - part.start for row in rows.tolist()]
                return name, None if places == list(range(len(part))) else places
        return "all", rows.tolist()

    def to(self, device: torch.device) -> Dataset:
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel of the training images, scaled to 0..1, exact to six decimals."""
        assert self.files is None, "reading a hundred gigabytes for six numbers"
        height, width = self.images.shape[1:3]
        total, squares = np.zeros(3, np.int64), np.zeros(3, np.int64)
        for rows in self.train.split(max(1, 2**14 // height)):  # so many rows of pixels: their squares fit in 32 bits
            pixels = self.images[rows].numpy().reshape(-1, width * 3).astype(np.uint16)
            total += pixels.sum(0, np.uint32).reshape(-1, 3).sum(0, np.int64)
            pixels *= pixels
            squares += pixels.sum(0, np.uint32).reshape(-1, 3).sum(0, np.int64)
        n = len(self.train) * height * width
        means, deviations = [], []
        for s, q in zip(total.tolist(), squares.tolist(), strict=True):
            mean = s / n
            variance = q / n - mean**2
            means.append(round(mean / 255, 6))
            deviations.append(round(max(variance, 1.0) ** 0.5 / 255, 6))  # a constant channel is left alone
        return tuple(means), tuple(deviations)


def digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits as 8×8×3 uint8, with a fixed stratified test split."""
    pixels, given = published.digits()
    labels = torch.from_numpy(given)
    test = stratified(labels, torch.arange(len(labels)), DIGITS_TEST, SPLIT_SEED, "test")
    return Dataset(
        name="digits",
        classes=published.DIGITS,
        images=torch.from_numpy(pixels),
        labels=labels,
        train=_without(torch.arange(len(labels)), test),
        val=torch.empty(0, dtype=torch.int64),
        test=test,
        parts={"all": range(len(labels))},
        fingerprint=hashlib.sha256(pixels[..., 0].tobytes() + given.tobytes()).hexdigest(),
    )


def folder(root: Path, size: int, progress: images.Progress | None = None, shorter_side: int | None = None) -> Dataset:
    """Image files in class folders; see `okdc.data.images`. One folder of classes: a fifth becomes the test split."""
    return of_files(images.listing(root), size, progress, shorter_side)


def of_files(
    found: images.Listing, size: int, progress: images.Progress | None = None, shorter_side: int | None = None
) -> Dataset:
    """The listed images, decoded, with the splits that they bring."""
    decoded = images.load(found, size, progress, shorter_side)
    labels = torch.tensor(found.labels, dtype=torch.int64)
    splits, notes = splits_of(found, labels)
    return Dataset(
        name="folder",
        classes=found.classes,
        images=torch.from_numpy(decoded.pixels),
        labels=labels,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        fingerprint=fingerprint_of(decoded.sha256, found.classes, found.labels, found.splits),
        notes=(*found.notes, *decoded.notes, *notes),
        parts=found.splits,
    )


def splits_of(found: images.Listing, labels: Tensor) -> tuple[dict[str, Tensor], list[str]]:
    """train, val and test (the last two may be empty) of listed images, and notes."""
    nothing = torch.empty(0, dtype=torch.int64)
    splits = {"val": nothing, "test": nothing}
    splits |= {name: torch.arange(rows.start, rows.stop) for name, rows in found.splits.items()}
    if "all" not in splits:
        return splits, []
    everything = splits.pop("all")
    splits["test"] = stratified(labels, everything, round(TEST_SHARE * len(everything)), SPLIT_SEED, "test")
    splits["train"] = _without(everything, splits["test"])
    note = f"one folder of classes: {TEST_SHARE:.0%} of each is the test split, drawn with seed {SPLIT_SEED}"
    return splits, [note]


def of_arrays(name: str, classes: Sequence[str], splits: Mapping[str, tuple[images.Pixels, Sequence[int]]]) -> Dataset:
    """A data set from arrays: NHWC uint8 and labels for `train`, and for `val` and `test` where there are such."""
    pixels = np.ascontiguousarray(np.concatenate([found for found, _ in splits.values()]))  # whatever views came in
    labels = [int(label) for _, given in splits.values() for label in given]
    rows, start = {}, 0
    for split, (found, _) in splits.items():
        rows[split] = range(start, start + len(found))
        start += len(found)
    index = {split: torch.arange(r.start, r.stop) for split, r in rows.items()}
    nothing = torch.empty(0, dtype=torch.int64)
    return Dataset(
        name=name,
        classes=tuple(classes),
        images=torch.from_numpy(pixels),
        labels=torch.tensor(labels, dtype=torch.int64),
        train=index["train"],
        val=index.get("val", nothing),
        test=index.get("test", nothing),
        fingerprint=fingerprint_of(hashlib.sha256(pixels.data).hexdigest(), classes, labels, rows),
        parts=rows,
    )


def fingerprint_of(contents: str, classes: Sequence[str], labels: list[int], splits: Mapping[str, range]) -> str:
    """One file moved to another class or split keeps every byte of every image, and is other data all the same."""
    given = {name: [rows.start, rows.stop] for name, rows in splits.items()}
    return hashlib.sha256(json.dumps([contents, list(classes), labels, given]).encode()).hexdigest()


def divide(dataset: Dataset, val_fraction: float, train_images: int | None, seed: int) -> Dataset:
    """Hold out a validation split where the data brings none, then keep a stratified subset for training."""
    train, val, notes = dataset.train, dataset.val, list(dataset.notes)
    if not len(val) and val_fraction:
        count = round(val_fraction * len(train))
        val = stratified(dataset.labels, train, count, SPLIT_SEED, "val")
        train = _without(train, val)
        notes.append(f"{len(val):,} training images are held out for validation, drawn with seed {SPLIT_SEED}")
    if train_images is not None:
        if train_images > len(train):
            raise DataError(f"data.train_images: expected at most {len(train)}, found {train_images}")
        if train_images < len(train):
            train = stratified(dataset.labels, train, train_images, seed, "train_images", everyone=True)
    there = set(dataset.labels[train].tolist())
    missing = [c for i, c in enumerate(dataset.classes) if i not in there]
    if missing:
        raise DataError(f"no training image is left of class {missing[0]!r} after the splits", details=missing)
    return replace(dataset, train=train, val=val, notes=tuple(notes))


def stratified(labels: Tensor, rows: Tensor, count: int, seed: int, purpose: str, everyone: bool = False) -> Tensor:
    """`count` of `rows`, of each class in proportion, exactly (largest remainders). Sorted.

    A class never gives its last image away, unless `everyone`: then the subset has one of each class at least.
    Raises DataError where that is impossible.
    """
    found = labels[rows]
    by_class = [rows[found == c] for c in range(int(labels.max()) + 1)]
    sizes = [len(members) for members in by_class]
    least = [min(1, n) if everyone else 0 for n in sizes]
    most = sizes if everyone else [max(n - 1, 0) for n in sizes]
    if not sum(least) <= count <= sum(most):
        raise DataError(
            f"{purpose}: {count} of {len(rows)} images are asked for, {sum(least)} to {sum(most)} can be given "
            "(every class needs one that stays)",
            hint="more images of each class, or another data.val_fraction or data.train_images",
        )
    exact = [count * n / len(rows) for n in sizes]
    take = [min(max(int(e), low), high) for e, low, high in zip(exact, least, most, strict=True)]
    while sum(take) != count:
        sign = 1 if sum(take) < count else -1
        open_to = [c for c in range(len(take)) if least[c] <= take[c] + sign <= most[c]]
        best = max(open_to, key=lambda c: (sign * (exact[c] - take[c]), -c))
        take[best] += sign
    order = generator(seed, "split", purpose)
    picked = [
        members[torch.randperm(len(members), generator=order)[:n]] for members, n in zip(by_class, take, strict=True)
    ]
    return torch.cat(picked).sort().values


def _without(rows: Tensor, taken: Tensor) -> Tensor:
    return rows[~torch.isin(rows, taken)]


def same_classes(expected: Sequence[str], dataset: Dataset, where: str) -> None:
    """Raises DataError where a data set does not have the classes that `where` was trained with, in order."""
    if tuple(expected) != dataset.classes:
        raise DataError(
            f"{where} was trained on {len(expected)} classes, the data has {len(dataset.classes)} or other names",
            details=[f"trained: {', '.join(expected)}", f"found: {', '.join(dataset.classes)}"],
        )
