"""From a recipe as written to one whose every name and key is checked, or to all that is wrong with it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from okdc import backbones, methods
from okdc.assembly import origins
from okdc.data import find
from okdc.data.augmentation.geometry import resamples
from okdc.data.source import Source
from okdc.errors import DataError, RecipeError, UsageError
from okdc.methods.base import Config, Method, TaughtConfig
from okdc.progress import WARNING
from okdc.recipe.draft import OF_FOLDERS, Draft, check, list_of, place_of, refused
from okdc.recipe.explain import explain, salvage
from okdc.recipe.schema import TEACHER, TEACHER_PLACES, WEIGHTS, Augment, CohortTable, Optim, Recipe
from okdc.recipe.shorthand import full_keys, holds_list
from okdc.recipe.words import Override

LARGE_FOR_ADAMW = 0.02  # a rate of SGD's: adamw's steps are as long as the rate, whatever the gradient


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with every default written out, and its method as a class with a validated Config.

    What comes after it looks no name up and validates no table again.
    """

    recipe: Recipe  # the tables: what is written to disk and hashed
    kind: type[Method]
    config: Config
    source: Source
    place: str = "the recipe"  # where it was written, for messages
    stem: str = "recipe"  # what a run of it is named after
    notes: tuple[str, ...] = ()  # what was chosen on the user's behalf

    @property
    def classes(self) -> int | None:
        """The number of classes as far as it is known before any image is read."""
        return self.source.count_classes(self.recipe.data.root)

    @property
    def architectures(self) -> tuple[str, ...]:
        """The zoo names of the trained networks: the first student's alone for a method that trains one."""
        students = self.recipe.cohort.students
        names = students[:1] if self.kind.single else students
        output = self.recipe.cohort.output
        return self.kind.architectures([backbones.with_output(name, output) for name in names], self.config)

    @property
    def has_teacher(self) -> bool:
        """Whether the method learns from a frozen teacher."""
        return issubclass(self.kind.Config, TaughtConfig)

    @property
    def variant(self) -> str:
        """The method and its keys that differ from its defaults: `fefr reconstruct=cyclic`. One row of a comparison.

        Where a key sets the defaults of others, that key alone is named: `fefr reading=released`.
        """
        defaults = self.kind.Config.defaults_of(self.recipe.method)
        places = (TEACHER, *TEACHER_PLACES) if self.has_teacher else ()
        values = {key: getattr(self.config, key) for key in sorted(defaults.keys() - {"name", *places})}
        changed = [f"{key}={json.dumps(value)}" for key, value in values.items() if value != defaults[key]]
        return " ".join([self.recipe.method["name"], *changed]).replace('"', "")

    def with_seed(self, seed: int) -> ResolvedRecipe:
        return replace(self, recipe=self.recipe.model_copy(update={"seed": seed}))

    def with_teacher(self, sha256: str) -> ResolvedRecipe:
        """The recipe that says which weights its teacher has."""
        method = self.recipe.method | {TEACHER: sha256}
        return replace(
            self,
            recipe=self.recipe.model_copy(update={"method": method}),
            config=self.config.model_copy(update={TEACHER: sha256}),
        )

    def with_weights(self, sha256s: tuple[str, ...]) -> ResolvedRecipe:
        """The recipe that says which weights its students start from."""
        cohort = self.recipe.cohort.model_copy(update={WEIGHTS: sha256s})
        return replace(self, recipe=self.recipe.model_copy(update={"cohort": cohort}))


