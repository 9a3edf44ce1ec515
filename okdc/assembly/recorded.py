"""A student of a complete run, proven to be the one that the run recorded."""

from __future__ import annotations

from typing import Any

from okdc.assembly import student as kept
from okdc.cohort import Backbone
from okdc.errors import CheckFailed, RunError
from okdc.runs.files import read_json
from okdc.runs.run import Run


def student(
    run: Run, check: str, purpose: str, student: int | None = None
) -> tuple[Backbone, dict[str, Any], dict[str, Any]]:
    """The network in eval mode, its student.json and result.json. No number: the kept one.

    Raises RunError for a run that is not complete: it has no student to `purpose`, or for one that has no such student;
    CheckFailed of the kind `check` for weights that are not the recorded ones.
    """
    complete(run, purpose)
    result = read_json(run.result, "weights_sha256", "kept", "cohort", "judged_on", "images")
    expected = row(run, result, student)["weights_sha256"]
    network, facts = kept.load(run, student)
    weights = kept.weights_sha256(run, student)
    if not weights == facts["weights_sha256"] == expected:
        raise CheckFailed(
            check,
            f"{kept.files(run, student)[0]} is not the file that the run recorded: sha256 {weights[:12]}, "
            f"expected {expected[:12]}",
            hint="another checkpoint was put in its place; restore it, or train again",
        )
    return network, facts, result


def complete(run: Run, purpose: str) -> None:
    """Raises RunError for a run that is not complete: it has no student to `purpose`."""
    if run.state != "complete":
        hint = run.go_on if run.state == "resumable" else "start another run: okdc distill"
        raise RunError(f"{run.path} is {run.state}, not complete: there is no student to {purpose}", hint=hint)


def row(run: Run, result: dict[str, Any], student: int | None = None) -> dict[str, Any]:
    """What result.json says of a student: student, architecture, epoch, val_top1_pct, top1_pct, params, macs and
    weights_sha256. No number: the kept one.

    Raises RunError where there is no such student.
    """
    kept_one: dict[str, Any] = result["kept"] | {"weights_sha256": result["weights_sha256"]}
    if student is None or student == kept_one["student"]:
        return kept_one
    cohort: list[dict[str, Any]] = result["cohort"]
    if not 0 <= student < len(cohort):
        raise RunError(f"{run.path} has no student{student}", hint=f"it has student0 to student{len(cohort) - 1}")
    return cohort[student]
