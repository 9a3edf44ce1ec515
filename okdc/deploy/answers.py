"""Where the answers of a bundle's answers.json come from: no image of the test split is read for them again."""

from __future__ import annotations

import numpy as np

from okdc.assembly.student import Student
from okdc.bundle import answers
from okdc.bundle.answers import Outcomes
from okdc.bundle.artefacts import Answers
from okdc.bundle.checks import BATCH
from okdc.bundle.session import Session
from okdc.data.datasets import Dataset
from okdc.deploy.reduced import Judges
from okdc.deploy.torch_reference import Split
from okdc.precision.gate import Float32
from okdc.runs import predictions
from okdc.runs.artefacts import Result
from okdc.runs.run import RunDir


def of(run: RunDir, student: Student, result: Result, dataset: Dataset, judges: Judges, float32: Float32) -> Answers:
    """The confusions are the float32 file's, from the check of its parity, so that they give the manifest's accuracy.

    The threshold is from validation images; without a test split these judge, too. Raises as `predictions.read`.
    """
    judging = Outcomes.of(judges.labels, float32.logits)
    if judges.split != "test":
        return answers.describe(judges.split, judging, judging)
    return answers.describe(judges.split, judging, _validation(run, student, result, dataset, float32.blob))


def _validation(run: RunDir, student: Student, result: Result, dataset: Dataset, blob: bytes) -> Outcomes:
    """Of the kept student the run has them; of another student the file is asked."""
    if student.info.student == result.kept.student:
        kept = predictions.read(run.predictions, result).validation
        return Outcomes.of(kept.labels, kept.logits)
    images = Split(dataset, dataset.val)
    labels = dataset.labels[dataset.val].numpy()
    return Outcomes.of(labels, Session(blob)(images, BATCH)[0] if len(images) else np.empty((0, 0)))