def resolve(draft: Draft, needs_data: bool = True, begun: bool = False) -> ResolvedRecipe:
    """The recipe with every default written out. No network is built and no image is read.

    `needs_data=False` accepts a recipe that does not say where its images are: counting needs none. `begun`: it is that
    of a run or a series, which names the weights of its students in full; they need not be there any more.

    Raises RecipeError with all problems: of the tables, of `[method]` by the Config it names, of the students' names
    and weights.
    """
    source, problems = _source(draft.tables.get("data"))
    if source is not None and not source.files and not draft.named and (typed := _typed(draft, "data.root")):
        raise _no_folder_read(source, typed)
    draft, short = _with_short_keys_of_method(draft)
    tables, notes = _with_root(draft, source)
    if needs_data and not begun and source is not None and source.files:
        _refuse_root_beside_recipe(draft, tables["data"].get("root"))
    notes += short
    kind, config = None, None
    method = tables.get("method")
    if isinstance(method, dict) and isinstance(method.get("name"), str):
        try:
            kind = methods.find(method["name"])
        except RecipeError as error:
            problems.append(f"method.name: {'; '.join(filter(None, (error.message, error.hint)))}")
        else:
            tables["method"], dropped = _keys_of_method(method, kind.Config, draft)
            notes += dropped
            try:
                config = kind.Config.model_validate(tables["method"])
                tables["method"] = config.model_dump(mode="json", exclude_none=True)
            except ValidationError as error:
                problems += explain(error, kind.Config, "method.")
    recipe, wrong = check(replace(draft, tables=tables))
    problems = [*map(_with_owners, wrong), *problems]
    students = tables.get("cohort", {}).get("students", []) if isinstance(tables.get("cohort"), dict) else []
    for name in [s for s in students if isinstance(s, str)] if isinstance(students, list) else []:
        try:
            backbones.check(name)
        except RecipeError as error:
            problems.append(f"cohort.students: {error.message}; {error.hint}")
    if (whole := recipe or salvage(tables)) is not None:
        count = 1 if kind and kind.single else len(whole.cohort.students)
        if recipe is not None and source is not None and not problems and not begun:
            choice = origins.chosen(tables, recipe, source, count)
            recipe, wrong = check(replace(draft, tables=choice.tables))
            notes, problems, whole = notes + choice.notes, choice.problems + wrong, recipe or whole
        keys = {problem.partition(":")[0] for problem in problems}  # one line a key is enough
        problems += [rule for rule in _rules(whole, source, count, needs_data) if rule.partition(":")[0] not in keys]
    if recipe is None or kind is None or config is None or source is None or problems:
        raise refused(draft, list(dict.fromkeys(problems)))
    return ResolvedRecipe(
        recipe, kind, config, source, place_of(draft), draft.stem, (*notes, *_remarks(recipe, config.name))
    )


def _remarks(recipe: Recipe, method: str) -> list[str]:
    """What is allowed, and may not be what was meant."""
    optim, augment, remarks = recipe.optim, recipe.augment, []
    if optim.optimizer == "adamw" and optim.lr >= LARGE_FOR_ADAMW:
        remarks.append(f"{WARNING}optim.lr={optim.lr:g} is a rate for sgd: adamw usually learns with about 0.001")
    if optim.backbone_lr != 1:
        rate = optim.lr * optim.backbone_lr
        remarks.append(f"optim.backbone_lr={optim.backbone_lr:g} is a factor: the backbones learn with {rate:g}")
    of_labels = {
        "optim.label_smoothing": optim.label_smoothing > 0,
        "optim.class_weights": optim.class_weights != "none",
        "augment.mixup": augment.mixup > 0,
        "augment.cutmix": augment.cutmix > 0,
    }
    if method not in methods.METHODS.own and (keys := [key for key, used in of_labels.items() if used]):
        remarks.append(
            f"{', '.join(keys)}: method.name={method} gets them only through Method.cross_entropy and "
            "Method.targets; a loss that reads batch.labels ignores them"
        )
    return remarks


def _with_root(draft: Draft, source: Source | None) -> tuple[dict[str, Any], list[str]]:
    """The draft's tables with the place of the images: the override, OKDC_DATA_ROOT, the file, the default."""
    tables, notes = dict(draft.tables), list(draft.notes)
    root = os.environ.get("OKDC_DATA_ROOT")
    if source is not None and source.files:
        if root and "data.root" not in draft.overridden:
            tables["data"] = tables["data"] | {"root": root}
            notes.append(f"data.root is {root} (OKDC_DATA_ROOT)")
        elif source.root is not None:
            tables["data"] = {"root": source.root} | tables["data"]
    return tables, notes


def _refuse_root_beside_recipe(draft: Draft, root: Any) -> None:
    """Raises DataError where a file's `data.root` leads nowhere from the working directory, but does from the file."""
    if not isinstance(root, str) or root != draft.tables["data"].get("root") or "data.root" in draft.overridden:
        return
    beside = os.path.normpath(draft.path.parent / root)
    if not os.path.isdir(os.path.expanduser(root)) and os.path.isdir(beside):  # noqa: PTH111, PTH112  (any path)
        raise DataError(
            f"{draft.path}: data.root is {root}, which leads to no folder from here: it is relative to the folder in "
            "which okdc is called, not to the recipe",
            hint=f"--data-root {shlex.quote(beside)}",
        )


def _typed(draft: Draft, key: str) -> Override | None:
    """The words of the command that gave a key."""
    return next((override for override in reversed(draft.overrides) if override.key == key), None)


