"""The end of a training: the images that judge it, read once, and every answer to them kept.

The kept student is judged on the CPU, whose float32 every later command repeats. The others are judged on the device of
the training, which on a GPU saves minutes for each of them; their record names it, and an export judges again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from okdc.assembly import student as students
from okdc.assembly.job import Job
from okdc.cohort import Backbone, count_macs, count_params
from okdc.data.batches import EVAL_BATCH, Batches, eval_batches
from okdc.methods.base import Batch
from okdc.runs import artefacts, predictions
from okdc.runs.accuracy import ByClass
from okdc.runs.artefacts import Judged, Kept, Result, StudentInfo, Teacher
from okdc.runs.predictions import Answers, Predictions, by_class
from okdc.runs.run import RunDir
from okdc.training import averaging
from okdc.training.averaging import Average
from okdc.training.checkpoint import Position
from okdc.training.interrupts import fail
from okdc.training.metrics import Totals

Written = Sequence[tuple[Backbone, StudentInfo]]  # each student as its file has it
CPU = torch.device("cpu")


def judge(
    job: Job, run: RunDir, batches: Batches, kept: int, position: Position, average: Average | None = None
) -> None:
    """Complete the run: every head at the last epoch and every student from its file, in float32 without autocast.

    predictions.npz keeps their answers. Each student.json gets its accuracy; then result.json, the last file, records
    the hashes of all students' files and of the predictions. Nothing is chosen here: validation has chosen the student
    `kept`. `position` is the end of the training.
    """
    (split, rows), recipe, cohort = job.dataset.final_split, job.recipe, job.method.cohort
    written = [students.open_written(run, k, kept) for k in range(len(cohort.students))]
    devices = [CPU if k == kept else batches.dataset.labels.device for k in range(len(written))]
    answered = _answers(job, run, batches, written, kept, devices, average)
    predictions_sha256 = predictions.write(run.predictions, answered)
    labels, classes = answered.judging.labels, len(job.dataset.classes)
    counted = [by_class(labels, right, classes) for right in answered.students]
    judged = []
    for (network, info), count, device in zip(written, counted, devices, strict=True):
        judgement = {"judged_on": split, "judged_device": device.type, "images": len(rows), "top1_pct": count.top1_pct}
        _, path = students.files(run, info.student, kept)
        info = info.model_copy(update=judgement)
        artefacts.write(path, info)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        judged.append(_row(network, info, count, sha256, job.dataset.size))
    epochs, seconds = position.epoch, position.seconds
    steps = epochs * batches.steps
    result = Result(
        schema=1,
        method=recipe.method["name"],
        method_card=job.method.card(),
        variant=job.variant,
        students=tuple(student.architecture for student in cohort.backbones()),
        share=cohort.share,
        teacher=Teacher(**job.teacher) if job.teacher else None,
        starts=job.starts,
        leader=job.method.leader,
        views=job.method.views,
        dataset=recipe.data.name,
        seed=recipe.seed,
        recipe_sha256=recipe.sha256(),
        judged_on=split,
        images=len(rows),
        largest_class_pct=counted[kept].largest_pct,
        smallest_class_pct=counted[kept].smallest_pct,
        heads_last_epoch_top1_pct={
            name: by_class(labels, right, classes).top1_pct for name, right in answered.heads.items()
        },
        kept=Kept.model_validate(judged[kept].to_json()),
        cohort=tuple(judged),
        data_sha256=job.dataset.fingerprint,
        weights_sha256=judged[kept].weights_sha256,
        log_sha256=hashlib.sha256(run.log.read_bytes()).hexdigest(),
        predictions_sha256=predictions_sha256,
        epochs=recipe.optim.epochs,
        **({"epochs_trained": epochs} if epochs < recipe.optim.epochs else {}),
        steps=steps,
        seconds=round(seconds, 3),
        compiled=run.read_info().settings.compile == "on",
        images_per_s=round(steps * batches.batch_size / max(seconds, 1e-9), 1),
    )
    artefacts.write(run.result, result)


# ---------------------------------------------------------------------------------------------------------------------
# Answers


def _answers(
    job: Job,
    run: RunDir,
    batches: Batches,
    written: Written,
    kept: int,
    devices: Sequence[torch.device],
    average: Average | None,
) -> Predictions:
    """The answers of every network to the images that judge, and of the kept student to the validation images.

    Each image is decoded once for all of them. The heads answer on the device of the training, each student on its
    own of `devices`. Those on the CPU answer in plain memory format, by one batch size: the same numbers as
    `students.answers` gives in every command. A GPU works on a batch while the CPU does.
    """
    split, rows = job.dataset.final_split
    device, plain = batches.dataset.labels.device, students.normalise(written[0][1].preprocessing)
    heads: dict[str, list[Tensor]] = {}  # whether each was right, batch by batch
    right: list[list[Tensor]] = [[] for _ in written]
    logits: list[Tensor] = []
    job.method.eval()  # the whole method: a fused classifier left in training mode would move its batch statistics
    totals, done = Totals(device), torch.ones((), device=device)
    on_gpu = [k for k, place in enumerate(devices) if place.type != "cpu"]
    for k in on_gpu:
        written[k][0].to(device)
    with _exact():
        with torch.inference_mode():
            for pixels, labels in eval_batches(job.dataset, rows, _pixels, EVAL_BATCH):
                images, targets = batches.normalise(pixels), labels.to(device)
                step = averaging.answers(job.method, Batch(images, targets), done, average)
                totals.add(step, targets, 0)
                for name, z in step.logits.items():
                    heads.setdefault(name, []).append(z.argmax(1) == targets)
                for k in on_gpu:
                    right[k].append(_logits(written[k][0], images).argmax(1) == targets)
                images = plain(pixels)
                for k, (network, _) in enumerate(written):
                    if k not in on_gpu:
                        z = _logits(network, images)
                        right[k].append(z.argmax(1) == labels)
                        if k == kept:
                            logits.append(z)
        if bad := totals.read().bad:  # weights that the last step ruined, where no validation saw them
            fail(run, f"{split} images after the last epoch: {bad[1]} is not finite")
        judging = _of_kept(job, run, split, rows, torch.cat(logits))
        validation = judging if split == "validation" else _validation(job, run, batches, written[kept][0])
    for k in on_gpu:
        written[k][0].cpu()  # as it came
    nothing = torch.empty(0, len(job.dataset.classes))
    return Predictions(
        validation=validation,
        test=judging if split == "test" else _of_kept(job, run, "test", job.dataset.test, nothing),
        heads={name: torch.cat(bits).cpu().numpy() for name, bits in heads.items()},
        students=[torch.cat(bits).cpu().numpy() for bits in right],
    )


@contextmanager
def _exact() -> Iterator[None]:
    """float32 with all of its 24 bits on a GPU, too, and the same numbers each time."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _logits(network: Backbone, images: Tensor) -> Tensor:
    """NK, float32, on the device of the images."""
    logits: Tensor = network(images)
    return logits.float()


