"""From a recipe as written to one that can be built, with every default in it, or to all that is wrong with it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError

from okdc import backbones, methods
from okdc.assembly import job as build
from okdc.assembly.student import square
from okdc.data import find
from okdc.data.source import Source
from okdc.errors import DataError, RecipeError, RunError
from okdc.recipe.schema import Draft, Recipe, check, explain, salvage


def resolve(draft: Draft, needs_data: bool = True, trial: bool = True) -> tuple[Recipe, list[str]]:
    """The recipe with every default written out, and notes on what was changed on the way.

    `needs_data=False` lets a recipe pass that does not say where its images are: counting needs none. `trial=False`
    takes it that the method can be built: a run has proven it, and its teacher may be gone since.

    Raises RecipeError with all problems: of the tables, of `[method]` by the Config it names, of the students' names.
    """
    tables, notes = dict(draft.tables), list(draft.notes)
    source, problems = _source(tables.get("data"))
    root = os.environ.get("OKDC_DATA_ROOT")
    if source is not None and source.files:
        if root and "data.root" not in draft.overridden:
            tables["data"] = tables["data"] | {"root": root}
            notes.append(f"data.root is {root} (OKDC_DATA_ROOT)")
        elif source.root is not None:
            tables["data"] = {"root": source.root} | tables["data"]
    method = tables.get("method")
    if isinstance(method, dict) and isinstance(method.get("name"), str):
        tables["method"], dropped, wrong = _method_table(method, draft)
        notes, problems = notes + dropped, problems + wrong
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
        problems += [rule for rule in _rules(whole, source, needs_data) if rule.partition(":")[0] not in named]
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
        known = {key for key in config.model_fields if _means_the_same(key, config, draft)}
        foreign = [key for key in table if key not in known and f"method.{key}" not in draft.overridden]
        if foreign:
            table = {key: value for key, value in table.items() if key not in foreign}
            notes.append(f"method {table['name']} has no {', '.join(foreign)}: dropped from the recipe's [method]")
    try:
        return config.model_validate(table).model_dump(mode="json", exclude_none=True), notes, []
    except ValidationError as error:
        return table, notes, explain(error, config, "method.")


def _means_the_same(key: str, config: type[BaseModel], draft: Draft) -> bool:
    """Whether a key is as in the file's own method, whose place another takes: kd's teacher is a run, kdcl's is not."""
    if draft.replaced is None or draft.replaced not in methods.METHODS:
        return True
    before = methods.find(draft.replaced).Config.model_fields
    return key not in before or before[key].annotation == config.model_fields[key].annotation or key == "name"


def _source(data: Any) -> tuple[Source | None, list[str]]:
    """The data set that the table `[data]` names, or a line on why its name leads to none."""
    name = data.get("name") if isinstance(data, dict) else None
    if not isinstance(name, str):
        return None, []
    try:
        return find(name), []
    except DataError as error:
        return None, [f"data.name: {'; '.join(filter(None, (error.message, error.hint)))}"]


def _rules(recipe: Recipe, source: Source | None, needs_data: bool) -> list[str]:
    """What holds between keys."""
    problems = []
    name = recipe.method.get("name")
    count = 1 if name in methods.METHODS and methods.find(name).single else len(recipe.cohort.students)
    if isinstance(recipe.cohort.keep, int) and recipe.cohort.keep >= count:
        problems.append(f"cohort.keep: expected an index below {count}, found {recipe.cohort.keep}")
    if source is not None:
        problems += source.problems(recipe.data, needs_data)
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
