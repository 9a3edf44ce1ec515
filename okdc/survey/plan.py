"""The keys of a recipe for a folder of images, each with its reason: a rule is a line in one of the functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from okdc.survey.folder import Division, Folder, division

if TYPE_CHECKING:
    from okdc.survey.networks import Networks

SIZES = (64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2)  # of a batch: the largest that leaves enough steps


@dataclass(frozen=True)
class Start:
    """How long networks of a kind learn, in which batches and by which rate.

    A table has pairs: up to so many training images, the value; for more images the value `_of_many`.
    """

    epochs: tuple[tuple[int, int], ...]
    epochs_of_many: int
    largest: tuple[tuple[int, int], ...]  # images of a batch
    largest_of_many: int
    steps: int  # of an epoch at least
    rate: float  # of batches of `rate_batch` images and more; a smaller batch takes less, by this power of its share
    rate_batch: int
    power: float


# By recipes/studies/few_recipes: where each image looks different each time, small networks gain for long.
SCRATCH = Start(
    epochs=((500, 500), (2_000, 300), (5_000, 100), (20_000, 60)),
    epochs_of_many=30,
    largest=((10_000, 32),),
    largest_of_many=64,
    steps=12,
    rate=0.05,
    rate_batch=32,
    power=1.0,
)
TUNED = Start(
    epochs=((500, 40), (5_000, 20), (20_000, 10)),
    epochs_of_many=8,
    largest=((2_000, 16),),
    largest_of_many=32,  # maps of 224 pixels fill the memory
    steps=20,
    rate=2e-3,
    rate_batch=16,
    power=0.5,
)
SHARE = 0.1  # of the training images, held out to choose by
FEW = 200  # validation images below which the best epoch is luck: one image in 200 is half a point
WORTH = 100  # images for validation below which none are held out, where others judge: they are worth more in training
UNEQUAL = 1.5  # times as many images as the smallest class, from which on a class weighs too much
# Of these the reasons stand on the terminal, too; of the second ones where no image is held out for validation.
PRINTED = ("cohort.students", "data.image_size", "augment.flip", "augment.policy", "optim.batch_size", "optim.epochs")
NOT_HELD_OUT = ("data.val_fraction", "cohort.keep")
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

    @property
    def printed(self) -> list[Line]:
        """The lines whose reasons stand on the terminal, too."""
        keys = {*PRINTED, *(() if sum(self.division.val) else NOT_HELD_OUT)}
        return [line for line in self.lines if line.key in keys]

    def value(self, key: str) -> Any:
        return next(line.value for line in self.lines if line.key == key)


def directed(classes: Sequence[str]) -> list[str]:
    """The classes whose names hint at a direction: digits, letters, left and right."""
    return [name for name in classes if TURNED.fullmatch(name)]


def plan(folder: Folder, networks: Networks, flip: bool | None) -> Plan:
    """A recipe for the images of a folder. `flip`: whether a mirrored image is of its class; None: nobody said.

    Raises DataError where the images are too few.
    """
    divided = _divided(folder)
    images = sum(divided.train)
    whole = sum(map(sum, divided.counts().values()))
    parts = ", ".join(f"{name} {sum(counts):,}" for name, counts in divided.counts().items() if sum(counts))
    batch, batch_reason = _batch(images, TUNED if networks.pretrained else SCRATCH)
    lines = [
        Line("about.title", f"{networks.students[0]} on {_named(folder)}", ""),
        *_data(folder, networks, divided),
        *_augment(folder, networks, flip),
        *_cohort(networks, divided),
        _method(networks),
        *_optim(networks, divided, batch, batch_reason),
    ]
    head = (
        f"Written by okdc new for {folder.root}: {whole:,} images of {len(folder.classes)} classes ({parts}).",
        "The reason stands beside each line; `okdc recipes keys` explains every key.",
    )
    return Plan(head, tuple(lines), divided, images // batch)


def _divided(folder: Folder) -> Division:
    held_out = division(folder, SHARE)
    if "val" in folder.counts or not sum(held_out.test) or sum(held_out.val) >= WORTH:
        return held_out
    return folder.divided(0.0)


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
    if networks.shorter_side is not None:
        lines.append(
            Line(
                "data.shorter_side",
                networks.shorter_side,
                "resized to, before the middle is cut out: as the big one's weights were made",
            )
        )
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
    elif max(divided.train) == 1:
        reason = "each class has one image for training: none can be held out"
    elif not images:
        reason = (
            f"as few images as a tenth would be are worth more in training; {SHARE} holds them out, to compare recipes"
        )
    else:
        reason = f"{images:,} training images are held out to choose by"
    return Line("data.val_fraction", fraction, reason)


def _augment(folder: Folder, networks: Networks, flip: bool | None) -> list[Line]:
    if networks.pretrained or directed(folder.classes):
        return _mild(folder, flip)
    return [
        Line(
            "augment.padding", max(1, networks.image_size // 8), "pixels at each side, of which crops shift the images"
        ),
        _flip(folder, flip),
        Line(
            "augment.policy",
            "trivial",
            "each time another image: one of fourteen changes of angle, place, light or colour, of any strength; "
            '"none" where one of these is the class',
        ),
    ]


def _mild(folder: Folder, flip: bool | None) -> list[Line]:
    """Changes that keep what is nearly upright nearly upright."""
    lines = [
        Line("augment.padding", 0, "`translate` shifts the images"),
        _flip(folder, flip),
        Line(
            "augment.rotation",
            10,
            "degrees either way: a camera is never held straight; 0 where the angle is the class",
        ),
        Line("augment.translate", 0.1, "of the side: the middle of an image is nobody's aim"),
        Line("augment.zoom", [0.9, 1.1], "what is shown is nearer or farther away"),
        Line("augment.brightness", 0.2, "light differs"),
        Line("augment.contrast", 0.2, "so do haze and exposure"),
    ]
    if not folder.grey:
        lines.append(Line("augment.saturation", 0.2, "cameras colour differently; 0 where the colour is the class"))
    return lines


def _flip(folder: Folder, flip: bool | None) -> Line:
    turned = directed(folder.classes)
    if flip is not None:
        is_same = "is still of its class" if flip else "may be of another class"
        return Line("augment.flip", flip, f"as you said: a mirrored image {is_same}")
    hint = f", as may be with {', '.join(map(repr, turned[:3]))}" if turned else ""
    return Line("augment.flip", False, f"nobody said that a mirrored image is still of its class{hint}; true: it is")


def _method(networks: Networks) -> Line:
    alone = "method.name=baseline trains the first alone"
    if not networks.pretrained:  # recipes/studies/few_methods
        alone += ", and for as much work, 2.5 times the epochs, ended higher on 1,000 photographs"
    return Line("method.name", "fefr", f"the students teach each other; {alone}")


def _cohort(networks: Networks, divided: Division) -> list[Line]:
    keep, reason = networks.keep, networks.keep_reason
    held_out = sum(divided.val)
    if keep == "best" and not held_out:
        keep, reason = 0, "the first student: nothing is held out to choose by"
    is_equal = len(set(networks.students)) == 1
    shared = '; "low" shares all stages but the last of equal students, which is cheaper' if is_equal else ""
    lines = [
        Line("cohort.students", list(networks.students), networks.reason),
        Line("cohort.share", "none", f"each student learns features of its own{shared}"),
        Line("cohort.keep", keep, reason),
    ]
    if networks.pretrained:
        lines.append(Line("cohort.weights", "pretrained", "ImageNet's, by the library of each network"))
    if held_out and (unequal := _unequal(divided)):
        lines.append(Line("cohort.keep_metric", "balanced", f"each class is to count as much: {unequal}"))
    if held_out < FEW:
        why = f"{held_out:,} validation images would choose an epoch by luck" if held_out else "no epoch can be chosen"
        lines.append(Line("cohort.keep_epoch", "last", why))
    return lines


def _unequal(divided: Division) -> str:
    """How unequal the classes are, in words; nothing where they are about equal."""
    most, least = max(divided.train), min(divided.train)
    return f"they have {least:,} to {most:,} images" if most > UNEQUAL * least else ""


def _optim(networks: Networks, divided: Division, batch: int, batch_reason: str) -> list[Line]:
    start, images = (TUNED if networks.pretrained else SCRATCH), sum(divided.train)
    epochs = _up_to(images, start.epochs, start.epochs_of_many)
    steps = epochs * (images // batch)
    lines = [
        Line(
            "optim.epochs",
            epochs,
            f"the fewer the images, the more often each is seen: {steps:,} steps in all from {images:,}",
        ),
        Line("optim.batch_size", batch, batch_reason),
        *(_tuned(batch) if networks.pretrained else _from_scratch(batch)),
    ]
    if unequal := _unequal(divided):
        lines.append(Line("optim.class_weights", "balanced", f"rare classes are not to be forgotten: {unequal}"))
    return lines


def _from_scratch(batch: int) -> list[Line]:
    return [
        Line("optim.optimizer", "sgd", "in the recipe that ended highest on 4,000 photographs"),
        _rate_line(SCRATCH, batch, "of that recipe, too"),
        *_decays(5e-4),
        Line("optim.schedule", "cosine", "falls to nothing"),
    ]


def _tuned(batch: int) -> list[Line]:
    return [
        Line("optim.optimizer", "adamw", "few images and few steps: it needs no search for a rate"),
        _rate_line(TUNED, batch, "with a quarter of it a fine-tune of photographs ended lower"),
        *_decays(0.05),
        Line("optim.schedule", "onecycle", "rises for a third of the run, then falls to nothing"),
        Line("optim.label_smoothing", 0.1, "no answer is to be surer than a few images can make it"),
        Line("optim.freeze_epochs", 1, "the new heads learn first, so that they do not undo the weights"),
    ]


def _rate_line(start: Start, batch: int, why: str) -> Line:
    less = "" if batch >= start.rate_batch else f"; less where a batch has fewer than {start.rate_batch} images"
    return Line("optim.lr", _rate(start, batch), why + less)


def _decays(decay: float) -> list[Line]:
    return [
        Line("optim.weight_decay", decay, "few images are learnt by heart"),
        Line("optim.aux_weight_decay", decay, "of the fused classifier, which sees the same images"),
    ]


def _batch(images: int, start: Start) -> tuple[int, str]:
    """The images of a step, and the reason."""
    most = _up_to(images, start.largest, start.largest_of_many)
    batch = next((size for size in SIZES if size <= most and images // size >= start.steps), SIZES[-1])
    steps = images // batch
    if steps < start.steps:
        wanted = f"{start.steps} are wanted"
        return batch, f"the smallest: {images} images make {steps} step{'s' * (steps > 1)} an epoch, {wanted}"
    return batch, f"{steps:,} steps an epoch; few images want many steps, {start.steps} at least"


def _rate(start: Start, batch: int) -> float:
    """The learning rate for a batch, to one digit."""
    return float(f"{start.rate * min(1.0, batch / start.rate_batch) ** start.power:.0e}")


def _up_to(images: int, table: Sequence[tuple[int, int]], more: int) -> int:
    return next((value for most, value in table if images <= most), more)
