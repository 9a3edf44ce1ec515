"""The students that a training leaves: the best epoch of each, or the last, and the kept one. Validation chooses, not
the test.

The kept student is written whenever it is chosen, the others once, at the end of the training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_safetensors
from torch import Tensor

from okdc.assembly.job import Job, named_to_keep
from okdc.cohort import Backbone
from okdc.data.images import rule
from okdc.runs import artefacts
from okdc.runs.artefacts import AVERAGED, Preprocessing, StudentInfo
from okdc.runs.files import write, writing
from okdc.runs.run import RunDir
from okdc.training.averaging import Average
from okdc.training.metrics import Summary

# epoch, student, val_top1_pct, weights; val_balanced_pct where that chooses, averaged where there is an average
Record = dict[str, Any]


def candidates(job: Job) -> list[int]:
    """The students that may be kept."""
    method = job.method
    if (named := named_to_keep(job.recipe.cohort, method)) is not None:
        return [named]
    return list(range(len(method.cohort.students))) if method.leader is None else [method.leader]


def heads(job: Job, k: int) -> list[str]:
    """The heads of student k: itself and, if there is one, its average."""
    return [f"student{k}", f"student{k}{AVERAGED}"] if job.recipe.optim.ema else [f"student{k}"]


def best(
    job: Job, epoch: int, validated: Summary | None, before: Sequence[Record], average: Average | None = None
) -> list[Record]:
    """One record a student: its best epoch so far, this one or that of `before`; the later of two equal ones, which
    has trained longer. Without validation, or where the recipe keeps the last epoch, it is this one.

    Of an epoch the better of a student and its average is recorded: the average of two equal ones, or unvalidated.
    """
    records = []
    last_part = job.method.first_epochs(job.recipe.optim.epochs)[-1]
    if job.recipe.cohort.keep_epoch == "last" or epoch == last_part + 1:  # what is kept has been through all parts
        before = ()
    for k, student in enumerate(job.method.cohort.backbones()):
        record: Record = {"epoch": epoch, "student": k, "val_top1_pct": None}
        head = heads(job, k)[-1]
        if validated:
            accuracies = validated.accuracy_pct(job.recipe.cohort.keep_metric)
            head = max(reversed(heads(job, k)), key=accuracies.__getitem__)
            record["val_top1_pct"] = validated.top1_pct[head]
            if validated.balanced_pct:
                record["val_balanced_pct"] = validated.balanced_pct[head]
        if before and validated and _accuracy(job, record) < _accuracy(job, before[k]):
            records.append(before[k])
            continue
        if average:
            record["averaged"] = head.endswith(AVERAGED)
        with average.applied() if average and record["averaged"] else nullcontext():
            records.append(record | {"weights": copied(student)})
    return records


def _accuracy(job: Job, record: Record) -> float:
    """By which the recipe chooses, in %."""
    value: float = record[f"val_{job.recipe.cohort.keep_metric}_pct"]
    return value


def chosen(job: Job, records: Sequence[Record]) -> Record:
    """The kept one of the records: the candidate that is best on validation; of equal ones that of the later epoch,
    and of one epoch the first. Without validation there is one candidate.
    """
    rows = [records[k] for k in candidates(job)]
    return max(rows, key=lambda r: (_accuracy(job, r), r["epoch"], -r["student"])) if len(rows) > 1 else rows[0]


def copied(student: Backbone) -> dict[str, Tensor]:
    """A copy of a student's weights on the CPU, by name."""
    return {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in student.weights().items()
    }  # contiguous: safetensors refuses channels_last


def write_kept(run: RunDir, job: Job, records: Sequence[Record]) -> None:
    """student.safetensors and student.json."""
    _write_student((run.weights, run.student), job, chosen(job, records))


def write_all(run: RunDir, job: Job, records: Sequence[Record]) -> None:
    """The kept student, whose file may be ahead of the checkpoint, and every other in students/."""
    write_kept(run, job, records)
    kept = chosen(job, records)
    if len(records) > 1:
        with writing(run.students):
            run.students.mkdir(exist_ok=True)
            for path in run.files_of_other(kept["student"]):  # of an end that came otherwise and was not reached
                path.unlink(missing_ok=True)
    for record in records:
        if record is not kept:
            _write_student(run.files_of_other(record["student"]), job, record)


def _write_student(files: tuple[Path, Path], job: Job, record: Record) -> None:
    """The weights under the plain backbone's own keys, and student.json."""
    weights, recipe = to_safetensors(record["weights"]), job.recipe
    assert recipe.data.mean is not None
    assert recipe.data.std is not None
    write(files[0], weights)
    info = StudentInfo(
        schema=1,
        architecture=job.method.cohort.backbone(record["student"]).architecture,
        classes=job.dataset.classes,
        preprocessing=Preprocessing(
            **rule(recipe.data.image_size, recipe.data.shorter_side),
            mean=job.normalisation.mean,
            std=job.normalisation.std,
        ),
        student=record["student"],
        epoch=record["epoch"],
        val_top1_pct=record["val_top1_pct"],
        **{key: record[key] for key in ("val_balanced_pct", "averaged") if key in record},
        method=recipe.method["name"],
        dataset=recipe.data.name,
        recipe_sha256=recipe.sha256(),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )
    artefacts.write(files[1], info)
