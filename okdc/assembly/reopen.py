"""What a run was made of, again: its recipe and its images, proven to be the same."""

from __future__ import annotations

from pathlib import Path

from okdc.assembly import job as build
from okdc.assembly.resolve import resolve
from okdc.data import datasets
from okdc.data.datasets import Dataset
from okdc.errors import DataError
from okdc.progress import Progress
from okdc.recipe.schema import Draft, Recipe, read
from okdc.runs.run import Run


def recipe_of(run: Run, data_root: str | None = None) -> tuple[Recipe, list[str]]:
    """The resolved recipe that a run was started with, and notes; `data_root` says where its images are now."""
    tables = read(run.recipe)
    if data_root is not None and isinstance(tables.get("data"), dict):
        tables["data"]["root"] = data_root
    given = frozenset({"data.root"}) if data_root is not None else frozenset()
    return resolve(Draft(run.recipe, tables, given), trial=False)


def data_of(run: Run, recipe: Recipe, tell: Progress) -> Dataset:
    """The images of a run, where its `recipe` has them now, proven to be those that it was started with.

    Raises DataError where they are gone or others.
    """
    root = recipe.data.root
    if root is not None and not Path(root).expanduser().is_dir():
        raise DataError(
            f"the images of {run.path} are not at {Path(root).absolute()}",
            hint="--data-root DIR, or OKDC_DATA_ROOT, says where they are now",
        )
    with tell.reading() as progress:
        found = build.dataset(recipe, progress)
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
