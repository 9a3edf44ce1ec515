"""The keys of a recipe for a folder of images, each with its reason: a rule is a line in one of the functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from okdc.survey.folder import Division, Folder, division

if TYPE_CHECKING:
    from okdc.survey.networks import Networks

STEPS = 20  # of an epoch at least: with fewer the learning rate and the batch statistics move in leaps
BATCHES = (
    64,
    48,
    32,
    24,
    16,
    12,
    8,
    6,
    4,
    3,
    2,
)  # the largest that leaves so many steps; small batches teach few images more
LARGE_BATCHES = BATCHES[2:]  # of pretrained networks at 224 pixels, whose maps fill the memory
EPOCHS = ((500, 100), (5_000, 60), (20_000, 40))  # up to so many training images so many epochs
MANY_IMAGES_EPOCHS = 30
FINE_TUNED = ((500, 40), (5_000, 20), (20_000, 10))
FINE_TUNED_MANY_IMAGES_EPOCHS = 8
TOLD = ("cohort.students", "data.image_size", "augment.flip", "optim.batch_size", "optim.epochs")  # on the terminal too
TURNED = re.compile(r"[0-9]+|[a-z]|.*(left|right|arrow|clock|east|west).*", re.IGNORECASE)


@dataclass(frozen=True)
class Line:
    """One key of a recipe: its value, and why."""

    key: str  # as an override writes it
    value: Any
    reason: str

    @property
    def table(self) -> str:
        return self.key.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]


@dataclass(frozen=True)
class Plan:
    """A recipe that fits a folder."""

    head: tuple[str, ...]  # sentences for the top of the file
    lines: tuple[Line, ...]  # those of one table stand together
    division: Division
    steps: int  # of an epoch

    def value(self, key: str) -> Any:
        return next(line.value for line in self.lines if line.key == key)


def directed(classes: Sequence[str]) -> list[str]:
    """The classes whose names hint at a direction: digits, letters, left and right."""
    return [name for name in classes if TURNED.fullmatch(name)]


def plan(folder: Folder, networks: Networks, flip: bool | None) -> Plan:
    """A recipe for the images of a folder. `flip`: whether a mirrored image is of its class; None: nobody said.

    Raises DataError where the images are too few.
    """
    divided = division(folder, 0.1)
    images = sum(divided.train)
    whole = sum(map(sum, divided.counts().values()))
    parts = ", ".join(f"{name} {sum(counts):,}" for name, counts in divided.counts().items() if sum(counts))
    batch, batch_reason = _batch(images, LARGE_BATCHES if networks.pretrained else BATCHES)
    lines = [
        Line("about.title", f"{networks.students[0]} on {_named(folder)}", ""),
        *_data(folder, networks, divided),
        *_augment(folder, networks, flip),
        *_cohort(networks, divided),
        Line("method.name", "fefr", "the students teach each other; method.name=baseline trains the first alone"),
        *_optim(networks, images, batch, batch_reason),
    ]
    head = (
        f"Written by okdc new for {folder.root}: {whole:,} images of {len(folder.classes)} classes ({parts}).",
        "The reason stands beside each line; `okdc recipes keys` explains every key.",
    )
    return Plan(head, tuple(lines), divided, images // batch)


def _named(folder: Folder) -> str:
    return folder.listing.root.name.encode(errors="backslashreplace").decode() or "a folder"


# ---------------------------------------------------------------------------------------------------------------------
# The tables


def _data(folder: Folder, networks: Networks, divided: Division) -> list[Line]:
    size = networks.image_size
    cut = f"; the cut of the middle drops {folder.cut_away_pct:.0f} %" if folder.cut_away_pct >= 10 else ""
    lines = [
        Line("data.name", "folder", "class folders of image files"),
        Line("data.root", folder.root, _from_where(folder.root)),
        Line("data.image_size", size, f"{networks.size_reason}{cut}"),
    ]
    if folder.damaged:
        first = folder.damaged[0]
        more = f" and {len(folder.damaged) - 1:,} more" if len(folder.damaged) > 1 else ""
        lines.append(Line("data.skip_damaged", True, f"{first}{more}; false stops at them"))
    lines.append(_validation(folder, divided))
    return lines


def _from_where(root: str) -> str:
    return "" if root.startswith(("/", "~")) else "seen from the folder in which okdc is called"


def _validation(folder: Folder, divided: Division) -> Line:
    fraction, images = divided.val_fraction, sum(divided.val)
    if "val" in folder.counts:
        reason = f"not read: the folder brings {images:,} images for validation"
    elif not images:
        reason = "each class has one image for training: none can be held out"
    else:
        reason = f"{images:,} training images are held out to choose by"
    return Line("data.val_fraction", fraction, reason)


def _augment(folder: Folder, networks: Networks, flip: bool | None) -> list[Line]:
    padding = max(1, networks.image_size // 8)
    lines = [
        Line("augment.padding", padding, f"images are shifted by up to {padding} pixels, an eighth of their side"),
        _flip(folder, flip),
        Line("augment.rotation", 10.0, "degrees either way: a camera is never held straight"),
        Line("augment.zoom", [0.9, 1.1], "what is shown is nearer or farther away"),
        Line("augment.brightness", 0.2, "light differs"),
        Line("augment.contrast", 0.2, "so does haze, and exposure"),
    ]
    if not folder.grey:
        lines.append(Line("augment.saturation", 0.2, "cameras colour differently; 0 where the colour is the class"))
    return lines


def _flip(folder: Folder, flip: bool | None) -> Line:
    if flip is not None:
        is_same = "is still of its class" if flip else "may be of another class"
        return Line("augment.flip", flip, f"as you said: a mirrored image {is_same}")
    hint = ""
    if turned := directed(folder.classes):
        hint = f", as may be with {', '.join(map(repr, turned[:3]))}"
    return Line(
        "augment.flip", False, f"nobody said that a mirrored image is still of its class{hint}; true: it always is"
    )


def _cohort(networks: Networks, divided: Division) -> list[Line]:
    keep, reason = networks.keep, networks.keep_reason
    if keep == "best" and not sum(divided.val):
        keep, reason = 0, "nothing is held out to choose by"
    return [
        Line("cohort.students", list(networks.students), networks.reason),
        Line("cohort.share", "none", '"low" shares all stages but the last, of equal students: cheaper'),
        Line("cohort.keep", keep, reason),
    ]


def _optim(networks: Networks, images: int, batch: int, batch_reason: str) -> list[Line]:
    table, many = (FINE_TUNED, FINE_TUNED_MANY_IMAGES_EPOCHS) if networks.pretrained else (EPOCHS, MANY_IMAGES_EPOCHS)
    epochs = next((count for most, count in table if images <= most), many)
    return [
        Line("optim.epochs", epochs, f"{images:,} training images: {epochs * (images // batch):,} steps in all"),
        Line("optim.batch_size", batch, batch_reason),
        Line("optim.lr", 0.05, "of SGD, for small batches"),
        Line("optim.weight_decay", 5e-4, "few images overfit"),
        Line("optim.schedule", "cosine", "falls to zero at the end"),
    ]


def _batch(images: int, batches: Sequence[int]) -> tuple[int, str]:
    """The images of a step, and the reason."""
    batch = next((batch for batch in batches if images // batch >= STEPS), min(batches[-1], images))
    steps = images // batch
    if steps < STEPS:
        return (
            batch,
            f"the smallest: {images} images make {steps} step{'s' * (steps > 1)} an epoch, {STEPS} would be better",
        )
    return batch, f"{steps:,} steps an epoch; fewer than {STEPS} teach little"
