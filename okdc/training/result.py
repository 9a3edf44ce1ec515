"""The end of a training: the test split, read once."""

from __future__ import annotations

from typing import Any

import torch

from okdc.assembly import student as kept
from okdc.assembly.job import Job
from okdc.cohort import Backbone, count_macs, count_params
from okdc.data.batches import EVAL_BATCH, Batches, eval_batches
from okdc.runs.files import read_json
from okdc.runs.run import Run
from okdc.training.interrupts import fail
from okdc.training.metrics import evaluate


def judge(job: Job, run: Run, batches: Batches, seconds: float) -> dict[str, Any]:
    """result.json: in float32, without autocast, every head at the last epoch and every student from its file.

    `cohort` has each student as it would be shipped. It chooses nothing: `kept` was chosen on validation.
    """
    (split, rows), epochs = job.dataset.final_split, job.recipe.optim.epochs
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):  # float32 on a GPU, too
        heads = evaluate(
            job.method,
            eval_batches(batches.dataset, rows, batches.normalise, EVAL_BATCH),
            batches.dataset.images.device,
        )
    if heads.bad:  # weights that the last step ruined, where no validation saw them
        fail(run, f"{split} images after the last epoch: {heads.bad[1]} is not finite")
    cohort = job.method.cohort
    found = [kept.load(run, k) for k in range(len(cohort.students))]
    accuracies = kept.top1_pct([network for network, _ in found], found[0][1], job.dataset, rows)
    students = [_student(network, facts, x, job) for (network, facts), x in zip(found, accuracies, strict=True)]
    chosen = students[read_json(run.student)["student"]]
    return {
        "schema": 1,
        "method": job.recipe.method["name"],
        "method_card": job.method.card(),
        "variant": job.variant,
        "students": [student.architecture for student in cohort.backbones()],
        "share": cohort.share,
        "teacher": job.teacher,
        "leader": job.method.leader,
        "dataset": job.recipe.data.name,
        "seed": job.recipe.seed,
        "recipe_sha256": job.recipe.sha256(),
        "judged_on": split,
        "images": len(rows),
        "heads_last_epoch_top1_pct": {name: round(value, 4) for name, value in heads.top1_pct.items()},
        "kept": {key: value for key, value in chosen.items() if key != "weights_sha256"},
        "cohort": students,
        "data_sha256": job.dataset.fingerprint,
        "weights_sha256": chosen["weights_sha256"],
        "epochs": epochs,
        "seconds": round(seconds, 3),  # of all steps, the first one's compilation too
        "compiled": run.facts("settings")["settings"]["compile"] == "on",
        "images_per_s": round(epochs * batches.steps * batches.batch_size / max(seconds, 1e-9), 1),
    }


def _student(network: Backbone, facts: dict[str, Any], accuracy: float, job: Job) -> dict[str, Any]:
    return {
        "student": facts["student"],
        "architecture": facts["architecture"],
        "epoch": facts["epoch"],
        "val_top1_pct": facts["val_top1_pct"],
        "top1_pct": round(accuracy, 4),
        "params": count_params(network),
        "macs": count_macs(network, torch.zeros(1, *job.dataset.size)),
        "weights_sha256": facts["weights_sha256"],
    }
