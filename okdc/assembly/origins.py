"""Where students start: what a recipe says of trained weights, and what is known of those before they are loaded.

`chosen` completes a recipe before any image is read: it names the weights in full, and takes the size, mean and
deviation of the images that they were trained on where the recipe has none.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from okdc.assembly import student as students
from okdc.backbones import pretrained
from okdc.backbones.naming import MSFE, split_output, variant
from okdc.backbones.pretrained import Facts
from okdc.data.source import Source
from okdc.errors import OkdcError, RecipeError, RunError
from okdc.recipe.schema import WEIGHTS, Data, Recipe
from okdc.runs import artefacts
from okdc.runs.artefacts import StudentInfo
from okdc.runs.run import RunDir
from okdc.runs.series import SeriesDir

RANDOM = ("", "none")
PRETRAINED = "pretrained"
METADATA = "okdc"  # the key of the facts in the header of a .safetensors file
VALUES = "pretrained, none, timm:NAME.TAG, torchvision:ENUM.MEMBER, a .safetensors or .pt file, or runs/NAME"
NO_WEIGHTS = "is no .safetensors file and no file of torch.save with weights alone"
# How files of torch.save begin: a zip archive, and before torch 1.6 this number in their first bytes.
ZIP, MAGIC = b"PK\x03\x04", (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
BILINEAR = "bilinear"  # how okdc and every client of a bundle resize
WHOLE = {"squash": "whole images, squeezed to squares", "border": "whole images with a border"}  # by Facts.crop_mode


@dataclass(frozen=True)
class Origin:
    """Where a student's weights come from, and what is known of them without loading them."""

    where: str  # as the recipe has it
    facts: Facts
    run: RunDir | None = None
    index: int | None = None  # of the run's student
    dataset: str = ""  # of a run: what it was trained on
    above: str = ""  # of a run: the weights that its own student, or one above it, started from
    guessed: bool = False  # the facts are those of the library's own weights for this network, the file has none

    @property
    def name(self) -> str:
        """For files that outlive the place where the weights lie."""
        return self.facts.name or self.where


@dataclass(frozen=True)
class Choice:
    """A recipe's tables with the weights by their full names, and what follows from them."""

    tables: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def chosen(tables: Mapping[str, Any], recipe: Recipe, source: Source, count: int) -> Choice:
    """The tables of a recipe that trains its first `count` students.

    A problem for each student whose weights cannot be had, and where students were trained with different pixels.
    """
    choice = Choice(dict(tables))
    names, values = recipe.cohort.students, recipe.cohort.weights
    if isinstance(values, tuple) and len(values) != len(names):
        choice.problems.append(
            f"cohort.weights: expected one value, or {len(names)}, one a student; found {len(values)}"
        )
        return choice
    listed = values if isinstance(values, tuple) else (values or "",) * len(names)
    origins: list[Origin | None] = []
    for k, (name, value) in enumerate(zip(names, listed, strict=True)):
        try:
            origins.append(_origin(name, value) if k < count else None)
        except OkdcError as error:
            key = "cohort.students" if value in RANDOM else "cohort.weights"
            choice.problems.append(f"{key}: {'; '.join(filter(None, (error.message, error.hint)))}")
    if choice.problems:
        return choice
    if not any(origins):
        named = ("weights", WEIGHTS)
        choice.tables["cohort"] = {key: value for key, value in tables["cohort"].items() if key not in named}
        return choice
    full = [origin.where if origin else "none" for origin in origins]
    weights: str | list[str] = full[0] if len(set(full)) == 1 else full
    cohort = dict(tables["cohort"]) | {"students": [untagged(name) for name in names], "weights": weights}
    choice.tables["cohort"] = cohort
    _take(choice, [origin for origin in origins if origin], recipe.data, source)
    return choice


def untagged(name: str) -> str:
    """The name of a network without the tag of its weights, its key and its extraction kept."""
    base, attention = variant(name)
    bare, key = split_output(base)
    kept = "" if key is None else f"[{key}]"
    return pretrained.split_tag(bare)[0] + kept + ("" if attention is None else MSFE[attention])


def of_recipe(recipe: Recipe, count: int) -> list[Origin | None]:
    """Where each of the first `count` students of a completed recipe starts; None: from random weights.

    Raises as `_origin`.
    """
    cohort = recipe.cohort
    values = cohort.weights if isinstance(cohort.weights, tuple) else (cohort.weights or "",) * count
    return [_origin(name, value) for name, value in zip(cohort.students[:count], values, strict=False)]


