"""The students of a complete run, one of which is to be shipped: who they are, and one by its name."""

from __future__ import annotations

from typing import Any

from okdc.assembly import student as kept
from okdc.assembly.recorded import complete
from okdc.bundle.layout import FLOAT32, MANIFEST, MODELS
from okdc.errors import UsageError, nearest
from okdc.profiling.measure import Subject
from okdc.runs.files import read_json
from okdc.runs.run import Run


def recorded(run: Run) -> list[dict[str, Any]]:
    """What result.json says of each student, in order (its keys: see `okdc.assembly.recorded.row`).

    Raises RunError for a run that is not complete, or whose record is damaged.
    """
    complete(run, "choose")
    rows: list[dict[str, Any]] = read_json(run.result, "cohort")["cohort"]
    return rows


def called(student: dict[str, Any]) -> str:
    return f"student{student['student']} ({student['architecture']})"


def by_name(run: Run, word: str) -> tuple[int, str]:
    """The student that `word` names, and a line that says so: a number, student1, or an architecture that one has.

    Raises UsageError for any other word, RunError as `recorded`.
    """
    rows = recorded(run)
    numbers = {str(row["student"]): row for row in rows} | {f"student{row['student']}": row for row in rows}
    named = [numbers[word]] if word in numbers else [row for row in rows if row["architecture"] == word]
    if len(named) == 1:
        row, accuracy = named[0], named[0]["val_top1_pct"]
        validated = "nothing was validated" if accuracy is None else f"{accuracy:.2f} % on validation"
        return row["student"], f"{called(row)}, as named: {validated}, {row['params']:,} parameters"
    if named:
        which = ", ".join(str(row["student"]) for row in named)
        raise UsageError(
            f"--student {word}: {len(named)} students of {run.path} are a {word}, expected one",
            hint=f"one of their numbers: {which}",
        )
    known = [*(f"student{row['student']}" for row in rows), *dict.fromkeys(row["architecture"] for row in rows)]
    raise UsageError(
        f"--student {word}: {run.path} has no such student{nearest(word, known)}",
        hint="there is: " + ", ".join(called(row) for row in rows) + "; by number, name, or architecture",
    )


def subjects(run: Run) -> list[Subject]:
    """The students of a complete run with the weights that they were recorded with, to be measured."""
    complete(run, "profile")
    result = read_json(run.result, "kept", "cohort", "judged_on", "images")
    judges = {key: result[key] for key in ("judged_on", "images")}
    kept_one = result["kept"]["student"]
    return [_subject(run, row | judges, row["student"] == kept_one) for row in result["cohort"]]


def _subject(run: Run, row: dict[str, Any], is_kept: bool) -> Subject:
    network, facts = kept.load(run, row["student"])
    return Subject(
        name=f"student{row['student']}",
        kind="student",
        architecture=facts["architecture"],
        module=network,
        size=facts["preprocessing"]["size"],
        classes=len(facts["classes"]),
        model=_bundled(run, facts),
        export=True,
        facts=facts,
        run=str(run.path),
        student=row["student"],
        kept=is_kept,
        result=row,
    )


def _bundled(run: Run, facts: dict[str, Any]) -> bytes | None:
    """The model of the run's own bundle, if it is of these very weights."""
    folder = run.path / "bundle"
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_json(folder / MANIFEST, "weights_sha256")
    return (folder / MODELS[FLOAT32]).read_bytes() if manifest["weights_sha256"] == facts["weights_sha256"] else None
