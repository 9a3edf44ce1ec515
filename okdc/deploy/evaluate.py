"""`okdc evaluate`: a student or a bundle on the split that judged it, class by class, read again.

A run's student is read back from its file and run in float32 on the CPU, as at the end of the training; a bundle is its
ONNX file in onnxruntime, from raw pixels. Either has to give the number that was recorded.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from okdc.assembly import reopen
from okdc.assembly import student as students
from okdc.bundle import test_images
from okdc.bundle.artefacts import Model
from okdc.bundle.bundle import BundleDir
from okdc.bundle.layout import FLOAT32, MANIFEST
from okdc.bundle.session import Session, answers
from okdc.bundle.test_images import NoImagesError
from okdc.data.datasets import Dataset
from okdc.errors import CheckFailed, DataError
from okdc.progress import Progress
from okdc.runs.accuracy import above_largest_class, interval_pct
from okdc.runs.artefacts import Kept
from okdc.runs.mistakes import confused, matrix
from okdc.runs.predictions import by_class
from okdc.runs.run import RunDir

MOST_PAIRS = 10  # confused pairs that are named
Answers = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]  # NK logits, N labels


def evaluate(path: Path, data_root: str | None, tell: Progress) -> dict[str, Any]:
    """The report that `okdc evaluate --json` prints, of a complete run or a bundle.

    Raises RunError for a folder that is neither, DataError where the images are missing or others, CheckFailed where
    the student or the file is not the recorded one, or does not give the recorded number.
    """
    return _bundle(path, data_root, tell) if (path / MANIFEST).is_file() else _run(RunDir.open(path), data_root, tell)


def _run(run: RunDir, data_root: str | None, tell: Progress) -> dict[str, Any]:
    student, result = students.load(run), run.read_result()
    resolved = reopen.recipe_of(run, data_root)
    for note in resolved.notes:
        tell.note(note)
    dataset = reopen.data_of(run, resolved, tell)
    rows = _judging_rows(dataset, result.judged_on, result.images, str(run.path), tell)
    logits, labels = students.answers(student, dataset, rows)
    report = _report((logits.numpy(), labels.numpy()), student.info.classes, student.result, str(run.path))
    about = {"kind": "run", "run": str(run.path), "engine": "torch, float32, CPU", "split": result.judged_on}
    return {"schema": 1, **about, "architecture": student.info.architecture, **report}


def _bundle(folder: Path, data_root: str | None, tell: Progress) -> dict[str, Any]:
    bundle = BundleDir.open(folder)
    session, manifest = Session(bundle.model()), bundle.manifest
    try:
        judging = test_images.find(bundle, data_root)
    except NoImagesError as error:
        raise DataError(f"{folder}: {error}", hint="OKDC_DATA_ROOT says it, too") from None
    test_images.check_labels(bundle, judging)
    split = manifest.accuracy.split
    say_split(split, len(judging.labels), tell)
    batches = test_images.proven(bundle, judging)
    logits = np.concatenate([answers(session, images, len(bundle.labels))[0] for images, _ in batches])
    report = _report((logits, judging.labels), bundle.labels, manifest.models[FLOAT32], str(folder))
    about = {"kind": "bundle", "bundle": str(folder), "engine": "onnxruntime, CPU", "split": split}
    return {"schema": 1, **about, "architecture": manifest.architecture, **report}


def _judging_rows(dataset: Dataset, split: str, count: int, where: str, tell: Progress) -> Tensor:
    """Indices of the split that the recorded number is from."""
    name, rows = dataset.final_split
    if (name, len(rows)) != (split, count):
        raise DataError(
            f"{where} was judged on {count} {split} images, the data has {len(rows)} {name} images to judge on",
            hint="restore the images and the recipe as they were",
        )
    say_split(name, count, tell)
    return rows


def say_split(split: str, count: int, tell: Progress) -> None:
    """Note that the judging images are read again."""
    if split == "test":
        tell.note(f"the {count:,} test images are read again: a look at one student, not a way to choose among several")
    else:
        tell.note("the data has no test split: these validation images also chose the student, and flatter it")


# ---------------------------------------------------------------------------------------------------------------------
# The report


def _report(answers: Answers, classes: Sequence[str], recorded: Kept | Model, where: str) -> dict[str, Any]:
    """Accuracy, class by class, and confused pairs. Raises CheckFailed for another number than a recorded one."""
    logits, labels = answers
    if not np.isfinite(logits).all():
        raise CheckFailed("accuracy", f"{where} gives logits that are not finite", hint="train another student")
    k, n = len(classes), len(labels)
    confusion = matrix(labels, logits.argmax(1), k)
    counts = by_class(labels, logits.argmax(1) == labels, k)
    for number in test_images.accuracies(counts, recorded):
        if number.differs:
            raise CheckFailed(
                "accuracy",
                f"{where}: {number.name}{number.value:.2f} % of {n:,} images found, {number.recorded:.2f} % recorded",
                hint="the student or its record was changed; or this machine computes otherwise than it should",
            )
    of_class, right = confusion.sum(1), np.diag(confusion)
    return {
        "images": n,
        "top1_pct": counts.top1_pct,
        "interval_pct": interval_pct(counts.top1_pct, n),
        "recorded_top1_pct": recorded.top1_pct,
        "balanced_accuracy_pct": counts.balanced_pct,
        "largest_class_pct": counts.largest_pct,
        "smallest_class_pct": counts.smallest_pct,
        "above_largest_class": above_largest_class(counts.top1_pct, n, counts.largest_pct),
        "top5_pct": round(_top5_pct(logits, labels), 4) if k > 5 else None,
        "classes": [
            {
                "class": name,
                "images": int(count),
                "right": int(hits),
                "top1_pct": round(100 * int(hits) / int(count), 4) if count else None,
            }
            for name, count, hits in zip(classes, of_class, right, strict=True)
        ],
        "confused": confused(confusion, classes, MOST_PAIRS),
    }


def _top5_pct(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Share of images whose class is among the five likeliest."""
    five = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    return 100 * float((five == labels[:, None]).any(1).mean())
