"""From a recipe to the objects it names: the only place that knows data, networks and methods together."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import nn

from okdc import backbones, methods
from okdc.assembly import teacher as teachers
from okdc.assembly.teacher import Teacher
from okdc.cohort import Cohort
from okdc.data import datasets, sources
from okdc.data.datasets import Dataset
from okdc.data.images import Progress
from okdc.errors import DataError, RecipeError
from okdc.methods.base import Method, TaughtConfig
from okdc.recipe.schema import TEACHER, TEACHER_PLACES, Recipe
from okdc.seeds import seeded


@dataclass(frozen=True)
class Job:
    """All that a training needs, built."""

    recipe: Recipe  # resolved: mean and std filled in
    dataset: Dataset
    method: Method
    notes: tuple[str, ...] = ()
    variant: str = ""
    teacher: dict[str, str] | None = None


def dataset(recipe: Recipe, progress: Progress | None = None) -> Dataset:
    """The recipe's images, divided. Raises DataError where they do not carry the recipe."""
    data = recipe.data
    found = datasets.divide(sources.load(data, progress), data.val_fraction, data.train_images, recipe.seed)
    if len(found.train) < recipe.optim.batch_size:
        raise DataError(
            f"optim.batch_size is {recipe.optim.batch_size}, there are {len(found.train)} training images",
            hint=f"for example: optim.batch_size={max(2, len(found.train) // 8)}",
        )
    if not len(found.val) and recipe.cohort.keep == "best":
        raise RecipeError(
            "cohort.keep='best' chooses on validation images, and "
            f"data.val_fraction={data.val_fraction} of {len(found.train)} images leaves none",
            hint="cohort.keep=0 keeps the first student at the last epoch; or data.val_fraction=0.1",
        )
    if not len(found.val) and not len(found.test):
        raise DataError(
            "there are neither validation nor test images: nothing could be measured",
            hint="data.val_fraction=0.1 holds some of the training images out",
        )
    return found


def with_moments(recipe: Recipe, found: Dataset) -> Recipe:
    """The recipe with mean and std written in, where it names none: the published ones, else the training images'."""
    mean, std = found.published or found.moments()
    data = recipe.data.model_copy(update={"mean": recipe.data.mean or mean, "std": recipe.data.std or std})
    return recipe.model_copy(update={"data": data})


def architectures(recipe: Recipe) -> tuple[str, ...]:
    """The zoo names of the networks that are trained: the first student's alone for a method that trains one."""
    kind = methods.find(recipe.method["name"])
    config = kind.Config.model_validate(recipe.method)
    names = recipe.cohort.students[:1] if kind.single else recipe.cohort.students
    return tuple(kind.architecture(name, config) for name in names)


def cohort(recipe: Recipe, images: torch.Size, classes: int) -> tuple[Cohort, str]:
    """The students, each initialised from a stream of its own, and a sentence on what they share."""
    kind = methods.find(recipe.method["name"])
    names, share = architectures(recipe), recipe.cohort.share
    if len(names) == 1 and not kind.single:
        share, words = "none", f"one student: {names[0]}"
    elif kind.single:
        share, words = "none", f"{recipe.method['name']} trains the first student alone: {names[0]}"
    elif not kind.branches:
        share, words = "none", f"the students share nothing: {recipe.method['name']} trains separate networks"
    elif len(set(names)) > 1:
        if kind.needs_trunk and share != "none":
            raise RecipeError(
                f"cohort.share={share!r} needs students of one architecture: {recipe.method['name']}'s branches grow "
                f"from one trunk, and these differ ({', '.join(names)}); {kind.alternatives}"
            )
        share, words = "none", "the students share nothing: they differ"
    else:
        shared = {"low": "all stages but the last", "stem1": "the stem and the first stage", "none": "nothing"}[share]
        words = f"the students share {shared}"
    students = []
    for k, name in enumerate(names):
        with seeded(recipe.seed, "init", "student", k):
            students.append(backbones.build(name, classes, images))
    return Cohort(students, share), words


def method(recipe: Recipe, images: torch.Size, classes: int, instructor: nn.Module | None = None) -> tuple[Method, str]:
    """The recipe's method around its cohort, for images of CHW size `images`, and a sentence on what is shared."""
    kind = methods.find(recipe.method["name"])
    students, words = cohort(recipe, images, classes)
    try:
        with seeded(recipe.seed, "init", "method"):
            return kind(students, kind.Config.model_validate(recipe.method), images, classes, instructor), words
    except ValueError as error:
        raise RecipeError(f"[method] {recipe.method['name']}: {error}") from None


def variant(recipe: Recipe) -> str:
    """The method and its keys that differ from its defaults: `fefr reconstruct=cyclic`. What one row compares."""
    config = methods.find(recipe.method["name"]).Config.model_validate(recipe.method)
    fields = type(config).model_fields
    words = [recipe.method["name"]]
    places = (TEACHER, *TEACHER_PLACES) if isinstance(config, TaughtConfig) else ()
    for key in sorted(fields.keys() - {"name", *places}):
        value = getattr(config, key)
        if value != fields[key].default:
            words.append(f"{key}={json.dumps(value)}".replace('"', ""))
    return " ".join(words)


def _stages(cohort: Cohort) -> list[str]:
    """Where foreign networks were cut: their authors drew no stages."""
    found = {student.architecture: student.description for student in cohort.backbones()}
    return [f"{name}: stages found by probing with one image: {text}" for name, text in found.items() if text]


def teacher(recipe: Recipe, images: torch.Size, classes: int | None) -> Teacher | None:
    """The teacher that the recipe's method names, if it has one; `classes=None` only looks whether there is one."""
    if not issubclass(methods.find(recipe.method["name"]).Config, TaughtConfig):
        return None
    return teachers.load(recipe.method["teacher"], recipe.method.get("weights"), classes, images)


def job(recipe: Recipe, found: Dataset) -> Job:
    """Everything for one training, on the CPU."""
    recipe = with_moments(recipe, found)
    instructor, notes = None, list(found.notes)
    if known := teacher(recipe, found.size, len(found.classes)):
        if known.size not in (None, recipe.data.image_size):
            raise RecipeError(
                f"method.teacher: {known.where} was trained on {known.size}×{known.size} images, "
                f"data.image_size is {recipe.data.image_size}"
            )
        if known.classes is not None:
            datasets.same_classes(known.classes, found, known.where)
        teachers.check(known, recipe.method.get(TEACHER), found.fingerprint, recipe.data.model_dump())
        recipe = recipe.model_copy(update={"method": recipe.method | {TEACHER: known.sha256}})
        assert recipe.data.mean is not None
        assert recipe.data.std is not None
        instructor = teachers.for_images(known, recipe.data.mean, recipe.data.std)
        notes.append(known.note)
    built, shared = method(recipe, found.size, len(found.classes), instructor)
    return Job(
        recipe,
        found,
        built,
        (*notes, *_stages(built.cohort), shared, *built.notes),
        variant(recipe),
        known.facts if known else None,
    )
