"""Students that start from trained weights: torchvision's, timm's, those of a file, or a student of another run.

`chosen` completes a recipe before any image is read and any tensor is loaded: it names the weights, and takes the size,
mean and deviation that they were trained with where the recipe has none. `load` reads the tensors, `Beginning` puts
them into the students. What depends on the number of classes, the head, stays new unless the classes are the same.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from okdc import backbones
from okdc.assembly import student as students
from okdc.assembly.teacher import SPLIT
from okdc.backbones import pretrained
from okdc.backbones.naming import MSFE, split_output, variant
from okdc.backbones.pretrained import Facts
from okdc.cohort import Backbone
from okdc.data.source import Source
from okdc.errors import CheckFailed, OkdcError, RecipeError, RunError, by, first_line
from okdc.progress import WARNING
from okdc.recipe.schema import Data, Recipe
from okdc.runs import artefacts
from okdc.runs.artefacts import Start, StudentInfo
from okdc.runs.run import RunDir
from okdc.runs.series import SeriesDir

RANDOM = ("", "none")
PRETRAINED = "pretrained"
METADATA = "okdc"  # the key of the facts in a .safetensors file's header
NESTED = ("state_dict", "model")  # where training scripts keep the weights in a .pt file
LISTED = 10  # keys that an error names
BILINEAR = "bilinear"  # how okdc and every client of a bundle resize


@dataclass(frozen=True)
class Origin:
    """Where a student's weights come from, and what is known of them without loading them."""

    where: str  # as the recipe has it
    facts: Facts
    run: RunDir | None = None
    index: int | None = None  # of the run's student; None: the kept one
    dataset: str = ""  # of a run: what it was trained on
    guessed: bool = False  # the facts are those of the library's own weights for this network, the file has none


@dataclass(frozen=True)
class Loaded:
    """Weights, in memory."""

    origin: Origin
    sha256: str  # of the file; of a library's weights, of their tensors as safetensors writes them
    tensors: Mapping[str, Tensor]


# ---------------------------------------------------------------------------------------------------------------------
# From what a recipe says to weights that have a name


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
        choice.tables["cohort"] = {key: value for key, value in tables["cohort"].items() if key != "weights"}
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


def origins(recipe: Recipe, count: int) -> list[Origin | None]:
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
    if tag and value != base:
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


def _of_path(value: str, network: str) -> Origin:
    path = Path(value).expanduser()
    if RunDir.is_at(path):
        return _of_run(value, RunDir.open(path), None)
    if path.parent.name == "students" and RunDir.is_at(path.parents[1]) and path.name.isdecimal():
        return _of_run(value, RunDir.open(path.parents[1]), int(path.name))
    if SeriesDir.is_at(path):
        raise RecipeError(f"{value} is a series of runs", hint=f"name one of them: {path / 'seed0'}")
    if not path.is_file():
        raise RecipeError(
            f"{value}: there is no such file and no such run",
            hint="pretrained, none, timm:NAME.TAG, torchvision:ENUM.MEMBER, a .safetensors or .pt file, or runs/NAME",
        )
    try:
        facts = _header(path) or _beside(path)
    except OSError as error:
        raise RecipeError(f"{value}: cannot be read: {error.strerror}") from None
    if facts is None and pretrained.is_name(network):
        try:
            usual = pretrained.default(network).facts
        except RecipeError:
            usual = Facts()
        # Names of classes and a licence belong to a file, not to a network.
        return Origin(value, replace(usual, classes=None, labels=(), licence=""), guessed=True)
    return Origin(value, facts or Facts())


def _of_run(value: str, run: RunDir, index: int | None) -> Origin:
    result = students.recorded(run)
    if index is not None and index >= len(result.cohort):
        raise RunError(f"{run.path} has no student{index}", hint=f"it has student0 to student{len(result.cohort) - 1}")
    number = result.kept.student if index is None else index
    info = artefacts.read(students.files(run, number, result.kept.student)[1], StudentInfo)
    return Origin(value, _facts_of_student(info), run, number, info.dataset)


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
    return _facts_of_student(info) if info.weights_sha256 == _sha256(path.read_bytes()) else None


