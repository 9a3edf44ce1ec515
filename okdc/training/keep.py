"""Which student is kept, and how: the best on validation so far, as plain weights with a description."""

from __future__ import annotations

import hashlib
from typing import Any

from safetensors.torch import save as to_safetensors

from okdc import cost
from okdc.build import Job
from okdc.cohort import Backbone
from okdc.data.images import rule
from okdc.files import write, write_json
from okdc.run import Run
from okdc.training.metrics import Summary


def candidates(job: Job) -> list[int]:
    """The students that may be kept."""
    keep, cohort = job.recipe.cohort.keep, job.method.cohort
    count = len(cohort.students)
    if keep == "best":
        return list(range(count)) if job.method.leader is None else [job.method.leader]
    if keep == "smallest":
        return [min(range(count), key=lambda k: (cost.params(cohort.backbone(k)), k != job.method.leader))]
    return [keep]


def better(job: Job, epoch: int, validated: Summary, best: dict[str, Any]) -> dict[str, Any] | None:
    """The best candidate of this epoch's validation, if it is no worse than `best`, the record so far.

    At equal accuracy the later epoch, which has trained longer, and the first of two students.
    """
    accuracy = {k: validated.top1_pct[f"student{k}"] for k in candidates(job)}
    k = max(accuracy, key=lambda k: (accuracy[k], -k))
    if best and accuracy[k] < best["val_top1_pct"]:
        return None
    return record(epoch, k, accuracy[k], job.method.cohort.backbone(k))


def record(epoch: int, k: int, accuracy: float | None, student: Backbone) -> dict[str, Any]:
    """A student as a checkpoint remembers it: where it comes from, and a copy of its weights."""
    weights = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in student.weights().items()
    }  # contiguous: safetensors refuses channels_last
    return {"epoch": epoch, "student": k, "val_top1_pct": accuracy, "weights": weights}


def write_student(run: Run, job: Job, best: dict[str, Any]) -> None:
    """student.safetensors with the plain backbone's own keys, and student.json, which says what they are."""
    weights = to_safetensors(best["weights"])
    recipe = job.recipe
    write(run.weights, weights)
    write_json(
        run.student,
        {
            "schema": 1,
            "architecture": job.method.cohort.backbone(best["student"]).architecture,
            "classes": list(job.dataset.classes),
            "preprocessing": {
                **rule(recipe.data.image_size, recipe.data.shorter_side),
                "mean": list(recipe.data.mean or ()),
                "std": list(recipe.data.std or ()),
            },
            "student": best["student"],
            "epoch": best["epoch"],
            "val_top1_pct": best["val_top1_pct"],
            "method": recipe.method["name"],
            "dataset": recipe.data.name,
            "recipe_sha256": recipe.sha256(),
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
        },
    )
