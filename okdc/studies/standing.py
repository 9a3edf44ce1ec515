"""What lies in the folder of each run of a study by now.

A run counts as the study's where its recipe is the planned one, whoever trained it and wherever: a folder that was
brought from another machine is taken. A run with another recipe, or one whose files are damaged, counts as nothing, and
is named with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from okdc.comparison.finished import Finished, load
from okdc.errors import OkdcError, RunError
from okdc.recipe.schema import TEACHER, TEACHER_PLACES, WEIGHTS, without_places
from okdc.runs.recipes import changes
from okdc.runs.run import RunDir, is_empty
from okdc.studies.plan import Planned
from okdc.studies.schema import TEACHERS

State = Literal["missing", "resumable", "running", "complete", "failed", "damaged", "foreign"]
LEFT = ("missing", "resumable")  # what there is to do


@dataclass(frozen=True)
class Standing:
    """A run of a study, and how far it is."""

    run: Planned
    state: State  # foreign: its folder holds another run than the planned one, or something else
    why: str = ""  # of a run that is in the way
    details: tuple[str, ...] = ()  # of another recipe: the keys that differ
    finished: Finished | None = None  # of a complete run


def standings(runs: Sequence[Planned]) -> list[Standing]:
    """Of each run. Raises RecipeError for a recipe that nobody can train."""
    return [_standing(run) for run in runs]


def _standing(run: Planned) -> Standing:
    tables = run.resolved(needs_data=False).recipe.tables()
    there = RunDir(run.folder)
    if not there.is_begun():
        if run.folder.exists() and not (run.folder.is_dir() and is_empty(run.folder)):
            return Standing(run, "foreign", f"{run.folder} holds something else than a run")
        return Standing(run, "missing")
    try:
        recorded = there.read_recipe()
        state = there.state()
        finished = load(run.folder) if state == "complete" else None
    except OkdcError as error:
        return Standing(run, "damaged", error.message)
    if foreign := _foreign(run, tables, recorded):
        return foreign
    if state == "failed":
        return Standing(run, state, f"{run.folder} failed: {there.read_info().failed}")
    return Standing(run, state, finished=finished)


def _foreign(run: Planned, planned: Mapping[str, Any], recorded: Mapping[str, Any]) -> Standing | None:
    """What stands there where it is not the planned run: its recipe is another, or its teacher."""
    sides = ("in the study", "in the run")
    if differing := tuple(changes(_comparable(planned), _comparable(recorded), sides)):
        return Standing(run, "foreign", f"{run.folder} holds a run with another recipe than the study's", differing)
    teacher = run.teacher and RunDir(run.teacher)
    if not teacher or not teacher.result.is_file():
        return None
    try:
        own = teacher.read_result().weights_sha256
    except RunError:
        return None  # the teacher's own standing says so
    theirs = str(recorded.get("method", {}).get(TEACHER))
    if theirs == own:
        return None
    return Standing(
        run, "foreign", f"{run.folder}: its teacher has weights {theirs[:12]}, {run.teacher} has {own[:12]}"
    )


def _comparable(tables: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without what a training writes into it, what it reads nowhere, and what depends on the machine."""
    kept = without_places({key: value for key, value in tables.items() if key not in ("about", "engine")})
    data = {key: value for key, value in kept.get("data", {}).items() if key not in ("mean", "std")}
    cohort = {key: value for key, value in kept.get("cohort", {}).items() if key != WEIGHTS}
    method = {key: value for key, value in kept.get("method", {}).items() if key not in (TEACHER, *TEACHER_PLACES)}
    return kept | {"data": data, "cohort": cohort, "method": method}


def left(stood: Sequence[Standing]) -> list[Planned]:
    """The runs that are to be trained: a teacher only where a run that it teaches is left."""
    needed = {standing.run.teacher for standing in stood if standing.state in LEFT}
    return [
        standing.run
        for standing in stood
        if standing.state in LEFT and (standing.run.column != TEACHERS or standing.run.folder in needed)
    ]


def refuse_foreign(stood: Sequence[Standing]) -> None:
    """Raises RunError where the folder of a run holds another run, or something else."""
    for standing in stood:
        if standing.state == "foreign":
            raise RunError(
                standing.why,
                hint=f"move it, or choose another -o; the study's run is: {standing.run.command}",
                details=standing.details,
            )