def metadata_of(facts: Facts) -> dict[str, str]:
    """For the header of a .safetensors file."""
    return {METADATA: json.dumps(asdict(facts))}


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
    if facts.mean is None or facts.std is None:
        lines.append(
            f"{origin.where} does not say which mean and deviation it was trained with; data.mean and data.std do"
        )
    return lines


def _toml(value: Any) -> str:
    return json.dumps(list(value)) if isinstance(value, tuple) else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# Tensors


def load(recipe: Recipe, count: int) -> list[Loaded | None]:
    """The weights of the first `count` students, those of one origin once. None: random ones.

    Raises DataError for weights that cannot be downloaded, RecipeError for a file that holds none, RunError or
    CheckFailed for a run that is damaged, and RunError for other weights than the recipe began with.
    """
    loaded: dict[str, Loaded] = {}
    all_of_them: list[Loaded | None] = []
    for origin in origins(recipe, count):
        if origin is not None and origin.where not in loaded:
            loaded[origin.where] = _load(origin)
        all_of_them.append(loaded[origin.where] if origin else None)
    expected = recipe.cohort.weights_sha256
    if expected is not None:
        for start, sha256 in zip(all_of_them, expected, strict=False):
            _prove(start, sha256)
    return all_of_them


def _prove(start: Loaded | None, expected: str) -> None:
    actual = start.sha256 if start else ""
    if actual != expected:
        what = f"{start.origin.where} has" if start else "random weights have"
        raise RunError(
            f"cohort.weights: {what} not the weights that the recipe began with: sha256 {actual[:12] or 'none'}, "
            f"expected {expected[:12] or 'none'} (cohort.weights_sha256)",
            hint="restore them, or start another run without cohort.weights_sha256",
        )


def _load(origin: Origin) -> Loaded:
    if origin.run is not None:
        try:
            student = students.load(origin.run, origin.index)
        except (CheckFailed, RunError) as error:
            error.message = f"cohort.weights: {error.message}"
            raise
        return Loaded(origin, student.result.weights_sha256, student.network.weights())
    if pretrained.is_name(origin.where):
        tensors = pretrained.find(origin.where).load()
        return Loaded(origin, _sha256(to_safetensors(tensors)), tensors)
    path = Path(origin.where).expanduser()
    try:
        content = path.read_bytes()
        return Loaded(origin, _sha256(content), read_tensors(path, content))
    except OSError as error:
        raise RecipeError(f"cohort.weights: {origin.where}: cannot be read: {error.strerror}") from None
    except Exception as error:  # safetensors and torch raise kinds of their own
        raise RecipeError(f"cohort.weights: {origin.where}: holds no weights: {first_line(error)}") from None


