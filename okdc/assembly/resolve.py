"""From a recipe as written to one that can be built, with every default in it, or to all that is wrong with it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from okdc import backbones, methods
from okdc.assembly import job as build
from okdc.assembly.student import square
from okdc.errors import RecipeError, RunError
from okdc.recipe.schema import CROP_PADDING, ROOTS, STREAMED, Draft, Recipe, check, explain, salvage


def resolve(draft: Draft, needs_data: bool = True, trial: bool = True) -> tuple[Recipe, list[str]]:
    """The recipe with every default written out, and notes on what was changed on the way.

    `needs_data=False` lets a recipe pass that does not say where its images are: counting needs none. `trial=False`
    takes it that the method can be built: a run has proven it, and its teacher may be gone since.

    Raises RecipeError with all problems: of the tables, of `[method]` by the Config it names, of the students' names.
    """
    tables, notes = dict(draft.tables), list(draft.notes)
    root = os.environ.get("OKDC_DATA_ROOT")
    data = tables.get("data")
    if root and isinstance(data, dict) and data.get("name") != "digits" and "data.root" not in draft.overridden:
        tables["data"] = data | {"root": root}
        notes.append(f"data.root is {root} (OKDC_DATA_ROOT)")
    elif isinstance(data, dict) and "root" not in data and data.get("name") in list(ROOTS):
        tables["data"] = data | {"root": ROOTS[data["name"]]}
    problems: list[str] = []
    method = tables.get("method")
    if isinstance(method, dict) and isinstance(method.get("name"), str):
        tables["method"], dropped, problems = _method_table(method, draft)
        notes += dropped
    draft = replace(draft, tables=tables)
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
    if trial and recipe is not None and not problems:
        problems = _trial(recipe)
    if recipe is None or problems:
        problems = list(dict.fromkeys(problems))
        place = draft.path if draft.named else "what was given as KEY=VALUE"
        raise RecipeError(f"{place}: {len(problems)} problem{'s' if len(problems) > 1 else ''}", details=problems)
    return recipe, notes


def _method_table(table: dict[str, Any], draft: Draft) -> tuple[dict[str, Any], list[str], list[str]]:
    """The method's table with its defaults, notes on dropped keys, problems."""
    try:
        config = methods.find(table["name"]).Config
    except RecipeError as error:
        return table, [], [f"method.name: {'; '.join(filter(None, (error.message, error.hint)))}"]
    notes = []
    if "method.name" in draft.overridden:  # the file's keys were meant for its own method
        foreign = [key for key in table if key not in config.model_fields and f"method.{key}" not in draft.overridden]
        if foreign:
            table = {key: value for key, value in table.items() if key not in foreign}
            notes.append(f"method {table['name']} has no {', '.join(foreign)}: dropped from the recipe's [method]")
    try:
        return config.model_validate(table).model_dump(mode="json", exclude_none=True), notes, []
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
    if recipe.data.name in ("cifar10", "cifar100") and recipe.data.image_size != 32:
        problems.append(f"data.image_size: the images of {recipe.data.name} are 32×32, found {recipe.data.image_size}")
    if recipe.data.shorter_side is not None:
        if recipe.data.name not in ("folder", *STREAMED):
            problems.append(f"data.shorter_side: the images of {recipe.data.name} are not cut; leave it out")
        elif recipe.data.shorter_side < recipe.data.image_size:
            problems.append(
                f"data.shorter_side: expected at least data.image_size ({recipe.data.image_size}), "
                f"found {recipe.data.shorter_side}"
            )
    if recipe.data.name in STREAMED and recipe.data.crop_padding not in (0, CROP_PADDING):
        problems.append(
            f"data.crop_padding: {recipe.data.name} is trained on crops of random size and place, which have no "
            f"padding; leave it out, found {recipe.data.crop_padding}"
        )
    if recipe.data.crop_padding >= recipe.data.image_size:  # a crop could lie wholly outside its image
        problems.append(
            f"data.crop_padding: expected less than data.image_size ({recipe.data.image_size}), "
            f"found {recipe.data.crop_padding}"
        )
    return problems


def _trial(recipe: Recipe) -> list[str]:
    """What only the built method can tell, before any image is read. The number of classes plays no part in it."""
    images = square(recipe.data.image_size)
    try:
        teacher = build.teacher(recipe, images, classes=None)
        build.method(recipe, images, classes=2, instructor=teacher.network if teacher else None)
    except (RecipeError, RunError) as error:
        return [error.message, *error.details]
    return []
