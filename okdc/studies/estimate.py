"""What a study would cost on this machine: hours from steps that are timed here, and bytes on disk.

The steps are timed on made-up images of the right size, and with an untrained teacher: only the number of images comes
from the data set, as its makers publish it or as a folder has it, so that nothing has to be downloaded or trained for a
plan. Runs that differ in the seed or the number of images alone are timed once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from okdc import backbones
from okdc.assembly import job as assembly
from okdc.assembly.job import Job
from okdc.assembly.resolve import ResolvedRecipe
from okdc.assembly.student import square
from okdc.data.datasets import Dataset
from okdc.data.splits import validation_images
from okdc.distributed import ALONE
from okdc.methods.base import Method
from okdc.progress import Progress, Silent
from okdc.recipe.schema import TEACHER_PLACES
from okdc.studies.plan import Planned
from okdc.studies.schema import TEACHERS
from okdc.training import start, timing

SECONDS = 1.0  # for the timed steps of each kind of run
MADE_UP = 256  # images of each split: enough for a few batches


@dataclass(frozen=True)
class Cost:
    """Of one run."""

    seconds: float
    disk_bytes: int


@dataclass(frozen=True)
class _Timed:
    step: float
    validating: float  # an image
    judging: float  # an image
    start: float
    saving: float
    disk_bytes: int


def estimate(runs: Sequence[Planned], study: Sequence[Planned], tell: Progress) -> dict[str, Cost | None]:
    """By name; None where the number of images is not known: neither published nor that of a folder that is there.

    `study` has all runs, teachers included.

    Raises RecipeError for a recipe that cannot be trained.
    """
    teachers = {run.folder: run for run in study if run.column == TEACHERS}
    timed: dict[str, _Timed] = {}
    costs: dict[str, Cost | None] = {}
    counts: dict[tuple[str, str | None], tuple[int, int, int] | None] = {}  # a folder is listed once
    for run in runs:
        resolved = run.resolved(needs_data=False)
        data = resolved.recipe.data
        if (where := (data.name, data.root)) not in counts:
            counts[where] = resolved.source.count_images(data.root)
        images = _images(resolved, counts[where])
        if images is None:
            costs[run.name] = None
            continue
        key = _kind(resolved)
        if key not in timed:
            tell.note(f"timing steps of {run.column}/{run.method}")
            teacher = teachers.get(run.teacher) if run.teacher else None
            timed[key] = _time(resolved, teacher.resolved(needs_data=False).architectures[0] if teacher else None)
        costs[run.name] = _cost(timed[key], resolved, images)
    return costs


def _images(resolved: ResolvedRecipe, counts: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
    """How many images train, choose and judge, of the data set's `counts`."""
    data = resolved.recipe.data
    if counts is None:
        return None
    train, val, test = counts
    if not val:
        val = validation_images(data.val_fraction, train)
        train -= val
    return data.train_images or train, val, test or val


def _kind(resolved: ResolvedRecipe) -> str:
    """What the time of a step depends on."""
    recipe = resolved.recipe
    method = {key: value for key, value in recipe.method.items() if key not in TEACHER_PLACES}
    tables = {
        "method": method,
        "students": resolved.architectures,
        "share": recipe.cohort.share,
        "size": recipe.data.image_size,
        "classes": resolved.classes,
        "augment": recipe.augment.model_dump(),
        "optim": recipe.optim.model_dump(exclude={"epochs", "lr", "milestones"}),
        "epochs": recipe.optim.epochs if resolved.kind.begin is not Method.begin else None,  # how long its parts are
        "engine": recipe.engine.model_dump(),
    }
    return json.dumps(tables, sort_keys=True, default=str)


def _time(resolved: ResolvedRecipe, teacher: str | None) -> _Timed:
    """Raises what the first steps of a training raise."""
    job = _job(resolved, teacher)
    settings = start.decided(start.settings_of(resolved, resolved.recipe.engine), job, ALONE)
    weights = sum(tensor.nbytes for tensor in job.method.state_dict().values())
    momenta = sum(p.nbytes for p in job.method.parameters() if p.requires_grad)
    took, _ = timing.measure(job, settings, Silent(), SECONDS)
    students = sum(t.nbytes for student in job.method.cohort.backbones() for t in student.state_dict().values())
    return _Timed(
        step=took.mean_step,
        validating=took.validation / len(job.dataset.val),
        judging=took.judging / len(job.dataset.test),
        start=took.start,
        saving=took.saving,
        disk_bytes=2 * (weights + momenta) + students,  # a checkpoint and the one before it
    )


def _job(resolved: ResolvedRecipe, teacher: str | None) -> Job:
    """A training of the recipe on made-up images, with an untrained teacher where it has one."""
    dataset = _made_up(resolved)
    images, classes = square(resolved.recipe.data.image_size), len(dataset.classes)
    network = None
    if resolved.has_teacher:
        network = backbones.build(teacher or resolved.architectures[0], classes, images)
    method, _ = assembly.method(resolved, images, classes, network)
    normalisation = assembly.normalisation_of(resolved.recipe, dataset)
    job = Job(assembly.with_normalisation(resolved.recipe, normalisation), dataset, method, normalisation)
    assembly.check_parts(resolved, job)
    return job


def _made_up(resolved: ResolvedRecipe) -> Dataset:
    """Random pixels with the labels, size and classes of the data set."""
    recipe, classes = resolved.recipe, resolved.classes or 10
    train = max(MADE_UP, 2 * recipe.optim.batch_size, classes)
    rows = torch.arange(train + 2 * MADE_UP)
    size = recipe.data.image_size
    random = torch.Generator().manual_seed(0)
    return Dataset(
        name=recipe.data.name,
        classes=tuple(map(str, range(classes))),
        images=torch.randint(256, (len(rows), size, size, 3), dtype=torch.uint8, generator=random),
        labels=rows % classes,
        train=rows[:train],
        val=rows[train : train + MADE_UP],
        test=rows[train + MADE_UP :],
        fingerprint="",
    )


def _cost(timed: _Timed, resolved: ResolvedRecipe, images: tuple[int, int, int]) -> Cost:
    train, val, judging = images
    optim = resolved.recipe.optim
    epoch = train // optim.batch_size * timed.step + val * timed.validating + timed.saving
    return Cost(optim.epochs * epoch + timed.start + judging * timed.judging, timed.disk_bytes)
