"""The students of a complete run, one of which is to be shipped: all of them, and one by its name."""

from __future__ import annotations

from okdc.assembly.student import load, recorded
from okdc.bundle.bundle import BundleDir
from okdc.bundle.layout import MANIFEST
from okdc.errors import UsageError, nearest
from okdc.profiling.measure import Subject, Trained
from okdc.runs.artefacts import Result, StudentInfo
from okdc.runs.run import RunDir


def by_name(run: RunDir, word: str) -> tuple[int, str]:
    """The student that `word` names, and a line that says so: a number, student1, or an architecture that one has.

    Raises UsageError for any other word, RunError for a run that is not complete or whose record is damaged.
    """
    rows = recorded(run).cohort
    numbers = {str(row.student): row for row in rows} | {f"student{row.student}": row for row in rows}
    named = [numbers[word]] if word in numbers else [row for row in rows if row.architecture == word]
    if len(named) == 1:
        row, accuracy = named[0], named[0].val_top1_pct
        validated = "nothing was validated" if accuracy is None else f"{accuracy:.2f} % on validation"
        return row.student, f"{row.name}, as named: {validated}, {row.params:,} parameters"
    if named:
        which = ", ".join(str(row.student) for row in named)
        raise UsageError(
            f"--student {word}: {len(named)} students of {run.path} are a {word}, expected one",
            hint=f"one of their numbers: {which}",
        )
    names = [*(f"student{row.student}" for row in rows), *dict.fromkeys(row.architecture for row in rows)]
    raise UsageError(
        f"--student {word}: {run.path} has no such student{nearest(word, names)}",
        hint="there is: " + ", ".join(row.name for row in rows) + "; by number, name, or architecture",
    )


def subjects(run: RunDir) -> list[Subject]:
    """The students of a complete run, proven to be those that it recorded, to be measured."""
    result = recorded(run)
    return [_subject(run, result, k) for k in range(len(result.cohort))]


def _subject(run: RunDir, result: Result, index: int) -> Subject:
    student = load(run, index)
    return Subject(
        name=f"student{index}",
        kind="student",
        architecture=student.info.architecture,
        module=student.network,
        size=student.info.preprocessing.size,
        classes=len(student.info.classes),
        model=_bundled(run, student.info),
        export=True,
        trained=Trained(run.path, student, result),
    )


def _bundled(run: RunDir, info: StudentInfo) -> bytes | None:
    """The model of the run's own bundle, if it is of these very weights."""
    folder = run.path / "bundle"
    if not (folder / MANIFEST).is_file():
        return None
    bundle = BundleDir.open(folder)
    return bundle.model() if bundle.manifest.weights_sha256 == info.weights_sha256 else None
