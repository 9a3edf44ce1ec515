"""A student is the one that the run recorded, or none: for every command that reads one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import harness
import pytest
import torch
from asking import ask
from making import seal, write_json
from safetensors.torch import load_file, save_file

from okdc.assembly import student as students
from okdc.errors import CheckFailed, RunError
from okdc.runs.files import read_json
from okdc.runs.run import RunDir
from okdc.training import selection as keep


@pytest.fixture
def other(run: RunDir) -> int:
    """The student that the run did not keep."""
    return 1 - run.read_result().kept.student


def swap_weights(run: RunDir) -> Path:
    """The peer's weights in the kept student's place: the same network, trained on the same images."""
    peer, _ = run.files_of_other(1 - run.read_result().kept.student)
    run.weights.write_bytes(peer.read_bytes())
    return run.weights


def edit_description(run: RunDir) -> Path:
    """Labels in another order: the weights are the recorded ones."""
    info = read_json(run.student)
    write_json(run.student, info | {"classes": info["classes"][::-1]})
    return run.student


def swap_both(run: RunDir) -> Path:
    """The description names the hash of the weights that lie beside it."""
    swap_weights(run)
    sha256 = hashlib.sha256(run.weights.read_bytes()).hexdigest()
    write_json(run.student, read_json(run.student) | {"weights_sha256": sha256})
    return run.student


COMMANDS = {
    "profile": ("profile", "run"),
    "export": ("export", "run", "--onnx"),
    "evaluate": ("evaluate", "run"),
    "budget": ("export", "run", "--onnx", "--budget", "latency_ms<1k"),
    "teacher": ("distill", "method.name=kd", "method.teacher=run", "optim.epochs=1", "-o", "taught"),
}


@pytest.mark.parametrize("change", [swap_weights, edit_description, swap_both])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_student_that_is_not_the_recorded_one(
    run: RunDir, command: str, change: Callable[[RunDir], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = change(run)
    answer = ask(capsys, *COMMANDS[command])
    assert answer.code == 1
    (line,) = [line for line in answer.err.splitlines() if line.startswith("error[")]
    assert line.startswith("error[accuracy]")
    assert path.name in line
    assert answer.out == ""


def test_the_judge_refuses_weights_that_are_not_those_that_were_written(monkeypatch: pytest.MonkeyPatch) -> None:
    write_all = keep.write_all

    def spoilt(run: RunDir, *rest: object) -> None:
        write_all(run, *rest)  # type: ignore[arg-type]
        weights = load_file(run.weights)
        next(w for w in weights.values() if w.is_floating_point()).add_(1e-3)
        save_file(weights, run.weights)

    monkeypatch.setattr(keep, "write_all", spoilt)
    with pytest.raises(CheckFailed) as caught:
        harness.start("optim.epochs=1")
    assert caught.value.kind == "accuracy"
    assert not Path("runs/tiny-1/result.json").exists()


def test_any_student_is_read_by_its_number_and_the_kept_one_without(run: RunDir, other: int) -> None:
    record = run.read_result()
    for index in (None, 1 - other, other):
        student = students.load(run, index)
        assert student.info.student == (record.kept.student if index is None else index)
        assert not student.network.training
        assert student.result == record.cohort[student.info.student]
        assert student.info.top1_pct == student.result.top1_pct
        for name, tensor in load_file(students.files(run, student.info.student, record.kept.student)[0]).items():
            assert torch.equal(student.network.weights()[name], tensor)


def test_another_student_in_a_peers_place_is_a_failed_check_and_leaves_the_kept_one(run: RunDir, other: int) -> None:
    weights, _ = run.files_of_other(other)
    weights.write_bytes(run.weights.read_bytes())
    with pytest.raises(CheckFailed, match=rf"student{other}\.safetensors") as caught:
        students.load(run, other)
    assert (caught.value.kind, caught.value.exit_code) == ("accuracy", 1)
    students.load(run)


@pytest.mark.parametrize("index", [2, -1])
def test_a_student_that_a_run_lacks_is_refused_with_those_it_has(run: RunDir, index: int) -> None:
    with pytest.raises(RunError, match=f"has no student{index}") as caught:
        students.load(run, index)
    assert caught.value.hint == "it has student0 to student1"


def test_a_run_that_is_not_complete_has_no_student(run: RunDir) -> None:
    run.result.unlink()
    with pytest.raises(RunError, match="resumable, not complete") as caught:
        students.load(run)
    assert caught.value.hint == f"okdc resume {run.path}"


def test_a_missing_file_is_named(run: RunDir, other: int) -> None:
    weights, description = run.files_of_other(other)
    for path in (weights, description):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(RunError, match=rf"students/{path.name}: cannot be read"):
            students.load(run, other)
        path.write_bytes(content)


@pytest.mark.parametrize("count", [0, 1000])
def test_weights_that_were_cut_are_no_weights(run: RunDir, count: int) -> None:
    run.weights.write_bytes(run.weights.read_bytes()[:count])
    with pytest.raises(RunError, match=r"student\.safetensors: not the weights of a resnet8"):
        students.load(run)


def test_weights_that_lack_one_are_named_though_every_hash_fits(run: RunDir) -> None:
    weights = load_file(run.weights)
    del weights[next(name for name, tensor in weights.items() if tensor.is_floating_point())]
    save_file(weights, run.weights)
    seal(run)
    with pytest.raises(RunError, match=r"student\.safetensors: not the weights of a resnet8"):
        students.load(run)
