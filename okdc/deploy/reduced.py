"""The reduced files of a student, int8 and float16: made from its proven float32 file, each held to a gate.

    training images, without augmentation      calibrate: they show how far activations reach
    validation images                          choose among six settings; where there are none, or they judge,
                                               training images that did not calibrate
    the images that judge the student          judge the file, once

The images that judge have no part in the other two. A file that fails its gate, or cannot be made, is no reason to
lose the float32 one: the caller decides what becomes of both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from okdc.bundle.artefacts import REDUCED, Calibration, Int8Report, Quantisation, ReducedReport
from okdc.bundle.artefacts import Split as SplitInfo
from okdc.bundle.session import Floats, Images, Pixels, Session
from okdc.data.datasets import Dataset
from okdc.deploy.torch_reference import Split
from okdc.errors import CheckFailed, DataError, OkdcError, UsageError
from okdc.precision import calibration, diagnose, gate, half, quantize
from okdc.precision.gate import Float32
from okdc.progress import Progress

SEED = 0  # of the calibration images: two exports of one run on one machine are the same bytes
MOST_VALIDATION = 5000  # images that six settings are tried on
MOST_PIXELS = 1000 * 224 * 224  # of them: all are held at once, 150 MB, and seven files answer to each
FLOATS = {"float16": half.half}  # what makes a model of another float type, which needs no images, of a float32 one


@dataclass(frozen=True)
class Wanted:
    """The reduced files that an export makes, and the limits of their gates."""

    int8: bool = False
    float16: bool = False
    full_range: bool = False
    calibration_images: int | None = None  # None: 512
    max_drop: float | None = None  # points of top-1; None, here and below: the precision's own limit
    min_agreement: float | None = None  # % of predictions
    diagnose: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError for an option of a file that is not wanted: it would do nothing."""
        for_int8 = {"full_range": self.full_range, "calibration_images": self.calibration_images}
        for_any = {"max_drop": self.max_drop, "min_agreement": self.min_agreement}
        for options, of, is_wanted in (
            (for_int8 | {"diagnose": self.diagnose}, "int8", self.int8),
            (for_any, "int8 or fp16", self.int8 or self.float16),
        ):
            idle = [name for name, value in options.items() if value is not None and value is not False]
            if idle and not is_wanted:
                raise UsageError(f"{idle[0]} is an option of {of}, which was not asked for")

    @property
    def precisions(self) -> list[str]:
        return [precision for precision in REDUCED if getattr(self, precision)]


@dataclass(frozen=True)
class Reduced:
    """One reduced file, its report, and its answers to the bundle's samples."""

    precision: str
    blob: bytes
    report: ReducedReport
    samples: tuple[Floats, float]  # N×K logits, tolerance


@dataclass(frozen=True)
class Judges:
    """The images that judge a file, their labels, and the few that go into the bundle."""

    images: Images
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    split: str
    samples: Pixels


def make(
    float32: Float32, dataset: Dataset, judges: Judges, wanted: Wanted, tell: Progress
) -> tuple[list[Reduced], list[OkdcError]]:
    """Every reduced file that is wanted, passed or not, and the errors of those that could not be made.

    An error is a DataError where there are too few images to calibrate on or one is damaged, a CheckFailed of the
    precision's kind where its tools cannot make the file or nothing can run it.
    """
    files: list[Reduced] = []
    errors: list[OkdcError] = []
    for precision in wanted.precisions:
        try:
            if precision == "int8":
                blob, quantisation = _int8(float32.blob, dataset, judges.split, wanted, tell)
            else:
                blob, quantisation = FLOATS[precision](float32.blob), None
            files.append(_judge(precision, float32, blob, quantisation, judges, wanted, tell))
        except CheckFailed as error:
            error.kind = precision
            errors.append(error)
        except DataError as error:
            errors.append(error)
    return files, errors


def _int8(
    float32: bytes, dataset: Dataset, judged_on: str, wanted: Wanted, tell: Progress
) -> tuple[bytes, Quantisation]:
    if wanted.full_range:
        tell.note(
            "int8: --full-range overflows on x86 processors without VNNI, where about a tenth of the predictions "
            "changed in our tests: verify the bundle on the processor that will run it"
        )
    labels = dataset.labels.numpy()
    places = calibration.choose(labels[dataset.train.numpy()], wanted.calibration_images or calibration.COUNT, SEED)
    tell.note(f"int8: calibrating on {len(places):,} training images, of each class the same number or all")
    rows, split = _search_images(dataset, places, judged_on)
    tell.note(f"int8: trying {len(quantize.SETTINGS)} settings on {len(rows):,} {split} images")
    pixels = Split(dataset, dataset.train[places])[:]
    setting, blob, trials = quantize.search(
        float32, pixels, Split(dataset, rows)[:], labels[rows.numpy()], wanted.full_range, tell.note
    )
    quantisation = Quantisation(
        calibration=Calibration(images=len(places), seed=SEED, split="train", sha256=calibration.pixels_sha256(pixels)),
        full_range=wanted.full_range,
        setting=setting,
        searched_on=SplitInfo(split=split, images=len(rows)),
        search=trials,
    )
    if wanted.diagnose:
        layers = diagnose.diagnose(float32, blob, pixels)
        quantisation = quantisation.model_copy(update={"worst_layers": layers})
    return blob, quantisation


def _search_images(dataset: Dataset, calibrated: npt.NDArray[np.int64], judged_on: str) -> tuple[Tensor, str]:
    """The images that choose among the settings: of validation, or where there are none, or they judge, of training.

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


def _judge(
    precision: str,
    float32: Float32,
    blob: bytes,
    quantisation: Quantisation | None,
    judges: Judges,
    wanted: Wanted,
    tell: Progress,
) -> Reduced:
    tell.note(f"checking {precision} on {len(judges.images):,} {judges.split} images")
    limits = {"max_drop": wanted.max_drop, "min_agreement": wanted.min_agreement}
    gates = REDUCED[precision].gates.model_copy(update={k: value for k, value in limits.items() if value is not None})
    report = gate.judge(precision, float32, blob, judges.images, judges.labels, judges.classes, judges.split, gates)
    logits, _ = Session(blob)(judges.samples)
    samples = logits, report.tolerance if report.tolerance is not None else float("inf")
    if quantisation:
        report = Int8Report.model_validate(report.to_json() | quantisation.to_json())
    return Reduced(precision, blob, report, samples)
