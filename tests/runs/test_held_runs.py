"""One process trains a run; whoever else comes is told, and loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from harness import Quiet, outcome, recipe, result, start, uninterrupted
from making import result_of, run_info, write_json

from okdc.assembly import student as students
from okdc.errors import Interrupted, RunError
from okdc.runs import locks
from okdc.runs.artefacts import Provenance
from okdc.runs.run import RunDir
from okdc.training import result as final
from okdc.training import start as starts


@pytest.fixture
def begun() -> RunDir:
    return RunDir.create("x", run_info(recipe=recipe().recipe.tables(), started_at="1"))


def test_a_run_is_running_while_it_is_held_and_resumable_after(begun: RunDir) -> None:
    states = [begun.state()]
    with begun.held():
        states.append(begun.state())
        with pytest.raises(RunError, match="no resumable run"):
            RunDir.newest("resumable")
    states.append(begun.state())
    assert states == ["resumable", "running", "resumable"]
    assert RunDir.newest("resumable").path.name == "x-1"


def test_a_run_that_another_process_trains_is_not_resumed(begun: RunDir) -> None:
    with begun.held(), pytest.raises(RunError, match="is being trained by another process"):
        starts.resume(begun, Quiet())


def test_looking_at_a_run_does_not_keep_it_from_being_trained(begun: RunDir) -> None:
    for _ in range(3):
        assert begun.state() == "resumable"
        with begun.held():
            pass


def test_ctrl_c_while_the_test_split_is_read_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(final, "judge", interrupted)
        with pytest.raises(Interrupted) as caught:
            start()
    assert caught.value.exit_code == 130
    run = RunDir.newest("resumable")
    assert caught.value.hint == f"okdc resume {run.path}"
    starts.resume(run, Quiet())
    assert outcome(run) == uninterrupted()
    assert result(run)["kept"]


def test_what_keeps_a_continuation_from_being_exact_is_said() -> None:
    class StoppedError(Exception):
        pass

    class Stopping(Quiet):
        def note(self, text: str) -> None:
            super().note(text)
            if text.startswith("run "):
                raise StoppedError

    with pytest.raises(StoppedError):
        starts.start(
            replace(recipe(), stem="y"), None, Provenance(versions={"torch": "1.0"}, processor="an abacus"), Stopping()
        )
    run = RunDir.open(Path("runs/y-1"))
    tell = Quiet()
    starts.resume(run, tell)
    said = [note for note in tell.notes if note.startswith("not exact to the bit")]
    assert len(said) == 2
    assert "torch 1.0 then" in said[0]
    assert "an abacus then" in said[1]


def test_a_damaged_student_file_is_named(begun: RunDir) -> None:
    write_json(begun.student, {"architecture": "resnet8"})
    write_json(begun.result, result_of("fefr", {}))
    with pytest.raises(RunError, match=r"student\.json is damaged"):
        students.load(begun)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_worker_does_not_hold_the_run_after_its_parent(tmp_path: Path) -> None:
    """flock belongs to the open file, which a fork shares: the children of a killed training would keep it."""
    code = (
        "import os, sys, time; from pathlib import Path; from okdc.runs import locks\n"
        "with locks.held(Path(sys.argv[1])):\n"
        "    child = os.fork()\n"
        "    if not child: time.sleep(30); os._exit(0)\n"
        "    print(child, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.wait()
    parent.stdout.close()
    try:
        for _ in range(100):  # the child lives on for longer than this
            if not locks.is_held(tmp_path):
                break
            time.sleep(0.1)  # it may not have run since the fork
        assert not locks.is_held(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