def _validation(job: Job, run: RunDir, batches: Batches, network: Backbone) -> Answers:
    """The answers of the kept student to the validation images, on the device of the training."""
    rows, device = job.dataset.val, batches.dataset.labels.device
    logits = torch.empty(0, len(job.dataset.classes))
    if len(rows):
        reading = eval_batches(batches.dataset, rows, batches.normalise, EVAL_BATCH)
        logits, _ = students.logits_of(network.to(device), reading)
        network.cpu()  # as it came
    return _of_kept(job, run, "validation", rows, logits)


def _of_kept(job: Job, run: RunDir, split: str, rows: Tensor, logits: Tensor) -> Answers:
    """For predictions.npz. A student whose answers are no numbers ends the run as failed."""
    if not logits.isfinite().all():
        fail(run, f"{split} images: a logit of the kept student is not finite")
    labels = job.dataset.labels[rows.to(job.dataset.labels.device)]
    return Answers.of(rows.numpy().astype(np.int64), labels.cpu().numpy(), logits.numpy())


def _pixels(pixels: Tensor) -> Tensor:
    """Two transforms start from the same bytes."""
    return pixels


def _row(network: Backbone, info: StudentInfo, count: ByClass, sha256: str, size: torch.Size) -> Judged:
    assert info.judged_device is not None
    return Judged(
        student=info.student,
        architecture=info.architecture,
        epoch=info.epoch,
        val_top1_pct=info.val_top1_pct,
        **{key: getattr(info, key) for key in ("val_balanced_pct", "averaged") if key in info.model_fields_set},
        top1_pct=count.top1_pct,
        balanced_accuracy_pct=count.balanced_pct,
        judged_device=info.judged_device,
        params=count_params(network),
        macs=count_macs(network, torch.zeros(1, *size)),
        weights_sha256=info.weights_sha256,
        student_sha256=sha256,
    )
