"""Any student of a run is the one that the run recorded, or none."""

from __future__ import annotations

import pytest

from okdc.assembly import recorded
from okdc.assembly import student as kept
from okdc.errors import CheckFailed, RunError
from okdc.runs.files import read_json, write_json
from okdc.runs.run import Run


@pytest.fixture
def other(run: Run) -> int:
    """The student that the run did not keep."""
    return 1 - int(read_json(run.result)["kept"]["student"])


def test_any_student_is_read_by_its_number_and_the_kept_one_without(run: Run, other: int) -> None:
    for student in (None, 1 - other, other):
        network, facts, result = recorded.student(run, "parity", "export", student)
        assert facts["student"] == (1 - other if student is None else student)
        assert not network.training
        row = recorded.row(run, result, student)
        assert row == result["cohort"][facts["student"]]
        assert facts["top1_pct"] == row["top1_pct"]


def test_weights_of_another_student_are_a_failed_check(run: Run, other: int) -> None:
    weights, _ = run.files_of_other(other)
    weights.write_bytes(run.weights.read_bytes())
    with pytest.raises(
        CheckFailed, match=rf"student{other}\.safetensors is not the file that the run recorded"
    ) as caught:
        recorded.student(run, "parity", "export", other)
    assert caught.value.kind == "parity"
    recorded.student(run, "parity", "export")  # the kept one is untouched


def test_weights_and_description_changed_together_are_a_failed_check(run: Run, other: int) -> None:
    weights, described = run.files_of_other(other)
    weights.write_bytes(run.weights.read_bytes())
    write_json(described, read_json(described) | {"weights_sha256": kept.weights_sha256(run)})
    with pytest.raises(CheckFailed, match="is not the file that the run recorded"):
        recorded.student(run, "parity", "export", other)


@pytest.mark.parametrize("student", [2, -1])
def test_a_student_that_a_run_lacks_is_refused_with_those_it_has(run: Run, student: int) -> None:
    with pytest.raises(RunError, match=f"has no student{student}") as caught:
        recorded.student(run, "parity", "export", student)
    assert caught.value.hint == "it has student0 to student1"


def test_a_record_without_its_students_is_damaged(run: Run) -> None:
    result = read_json(run.result)
    del result["cohort"]
    write_json(run.result, result)
    with pytest.raises(RunError, match=r"result\.json is damaged: cohort missing"):
        recorded.student(run, "parity", "export")


def test_a_missing_file_is_named(run: Run, other: int) -> None:
    run.files_of_other(other)[1].unlink()
    with pytest.raises(RunError, match=rf"students/student{other}\.json: cannot be read"):
        recorded.student(run, "parity", "export", other)
