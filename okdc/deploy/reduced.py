"""The reduced files of a student, int8 and float16: made from its proven float32 file and held to a gate each.

    training images, without augmentation      show how far activations reach (calibration)
    validation images                          choose among six settings; where there are none, or they judge,
                                               training images that were not shown
    the images that judge the student          judge the file, once

What judges has no part in the other two. A file that fails its gate, or cannot be made, is no reason to lose the
float32 one: the caller decides what becomes of both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from okdc.bundle.session import Floats, Images, Pixels, Session
from okdc.data.datasets import Dataset
from okdc.deploy import torch_reference as sides
from okdc.errors import CheckFailed, DataError, OkdcError
from okdc.precision import calibration, diagnose, gate, half, quantize
from okdc.precision.gate import Float32
from okdc.progress import Progress

SEED = 0  # of the calibration images: two exports of one run on one machine are the same bytes
MOST_VALIDATION = 5000  # images that six settings are tried on
MOST_PIXELS = 1000 * 224 * 224  # of them: all are held at once, 150 MB, and seven files answer to each


@dataclass(frozen=True)
class Wanted:
    """Which reduced files are wanted, and what each has to hold."""

    int8: bool = False
    float16: bool = False
    full_range: bool = False
    calibration_images: int | None = None  # None: 512
    max_drop: float | None = None  # points of top-1; None: the precision's own limit, and so the next
    min_agreement: float | None = None  # % of predictions
    diagnose: bool = False


@dataclass(frozen=True)
class Reduced:
    """One reduced file, what was found of it, and what it answers to the bundle's samples."""

    precision: str
    blob: bytes
    report: dict[str, Any]
    samples: tuple[Floats, float]  # N×K logits, tolerance


@dataclass(frozen=True)
class Judges:
    """The images that judge a file, their labels, and the few that go into the bundle."""

    images: Images
    labels: npt.NDArray[np.int64]
    classes: list[str]
    split: str
    samples: Pixels


def make(
    float32: Float32, dataset: Dataset, judges: Judges, wanted: Wanted, tell: Progress
) -> tuple[list[Reduced], list[OkdcError]]:
    """Every reduced file that is wanted, passed or not, and why the others could not be made.

    That is a DataError where there are too few images to calibrate on or one is damaged, a CheckFailed of the
    precision's kind where its tools cannot make the file or nothing can run it.
    """
    found: list[Reduced] = []
    errors: list[OkdcError] = []
    kinds: list[tuple[gate.Kind, bool]] = [("int8", wanted.int8), ("float16", wanted.float16)]
    for precision in (kind for kind, is_wanted in kinds if is_wanted):
        try:
            blob, facts = (
                _int8(float32.blob, dataset, judges.split, wanted, tell)
                if precision == "int8"
                else (half.half(float32.blob), {})
            )
            found.append(_judged(precision, float32, blob, facts, judges, wanted, tell))
        except CheckFailed as error:
            error.kind = precision
            errors.append(error)
        except DataError as error:
            errors.append(error)
    return found, errors


def _int8(
    float32: bytes, dataset: Dataset, judged_on: str, wanted: Wanted, tell: Progress
) -> tuple[bytes, dict[str, Any]]:
    if wanted.full_range:
        tell.note(
            "int8: --full-range overflows on x86 processors without VNNI, where about a tenth of the predictions "
            "changed in our tests: verify the bundle on the processor that will run it"
        )
    train = dataset.train.numpy()
    labels = dataset.labels.numpy()
    places = calibration.choose(labels[train], wanted.calibration_images or calibration.COUNT, SEED)
    shown = sides.Split(dataset, dataset.train[places])
    tell.note(f"int8: calibrating on {len(places):,} training images, of each class the same number or all")
    rows, split = _searched_on(dataset, places, judged_on)
    tell.note(f"int8: trying {len(quantize.SETTINGS)} settings on {len(rows):,} {split} images")
    pixels = shown[:]
    setting, blob, table = quantize.search(
        float32, pixels, sides.Split(dataset, rows)[:], labels[rows.numpy()], wanted.full_range, tell.note
    )
    facts: dict[str, Any] = {
        "calibration": {
            "images": len(places),
            "seed": SEED,
            "split": "train",
            "sha256": calibration.pixels_sha256(pixels),
        },
        "full_range": wanted.full_range,
        "setting": {"weights": setting.weights, "calibration": setting.calibration},
        "searched_on": {"split": split, "images": len(rows)},
        "search": table,
    }
    if wanted.diagnose:
        facts["worst_layers"] = diagnose.diagnose(float32, blob, pixels)
    return blob, facts


def _searched_on(dataset: Dataset, calibrated: npt.NDArray[np.int64], judged_on: str) -> tuple[Tensor, str]:
    """Which images choose among the settings: of validation, or where there are none, or they judge, of training.

    Training images that did not calibrate, unless they are too few: then all of them.
    """
    split, rows = "validation", dataset.val
    if not len(rows) or judged_on == "validation":
        split, left = "training", np.setdiff1d(np.arange(len(dataset.train)), calibrated)
        rows = dataset.train[left] if len(left) >= calibration.FEWEST else dataset.train
    most = max(1, min(MOST_VALIDATION, MOST_PIXELS // (dataset.size[1] * dataset.size[2])))
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(int)]
    return rows, split


def _judged(
    precision: gate.Kind,
    float32: Float32,
    blob: bytes,
    facts: dict[str, Any],
    judges: Judges,
    wanted: Wanted,
    tell: Progress,
) -> Reduced:
    tell.note(f"checking {precision} on {len(judges.images):,} {judges.split} images")
    limits = {"max_drop": wanted.max_drop, "min_agreement": wanted.min_agreement}
    gates = replace(gate.GATES[precision], **{name: value for name, value in limits.items() if value is not None})
    found = gate.judge(precision, float32, blob, judges.images, judges.labels, judges.classes, judges.split, gates)
    logits, _ = Session(blob)(judges.samples)
    return Reduced(precision, blob, found | facts, (logits, found["tolerance"]))
