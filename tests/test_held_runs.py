"""One process trains a run; whoever else comes is told, and loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Quiet, outcome, recipe, result, start, uninterrupted

from okdc import kept
from okdc.errors import Interrupted, RunError
from okdc.files import read_json, write_json
from okdc.run import Run
from okdc.training import engine
from okdc.training import result as final


@pytest.fixture
def begun() -> Run:
    return Run.create("x", recipe().text(), {"started_at": "1", "settings": {}})


def test_a_run_is_running_while_it_is_held_and_resumable_after(begun: Run) -> None:
    states = [begun.state]
    with begun.held():
        states.append(begun.state)
        with pytest.raises(RunError, match="no resumable run"):
            Run.newest("resumable")
    states.append(begun.state)
    assert states == ["resumable", "running", "resumable"]
    assert Run.newest("resumable").path.name == "x-1"


def test_a_run_that_another_process_trains_is_not_resumed(begun: Run) -> None:
    with begun.held(), pytest.raises(RunError, match="is being trained by another process"):
        engine.resume(begun, Quiet())


def test_looking_at_a_run_does_not_keep_it_from_being_trained(begun: Run) -> None:
    for _ in range(3):
        assert begun.state == "resumable"
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
    run = Run.newest("resumable")
    assert caught.value.hint == f"okdc resume {run.path}"
    engine.resume(run, Quiet())
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
        engine.start(recipe(), "y", None, {"versions": {"torch": "1.0"}, "processor": "an abacus"}, Stopping())
    run = Run.open(Path("runs/y-1"))
    tell = Quiet()
    engine.resume(run, tell)
    said = [note for note in tell.notes if note.startswith("not exact to the bit")]
    assert len(said) == 2
    assert "torch 1.0 then" in said[0]
    assert "an abacus then" in said[1]


def test_a_damaged_student_file_is_named(begun: Run) -> None:
    write_json(begun.student, {"architecture": "resnet8"})

    with pytest.raises(RunError, match=r"student\.json is damaged: classes"):
        kept.load(begun)
    assert read_json(begun.student)
