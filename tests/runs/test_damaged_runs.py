"""A run that was damaged from outside is named, and hides no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from making import make_row, run_info

from okdc.__main__ import main
from okdc.errors import RunError
from okdc.runs.run import RunDir


@pytest.fixture
def three() -> list[RunDir]:
    """One good run, one whose run.json is cut, one whose recipe is not TOML."""
    made = [
        RunDir.create("x", run_info(recipe={"method": {"name": "fefr"}, "optim": {"epochs": 7}}, started_at=str(n)))
        for n in range(3)
    ]
    made[1].info.write_text('{"started_at": "1", ')
    made[2].recipe.write_text("not = = toml")
    return made


def test_runs_lists_the_good_and_the_damaged(three: list[RunDir], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--json"]) == 0
    said = capsys.readouterr()
    states = {row["run"]: row["state"] for row in json.loads(said.out)}
    assert states == {str(three[0].path): "resumable", str(three[1].path): "failed", str(three[2].path): "failed"}
    assert str(three[2].recipe) in said.err


def test_a_damaged_newest_run_is_named_and_no_other_takes_its_place(three: list[RunDir]) -> None:
    with pytest.raises(RunError, match=str(three[2].recipe)):
        RunDir.newest("resumable")
    three[2].discard()
    assert RunDir.newest("resumable") == three[0]


def test_resuming_a_damaged_run_says_what_is_damaged(three: list[RunDir], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(three[1].path)]) == 2
    said = capsys.readouterr().err
    assert "run.json" in said
    assert "Traceback" not in said
    assert Path(three[1].info).read_text().startswith("{"), "left as it was"


@pytest.mark.parametrize("key", ["images", "epochs"])
def test_a_count_that_no_float_holds_hides_no_other_run(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Percentages and standard errors are computed of counts: Python's integers are larger than its floats."""
    good, bad = (RunDir(path) for path in make_row("runs", "x", [80.0, 81.0]))
    result = json.loads(bad.result.read_text(encoding="utf-8"))
    bad.result.write_text(json.dumps(result | {key: 10**400}), encoding="utf-8")
    capsys.readouterr()
    assert main(["runs", "--json"]) == 0
    said = capsys.readouterr()
    assert str(good.path) in {row["run"] for row in json.loads(said.out) if row["state"] == "complete"}
    assert f"{bad.result}" in said.err
    assert key in said.err
