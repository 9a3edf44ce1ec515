"""From a recipe or a run to the objects it names: the only place that knows data, networks and methods together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from okdc import backbones, methods
from okdc.cohort import Backbone, Cohort
from okdc.data import datasets
from okdc.data.datasets import Dataset
from okdc.data.images import Progress
from okdc.errors import DataError, RecipeError, RunError
from okdc.files import read_json
from okdc.methods.method import Method
from okdc.recipe import Draft, Recipe, check, explain, read, salvage
from okdc.run import Run
from okdc.seeds import seeded
from okdc.talk import Listener


@dataclass(frozen=True)
class Job:
    """All that a training needs, built."""

    recipe: Recipe  # resolved: mean and std filled in
    dataset: Dataset
    method: Method
    notes: tuple[str, ...] = ()


def resolve(draft: Draft, needs_data: bool = True) -> tuple[Recipe, list[str]]:
    """The recipe with every default written out, and notes on what was changed on the way.

    `needs_data=False` lets a recipe pass that does not say where its images are: counting needs none.

    Raises RecipeError with all problems: of the tables, of `[method]` by the Config it names, of the students' names.
    """
    tables, notes = dict(draft.tables), list(draft.notes)
    root = os.environ.get("OKDC_DATA_ROOT")
    data = tables.get("data")
    if root and isinstance(data, dict) and data.get("name") != "digits" and "data.root" not in draft.overridden:
        tables["data"] = data | {"root": root}
        notes.append(f"data.root is {root} (OKDC_DATA_ROOT)")
    problems: list[str] = []
    method = tables.get("method")
    if isinstance(method, dict) and isinstance(method.get("name"), str):
        tables["method"], dropped, problems = _method_table(method, draft)
        notes += dropped
    draft = Draft(draft.path, tables, draft.overridden, draft.problems)
    recipe, found = check(draft)
    problems = found + problems
    students = tables.get("cohort", {}).get("students", []) if isinstance(tables.get("cohort"), dict) else []
    for name in [s for s in students if isinstance(s, str)] if isinstance(students, list) else []:
        try:
            backbones.check(name)
        except RecipeError as error:
            problems.append(f"cohort.students: {error.message}; {error.hint}")
    whole = recipe or salvage(tables)
    if whole is not None:
        named = {problem.partition(":")[0] for problem in problems}  # one line a key is enough
        problems += [rule for rule in _rules(whole, needs_data) if rule.partition(":")[0] not in named]
    if recipe is not None and not problems:
        problems = _trial(recipe)
    if recipe is None or problems:
        problems = list(dict.fromkeys(problems))
        raise RecipeError(f"{draft.path}: {len(problems)} problem{'s' if len(problems) > 1 else ''}", details=problems)
    return recipe, notes


def _method_table(table: dict[str, Any], draft: Draft) -> tuple[dict[str, Any], list[str], list[str]]:
    """The method's table with its defaults, notes on dropped keys, problems."""
    try:
        config = methods.find(table["name"]).Config
    except ValueError as error:
        return table, [], [f"method.name: {error}"]
    notes = []
    if "method.name" in draft.overridden:  # the file's keys were meant for its own method
        known = set(config.model_fields)
        foreign = [key for key in table if key not in known and f"method.{key}" not in draft.overridden]
        if foreign:
            table = {key: value for key, value in table.items() if key not in foreign}
            notes.append(f"method {table['name']} has no {', '.join(foreign)}: dropped from the recipe's [method]")
    try:
        return config.model_validate(table).model_dump(mode="json"), notes, []
    except ValidationError as error:
        return table, notes, explain(error, config, "method.")


