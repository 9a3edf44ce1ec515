"""A student that its run judged on a GPU: the export judges it again, and rounding alone may tell the two apart."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from okdc import api
from okdc.assembly import student as students
from okdc.comparison import finished
from okdc.errors import CheckFailed, RunError
from okdc.profiling.report import profile
from okdc.progress import Silent
from okdc.runs import artefacts, predictions
from okdc.runs.artefacts import Result
from okdc.runs.files import read_json
from okdc.runs.run import RunDir


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def other(run: RunDir) -> int:
    """The number of a student that the run did not keep."""
    return 1 - run.read_result().kept.student


def judged(run: RunDir, device: str, wrong: int) -> None:
    """Record the other student as judged on `device`, with so many right answers fewer than it has."""
    result, k = run.read_result(), other(run)
    answers = predictions.read(run.predictions, result)
    bits = [right.copy() for right in answers.students]
    bits[k][bits[k].nonzero()[0][:wrong]] = False
    predictions_sha256 = predictions.write(run.predictions, replace(answers, students=bits))
    count = predictions.by_class(answers.judging.labels, bits[k], answers.judging.relative.shape[1])
    _, path = students.files(run, k, result.kept.student)
    info = artefacts.read(path, artefacts.StudentInfo)
    artefacts.write(path, info.model_copy(update={"judged_device": device, "top1_pct": count.top1_pct}))
    row = result.cohort[k].model_copy(
        update={
            "judged_device": device,
            "top1_pct": count.top1_pct,
            "balanced_accuracy_pct": count.balanced_pct,
            "student_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    )
    cohort = tuple(row if each.student == k else each for each in result.cohort)
    artefacts.write(run.result, result.model_copy(update={"cohort": cohort, "predictions_sha256": predictions_sha256}))


def files(run: RunDir) -> dict[str, bytes]:
    """All files of a run but its bundle."""
    paths = (path for path in run.path.rglob("*") if path.is_file() and "bundle" not in path.parts)
    return {str(path): path.read_bytes() for path in paths}


def test_a_run_on_the_cpu_judges_every_student_there(finished: RunDir) -> None:
    result = finished.read_result()
    assert [row.judged_device for row in result.cohort] == ["cpu", "cpu"]
    assert [students.load(finished, k).info.judged_device for k in (0, 1)] == ["cpu", "cpu"]


def test_an_export_has_the_cpus_number_says_so_and_leaves_the_run_as_it_is(run: RunDir) -> None:
    k = other(run)
    true = run.read_result().cohort[k].top1_pct
    judged(run, "cuda", 1)
    recorded = run.read_result().cohort[k].top1_pct
    assert recorded < true
    before, notes = files(run), Notes()
    bundle = api.export(run.path, student=str(k), progress=notes)
    assert bundle.manifest.models["float32"].top1_pct == true
    report = read_json(bundle.path / "parity.json")["float32"]
    assert report["top1_pct"]["torch"] == true
    assert (report["top1_pct"]["recorded"], report["recorded_device"]) == (recorded, "cuda")
    assert any(f"student{k}" in line and "on cuda" in line for line in notes.lines)
    assert bundle.verify()["passed"]
    assert files(run) == before
    assert finished.load(run.path).result.kept == run.read_result().kept


@pytest.mark.parametrize(("device", "wrong"), [("cpu", 1), ("cuda", 2)])
def test_a_difference_that_is_no_rounding_makes_no_bundle(run: RunDir, device: str, wrong: int) -> None:
    judged(run, device, wrong)
    with pytest.raises(CheckFailed) as caught:
        api.export(run.path, student=str(other(run)))
    assert caught.value.kind == "parity"
    assert "recorded" in caught.value.message
    assert ("on cuda" in caught.value.message) == (device == "cuda")
    assert not (run.path / "bundle").exists()


def test_a_profile_says_which_students_a_gpu_judged(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    from okdc.__main__ import main

    k = other(run)
    judged(run, "cuda", 1)
    rows: list[dict[str, Any]] = profile([str(run.path)], False, 1, Silent())["rows"]
    students = [row["judged_device"] for row in rows if row["kind"] == "student"]
    assert students == ["cuda" if i == k else "cpu" for i in (0, 1)]
    assert {row["judged_device"] for row in rows if row["kind"] != "student"} == {None}
    assert main(["profile", str(run.path)]) == 0
    assert f"Judged on the GPU: student{k};" in capsys.readouterr().err


def test_the_kept_student_of_a_run_is_always_the_cpus(run: RunDir) -> None:
    tables = run.read_result().to_json()
    kept = tables["kept"]["student"]
    tables["cohort"][kept]["judged_device"] = "cuda"
    with pytest.raises(ValueError, match=f"cohort.{kept}..judged_device"):
        Result.model_validate(tables)


def test_a_run_that_does_not_say_is_of_another_version(run: RunDir) -> None:
    tables = read_json(run.result)
    del tables["cohort"][0]["judged_device"]
    Path(run.result).write_text(json.dumps(tables))
    with pytest.raises(RunError, match="judged_device: missing"):
        run.read_result()
