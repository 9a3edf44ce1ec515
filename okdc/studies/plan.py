"""The runs of a study: each with the words of its command and its folder, and what lies in that folder by now.

A run counts as the study's where its recipe is the planned one, whoever trained it and wherever: a folder that was
brought from another machine is taken, and one with another recipe is refused with the keys that differ.
"""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from okdc.assembly.resolve import ResolvedRecipe, resolve
from okdc.errors import RecipeError, RunError, UsageError, nearest
from okdc.recipe import draft
from okdc.recipe.explain import refusal
from okdc.recipe.schema import TEACHER, TEACHER_PLACES, WEIGHTS, without_places
from okdc.runs.recipes import changes
from okdc.runs.run import RunDir
from okdc.studies.schema import TEACHERS, Study

State = Literal["missing", "resumable", "running", "complete", "failed"]
LEFT = ("missing", "resumable")  # what there is to do


@dataclass(frozen=True)
class Planned:
    """One run of a study."""

    column: str  # a label, or TEACHERS
    method: str
    seed: int
    words: tuple[str, ...]  # of `okdc distill`
    folder: Path
    teacher: Path | None = None  # the run that has to be there before

    @property
    def name(self) -> str:
        """column/method/seedN: its folder below the study's."""
        return f"{self.column}/{self.method}/seed{self.seed}"

    @property
    def command(self) -> str:
        return shlex.join(["okdc", "distill", *self.words, "-o", str(self.folder)])

    def resolved(self, needs_data: bool = True) -> ResolvedRecipe:
        """Raises RecipeError, which names the run, for a recipe that cannot be trained."""
        try:
            return resolve(draft.load(self.words), needs_data=needs_data)
        except RecipeError as error:
            problems = error.details or [error.message]
            raise refusal(f"{self.name} ({shlex.join(self.words)})", problems, error.hint) from None

    def state(self) -> State:
        run = RunDir(self.folder)
        return run.state() if run.is_begun() else "missing"


def planned(study: Study, folder: Path) -> list[Planned]:
    """All runs of a study, the teachers first, then seed by seed, so that all cells fill alike.

    Raises RecipeError where a method lacks its teacher.
    """
    teachers = _teachers(study, folder)
    runs = [*teachers.values()]
    taught = study.teacher.methods if study.teacher else ()
    for seed in study.seeds:
        for column, method in study.cells():
            recipe, *of_column = study.columns[column]
            words = [recipe, *study.keys, *of_column, *study.methods[method]]
            teacher = None
            if method in taught:
                data = _data_of((recipe, *of_column))
                if data not in teachers:
                    raise refusal(
                        study.title,
                        [f"teacher.recipes: none is of {data}, the data of column {column}, there is: "
                         f"{', '.join(teachers)}"],
                    )  # fmt: skip
                teacher = teachers[data].folder
                words.append(f"method.teacher={teacher}")
            place = folder / column / method / f"seed{seed}"
            runs.append(Planned(column, method, seed, (*words, *study.overrides, f"seed={seed}"), place, teacher))
    return runs


def _teachers(study: Study, folder: Path) -> dict[str, Planned]:
    """By the name of the data set."""
    if study.teacher is None:
        return {}
    teachers, seed = {}, study.teacher.seed
    for data, (recipe, *words) in study.teacher.recipes.items():
        all_words = (recipe, *study.keys, *words, *study.overrides, f"seed={seed}")
        teachers[data] = Planned(TEACHERS, data, seed, all_words, folder / TEACHERS / data / f"seed{seed}")
    return teachers


def _data_of(words: Sequence[str]) -> str:
    """The name of the data set of a recipe with overrides."""
    data = draft.load(list(words)).tables.get("data")
    return str(data.get("name")) if isinstance(data, dict) else ""


def chosen(runs: Sequence[Planned], only: Sequence[str]) -> list[Planned]:
    """The runs whose column, method, seedN or whole name matches one of the patterns, with their teachers; no pattern:
    all. Raises UsageError for a pattern that matches none.
    """
    if not only:
        return list(runs)

    def matches(run: Planned, pattern: str) -> bool:
        names = (run.name, run.column, run.method, f"seed{run.seed}", str(run.seed))
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)

    for pattern in only:
        if not any(matches(run, pattern) for run in runs):
            names = list(dict.fromkeys(name for run in runs for name in (run.column, run.method, f"seed{run.seed}")))
            raise UsageError(
                f"--only {pattern}: no run of the study matches{nearest(pattern, names)}",
                hint=f"columns, methods and seeds are {', '.join(names)}; a pattern may have *",
            )
    wanted = [run for run in runs if any(matches(run, pattern) for pattern in only)]
    needed = {run.teacher for run in wanted if run.teacher}
    return [run for run in runs if run in wanted or run.folder in needed]


def check_brought(run: Planned, resolved: ResolvedRecipe) -> None:
    """Raises RunError where the folder of a run holds one with another recipe, or something else."""
    there = RunDir(run.folder)
    if not there.is_begun():
        if run.folder.is_dir() and any(not path.name.startswith(".") for path in run.folder.iterdir()):
            raise RunError(f"{run.folder} holds something else than a run", hint="move it, or choose another -o")
        return
    recorded = there.read_info().recipe
    _check_teacher(run, recorded)
    differing = list(
        changes(_comparable(resolved.recipe.tables()), _comparable(recorded), ("in the study", "in the run"))
    )
    if differing:
        raise RunError(
            f"{run.folder} holds a run with another recipe than the study's",
            hint=f"move it; the study's is: {run.command}",
            details=differing,
        )


def _comparable(tables: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without what a training writes into it, what it reads nowhere, and what depends on the machine."""
    kept = without_places({key: value for key, value in tables.items() if key not in ("about", "engine")})
    data = {key: value for key, value in kept.get("data", {}).items() if key not in ("mean", "std")}
    cohort = {key: value for key, value in kept.get("cohort", {}).items() if key != WEIGHTS}
    method = {key: value for key, value in kept.get("method", {}).items() if key not in (TEACHER, *TEACHER_PLACES)}
    return kept | {"data": data, "cohort": cohort, "method": method}


def _check_teacher(run: Planned, tables: Mapping[str, Any]) -> None:
    """Raises RunError where another student than the study's taught the run."""
    if run.teacher is None or RunDir(run.teacher).state() != "complete":
        return
    own, theirs = RunDir(run.teacher).read_result().weights_sha256, tables.get("method", {}).get(TEACHER)
    if theirs != own:
        raise RunError(
            f"{run.folder}: its teacher has weights {str(theirs)[:12]}, {run.teacher} has {own[:12]}",
            hint="bring the teacher that taught it, or move the run",
        )