def _rules(recipe: Recipe, needs_data: bool) -> list[str]:
    """What holds between keys."""
    problems = []
    name = recipe.method.get("name")
    count = 1 if name in methods.METHODS and methods.find(name).single else len(recipe.cohort.students)
    if isinstance(recipe.cohort.keep, int) and recipe.cohort.keep >= count:
        problems.append(f"cohort.keep: expected an index below {count}, found {recipe.cohort.keep}")
    if needs_data and recipe.data.name == "folder" and recipe.data.root is None:
        problems.append("data.root: missing; expected a folder of images: data.root=path/to/images")
    if recipe.data.name == "digits" and recipe.data.image_size != 8:
        problems.append(f"data.image_size: the digits are 8×8, found {recipe.data.image_size}")
    if recipe.data.crop_padding >= recipe.data.image_size:  # a crop could lie wholly outside its image
        problems.append(
            f"data.crop_padding: expected less than data.image_size ({recipe.data.image_size}), "
            f"found {recipe.data.crop_padding}"
        )
    return problems


def _trial(recipe: Recipe) -> list[str]:
    """What only the built method can tell, before any image is read. The number of classes plays no part in it."""
    try:
        method(recipe, _images(recipe.data.image_size), classes=2)
    except RecipeError as error:
        return [error.message]
    return []


def dataset(recipe: Recipe, progress: Progress | None = None) -> Dataset:
    """The recipe's images, divided. Raises DataError where they do not carry the recipe."""
    data = recipe.data
    if data.name == "digits":
        found = datasets.digits()
    else:
        assert data.root is not None
        found = datasets.folder(Path(data.root).expanduser(), data.image_size, progress)
    found = datasets.divide(found, data.val_fraction, data.train_images, recipe.seed)
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


# ---------------------------------------------------------------------------------------------------------------------
# From a run


def recipe_of(run: Run, data_root: str | None = None) -> tuple[Recipe, list[str]]:
    """The resolved recipe that a run was started with, and notes; `data_root` says where its images are now."""
    tables = read(run.recipe)
    if data_root is not None and isinstance(tables.get("data"), dict):
        tables["data"]["root"] = data_root
    given = frozenset({"data.root"}) if data_root is not None else frozenset()
    return resolve(Draft(run.recipe, tables, given))


def data_of(run: Run, recipe: Recipe, tell: Listener) -> Dataset:
    """The images of a run, where its `recipe` has them now, proven to be those that it was started with.

    Raises DataError where they are gone or others.
    """
    root = recipe.data.root
    if recipe.data.name == "folder" and not Path(root or "").expanduser().is_dir():
        raise DataError(
            f"the images of {run.path} are not at {Path(root or '').absolute()}",
            hint="--data-root DIR, or OKDC_DATA_ROOT, says where they are now",
        )
    with tell.reading() as progress:
        found = dataset(recipe, progress)
    for note in found.notes:
        tell.note(note)
    check_data(found, run)
    return found


def check_data(found: Dataset, run: Run) -> None:
    """Raises DataError where the images are not those that the run was started with."""
    facts = run.facts("classes", "data_sha256")
    datasets.same_classes(facts["classes"], found, str(run.path))
    if found.fingerprint != facts["data_sha256"]:
        raise DataError(
            f"the images are not those of {run.path}: contents, classes or splits {found.fingerprint[:12]} now, "
            f"{facts['data_sha256'][:12]} when it started",
            hint="restore them, or start another run",
        )


def _images(size: int) -> torch.Size:
    """CHW of square colour images."""
    return torch.Size((3, size, size))


def empty_student(facts: dict[str, Any]) -> Backbone:
    """The network that student.json describes, with fresh weights."""
    with seeded(0, "init"):
        return backbones.build(facts["architecture"], len(facts["classes"]), _images(facts["preprocessing"]["size"]))


def student(run: Run) -> tuple[Backbone, dict[str, Any]]:
    """The kept student, read back from its file, in eval mode, and student.json."""
    from safetensors.torch import load_file

    facts = read_json(
        run.student, "architecture", "classes", "preprocessing", "student", "epoch", "method", "dataset",
        "recipe_sha256", "weights_sha256",
    )  # fmt: skip
    network = empty_student(facts)
    try:
        network.load_weights(load_file(run.weights))
    except Exception as error:  # safetensors raises its own kinds, torch a RuntimeError that lists keys
        raise RunError(f"{run.weights}: not the weights of a {facts['architecture']}: {error}") from None
    return network.eval(), facts
