"""The end of a training: the test split, read once."""

from __future__ import annotations

import hashlib

import torch

from okdc.assembly import student as students
from okdc.assembly.job import Job
from okdc.cohort import Backbone, count_macs, count_params
from okdc.data.batches import EVAL_BATCH, Batches, eval_batches
from okdc.runs import artefacts
from okdc.runs.artefacts import Judged, Kept, Result, StudentInfo, Teacher
from okdc.runs.run import RunDir
from okdc.training.interrupts import fail
from okdc.training.metrics import evaluate


def judge(job: Job, run: RunDir, batches: Batches, kept: int, seconds: float) -> None:
    """Complete the run: every head at the last epoch and every student from its file, in float32 without autocast.

    Each student.json gets its accuracy; then result.json, the last file, records the hashes of all students' files.
    Nothing is chosen here: validation has chosen the student `kept`. `seconds` is the time of all training steps.
    """
    (split, rows), recipe, cohort = job.dataset.final_split, job.recipe, job.method.cohort
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):  # float32 on a GPU, too
        heads = evaluate(
            job.method,
            eval_batches(batches.dataset, rows, batches.normalise, EVAL_BATCH),
            batches.dataset.images.device,
        )
    if heads.bad:  # weights that the last step ruined, where no validation saw them
        fail(run, f"{split} images after the last epoch: {heads.bad[1]} is not finite")
    written = [students.open_written(run, k, kept) for k in range(len(cohort.students))]
    rule = written[0][1].preprocessing
    accuracies = students.top1_pct([network for network, _ in written], rule, job.dataset, rows)
    judged = []
    for (network, info), accuracy in zip(written, accuracies, strict=True):
        update = {"judged_on": split, "images": len(rows), "top1_pct": round(accuracy, 4)}
        _, path = students.files(run, info.student, kept)
        artefacts.write(path, info.model_copy(update=update))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        judged.append(_row(network, info, accuracy, sha256, job.dataset.size))
    epochs = recipe.optim.epochs
    result = Result(
        schema=1,
        method=recipe.method["name"],
        method_card=job.method.card(),
        variant=job.variant,
        students=tuple(student.architecture for student in cohort.backbones()),
        share=cohort.share,
        teacher=Teacher(**job.teacher) if job.teacher else None,
        leader=job.method.leader,
        dataset=recipe.data.name,
        seed=recipe.seed,
        recipe_sha256=recipe.sha256(),
        judged_on=split,
        images=len(rows),
        heads_last_epoch_top1_pct={name: round(value, 4) for name, value in heads.top1_pct.items()},
        kept=Kept.model_validate(judged[kept].to_json()),
        cohort=tuple(judged),
        data_sha256=job.dataset.fingerprint,
        weights_sha256=judged[kept].weights_sha256,
        log_sha256=hashlib.sha256(run.log.read_bytes()).hexdigest(),
        epochs=epochs,
        seconds=round(seconds, 3),
        compiled=run.read_info().settings.compile == "on",
        images_per_s=round(epochs * batches.steps * batches.batch_size / max(seconds, 1e-9), 1),
    )
    artefacts.write(run.result, result)


def _row(network: Backbone, info: StudentInfo, accuracy: float, sha256: str, size: torch.Size) -> Judged:
    return Judged(
        student=info.student,
        architecture=info.architecture,
        epoch=info.epoch,
        val_top1_pct=info.val_top1_pct,
        top1_pct=round(accuracy, 4),
        params=count_params(network),
        macs=count_macs(network, torch.zeros(1, *size)),
        weights_sha256=info.weights_sha256,
        student_sha256=sha256,
    )
