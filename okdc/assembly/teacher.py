"""A frozen teacher: the kept student of a finished run, or a network by name with a file of weights.

Only a run can prove that its teacher has never seen the images that judge the student: another data set, or other
splits of it, are refused. What a file of weights was trained on is its owner's knowledge, and said to be.
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
from okdc.cohort import Backbone
from okdc.errors import CheckFailed, RecipeError, RunError
from okdc.recipe.schema import TEACHER, read
from okdc.runs.run import Run
from okdc.runs.series import Series

# What decides which images a run has trained on; two runs that agree on it have held out the same ones.
SPLIT = ("val_fraction",)


@dataclass(frozen=True)
class Teacher:
    """A teacher and what is known of it."""

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


def load(where: str, weights: str | None, classes: int | None, images: torch.Size) -> Teacher:
    """The teacher that `[method]` names: `where` is a run, or a network whose `weights` are a file.

    Before the images are read nobody knows `classes`: with None a network is built, and the file only has to be there.

    Raises RunError for a run that is not complete or damaged, CheckFailed for a student that is not the recorded one,
    RecipeError for what leads to no teacher.
    """
    folder = Path(where).expanduser()
    if Run.is_at(folder):
        if weights is not None:
            raise RecipeError("method.weights: a run brings its own; it belongs to a network's name")
        return _of_run(Run.open(folder))
    if Series.is_at(folder):
        raise RecipeError(f"method.teacher: {where} is a series of runs", hint=f"name one of them: {folder / 'seed0'}")
    if len(folder.parts) > 1 or (folder.is_dir() and not backbones.is_name(where)):
        raise RunError(
            f"method.teacher: there is no run at {folder.absolute()}", hint="put it back, or name the one that is meant"
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
    network = backbones.build(where, classes or 2, images)
    if classes is None:
        if not path.is_file():
            raise RecipeError(f"method.weights: no such file: {path}")
        return Teacher(network, weights, where, "")
    try:
        content, tensors = _read(path)
        network.load_weights(tensors)
    except OSError as error:
        raise RecipeError(f"method.weights: {weights}: cannot be read: {error.strerror}") from None
    except Exception as error:  # safetensors and torch raise kinds of their own, load_weights a RuntimeError
        why = str(error).strip().splitlines()
        raise RecipeError(
            f"method.weights: {weights}: not the weights of a {where} for {classes} classes: "
            + (why[0] if why else repr(error)),
            details=why[1:6],
        ) from None
    return Teacher(network, weights, where, hashlib.sha256(content).hexdigest())


def _read(path: Path) -> tuple[bytes, dict[str, Tensor]]:
    """A .safetensors file, or what torch.save wrote of tensors alone: no pickle is run."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        from safetensors.torch import load as from_safetensors

        return content, from_safetensors(content)
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    return content, tensors


def _of_run(run: Run) -> Teacher:
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
        {key: read(run.recipe)["data"].get(key) for key in SPLIT},
        rule.mean,
        rule.std,
        _unknown_origin(run),
    )


def _unknown_origin(run: Run) -> str:
    """What a run, or a run that taught it, has learned from that no run made."""
    table = read(run.recipe)["method"]
    if TEACHER not in table:
        return ""
    above = Path(table["teacher"]).expanduser()
    if "weights" in table or not Run.is_at(above):
        return str(table.get("weights", table["teacher"]))
    return _unknown_origin(Run.open(above))


def check(teacher: Teacher, expected_sha256: str | None, data_sha256: str, data: Mapping[str, Any]) -> None:
    """Raises RunError where it is not the teacher that the training began with, RecipeError where it may have seen
    images that it must not know."""
    if expected_sha256 not in (None, teacher.sha256):
        raise RunError(
            f"the teacher {teacher.where} is not the one of the recipe (teacher_sha256), or of the training that it "
            f"continues: weights {teacher.sha256[:12]}, expected {str(expected_sha256)[:12]}",
            hint="restore it, or start another run without method.teacher_sha256",
        )
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
    """A teacher that was trained with another mean and deviation, for images normalised by these: NCHW -> NK."""

    def __init__(
        self,
        network: Backbone,
        own: tuple[Sequence[float], Sequence[float]],
        given: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        super().__init__()
        self.network = network
        (own_mean, own_std), (mean, std) = (
            [torch.tensor(part, dtype=torch.float64).reshape(1, 3, 1, 1) for part in pair] for pair in (own, given)
        )
        self.scale = nn.Buffer((std / own_std).float(), persistent=False)
        self.shift = nn.Buffer(((mean - own_mean) / own_std).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images * self.scale + self.shift)
        return logits


def for_images(teacher: Teacher, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The teacher as a function of images normalised by `mean` and `std`."""
    if teacher.mean is None or teacher.std is None or (teacher.mean, teacher.std) == (tuple(mean), tuple(std)):
        return teacher.network
    return Renormalised(teacher.network, (teacher.mean, teacher.std), (mean, std))