def read_tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    """A .safetensors file, or what torch.save wrote of tensors alone: no pickle is run.

    Raises ValueError for a file of anything else, and what safetensors and torch raise.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load as from_safetensors

        return from_safetensors(content)
    loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    for key in NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ValueError(f"expected tensors by name, found {type(loaded).__name__}")
    if strange := [key for key, value in loaded.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"expected tensors by name, found {type(loaded[strange[0]]).__name__} at {strange[0]!r}")
    return {str(key).removeprefix("module."): tensor for key, tensor in loaded.items()}  # DistributedDataParallel's


def to_safetensors(tensors: Mapping[str, Tensor], facts: Facts | None = None) -> bytes:
    """The content of a .safetensors file."""
    from safetensors.torch import save

    copies = {key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}  # it refuses shared memory
    return save(copies, metadata_of(facts) if facts else None)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Into the students


@dataclass
class _Begun:
    """A student with trained weights in it."""

    loaded: Loaded
    architecture: str
    tensors: int  # of the student, those that the weights gave it
    head: dict[str, Tensor]  # the student's own tensors, by key, that depend on the number of classes
    fresh: dict[str, Tensor]  # the head as it was initialised, where the weights have one for as many classes
    reason: str = ""  # why the head is new

    @property
    def head_is_new(self) -> bool:
        return not self.fresh


class Beginnings:
    """The trained weights of a cohort's students, and what of them the students have taken."""

    def __init__(self, loaded: Sequence[Loaded | None]) -> None:
        self.loaded = tuple(loaded)
        self._begun: dict[int, _Begun] = {}

    @property
    def sha256s(self) -> tuple[str, ...]:
        """Of each student; empty for random weights."""
        return tuple(start.sha256 if start else "" for start in self.loaded)

    def check_shared(self) -> None:
        """Raises RecipeError where students that share their first stages would start from different weights."""
        if len(set(self.sha256s)) > 1:
            starts = ", ".join(start.origin.where if start else "random weights" for start in self.loaded)
            raise RecipeError(
                f"cohort.weights: the students share their first stages, and start from different weights: {starts}",
                hint="one value for all; or cohort.share=none",
            )

    def put(self, k: int, student: Backbone, classes: int, images: torch.Size) -> None:
        """Student k takes its weights, all but a head for another number of classes.

        Nothing is drawn. Raises RecipeError with every key that does not fit; the student is then as it was.
        """
        if (loaded := self.loaded[k]) is not None:
            self._begun[k] = _put(loaded, student, classes, images)

    @torch.no_grad()
    def settle(self, labels: Sequence[str]) -> list[str]:
        """Give back the fresh head of a student whose weights tell other classes apart than `labels`, though as many.

        Returns a note for each student.
        """
        notes = []
        for k, begun in self._begun.items():
            theirs = begun.loaded.origin.facts.labels
            if not begun.head_is_new and theirs and theirs != tuple(labels):
                for key, tensor in begun.head.items():
                    tensor.copy_(begun.fresh[key])
                begun.fresh, begun.reason = {}, "its classes are others"
            origin = begun.loaded.origin
            if begun.head_is_new:
                head = f"the head is new ({', '.join(begun.head)}): {begun.reason}"
            else:
                head = "the head is kept: " + (
                    "the classes are the same" if theirs else "as many classes, whose names the weights do not say"
                )
            notes.append(f"student{k} starts from {origin.where}: {begun.tensors} tensors; {head}")
        return notes + self._twins()

    def _twins(self) -> list[str]:
        """A warning where two students would be one network, which teaches itself nothing."""
        seen: dict[tuple[str, str], int] = {}
        for k, begun in self._begun.items():
            if begun.head_is_new:
                continue
            first = seen.setdefault((begun.architecture, begun.loaded.sha256), k)
            if first != k:
                return [f"{WARNING}student{first} and student{k} start as the same network, head included"]
        return []

    def check_images(self, data_sha256: str, data: Mapping[str, Any]) -> list[str]:
        """Notes on what the weights were trained on. Raises RecipeError for a run that divided these images otherwise,
        and so may have trained on those that judge here.
        """
        notes = []
        for loaded in {id(start): start for start in self.loaded if start}.values():
            origin, run = loaded.origin, loaded.origin.run
            if run is None or run.read_info().data_sha256 != data_sha256:
                notes.append(f"whether {origin.where} has seen the test images is not known")
                continue
            before = run.read_recipe()["data"]
            for key in SPLIT:
                if before.get(key) != data.get(key):
                    raise RecipeError(
                        f"cohort.weights: {origin.where} was trained with data.{key}={before.get(key)}, this recipe "
                        f"has {data.get(key)}: it may have trained on this one's validation images",
                        hint=f"the same data.{key} for both",
                    )
            notes.append(f"{origin.where} was trained on the same images")
        return notes

    def recorded(self) -> tuple[Start | None, ...]:
        """For run.json and result.json."""
        return tuple(self._recorded(self._begun.get(k)) for k in range(len(self.loaded)))

    @staticmethod
    def _recorded(begun: _Begun | None) -> Start | None:
        if begun is None:
            return None
        origin, head = begun.loaded.origin, "new" if begun.head_is_new else "kept"
        return Start.model_validate(
            {
                "weights": origin.where,
                "weights_sha256": begun.loaded.sha256,
                "head": head,
                "classes": origin.facts.classes,
                "dataset": origin.dataset,
                "licence": origin.facts.licence,
            }
        )


