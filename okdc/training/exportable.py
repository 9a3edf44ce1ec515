"""Asked before the first step: whether the students that a training is paid for can leave it."""

from __future__ import annotations

import time
from collections.abc import Iterable

from okdc import backbones
from okdc.cohort import Backbone
from okdc.errors import CheckFailed, RecipeError
from okdc.progress import WARNING, Progress
from okdc.runs.artefacts import ExportCheck

FLAG = "--no-export-check"


def foreign(students: Iterable[Backbone]) -> dict[str, Backbone]:
    """A student of every architecture that no test of okdc has proven, by the architecture's name."""
    return {student.architecture: student for student in students if not backbones.is_proven(student.architecture)}


def check(
    students: Iterable[Backbone], size: int, classes: int, place: str, verdict: ExportCheck | None, tell: Progress
) -> ExportCheck:
    """Try the export of every architecture that no test of okdc has proven, as `okdc.deploy.trial` does.

    `verdict` is that of an earlier seed, or "skipped" where nothing is to be tried; None: nothing is known yet.

    Raises RecipeError, of the recipe at `place`, for a student of which no bundle could be made.
    """
    if verdict == "skipped":
        tell.note(f"export not tried before the training ({FLAG}): a bundle is not promised")
    elif verdict is not None:
        return verdict
    unproven = foreign(students)
    if not unproven:
        return verdict or "proven"
    from okdc.deploy import trial  # imports torch.onnx and onnxruntime, which takes seconds

    for name, student in unproven.items():
        try:
            if verdict == "skipped":
                said = trial.softmax(student, size, classes)
            else:
                tell.note(f"trying the export of {name} untrained ({FLAG} leaves it out)")
                began = time.perf_counter()
                said = trial.attempt(student, size, classes)
                tell.note(f"{name} can be exported ({time.perf_counter() - began:.1f} s)")
        except CheckFailed as error:
            if verdict == "skipped":
                continue
            raise RecipeError(
                f"{place}: cohort.students: no bundle could be made of {name} after its training",
                hint=f"{FLAG} (export_check=False in Python) trains it all the same, without the promise of a bundle",
                details=[f"{error.kind}: {error.message}", *error.details, *filter(None, [error.hint])],
            ) from error
        for warning in said:
            tell.note(f"{WARNING}{name}: {warning}")
    return verdict or "passed"