def _origin(student: str, value: str) -> Origin | None:
    """The weights that a student's name and a value of `cohort.weights` lead to.

    Raises RecipeError where they lead to none, or to those of another network; RunError for a run without a student.
    """
    base, _ = split_output(variant(student)[0])
    network, tag = pretrained.split_tag(base)
    if value in RANDOM:
        if tag:
            raise RecipeError(
                f"{student} names trained weights, and the students start from random ones",
                hint=f'cohort.weights="pretrained" takes them; or the network alone: {untagged(student)}',
            )
        return None
    if value == PRETRAINED:
        weights = pretrained.find(base) if tag else pretrained.default(network)
        return Origin(weights.name, weights.facts)
    if tag and value != base and not _is_file_of(value, base):
        raise RecipeError(
            f"{student} names trained weights, and {value} names others",
            hint=f'cohort.weights="pretrained" takes the first; or the network alone: {untagged(student)}',
        )
    if pretrained.is_name(value):
        weights = pretrained.find(value)
        if weights.network != network:
            raise RecipeError(
                f"{value} are weights of {weights.network}, the student is {network}",
                hint="a list has one value a student, `none` for random weights",
            )
        return Origin(weights.name, weights.facts)
    return _of_path(value, network)


def _is_file_of(value: str, name: str) -> bool:
    """Whether a file says that it holds the weights of this full name."""
    path = Path(value).expanduser()
    return path.is_file() and (_header(path) or Facts()).name == name


def _of_path(value: str, network: str) -> Origin:
    path = Path(value).expanduser()
    if RunDir.is_at(path):
        return _of_run(value, RunDir.open(path), None)
    if student := _student_of_a_run(path):
        return _of_run(value, *student)
    if SeriesDir.is_at(path):
        raise RecipeError(f"{value} is a series of runs", hint=f"name one of them: {path / 'seed0'}")
    if not path.is_file():
        raise RecipeError(
            f"{value}: there is no such file and no such run",
            hint=VALUES,
        )
    try:
        if not _may_hold_weights(path):
            raise RecipeError(f"{value} {NO_WEIGHTS}", hint=VALUES)
        facts = _header(path) or _beside(path)
    except OSError as error:
        raise RecipeError(f"{value}: cannot be read: {error.strerror}") from None
    if facts is None and pretrained.is_name(network):
        try:
            usual = pretrained.default(network).facts
        except RecipeError:
            usual = Facts()
        # A name, classes and a licence belong to a file, not to a network.
        return Origin(value, replace(usual, name="", classes=None, labels=(), licence=""), guessed=True)
    return Origin(value, facts or Facts())


