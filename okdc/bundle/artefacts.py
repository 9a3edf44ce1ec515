"""The JSON files of a bundle as types, for the export that writes them and for every reader. No torch.

    manifest.json  Manifest   the contract of all other files: `okdc.bundle.manifest` reads it, as a stranger's
    answers.json   Answers    which classes the float32 model takes for which, and how sure it has to be
    parity.json    Parity     how each model was compared, and with what outcome
    profile.json   Profile    what the network costs

export/README.md explains them. A run's files are in `okdc.runs.artefacts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field

from okdc.errors import quoted
from okdc.runs.artefacts import (
    Artefact,
    Colour,
    Count,
    File,
    Finite,
    Index,
    JudgedDevice,
    NotNegative,
    Percent,
    Teacher,
    Tuple,
)

LARGEST = 4096  # sides of a model's input, and of an image before its centre is cut out
MOST_FILES = 1000  # each is hashed


def _printable(text: str) -> str:
    """Text that is printed as it is moves no cursor and starts no line."""
    if not text.isprintable():
        raise ValueError(f"expected printable text, found {quoted(text)}")
    return text


Side = Annotated[int, Field(ge=1, le=LARGEST)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Word = Annotated[str, AfterValidator(_printable)]
Number = Finite | None  # None: it is not finite, which JSON cannot say


# ---------------------------------------------------------------------------------------------------------------------
# manifest.json


class Table(Artefact):
    """A part of the manifest. Keys that it does not name are kept: a copy of the manifest says all that it says."""

    model_config = ConfigDict(extra="allow")


class Model(Table):
    file: str
    top1_pct: Percent
    balanced_accuracy_pct: Percent  # the mean over the classes that occur


class Input(Table):
    name: str
    layout: str
    dtype: str
    colour: str
    height: Side
    width: Side
    shorter_side: Side | None = None
    resize: str


class Normalisation(Table):
    in_graph: Literal[True]
    mean: Colour
    std: Colour


class Accuracy(Table):
    split: Word
    images: Count
    largest_class_pct: Percent  # its share of these images
    smallest_class_pct: Percent  # of the classes that occur
    seed: Index
    runs: Count


class JudgedOn(Table):
    """The images that judged the models."""

    sha256: Sha256  # of their pixels and labels
    part: Literal["all", "train", "val", "test"]
    rows: Tuple[Index] | None  # places in the part; None: all of it


class Content(Table):
    """The bytes of a file."""

    sha256: Sha256
    bytes: Index


class Manifest(File, Table):
    """manifest.json."""

    created_at: str
    okdc: str  # version
    models: dict[str, Model]  # by precision
    opset: int
    architecture: Word
    labels: Annotated[Tuple[str], Field(min_length=2)]  # in the order of the logits
    input: Input
    normalisation: Normalisation
    outputs: dict[str, str]
    accuracy: Accuracy
    judged_on: JudgedOn
    method: str
    student: Index
    dataset: str
    students: Tuple[str]
    share: str
    teacher: Teacher | None
    params: Count
    macs: Count
    versions: dict[str, str]
    data_sha256: str
    weights_sha256: str
    recipe_sha256: str
    recipe: dict[str, Any]
    files: Annotated[dict[Word, Content], Field(max_length=MOST_FILES)]


# ---------------------------------------------------------------------------------------------------------------------
# answers.json


class Answered(Artefact):
    """Counts of a set of images: all of them, and those whose answer is at least as confident as a threshold."""

    images: Count
    wrong: Index
    answered: Index
    answered_wrong: Index


class NotSure(Artefact):
    """The confidence below which a client says "not sure"; `okdc.bundle.answers.not_sure` has the rule."""

    threshold: Annotated[float, Field(gt=0, le=1)]
    validation: Answered  # on which it was chosen
    judging: Answered  # the same images where there is no test split


Cell = Annotated[tuple[Index, Index, Count], Field(strict=False)]  # class, answer, images
Reason = Literal["no validation images", "too few wrong answers", "confidence does not tell"]


class Answers(File):
    """answers.json: what the float32 model answers to the images that judge it. Classes are places in `labels`."""

    split: Word
    images: Count
    confusions: Tuple[Cell]  # without the cells that are zero, in the order of class and answer
    not_sure: NotSure | None
    no_threshold: Reason | None = None  # why there is none


# ---------------------------------------------------------------------------------------------------------------------
# parity.json


class Processor(Artefact):
    name: str
    flags: Tuple[str]  # those by which onnxruntime chooses its kernels


class ClassChange(Artefact):
    """The accuracy of one class in a file, less that in the file or student that it was compared with."""

    class_: str = Field(alias="class")
    images: Count
    change_pct: Finite
    allowed_pct: NotNegative | None = None  # which it may fall by


class Report(Artefact):
    """A model compared with the student (float32) or with the float32 model (the others)."""

    passed: bool
    failures: Tuple[str]
    split: str
    images: Count
    top1_pct: dict[str, Percent]  # by what was compared
    balanced_accuracy_pct: dict[str, Percent]  # the same: the mean over the classes that occur
    largest_class_pct: Percent  # its share of these images
    smallest_class_pct: Percent  # of the classes that occur
    agreement_pct: Percent
    predictions_that_differ: Index
    discordant: dict[str, Index]  # images that one side alone has right
    worst_class: ClassChange
    probabilities_max_abs: Number
    invariance_max_abs: dict[str, Number]  # by batch size or threads
    versions: dict[str, str]
    platform: str
    processor: Processor


class StudentLogits(Artefact):
    """Differences of logits, by the kind of images."""

    allowed: dict[str, Number]
    float32_noise: dict[str, Number]
    max_abs: dict[str, Number]
    mean_abs: Number
    largest_logit: Number


class StudentReport(Report):
    """The float32 model against the student in PyTorch."""

    recorded_device: JudgedDevice = "cpu"  # on which the run judged the student
    cause: str | None  # the likely one, of a file that did not pass
    images_sha256: Sha256
    logits: StudentLogits
    flips: Tuple[Index]  # images whose prediction differs, the first hundred
    unexplained_flips: Tuple[Index]
    onnx_reference_max_abs: Number
    onnx_reference_refused: str | None = None  # why that engine could not run the file, which then has no number


class Gates(Artefact):
    """What a reduced model may cost: points of top-1, % of equal predictions, points of one class."""

    max_drop: NotNegative
    min_agreement: Percent
    max_class_drop: NotNegative


@dataclass(frozen=True)
class Precision:
    """A precision that a float32 model is reduced to: its file in a bundle, and what it may cost without other limits.

    `okdc.deploy.reduced` makes the files; each precision has its report in `Parity`.
    """

    file: str
    gates: Gates


REDUCED = {  # by name, in the order in which they are made and listed
    "int8": Precision("model.int8.onnx", Gates(max_drop=1.0, min_agreement=97.0, max_class_drop=5.0)),
    "float16": Precision("model.fp16.onnx", Gates(max_drop=0.2, min_agreement=99.5, max_class_drop=2.0)),
}


class ReducedLogits(Artefact):
    max_abs: Number
    mean_abs: Number
    largest_logit: Number


class ReducedReport(Report):
    """A reduced model against the float32 one."""

    gates: Gates
    drop_points: Finite
    logits: ReducedLogits
    tolerance: Number  # by which its logits may differ on another machine
    finite: bool
    bytes: dict[str, int | float]  # of both files, and their ratio


class Calibration(Artefact):
    images: Count
    seed: Index
    split: str
    sha256: Sha256


class Setting(Artefact):
    """How weights are scaled, and how far activations are taken to reach."""

    weights: Literal["per-channel", "per-tensor"]
    calibration: Literal["minmax", "entropy", "percentile"]

    def __str__(self) -> str:
        return f"{self.weights} weights, {self.calibration} calibration"


class Trial(Setting):
    """A setting that was tried: its figures, or the reason why there are none."""

    error: str | None = None
    top1_pct: Percent | None = None
    agreement_pct: Percent | None = None
    mean_abs: Finite | None = None
    bytes: Index | None = None


class Split(Artefact):
    split: str
    images: Count


class Layer(Artefact):
    """An activation of the int8 file: how far the signal stands above the error, in decibels."""

    node: str
    operator: str
    output: str
    weight: str | None
    sqnr_db: Finite


class Quantisation(Artefact):
    """How an int8 file was made."""

    calibration: Calibration
    full_range: bool
    setting: Setting
    searched_on: Split
    search: Tuple[Trial]
    worst_layers: Tuple[Layer] | None = None


class Int8Report(ReducedReport, Quantisation):
    pass


class Parity(File):
    """parity.json: a report for each model that was made, also for one that was rejected."""

    float32: StudentReport
    int8: Int8Report | None = None
    float16: ReducedReport | None = None

    def reduced(self, precision: str) -> ReducedReport | None:
        return getattr(self, precision) if precision in REDUCED else None

    def top1_pct(self, precision: str) -> float:
        """The accuracy of a model itself."""
        report = self.reduced(precision)
        return report.top1_pct[precision] if report else self.float32.top1_pct["onnx"]

    def balanced_accuracy_pct(self, precision: str) -> float:
        report = self.reduced(precision)
        return report.balanced_accuracy_pct[precision] if report else self.float32.balanced_accuracy_pct["onnx"]


# ---------------------------------------------------------------------------------------------------------------------
# profile.json


class Latency(Artefact):
    """Milliseconds for a whole batch."""

    p50: NotNegative
    p90: NotNegative
    min: NotNegative
    runs: Count
    noisy: bool


class ModelCost(Artefact):
    file: str
    bytes: Count
    macs: Index
    latency_ms: dict[str, Latency]  # batch_1, batch_64


class Machine(Artefact):
    engine: str
    processor: str
    flags: Tuple[str]
    threads: Count
    load_average_before: NotNegative | None
    noisy: bool


class Profile(File):
    """profile.json. Counts are of one image; with `lower_bound` there are operators that no counter knows."""

    input: Tuple[Count]  # CHW
    params: Count
    params_trainable: Index
    buffers: Index
    macs: Index  # multiply-adds of convolutions and linear layers
    flops: Index  # 2 × MACs
    fvcore_total: Index | None  # None: fvcore cannot trace the network, and torch's counter stands alone
    activations: Index | None
    uncounted: Tuple[str]
    ignored: Tuple[str]
    lower_bound: bool
    models: dict[str, ModelCost]  # by precision
    machine: Machine
    versions: dict[str, str]
