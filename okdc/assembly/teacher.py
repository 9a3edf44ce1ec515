"""A frozen teacher: the kept student of a finished run, or a network by name with a file of weights.

Only a run proves that its student has never seen the images that judge this one: a run of another data set, or of other
splits, is refused. Of a file of weights nobody but its owner knows the images, and a note says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from okdc import backbones
from okdc.assembly import student as students
from okdc.assembly import weights as weights_files
from okdc.cohort import Backbone
from okdc.errors import CheckFailed, RecipeError, RunError, first_line
from okdc.recipe.schema import TEACHER
from okdc.runs.run import RunDir
from okdc.runs.series import SeriesDir

# The keys that decide which images a run holds out: runs with the same values have held out the same images.
SPLIT = ("val_fraction",)


@dataclass(frozen=True)
class Teacher:
    """A teacher, and for the student of a run what it was trained on."""

    network: Backbone
    where: str
    architecture: str
    sha256: str  # of its weights
    size: int | None = None  # of a run: the image size, classes and data it was trained with
    classes: tuple[str, ...] | None = None
    data_sha256: str | None = None
    split: Mapping[str, Any] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    taught_by: str = ""  # of a run: weights of unknown origin that it, or its own teacher, has learned from

    @property
    def facts(self) -> dict[str, str]:
        return {"architecture": self.architecture, "weights_sha256": self.sha256}

    @property
    def note(self) -> str:
        if self.data_sha256:
            learned = (
                f"; it has learned from {self.taught_by}, which may know the test images" if self.taught_by else ""
            )
            return f"the teacher is the {self.architecture} of {self.where}, trained on the same images{learned}"
        return f"the teacher is {self.architecture} with {self.where}: whether it has seen the test images is not known"


def load(where: str, weights: str | None, classes: int, images: torch.Size) -> Teacher:
    """The teacher that `[method]` names: `where` is a run, or a network whose `weights` are a file.

    Raises RunError for a run that is not complete or damaged, CheckFailed for a student that is not the recorded one,
    RecipeError for what leads to no teacher.
    """
    folder = Path(where).expanduser()
    if RunDir.is_at(folder):
        if weights is not None:
            raise RecipeError("method.weights: a run brings its own; it belongs to a network's name")
        return _of_run(RunDir.open(folder))
    if SeriesDir.is_at(folder):
        raise RecipeError(f"method.teacher: {where} is a series of runs", hint=f"name one of them: {folder / 'seed0'}")
    if len(folder.parts) > 1 or (folder.is_dir() and not backbones.is_name(where)):
        beside = folder.parent if folder.is_file() and RunDir.is_at(folder.parent) else None
        raise RunError(
            f"method.teacher: there is no run at {folder.absolute()}",
            hint=f"a run is a folder: method.teacher={beside}"
            if beside
            else "put it back, or name the one that is meant",
        )
    try:
        backbones.check(where)
    except RecipeError as error:
        raise RecipeError(f"method.teacher: {where} is no run, and {error.message}", hint=error.hint) from None
    if weights is None:
        raise RecipeError(
            f"method.weights: missing; a teacher by name ({where}) needs a file of its weights",
            hint="method.weights=student.safetensors, or method.teacher=runs/NAME for the student that a run kept",
        )
    path = Path(weights).expanduser()
    if not path.is_file():
        raise RecipeError(f"method.weights: no such file: {path}")
    network = backbones.build(where, classes, images)
    try:
        content = path.read_bytes()
        network.load_weights(weights_files.stored(path, content))
    except OSError as error:
        raise RecipeError(f"method.weights: {weights}: cannot be read: {error.strerror}") from None
    except Exception as error:  # safetensors and torch raise kinds of their own, load_weights a RuntimeError
        raise RecipeError(
            f"method.weights: {weights}: not the weights of a {where} for {classes} classes: {_short(error)}"
        ) from None
    return Teacher(network, weights, where, hashlib.sha256(content).hexdigest())


def _short(error: Exception) -> str:
    """What is wrong with a file of weights, in one line. Of tensors that are missing or foreign torch names all, in any
    order: the first by name stands for them.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if len(lines) < 2:
        return first_line(error)
    said = []
    for line in lines[1:]:  # the first says in which class
        kind, _, names = line.partition(": ")
        first, *others = sorted(names.rstrip(". ").split(", ")) if "key(s)" in kind else [names]
        said.append(f"{kind}: {first}" + (f" and {len(others)} more" if others else ""))
    return "; ".join(said[:2]) + (f"; and {len(said) - 2} more" if len(said) > 2 else "")


