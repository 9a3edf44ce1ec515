"""The runs of a study: each with the words of its command and its folder."""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from okdc.assembly.resolve import ResolvedRecipe, resolve
from okdc.errors import RecipeError, UsageError, nearest
from okdc.recipe import draft
from okdc.recipe.explain import refusal
from okdc.studies.schema import TEACHERS, Study


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


def planned(study: Study, folder: Path, file: Path) -> list[Planned]:
    """All runs of a study, the teachers first, then seed by seed, so that all cells fill alike.

    Raises RecipeError, which names the study's file, where a method lacks its teacher.
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
                    names = ", ".join(teachers)
                    raise refusal(
                        str(file),
                        [f"teacher.recipes: expected one of {data}, the data of column {column}, found {names}"],
                    )
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
    """The runs that match one of the patterns, with their teachers; no pattern: all.

    A pattern is of a column, a method, both as COLUMN/METHOD, seedN, or all three. Raises UsageError for one that
    matches no run.
    """
    if not only:
        return list(runs)

    def matches(run: Planned, pattern: str) -> bool:
        names = (run.column, run.method, f"{run.column}/{run.method}", f"seed{run.seed}", str(run.seed), run.name)
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