def _no_folder_read(source: Source, typed: Override) -> UsageError:
    """The error for a folder of images without a recipe: the default's images come with a package."""
    return UsageError(
        f"{typed.words}: the images of {source.name}, of the default recipe, come with a package: no folder is read",
        corrections={typed.typed: (OF_FOLDERS, f"data.root={typed.value.strip()}")},
    )


def _with_short_keys_of_method(draft: Draft) -> tuple[Draft, list[str]]:
    """The draft whose overrides like `temperature=2` are keys of its method, with a note on each."""
    method = draft.tables.get("method")
    name = method.get("name") if isinstance(method, dict) else None
    short = [o for o in draft.overrides if not ("." in o.key or o.key in Recipe.model_fields or full_keys(o.key))]
    if not short or not isinstance(name, str):
        return draft, []
    with contextlib.suppress(RecipeError):  # of a method that nobody knows: it has a line of its own
        fields = methods.find(name).Config.model_fields
        mine = {o.key: f"method.{o.key}" for o in short if o.key in fields}
        tables = {key: value for key, value in draft.tables.items() if key not in mine}
        tables["method"] = tables["method"] | {key: draft.tables[key] for key in mine}
        overrides = tuple(replace(o, key=mine.get(o.key, o.key)) for o in draft.overrides)
        keys = frozenset(mine.get(key, key) for key in draft.overridden)
        notes = [f"{o.words} is read as {mine[o.key]}={o.value.strip()}" for o in short if o.key in mine]
        return replace(draft, tables=tables, overrides=overrides, overridden=keys), notes
    return draft, []


def _with_owners(problem: str) -> str:
    """The line of a problem; of an unknown key at the top level with the methods that have a key of this name."""
    key, _, rest = problem.partition(": unknown key")
    if not rest or "." in key or full_keys(key):
        return problem
    owners = [name for name in sorted(methods.METHODS.own) if key in methods.find(name).Config.model_fields]
    if not owners:
        return problem
    return (
        f"{key}: unknown key of this method; it is one of {', '.join(owners)} (okdc recipes method.{owners[0]}.{key})"
    )


def _keys_of_method(table: dict[str, Any], config: type[Config], draft: Draft) -> tuple[dict[str, Any], list[str]]:
    """`[method]` without the keys that the file meant for another method, and a note that names them."""
    table, notes = _with_defaults_of(_with_lists(table, config, draft), config, draft)
    if "method.name" not in draft.overridden:
        return table, notes
    foreign = [key for key in table if key not in config.model_fields and f"method.{key}" not in draft.overridden]
    if not foreign:
        return table, notes
    notes.append(f"method {table['name']} has no {', '.join(foreign)}: dropped from the recipe's [method]")
    return {key: value for key, value in table.items() if key not in foreign}, notes


def _with_lists(table: dict[str, Any], config: type[Config], draft: Draft) -> dict[str, Any]:
    """`[method]` with a list for each override of a key that holds one: a command needs no brackets."""
    lists = {f"method.{key}": key for key, field in config.model_fields.items() if holds_list(field.annotation)}
    return table | {lists[o.key]: list_of(o.value) for o in draft.overrides if o.key in lists}


def _with_defaults_of(table: dict[str, Any], config: type[Config], draft: Draft) -> tuple[dict[str, Any], list[str]]:
    """`[method]` without the file's keys that only wrote out a default which an override has changed, and a note.

    The recipe.toml of a run has every key: `method.reading=released` would otherwise change nothing but its own name.
    """
    if table["name"] != draft.method.get("name"):  # of another method
        return table, []
    before, now = config.defaults_of(draft.method), config.defaults_of(table)
    follow = [
        key
        for key in table
        if f"method.{key}" not in draft.overridden and before.get(key) == table[key] != now.get(key)
    ]
    if not follow:
        return table, []
    changed = [key for key in table if table[key] != draft.method.get(key) and f"method.{key}" in draft.overridden]
    words = ", ".join(f"method.{key}={table[key]}" for key in changed)
    note = f"{words}: {', '.join(follow)} of the recipe's [method] had the defaults of before, and follow"
    return {key: value for key, value in table.items() if key not in follow}, [note]


def _source(data: Any) -> tuple[Source | None, list[str]]:
    """The data set that the table `[data]` names, or a line that says why its name leads to none."""
    name = data.get("name") if isinstance(data, dict) else None
    if not isinstance(name, str):
        return None, []
    try:
        return find(name), []
    except DataError as error:
        return None, [f"data.name: {'; '.join(filter(None, (error.message, error.hint)))}"]


