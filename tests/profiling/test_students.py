"""`--student`: a number, student1, or an architecture that one has alone; each with the weights that were recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from making import make_run, result_of

from okdc.assembly.student import load
from okdc.errors import RunError, UsageError
from okdc.profiling import students
from okdc.profiling.students import by_name
from okdc.runs.files import read_json
from okdc.runs.run import RunDir


@pytest.fixture
def three() -> RunDir:
    """A complete run, as files, of a ResNet-14 and two ResNet-8."""
    names = ["resnet14", "resnet8", "resnet8"]
    rows = [
        row | {"student": k, "val_top1_pct": 90.0 + k, "params": 1000 * (k + 1)}
        for k, row in enumerate(result_of("fefr", {}, names)["cohort"])
    ]
    return RunDir.open(make_run("run", result={"cohort": rows}, students=names))


@pytest.mark.parametrize(("word", "student"), [("0", 0), ("2", 2), ("student0", 0), ("student1", 1), ("resnet14", 0)])
def test_a_student_is_named_by_number_name_or_an_architecture_of_its_own(
    three: RunDir, word: str, student: int
) -> None:
    found, note = by_name(three, word)
    assert found == student
    assert note.startswith(f"student{student} (resnet")
    assert f"{90 + student}.00 % on validation" in note
    assert f"{student + 1},000 parameters" in note


def test_an_architecture_of_two_students_is_refused_with_their_numbers(three: RunDir) -> None:
    with pytest.raises(UsageError, match="--student resnet8: 2 students of run are a resnet8") as caught:
        by_name(three, "resnet8")
    assert caught.value.hint == "one of their numbers: 1, 2"


@pytest.mark.parametrize("word", ["3", "-1", "student3", "resnet20", "", "best", "1.0", "²"])
def test_an_unknown_student_is_refused_with_those_there_are(three: RunDir, word: str) -> None:
    with pytest.raises(UsageError, match="has no such student") as caught:
        by_name(three, word)
    assert "student0 (resnet14), student1 (resnet8), student2 (resnet8)" in caught.value.hint


def test_the_nearest_is_named(three: RunDir) -> None:
    with pytest.raises(UsageError, match="did you mean 'resnet14'"):
        by_name(three, "resnet144")


def test_a_student_that_nothing_validated_is_taken_by_its_name(three: RunDir) -> None:
    rows = read_json(three.result)["cohort"]
    make_run("other", result={"cohort": [row | {"val_top1_pct": None} for row in rows]})
    assert "nothing was validated" in by_name(RunDir.open(Path("other")), "1")[1]


def test_an_unfinished_run_has_no_student_to_name(three: RunDir) -> None:
    three.result.unlink()
    with pytest.raises(RunError, match="resumable, not complete: it has no student yet"):
        by_name(three, "0")


def test_the_students_of_a_run_are_those_that_were_recorded(run: RunDir) -> None:
    result = read_json(run.result)
    found = students.subjects(run)
    assert [subject.name for subject in found] == ["student0", "student1"]
    for subject, row in zip(found, result["cohort"], strict=True):
        network = load(run, row["student"]).network
        assert all(torch.equal(subject.module.state_dict()[k], value) for k, value in network.state_dict().items())
        assert subject.trained is not None
        assert subject.trained.student.info.weights_sha256 == row["weights_sha256"]
        assert subject.trained.is_kept == (row["student"] == result["kept"]["student"])