def _put(loaded: Loaded, student: Backbone, classes: int, images: torch.Size) -> _Begun:
    tensors, facts, name = loaded.tensors, loaded.origin.facts, student.architecture
    more = backbones.shapes(name, classes + 1, images)
    inner = (student, *student.inner)[-1].weights()  # under its author's names
    dependent = {tensor.data_ptr() for key, tensor in inner.items() if more.get(key) != tensor.shape}
    if len(dependent) == len(inner):
        raise RecipeError(f"cohort.weights: every tensor of {name} depends on the number of classes: none could start")
    wrong = []
    for network in (student, *student.inner):  # the weights of a network with an extraction, or of one without
        own = network.weights()
        head = {key: tensor for key, tensor in own.items() if tensor.data_ptr() in dependent}
        wrong = _wrong(own, head, tensors, more.keys())
        if not wrong:
            break
    if wrong:
        rest = [f"and {len(wrong) - LISTED} more"] if len(wrong) > LISTED else []
        raise RecipeError(
            f"cohort.weights: {loaded.origin.where} are not the weights of {name}: {len(wrong)} of its "
            f"{len(own)} tensors do not fit",
            details=[*wrong[:LISTED], *rest],
        )
    reason = _why_new(head, tensors, facts, classes)
    fresh = {} if reason else {key: tensor.clone() for key, tensor in head.items()}
    given = {key: tensors[key] for key in own if key in tensors and (fresh or key not in head)}
    if bad := [key for key, tensor in given.items() if not tensor.isfinite().all()]:
        raise RecipeError(f"cohort.weights: {loaded.origin.where}: not finite: {', '.join(bad[:LISTED])}")
    network.load_weights({**own, **given})
    return _Begun(loaded, name, len(given), head, fresh, reason)


def _wrong(
    own: Mapping[str, Tensor], head: Collection[str], tensors: Mapping[str, Tensor], authors: Collection[str]
) -> list[str]:
    """A line for each tensor that does not fit. The head may differ; a count of batches takes part in no answer, and
    outputs that the stages leave out, which are among the author's names, have no place.
    """
    lines = []
    for key, tensor in own.items():
        if key in head:
            continue
        if key not in tensors:
            if not key.endswith("num_batches_tracked"):
                lines.append(f"{key}: missing, expected {by(tensor.shape) or 'a number'}")
        elif tensors[key].shape != tensor.shape:
            lines.append(f"{key}: expected {by(tensor.shape)}, found {by(tensors[key].shape)}")
    return lines + [
        f"{key}: the network has no such tensor" for key in tensors if key not in own and key not in authors
    ]


def _why_new(head: Mapping[str, Tensor], tensors: Mapping[str, Tensor], facts: Facts, classes: int) -> str:
    """The reason for which a head is not taken; empty where it fits so far."""
    if facts.classes not in (None, classes):
        return f"{facts.classes:,} classes there, {classes:,} here"
    if missing := [key for key in head if key not in tensors]:
        return f"the weights have no {missing[0]}"
    if other := [key for key, tensor in head.items() if tensors[key].shape != tensor.shape]:
        found = tensors[other[0]].shape
        return f"{other[0]} is {by(found)} there, {by(head[other[0]].shape)} here"
    return ""
