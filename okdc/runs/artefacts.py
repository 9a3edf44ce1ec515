"""The files of a run as types: who writes a file and who reads it use one model. No torch.

    run.json     RunInfo        how a run began
    series.json  SeriesInfo     the same of a series
    student.json StudentInfo    what a student is
    result.json  Result         how a training ended

A bundle's files are in `okdc.bundle.artefacts`. Keys that a model does not name are ignored: other tools may add some.
The key `sha256` of a whole file is of all that its model names, so that a changed value is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from okdc.errors import RunError, quoted
from okdc.runs.files import read_json, write_json

T = TypeVar("T")
Tuple = Annotated[tuple[T, ...], Field(strict=False)]  # JSON has arrays, not tuples
Index = Annotated[int, Field(ge=0, le=2**63 - 1)]  # percentages and errors are computed of it: a float has to hold it
Count = Annotated[int, Field(ge=1, le=2**63 - 1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Colour = Annotated[tuple[Finite, Finite, Finite], Field(strict=False)]

JudgedDevice = Literal["cpu", "cuda"]

AVERAGED = "_ema"  # ends the name of a head of averaged weights: student0_ema beside student0

MOST_PROBLEMS = 10  # that an error names


class Artefact(BaseModel):
    """A JSON file, or a part of one: frozen, and strict about types."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    def to_json(self) -> dict[str, Any]:
        """The tables that JSON holds. A key with a default is among them only if the writer set it."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class File(Artefact):
    """A whole file. `schema` is the version of its format."""

    schema_: Literal[1] = Field(alias="schema")

    def sealed(self) -> dict[str, Any]:
        """The tables of the file, its own hash among them."""
        tables = self.to_json()
        return tables | {SEAL: _sha256(tables)}


Model = TypeVar("Model", bound=Artefact)
WholeFile = TypeVar("WholeFile", bound=File)
SEAL = "sha256"  # the key of a file's own hash


def read(path: Path, model: type[WholeFile]) -> WholeFile:
    """Raises RunError where the file cannot be read, a key is missing or of another type, or a value is not the one
    that okdc wrote.
    """
    tables = read_json(path)
    try:
        content = model.model_validate(tables)
    except ValidationError as error:
        first, *others = problems(error)
        raise RunError(f"{path} is damaged, or of another version of okdc: {first}", details=others) from None
    check_seal(path, tables, content)
    return content


def check_seal(path: Path, tables: Mapping[str, Any], content: File) -> None:
    """Raises RunError where a value in `content`, read of the `tables` at `path`, is not the one that okdc wrote."""
    if (recorded := tables.get(SEAL)) != (actual := _sha256(content.to_json())):
        raise RunError(
            f"{path} was edited or is damaged: sha256 {actual[:12]} of its content, expected {quoted(recorded, 12)}",
            hint="restore the file; okdc writes it, and nothing of it is meant to be changed by hand",
        )


def write(path: Path, content: File) -> None:
    """Replace the file at `path` in one step. Raises DiskError with the old file in place."""
    # Validated once more: of an integer in a place for numbers the reader makes a float, which has another hash.
    write_json(path, type(content).model_validate(content.to_json()).sealed())


def _sha256(tables: Mapping[str, Any]) -> str:
    text = json.dumps({key: value for key, value in tables.items() if key != SEAL}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


# What pydantic calls an error, and the words for what was expected; names in braces are of the error's context.
EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "too_short": "{min_length} items or more",
    "too_long": "{max_length} items or fewer",
    "string_pattern_mismatch": "text that matches {pattern}",
}


def problems(error: ValidationError) -> list[str]:
    """One line for each of the first problems: the key, what was expected and what was found."""
    lines = []
    for problem in error.errors()[:MOST_PROBLEMS]:
        key, context = _key(problem["loc"]), problem.get("ctx", {})
        if problem["type"] == "too_short" and len(problem["input"]) >= context["min_length"]:
            continue  # an item of the list is wrong, and has its own line
        if problem["type"] == "missing":
            line = f"{key}: missing"
        elif problem["type"] == "value_error":  # a rule between keys, which names them itself
            line = f"{key}: {context['error']}".removeprefix(": ")
        else:
            expected = EXPECTED.get(problem["type"], problem["msg"]).format(**context)
            line = f"{key}: expected {expected}, found {quoted(problem['input'], 80)}"
        lines.append(line[:250])  # a stranger's names may be long
    return lines


def _key(place: tuple[int | str, ...]) -> str:
    """`cohort[1].epoch`. A name may be a stranger's, so it is printable and not long."""
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
    return key if key.isprintable() and len(key) <= 200 else quoted(key)


