"""`okdc runs`: state, epoch, best, time left; and anew, while a run is being trained."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from asking import ask
from harness import recipe
from making import LOGGED, make_run, run_info, student_info, write_json

from okdc.cli import console
from okdc.runs.run import RunDir

Captured = pytest.CaptureFixture[str]
ROW = LOGGED | {"val_top1_pct": {"student0": 50.0}}


@pytest.fixture
def begun() -> RunDir:
    """A run of ten epochs, two of which are over."""
    resolved = recipe("optim.epochs=10")
    run = RunDir.create("x", run_info(recipe=resolved.recipe.tables(), started_at="1"))
    run.recipe.write_text(resolved.recipe.text())
    for epoch, seconds in ((1, 30.0), (2, 10.0)):
        run.append({"epoch": epoch, **ROW, "seconds": seconds})
    return run


def listed(capsys: Captured) -> list[dict[str, Any]]:
    answer = ask(capsys, "runs", "--json")
    assert answer.code == 0, answer.err
    rows: list[dict[str, Any]] = json.loads(answer.out)
    return rows


def test_the_time_left_is_that_of_the_recent_epochs_less_what_the_present_one_has_taken(
    capsys: Captured, begun: RunDir
) -> None:
    with begun.held():
        (row,) = listed(capsys)
        assert (row["state"], row["epoch"], row["epochs"]) == ("running", 2, 10)
        assert 8 * 20 - 20 <= row["seconds_left"] <= 8 * 20
        os.utime(begun.log, (time.time() - 1000,) * 2)  # an epoch may take longer than those before: not less than none
        assert listed(capsys)[0]["seconds_left"] == 7 * 20
    assert listed(capsys)[0]["seconds_left"] is None, "nobody trains it"


def test_the_best_is_the_student_that_would_be_kept(capsys: Captured, begun: RunDir) -> None:
    assert listed(capsys)[0]["best_val_pct"] is None
    write_json(begun.student, student_info(val_top1_pct=61.5, epoch=2).to_json())
    assert (listed(capsys)[0]["best_val_pct"], listed(capsys)[0]["best_epoch"]) == (61.5, 2)
    make_run("runs/done", kept=90.0)
    done = next(row for row in listed(capsys) if row["state"] == "complete")
    assert (done["best_val_pct"], done["best_epoch"]) == (91.0, 50)


def test_one_damaged_run_hides_no_other(capsys: Captured, begun: RunDir) -> None:
    make_run("runs/done")
    begun.student.write_text("{")
    answer = ask(capsys, "runs")
    assert answer.code == 0
    assert [line.split()[1] for line in answer.out.splitlines()[1:]] == ["failed", "complete"]
    assert str(begun.student) in answer.err
    (begun.path / "run.json").write_text("{")
    for words in ([], ["--sort", "method"], ["--sort", "best"]):
        rows = {row["run"]: row for row in json.loads(ask(capsys, "runs", "--json", *words).out)}
        assert rows[str(begun.path)]["method"] is rows[str(begun.path)]["epoch"] is None
        assert rows["runs/done"]["method"] == "fefr"


def test_a_watch_names_what_is_damaged_below_each_table_and_not_at_each_look(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, begun: RunDir
) -> None:
    shown, looks = list[str](), list[float]()
    broken = make_run("runs/broken")
    (broken / "run.json").write_text("{")
    (broken / "result.json").unlink()
    monkeypatch.setattr(console, "is_terminal", lambda: True)
    monkeypatch.setattr(console, "clear", lambda: shown.append("clear"))
    monkeypatch.setattr(console, "warn", shown.append)
    with ExitStack() as stack:
        stack.enter_context(begun.held())

        def wait(_: float) -> None:
            looks.append(0.0)
            monkeypatch.setattr(RunDir, "_seconds_left", lambda *_: None)  # no clock in the rows
            if len(looks) == 4:
                stack.close()

        monkeypatch.setattr(time, "sleep", wait)
        assert ask(capsys, "runs", "--watch").code == 0
    assert {"clear"} == set(shown[::2])
    assert all("run.json" in text for text in shown[1::2])
    assert len(looks) == 4


def test_the_table_is_written_anew_until_no_run_is_trained(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, begun: RunDir
) -> None:
    cleared: list[int] = []
    monkeypatch.setattr(console, "is_terminal", lambda: True)
    monkeypatch.setattr(console, "clear", lambda: cleared.append(len(begun.rows())))
    with ExitStack() as stack:
        stack.enter_context(begun.held())

        def wait(_: float) -> None:
            if len(begun.rows()) < 4:
                begun.append({"epoch": len(begun.rows()) + 1, **ROW, "seconds": 10.0})
            else:
                stack.close()

        monkeypatch.setattr(time, "sleep", wait)
        answer = ask(capsys, "runs", "--watch")
    assert answer.code == 0, answer.err
    assert set(cleared) == {2, 3, 4}
    assert [epoch for epoch in ("2/10", "3/10", "4/10") if epoch in answer.out] == ["2/10", "3/10", "4/10"]
    assert "resumable" in answer.out


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_a_pipe_is_not_watched(capsys: Captured, words: tuple[str, ...]) -> None:
    answer = ask(capsys, "runs", "--watch", *words)
    assert answer.code == 2
    assert "--watch" in answer.err
    assert not Path("runs").exists()


def test_runs_are_chosen_by_words_and_sorted_by_a_column(capsys: Captured, begun: RunDir) -> None:
    make_run("runs/a", "fefr", kept=80.0, info={"started_at": "2030-01-01"})
    make_run("runs/b", "dml", kept=90.0, info={"started_at": "2030-01-02"})
    make_run("runs/c", "fefr", kept=85.0, seed=1, info={"started_at": "2030-01-03"})

    def names(*words: str) -> list[str]:
        answer = ask(capsys, "runs", "--json", *words)
        assert answer.code == 0, answer.err
        return [Path(row["run"]).name for row in json.loads(answer.out)]

    assert names() == [begun.path.name, "a", "b", "c"]
    assert names("COMPLETE", "fefr") == ["a", "c"]
    assert names("nothing") == []
    assert "'nothing'" in ask(capsys, "runs", "nothing").err
    assert names("--sort", "top1") == ["b", "c", "a", begun.path.name]
    assert names("--sort", "best", "fefr", "complete") == ["c", "a"]
    with begun.held():
        assert names("--sort", "left")[0] == begun.path.name
    answer = ask(capsys, "runs", "--sort", "top-1")
    assert answer.code == 2
    assert "top1" in answer.err
