"""A run's recipe and images again, proven to be the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from okdc.assembly import job as assembly
from okdc.assembly.resolve import ResolvedRecipe, resolve
from okdc.data import datasets
from okdc.data.datasets import Dataset
from okdc.errors import DataError
from okdc.progress import Progress
from okdc.recipe.draft import Draft
from okdc.runs import trust
from okdc.runs.run import RunDir
from okdc.runs.series import SeriesDir


def recipe_of(run: RunDir | SeriesDir, data_root: str | None = None) -> ResolvedRecipe:
    """The recipe that a run or a series was started with; `data_root` says where its images are now.

    Raises RunError where recipe.toml is another by now, and where it names code that is not trusted.
    """
    tables = run.read_recipe()
    trust.check(run.path, run.read_info().started_at, trust.code_of(tables))
    if data_root is not None and isinstance(tables.get("data"), dict):
        tables["data"]["root"] = data_root
    overridden = frozenset({"data.root"}) if data_root is not None else frozenset()
    return resolve(Draft(run.recipe, tables, overridden), begun=True)


def data_of(run: RunDir, resolved: ResolvedRecipe, tell: Progress) -> Dataset:
    """The images of a run, from the place that its recipe names, proven to be those that it was started with.

    Raises DataError where they are gone or others.
    """
    root = resolved.recipe.data.root
    if root is not None and not Path(root).expanduser().is_dir():
        raise DataError(
            f"the images of {run.path} are not at {Path(root).absolute()}",
            hint="--data-root DIR, or OKDC_DATA_ROOT, names their folder",
        )
    with tell.reading() as progress:
        dataset = assembly.dataset(resolved, progress, run.read_info().streamed)
    for note in dataset.notes:
        tell.note(note)
    check_data(dataset, run)
    return dataset


def check_data(dataset: Dataset, run: RunDir) -> None:
    """Raises DataError where the images are not those that the run was started with."""
    info = run.read_info()
    datasets.same_classes(info.classes, dataset, str(run.path))
    if dataset.fingerprint != info.data_sha256:
        raise DataError(
            f"the images are not those of {run.path}: contents, classes or splits {dataset.fingerprint[:12]} now, "
            f"{info.data_sha256[:12]} when it started",
            hint="restore them, or start another run",
            details=_left_out_otherwise(info.skipped_images, dataset.skipped),
        )


def _left_out_otherwise(then: Sequence[str], now: Sequence[str]) -> list[str]:
    """A line for each image that was left out as damaged when the run started and is not now, or the other way."""
    return [f"left out when it started: {line}" for line in then if line not in now] + [
        f"left out now: {line}" for line in now if line not in then
    ]