# ---------------------------------------------------------------------------------------------------------------------
# run.json and series.json


class Provenance(Artefact):
    """What made a run: the command, the versions of the packages that compute, the machine."""

    command: Tuple[str] = ()
    versions: dict[str, str] = {}
    platform: str = ""
    processor: str = ""
    gpu: str = ""  # its name, where one trained


class Settings(Artefact):
    """The choices of a training that bear on its weights."""

    device: Annotated[str, Field(pattern="^(cpu|cuda|cuda:[0-9]{1,2})$")]
    dtype: Literal["float32", "bfloat16", "float16"]
    memory_format: Literal["contiguous", "channels_last"]
    threads: Count


class RunSettings(Settings):
    """All choices of a training, with which it is resumed."""

    workers: Index
    compile: Literal["on", "off"]
    cuda_graph: Literal["on", "off"]
    sync_batchnorm: bool


# What was known before the first step of whether the students can be exported: they were tried untrained, or all are of
# okdc's own networks, which its tests have proven, or the question was left out.
ExportCheck = Literal["passed", "proven", "skipped"]


class Start(Artefact):
    """The trained weights that a student started from."""

    weights: str  # their name, file or run
    weights_sha256: str
    head: Literal["new", "kept"]  # whether the classifier is theirs
    classes: Count | None = None  # those that they tell apart
    dataset: str = ""  # of a run: what it was trained on
    above: str = ""  # of a run: the weights that its own student, or one above it, started from
    licence: str = ""  # as their library states it, or that of the weights above


class RunInfo(Provenance, File):
    """run.json."""

    recipe: dict[str, Any]  # its tables, every default written out
    recipe_sha256: str
    data_sha256: str
    classes: Annotated[Tuple[str], Field(min_length=1)]
    skipped_images: Tuple[str] = ()  # a line `file: reason` for each damaged image that was left out
    streamed: bool = False  # whether the images stayed in their files
    export_check: ExportCheck = "skipped"
    starts: Tuple[Start | None] = ()  # of each student; None: random weights, as all where the list is empty
    started_at: str  # sorts as text
    settings: RunSettings
    reasons: Tuple[str]  # of the settings, one line each
    processes: Count = 1
    processes_here: Count = 1  # on this machine
    processes_before: Tuple[Count] = ()  # before each resume with another number
    failed: str | None = None  # the reason

    @property
    def trained_by(self) -> str:
        """How many processes, and how many after a resume."""
        return ", then ".join(map(str, (*self.processes_before, self.processes)))


class SeriesInfo(Provenance, File):
    """series.json."""

    seeds: Annotated[Tuple[Index], Field(min_length=1)]
    recipe: dict[str, Any]  # its tables, every default written out, without a seed
    started_at: str
    settings: Settings
    export_check: bool = True  # whether the students are tried before the first seed is trained


# ---------------------------------------------------------------------------------------------------------------------
# student.json and result.json


class Preprocessing(Artefact):
    """How an image file becomes the network's input: `okdc.data.images.fit`, then (x / 255 - mean) / std."""

    size: Count  # height and width in pixels
    shorter_side: Count | None = None  # to which an image is resized before its centre is cut out; None: `size`
    resize: str
    mean: Colour
    std: Colour


class StudentInfo(File):
    """student.json."""

    architecture: str
    classes: Annotated[Tuple[str], Field(min_length=1)]  # in the order of the logits
    preprocessing: Preprocessing
    student: Index
    epoch: Index
    val_top1_pct: Percent | None  # None: nothing was validated
    val_balanced_pct: Percent | None = None  # None: `cohort.keep_metric` is another
    averaged: bool | None = None  # whether the weights are an average of those of many steps; None: none was made
    method: str
    dataset: str
    recipe_sha256: str
    weights_sha256: str
    judged_on: str | None = None  # the split; this and the next three: from the end of the training on
    judged_device: JudgedDevice | None = None
    images: Count | None = None
    top1_pct: Percent | None = None

    @property
    def chosen_by_pct(self) -> float | None:
        """The accuracy on validation that chose the epoch; None: nothing was validated."""
        return self.val_top1_pct if self.val_balanced_pct is None else self.val_balanced_pct


