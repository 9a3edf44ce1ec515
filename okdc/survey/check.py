"""`okdc check`: everything that a training does before its first epoch, and what can be said of it beforehand.

An error that would stop the training stops the check with the same message (exit code 2). A check fails (exit code 1)
where an image that chooses or judges is also trained on. Everything else that looks wrong is a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from okdc.assembly import job as assembly
from okdc.assembly.job import Job
from okdc.assembly.names import namer
from okdc.assembly.resolve import ResolvedRecipe
from okdc.cohort import Cohort, count_macs, count_params
from okdc.data.datasets import Dataset
from okdc.data.memory import available, room
from okdc.data.placement import free_bytes
from okdc.distributed import ALONE
from okdc.errors import CheckFailed
from okdc.progress import Progress
from okdc.survey import duplicates
from okdc.survey.duplicates import Duplicates
from okdc.survey.places import by_place
from okdc.survey.plan import SCRATCH, TUNED
from okdc.training import exportable, memory, start, timing
from okdc.training.compiling import forward_macs

SPLITS = ("train", "val", "test")
FEW_IMAGES = 5  # of a class in a split: below, its recall says next to nothing
NAMED = 3  # pairs of images that a line names
IN = {"train": "training images", "val": "validation images", "test": "test images"}


def check(resolved: ResolvedRecipe, images: bool, tell: Progress, seconds: float) -> dict[str, Any]:
    """The report of `okdc check --json`. `images`: also look for duplicates; `seconds`: for the timed steps.

    `failures` and `warnings` are sentences. Raises what a training would raise before its first epoch.
    """
    recipe = resolved.recipe
    for note in resolved.notes:
        tell.note(note)
    settings = start.settings_of(resolved, recipe.engine)
    free, unused = room(), _available(settings.torch_device)  # before any image is read
    verdict = ""

    def read() -> Dataset:
        with tell.reading() as progress:
            return assembly.dataset(resolved, progress, None, free)

    def export(cohort: Cohort, classes: int) -> None:
        nonlocal verdict, settings
        verdict = exportable.check(cohort.backbones(), recipe.data.image_size, classes, resolved.place, None, tell)
        settings = start.computing(resolved, settings, cohort)

    job = assembly.job(resolved, read, export, assembly.weights_of)
    settings = start.decided(settings, job, ALONE)
    for note in (*settings.reasons, *job.notes):
        tell.note(note)
    dataset, classes = job.dataset, _by_class(job.dataset)
    seen, names = None, namer(resolved, dataset)
    if images:
        with tell.reading() as progress:
            seen = duplicates.find(dataset, progress)
    students = [
        {"name": f"student{k}", "architecture": student.architecture, "params": count_params(student),
         "macs": count_macs(student.eval(), torch.zeros(1, *dataset.size))}
        for k, student in enumerate(job.method.cohort.backbones())
    ]  # fmt: skip
    whole = {"params": count_params(job.method), "macs": forward_macs(job.method, dataset.size)}
    tell.note("timing some steps")
    took, training = timing.measure(job, settings, tell, seconds)
    needed = memory.needed(training)
    report: dict[str, Any] = {
        "schema": 1,
        "recipe": resolved.place,
        "recipe_sha256": job.recipe.sha256(),
        "variant": job.variant,
        "settings": training.train_step.settings.saved(),
        "reasons": list(training.train_step.settings.reasons),
        "export_check": verdict,
        "notes": list(job.notes),
        "images": {name: len(getattr(dataset, name)) for name in SPLITS},
        "image_size": recipe.data.image_size,
        "classes": classes,
        "skipped": list(dataset.skipped),
        "duplicates": _described(seen, dataset, names) if seen else None,
        "students": students,
        "training": whole,
        "batch_size": recipe.optim.batch_size,
        "steps_per_epoch": took.steps,
        "epochs": took.epochs,
        "patience": recipe.optim.patience,
        "steps": took.steps * took.epochs,
        "memory_bytes": {
            **asdict(needed),
            "whole": needed.whole,
            "peak": memory.peak(settings.torch_device),
            "available": unused,
        },
        "seconds": {
            "step": asdict(took.step),
            "earlier": [{"epochs": epochs, "step": asdict(step)} for epochs, step in took.earlier],
            "validation": took.validation,
            "saving": took.saving,
            "epoch": asdict(took.epoch),
            "start": took.start,
            "judging": took.judging,
            "whole": asdict(took.whole),
        },
    }
    report["failures"], report["warnings"] = _failures(report), _warnings(report, job)
    return report


def raise_failures(report: Mapping[str, Any]) -> None:
    """Raises CheckFailed ("images") where a check did not hold."""
    if failures := report["failures"]:
        raise CheckFailed(
            "images",
            failures[0] if len(failures) == 1 else f"{report['recipe']}: {len(failures)} checks failed",
            hint="remove these files, or move all copies of an image into one split",
            details=failures if len(failures) > 1 else (),
        )


# ---------------------------------------------------------------------------------------------------------------------
# Images


def _by_class(dataset: Dataset) -> list[dict[str, Any]]:
    counts = {
        name: torch.bincount(dataset.labels[getattr(dataset, name)], minlength=len(dataset.classes)).tolist()
        for name in SPLITS
    }
    return [{"class": name, **{split: counts[split][k] for split in SPLITS}} for k, name in enumerate(dataset.classes)]


def _described(seen: Duplicates, dataset: Dataset, name: Callable[[int], str]) -> dict[str, Any]:
    """Duplicates as the report has them: by where they are, with names and splits."""
    split = {row: part for part in SPLITS for row in getattr(dataset, part).tolist()}
    labels = dataset.labels.tolist()

    def places(groups: Sequence[Sequence[int]]) -> dict[str, Any]:
        return {
            place: [[{"image": name(row), "split": split[row], "class": dataset.classes[labels[row]]} for row in rows]
                    for rows in groups]
            for place, groups in by_place(groups, split.__getitem__, labels.__getitem__).items()
        }  # fmt: skip

    return {
        "equal": places(seen.equal),
        "near": places([(pair.first, pair.second) for pair in seen.near]) if seen.looked_near else None,
        "near_count": seen.near_count,
        "near_not_looked_for": seen.near_not_looked_for or None,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Verdicts


def _failures(report: Mapping[str, Any]) -> list[str]:
    groups = report["duplicates"]["equal"]["splits"] if report["duplicates"] else []
    return [f"{_times(groups)} in more than one split: {_pairs(groups)}"] if groups else []


def _warnings(report: Mapping[str, Any], job: Job) -> list[str]:
    lines = []
    if seen := report["duplicates"]:
        if groups := seen["equal"]["classes"]:
            lines.append(f"{_times(groups)} in two classes, so that one label is wrong: {_pairs(groups)}")
        if groups := seen["equal"]["class"]:
            lines.append(f"{_times(groups)} twice in one class and split: {_pairs(groups)}")
        if seen["near_not_looked_for"]:
            lines.append(f"pictures that only look the same were not looked for: {seen['near_not_looked_for']}")
        elif groups := seen["near"]["splits"]:
            lines.append(f"pictures in two splits look the same ({len(groups):,}): {_pairs(groups)}")
        if seen["near"] and (groups := seen["near"]["classes"]):
            lines.append(f"pictures in two classes look the same ({len(groups):,}): {_pairs(groups)}")
    for split in SPLITS:
        counts = {row["class"]: row[split] for row in report["classes"]}
        if not sum(counts.values()):
            continue
        if without := [name for name, count in counts.items() if not count]:
            lines.append(f"classes without {IN[split]} ({len(without):,} of {len(counts):,}): {_few(without)}")
        if few := [name for name, count in counts.items() if 0 < count < FEW_IMAGES]:
            lines.append(
                f"classes with fewer than {FEW_IMAGES} {IN[split]} ({len(few):,} of {len(counts):,}): {_few(few)}"
            )
    start = TUNED if job.recipe.cohort.weights else SCRATCH
    if report["steps_per_epoch"] < start.steps:
        images = report["images"]["train"]
        smaller = f"; optim.batch_size={max(2, images // start.steps)} makes more" if report["batch_size"] > 2 else ""
        lines.append(f"{report['steps_per_epoch']} steps an epoch are few{smaller}")
    memory_bytes = report["memory_bytes"]
    most = max(memory_bytes["whole"], memory_bytes["peak"])
    if most > memory_bytes["available"]:
        needed, free = (f"{value / 1e9:.1f} GB" for value in (most, memory_bytes["available"]))
        hint = "a smaller optim.batch_size or data.image_size needs less"
        lines.append(f"the training may need {needed} of memory, {free} are free: {hint}")
    if not len(job.dataset.test):
        lines.append("there are no test images: the images that choose the student also judge it")
    return lines


def _times(groups: Sequence[object]) -> str:
    return f"{len(groups):,} images are" if len(groups) > 1 else "1 image is"


def _pairs(groups: Sequence[Sequence[Mapping[str, str]]]) -> str:
    words = "; ".join(" = ".join(row["image"] for row in rows[:2]) for rows in groups[:NAMED])
    return f"{words} and {len(groups) - NAMED:,} more" if len(groups) > NAMED else words


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:NAMED])) + (", ..." if len(names) > NAMED else "")


def _available(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return free_bytes(device)
    return available()