def _of_run(run: RunDir) -> Teacher:
    try:
        student = students.load(run)
    except (CheckFailed, RunError) as error:
        error.message = f"method.teacher: {error.message}"
        raise
    info, rule = student.info, student.info.preprocessing
    return Teacher(
        student.network,
        str(run.path),
        info.architecture,
        info.weights_sha256,
        rule.size,
        info.classes,
        run.read_info().data_sha256,
        {key: run.read_recipe()["data"].get(key) for key in SPLIT},
        rule.mean,
        rule.std,
        _unknown_origin(run),
    )


def _unknown_origin(run: RunDir) -> str:
    """The weights of unknown origin that a run, or a run above it, has learned from; empty where there are none."""
    recipe, starts = run.read_recipe(), run.read_info().starts
    table, data = recipe["method"], recipe["data"]["name"]
    if begun := [start for start in starts if start and (start.above or start.dataset != data)]:
        return begun[0].above or begun[0].weights
    if TEACHER not in table:
        return ""
    above = Path(table["teacher"]).expanduser()
    if "weights" in table or not RunDir.is_at(above):
        return str(table.get("weights", table["teacher"]))
    return _unknown_origin(RunDir.open(above))


def check_weights(teacher: Teacher, expected_sha256: str | None) -> None:
    """Raises RunError where the teacher is not the one that the training began with. None: it has not begun."""
    if expected_sha256 not in (None, teacher.sha256):
        raise RunError(
            f"the teacher {teacher.where} is not the one of the recipe (teacher_sha256), or of the training that it "
            f"continues: weights {teacher.sha256[:12]}, expected {str(expected_sha256)[:12]}",
            hint="restore it, or start another run without method.teacher_sha256",
        )


def check_images(teacher: Teacher, data_sha256: str, data: Mapping[str, Any]) -> None:
    """Raises RecipeError where the teacher may have seen images that it must not know."""
    if teacher.data_sha256 is None:
        return
    if teacher.data_sha256 != data_sha256:
        raise RecipeError(
            f"method.teacher: {teacher.where} was trained on other images ({teacher.data_sha256[:12]}, these are "
            f"{data_sha256[:12]}): it may have seen the ones that judge the student",
            hint="train it on this recipe's data; or name its architecture and method.weights, and answer for it",
        )
    for key, value in (teacher.split or {}).items():
        if value != data.get(key):
            raise RecipeError(
                f"method.teacher: {teacher.where} was trained with data.{key}={value}, this recipe has "
                f"{data.get(key)}: it may have trained on this one's validation images",
                hint=f"the same data.{key} for both",
            )


class Renormalised(nn.Module):
    """A teacher that was trained with another mean and deviation than its images have: NCHW -> NK."""

    def __init__(
        self,
        network: Backbone,
        trained: tuple[Sequence[float], Sequence[float]],
        images: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        """Mean and deviation of each channel: those that the network was trained with, and those of the images."""
        super().__init__()
        self.network = network
        (trained_mean, trained_std), (mean, std) = (
            [torch.tensor(part, dtype=torch.float64).reshape(1, 3, 1, 1) for part in pair] for pair in (trained, images)
        )
        self.scale = nn.Buffer((std / trained_std).float(), persistent=False)
        self.shift = nn.Buffer(((mean - trained_mean) / trained_std).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images * self.scale + self.shift)
        return logits


def renormalise(method: nn.Module, teacher: Teacher, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let a method's teacher answer images normalised by `mean` and `std` as it answers those that it was trained on.

    The method was built around the bare network, before the images and so their normalisation were known. Raises
    RecipeError where the method keeps the network nowhere as a module: it would then be given images of another kind.
    """
    if teacher.mean is None or teacher.std is None or (teacher.mean, teacher.std) == (tuple(mean), tuple(std)):
        return
    places = [name for name, part in method.named_modules(remove_duplicate=False) if part is teacher.network]
    if not places:
        raise RecipeError(
            f"method.teacher: {teacher.where} was trained with another mean and std, and the method does not keep its "
            "network as a module",
            hint=f"data.mean={list(teacher.mean)} data.std={list(teacher.std)}",
        )
    renormalised = Renormalised(teacher.network, (teacher.mean, teacher.std), (mean, std))
    for place in places:
        method.set_submodule(place, renormalised.train(teacher.network.training))