class MethodCard(Artefact):
    """What the method's class says of itself (`okdc.methods.base.Method`)."""

    title: str
    summary: str
    tags: Tuple[str]
    fused_head: str
    reference: bool


class Teacher(Artefact):
    architecture: str
    weights_sha256: str


class Kept(Artefact):
    """The student that the run kept, as it was judged: on the CPU, by which every export is held to it."""

    student: Index
    architecture: str
    epoch: Index
    val_top1_pct: Percent | None
    val_balanced_pct: Percent | None = None  # None: `cohort.keep_metric` is another
    averaged: bool | None = None  # whether the weights are an average of those of many steps; None: none was made
    top1_pct: Percent
    balanced_accuracy_pct: Percent  # the mean over the classes that occur
    params: Count
    macs: Count

    @property
    def name(self) -> str:
        return f"student{self.student} ({self.architecture})"

    @property
    def chosen_by_pct(self) -> float | None:
        """The accuracy on validation that chose the epoch; None: nothing was validated."""
        return self.val_top1_pct if self.val_balanced_pct is None else self.val_balanced_pct


class Judged(Kept):
    """Any student of the cohort, with the hashes of its two files."""

    judged_device: JudgedDevice  # of its accuracies; in float32 on either
    weights_sha256: str
    student_sha256: str  # of student.json


class Result(File):
    """result.json, which makes a run complete."""

    method: str
    method_card: MethodCard
    variant: str
    students: Annotated[Tuple[str], Field(min_length=1)]  # architectures
    share: Annotated[str, Field(pattern="^(none|low|stem1)$")]  # `okdc.cohort.SHARING`
    teacher: Teacher | None
    starts: Tuple[Start | None] = ()  # as in run.json
    leader: Index | None
    views: Index  # augmentations of each image that a step had beside the first
    dataset: str
    seed: Index
    recipe_sha256: str
    judged_on: str  # test, or validation where there is no test split
    images: Count
    largest_class_pct: Percent  # its share of these images
    smallest_class_pct: Percent  # of the classes that occur: the same where all have as many images
    heads_last_epoch_top1_pct: dict[str, Percent]
    kept: Kept
    cohort: Annotated[Tuple[Judged], Field(min_length=1)]
    data_sha256: str
    weights_sha256: str  # of the kept student
    log_sha256: str  # of log.jsonl
    predictions_sha256: str
    epochs: Count  # of the recipe
    epochs_trained: Count | None = None  # where `optim.patience` ended the training before; None: all of them
    steps: Index  # of the optimiser, in all epochs
    seconds: NotNegative  # of all steps, the compilation of the first included
    compiled: bool
    images_per_s: NotNegative

    @property
    def last_epoch(self) -> int:
        return self.epochs_trained or self.epochs

    @property
    def leading_head(self) -> str:
        """The head of a student that no choice has made better: the leader's, or the first one's."""
        return self.last_head(f"student{self.leader or 0}")

    def last_head(self, name: str) -> str:
        """The head whose answers the last epoch leaves: of averaged weights where the run has an average."""
        averaged = name + AVERAGED
        return averaged if averaged in self.heads_last_epoch_top1_pct else name

    @model_validator(mode="after")
    def _consistent(self) -> Result:
        numbers = [row.student for row in self.cohort]
        if numbers != list(range(len(self.cohort))):
            raise ValueError(f"cohort: expected student0 to student{len(numbers) - 1} in order, found {numbers}")
        if self.kept.student >= len(numbers):
            raise ValueError(f"kept.student: expected less than {len(numbers)}, found {self.kept.student}")
        row = self.cohort[self.kept.student]
        if dict(self.kept).items() - dict(row).items() or self.weights_sha256 != row.weights_sha256:
            raise ValueError(f"kept, weights_sha256: expected those of cohort[{row.student}], found others")
        if row.judged_device != "cpu":
            raise ValueError(f"cohort[{row.student}].judged_device: expected cpu of the kept student")
        if self.leading_head not in self.heads_last_epoch_top1_pct:
            raise ValueError(f"heads_last_epoch_top1_pct.{self.leading_head}: missing")
        return self