def _rules(recipe: Recipe, source: Source | None, students: int, needs_data: bool) -> list[str]:
    """What holds between keys, where so many `students` are trained."""
    problems = []
    data = recipe.data
    if isinstance(recipe.cohort.keep, int) and recipe.cohort.keep >= students:
        problems.append(f"cohort.keep: expected an index below {students}, found {recipe.cohort.keep}")
    if source is not None:
        problems += source.problems(data, needs_data)
    problems += _rules_of_augment(recipe.augment, data.image_size)
    if recipe.optim.sampler == "balanced" and (recipe.augment.mixup or recipe.augment.cutmix):
        problems.append(
            "optim.sampler: expected none beside augment.mixup and augment.cutmix, found balanced: neighbours are "
            "mixed, and in its order they are never of one class; optim.class_weights=balanced goes with both"
        )
    return problems + _rules_of_optim(recipe.optim, recipe.cohort) + _rules_of_weights(recipe)


def _rules_of_augment(keys: Augment, size: int) -> list[str]:
    """What holds between the keys of `[augment]`, for images of this size."""
    problems = []
    if keys.crop == "pad" and keys.padding >= size:  # a crop could lie wholly outside its image
        problems.append(f"augment.padding: expected less than data.image_size ({size}), found {keys.padding}")
    usual = Augment()
    if keys.crop == "resized" and keys.padding not in (0, usual.padding):
        problems.append(f"augment.padding: augment.crop=resized has none; expected 0, found {keys.padding}")
    if keys.padding_mode == "reflect" and (resamples(keys) or not keys.padding):
        moving = ("crop", "rotation", "translate", "zoom", "shear", "policy")
        others = [f"{key}={getattr(keys, key)}" for key in moving if getattr(keys, key) != getattr(usual, key)]
        others += [] if keys.padding else ["padding=0"]
        problems.append(f"augment.padding_mode: expected zeros beside {', '.join(others)}, found reflect")
    for name in ("scale", "ratio"):
        if keys.crop == "pad" and (value := getattr(keys, name)) != getattr(usual, name):
            problems.append(f"augment.{name}: augment.crop=pad has none; leave it out, found {list(value)}")
    return problems


def _rules_of_optim(optim: Optim, cohort: CohortTable) -> list[str]:
    """What holds between the keys of `[optim]`, and between these and the choice of an epoch."""
    problems = []
    # A key of the optimiser that is not the chosen one would be ignored: it keeps its default.
    unread, instead = ("momentum", "betas") if optim.optimizer == "adamw" else ("betas", "momentum")
    default, value = Optim.model_fields[unread].default, getattr(optim, unread)
    if value != default:
        problems.append(
            f"optim.{unread}: {optim.optimizer} has none, its key is optim.{instead}; expected the default {default}, "
            f"found {value}"
        )
    steps = Optim.model_fields["milestones"].default
    if optim.schedule != "step" and optim.milestones != steps:
        problems.append(
            f"optim.milestones: optim.schedule={optim.schedule} has none; leave it out, found {list(optim.milestones)}"
        )
    if optim.class_weights == optim.sampler == "balanced":
        problems.append(
            "optim.class_weights: expected none beside optim.sampler=balanced, found balanced: rare classes would "
            "count twice as much"
        )
    if optim.patience and cohort.keep_epoch == "last":
        problems.append(
            f"optim.patience: expected 0 with cohort.keep_epoch=last, found {optim.patience}: it ends a training some "
            "epochs after the best one, and the last would be kept; an early stop wants cohort.keep_epoch=best "
            "cohort.keep=best data.val_fraction=0.1"
        )
    return problems


def _rules_of_weights(recipe: Recipe) -> list[str]:
    """What treats trained weights otherwise than random ones needs some."""
    optim, problems = recipe.optim, []
    if recipe.cohort.weights is None:
        usual = Optim()
        for key in ("freeze_epochs", "backbone_lr"):
            if getattr(optim, key) != getattr(usual, key):
                problems.append(
                    f"optim.{key}: it is for students that start from trained weights, and cohort.weights names none"
                )
    if 0 < optim.patience <= optim.freeze_epochs:
        problems.append(
            f"optim.patience: expected more than optim.freeze_epochs ({optim.freeze_epochs}), found {optim.patience}: "
            "the training could end before its backbones learn"
        )
    if optim.freeze_epochs > optim.epochs:
        problems.append(
            f"optim.freeze_epochs: expected optim.epochs ({optim.epochs}) at most, found {optim.freeze_epochs}"
        )
    return problems