def _may_hold_weights(path: Path) -> bool:
    """Whether a file is called .safetensors, or begins as torch.save writes. Raises OSError."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as stream:
        beginning = stream.read(32)
    return beginning.startswith(ZIP) or MAGIC in beginning


def _student_of_a_run(path: Path) -> tuple[RunDir, int | None] | None:
    """The run of a path inside it and the number of its student, None for the kept one.

    A student is named as `students/1`, or by its file: both are held to the run's record of it.
    """
    if path == RunDir(path.parent).weights and RunDir.is_at(path.parent):
        return RunDir.open(path.parent), None
    number = re.fullmatch(r"(\d+)|student(\d+)\.safetensors", path.name)
    if number and path.parent.name == "students" and RunDir.is_at(path.parents[1]):
        return RunDir.open(path.parents[1]), int(number[1] or number[2])
    return None


def _of_run(value: str, run: RunDir, index: int | None) -> Origin:
    result = students.recorded(run)
    if index is not None and index >= len(result.cohort):
        raise RunError(f"{run.path} has no student{index}", hint=f"it has student0 to student{len(result.cohort) - 1}")
    number = result.kept.student if index is None else index
    info = artefacts.read(students.files(run, number, result.kept.student)[1], StudentInfo)
    facts, above = _facts_of_student(info), result.starts[number] if result.starts else None
    if above is None:
        return Origin(value, facts, run, number, info.dataset)
    facts = replace(facts, licence=above.licence)
    return Origin(value, facts, run, number, info.dataset, above.above or above.weights)


def _facts_of_student(info: StudentInfo) -> Facts:
    rule = info.preprocessing
    return Facts(
        size=rule.size,
        crop=rule.size / (rule.shorter_side or rule.size),
        mean=rule.mean,
        std=rule.std,
        interpolation=BILINEAR,
        classes=len(info.classes),
        labels=info.classes,
        crop_mode=pretrained.CENTER,
    )


def _header(path: Path) -> Facts | None:
    """The facts in the header of a .safetensors file that okdc wrote."""
    if path.suffix != ".safetensors":
        return None
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))
        if length > path.stat().st_size:
            return None  # no such file: reading the tensors says so
        try:
            metadata = json.loads(stream.read(length)).get("__metadata__", {})
            return pretrained.facts_of(json.loads(metadata[METADATA]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


def _beside(path: Path) -> Facts | None:
    """The facts in the description of a student that lies beside its weights."""
    description = path.with_suffix(".json")
    if not description.is_file():
        return None
    try:
        info = artefacts.read(description, StudentInfo)
    except RunError:
        return None  # another tool's file
    return _facts_of_student(info) if info.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest() else None


# ---------------------------------------------------------------------------------------------------------------------
# Size, mean and deviation


def _take(choice: Choice, origins: Sequence[Origin], data: Data, source: Source) -> None:
    """Write the pixels that the weights were trained with into `[data]`, where the recipe has no word on them."""
    written = choice.tables["data"]
    wanted = {"mean": data.mean is None, "std": data.std is None}
    wanted["image_size"] = "image_size" not in written and source.image_size is None
    taken: dict[str, Any] = {}
    for key in [key for key, missing in wanted.items() if missing]:
        values = {o.where: _value(o.facts, key) for o in origins if _value(o.facts, key) is not None}
        if len(set(values.values())) > 1:
            (first, one), (second, other) = _two_that_differ(values)
            choice.problems.append(
                f"data.{key}: {first} was trained with {_toml(one)}, {second} with {_toml(other)}, and the recipe has "
                f"none; data.{key}={_toml(one)} takes the first"
            )
        elif values:
            taken[key] = next(iter(values.values()))
    size = taken.get("image_size", data.image_size)
    if data.shorter_side is None and source.class_folders:
        larger = {o.facts.shorter_side(size) for o in origins if o.facts.crop is not None}
        if len(larger) == 1 and max(larger) > size:
            taken["shorter_side"] = larger.pop()
        elif larger - {size}:
            choice.notes.append(
                "the weights were trained with different centre crops, of which none is taken: data.shorter_side is "
                f"data.image_size ({size})"
            )
    if choice.problems:
        return
    choice.tables["data"] = written | {k: list(v) if isinstance(v, tuple) else v for k, v in taken.items()}
    if taken:
        pairs = ", ".join(f"data.{key} {_toml(value)}" for key, value in taken.items())
        choice.notes.append(f"{pairs}: as the weights were trained ({', '.join(dict.fromkeys(map(_named, origins)))})")
    choice.notes.extend(dict.fromkeys(note for origin in origins for note in _remarks(origin, size, taken, source)))


def _value(facts: Facts, key: str) -> Any:
    return facts.size if key == "image_size" else getattr(facts, key)


def _two_that_differ(values: Mapping[str, Any]) -> tuple[tuple[str, Any], tuple[str, Any]]:
    first, *others = values.items()
    return first, next(item for item in others if item[1] != first[1])


def _named(origin: Origin) -> str:
    return f"{origin.where}, which does not say so itself: its library's rule" if origin.guessed else origin.where


def _remarks(origin: Origin, size: int, taken: Collection[str], source: Source) -> list[str]:
    """What of the images is otherwise than the weights are used to."""
    facts, lines = origin.facts, []
    if "image_size" not in taken and facts.size not in (None, size):
        lines.append(f"{origin.where} was trained on {facts.size}×{facts.size} images, these are {size}×{size}")
    if facts.interpolation not in ("", BILINEAR) and source.class_folders:
        lines.append(
            f"{origin.where} was trained on {facts.interpolation} resizing; okdc and every client resize bilinear"
        )
    if facts.crop_mode not in ("", pretrained.CENTER) and source.class_folders:
        seen = WHOLE.get(facts.crop_mode, f"the crop {facts.crop_mode!r}")
        lines.append(f"{origin.where} was trained on {seen}; okdc and every client cut out the middle")
    if facts.mean is None or facts.std is None:
        lines.append(
            f"{origin.where} does not say which mean and deviation it was trained with; data.mean and data.std do"
        )
    return lines


def _toml(value: Any) -> str:
    return json.dumps(list(value)) if isinstance(value, tuple) else str(value)
