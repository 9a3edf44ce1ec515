"""From a recipe to the objects it names: the only place that knows data, networks and methods together."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from okdc import backbones, methods
from okdc.cohort import Cohort
from okdc.data import datasets, sources
from okdc.data.datasets import Dataset
from okdc.data.images import Progress
from okdc.errors import DataError, RecipeError
from okdc.methods.method import Method
from okdc.recipe import Recipe
from okdc.seeds import seeded


@dataclass(frozen=True)
class Job:
    """All that a training needs, built."""

    recipe: Recipe  # resolved: mean and std filled in
    dataset: Dataset
    method: Method
    notes: tuple[str, ...] = ()


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
    """The recipe with mean and std written in: the training images' where it names none."""
    mean, std = found.moments()
    data = recipe.data.model_copy(update={"mean": recipe.data.mean or mean, "std": recipe.data.std or std})
    return recipe.model_copy(update={"data": data})


def cohort(recipe: Recipe, images: torch.Size, classes: int) -> tuple[Cohort, str]:
    """The students, each initialised from a stream of its own, and a sentence on what they share."""
    kind = methods.find(recipe.method["name"])
    names, share = recipe.cohort.students, recipe.cohort.share
    if kind.single:
        names, share, words = names[:1], "none", f"{recipe.method['name']} trains the first student alone: {names[0]}"
    elif not kind.branches:
        share, words = "none", f"the students share nothing: {recipe.method['name']} trains separate networks"
    elif len(set(names)) > 1:
        share, words = "none", "the students share nothing: they differ"
    else:
        shared = {"low": "all stages but the last", "stem1": "the stem and the first stage", "none": "nothing"}[share]
        words = f"the students share {shared}"
    students = []
    for k, name in enumerate(names):
        with seeded(recipe.seed, "init", "student", k):
            students.append(backbones.build(name, classes, images))
    return Cohort(students, share), words


def method(recipe: Recipe, images: torch.Size, classes: int) -> tuple[Method, str]:
    """The recipe's method around its cohort, for images of CHW size `images`, and a sentence on what is shared."""
    kind = methods.find(recipe.method["name"])
    students, words = cohort(recipe, images, classes)
    try:
        with seeded(recipe.seed, "init", "method"):
            return kind(students, kind.Config.model_validate(recipe.method), images, classes), words
    except ValueError as error:
        raise RecipeError(f"[method] {recipe.method['name']}: {error}") from None


def job(recipe: Recipe, found: Dataset) -> Job:
    """Everything for one training, on the CPU."""
    built, shared = method(recipe, found.size, len(found.classes))
    return Job(with_moments(recipe, found), found, built, (*found.notes, shared))
