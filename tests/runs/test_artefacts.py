"""A wrong type or a missing key in a run's file is one error with file and key, and hides no other run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from asking import ask
from making import SETTINGS, make_run, run_info, student_info
from planting import MISSING, plant, refused
from pydantic import ValidationError

from okdc.recipe.schema import check, load
from okdc.runs import artefacts
from okdc.runs.artefacts import Artefact, Provenance, Result, RunInfo, Settings, StudentInfo, problems
from okdc.runs.run import Run
from okdc.runs.series import Series

Captured = pytest.CaptureFixture[str]
SHARED = {key: value for key, value in SETTINGS.items() if key in Settings.model_fields}

PLANTED: dict[str, list[tuple[str, object]]] = {
    "run.json": [
        ("schema", 2), ("classes", "0123456789"), ("classes", []), ("classes.0", 0), ("settings", ["cpu"]),
        ("settings.device", 7), ("settings.threads", "1"), ("settings.compile", True), ("started_at", 2030),
        ("versions.torch", 2.14), ("processes", "2"), ("processes_before", 3), ("settings", MISSING),
        ("data_sha256", MISSING),
    ],
    "result.json": [
        ("schema", "1"), ("kept", []), ("kept.top1_pct", "90"), ("kept.student", 1.5), ("cohort", {}),
        ("cohort.1.params", MISSING), ("heads_last_epoch_top1_pct", [90.0]), ("images", 0), ("seconds", -1.0),
        ("method_card", "fefr"), ("method_card.fused_head", MISSING), ("teacher", "resnet56"), ("share", "all"),
        ("cohort", MISSING),
    ],
    "student.json": [
        ("schema", None), ("architecture", 3), ("classes", {}), ("classes", []), ("preprocessing", "squeezed"),
        ("preprocessing.size", "8"), ("preprocessing.mean", [0.1]), ("preprocessing.std.2", "0.1"), ("student", -1),
        ("epoch", 1.5), ("val_top1_pct", 101), ("weights_sha256", MISSING),
    ],
    "series.json": [
        ("schema", True), ("seeds", "0,1"), ("seeds", []), ("seeds.1", -1), ("seeds.0", 0.5), ("recipe_sha256", 1),
        ("started_at", None), ("settings", 3), ("settings.device", "tpu"), ("settings.threads", 0), ("seeds", MISSING),
        ("settings.dtype", MISSING),
    ],
}  # fmt: skip
COMMANDS = {
    "run.json": ("compare", "runs/bad"),
    "result.json": ("profile", "runs/bad"),
    "student.json": ("profile", "runs/bad"),
    "series.json": ("resume", "runs/bad"),
}


def make(name: str) -> Path:
    """Something whole at runs/bad, beside a whole run."""
    make_run("runs/good", "fefr", 0)
    if name == "series.json":
        recipe, _ = check(load(["digits_resnet8"]))
        assert recipe is not None
        settings = Settings.model_validate(SHARED)
        return Series.create("x", recipe, (0, 1), "2026", settings, Provenance(), Path("runs/bad")).info
    path = make_run("runs/bad", "fefr", 1)
    artefacts.write(path / "student.json", student_info())
    return path / name


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [pytest.param(name, *pair, id=f"{name}-{pair[0]}-{i}") for name in PLANTED for i, pair in enumerate(PLANTED[name])],
)
def test_a_wrong_type_or_a_missing_key_is_one_error_with_file_and_key(
    name: str, key: str, value: object, capsys: Captured
) -> None:
    plant(make(name), key, value)
    refused(ask(capsys, *COMMANDS[name]), 2, name, key)
    listed = ask(capsys, "runs", "--json")
    assert listed.code == 0
    assert {row["run"]: row["state"] for row in json.loads(listed.out)}["runs/good"] == "complete"
    if name in ("run.json", "result.json"):
        compared = json.loads(ask(capsys, "compare", "runs", "--json").out)
        assert [run["run"] for row in compared["rows"] for run in row["runs"]] == ["runs/good"]
        assert [run["run"] for run in compared["left_out"]] == ["runs/bad"]


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("kept.student", 7, "kept.student"),
        ("kept.top1_pct", 1.0, "kept"),
        ("weights_sha256", "0" * 64, "weights_sha256"),
        ("cohort.1.student", 0, "cohort"),
        ("heads_last_epoch_top1_pct.student0", MISSING, "heads_last_epoch_top1_pct.student0"),
    ],
)
def test_a_record_that_contradicts_itself_is_damaged(key: str, value: object, named: str, capsys: Captured) -> None:
    plant(make("result.json"), key, value)
    refused(ask(capsys, "profile", "runs/bad"), 2, "result.json", named)


def test_every_problem_is_named_and_the_first_is_the_message() -> None:
    tables = run_info().to_json() | {"classes": [1], "processes": 0, "settings": None}
    with pytest.raises(ValidationError) as caught:
        RunInfo.model_validate(tables)
    assert problems(caught.value) == [
        "classes[0]: expected text, found 1",
        "settings: expected an object, found None",
        "processes: expected at least 1, found 0",
    ]


@pytest.mark.parametrize("content", [run_info(processes_before=(1, 2)), student_info(), student_info(top1_pct=90.0)])
def test_a_file_is_read_as_it_was_written(content: Artefact) -> None:
    artefacts.write(Path("x.json"), content)
    assert artefacts.read(Path("x.json"), type(content)) == content
    assert artefacts.read(Path("x.json"), type(content)).to_json() == content.to_json()


def test_keys_that_were_not_set_are_not_written_and_those_of_others_are_ignored() -> None:
    tables = student_info(val_top1_pct=None).to_json()
    assert tables["val_top1_pct"] is None
    assert not {"judged_on", "top1_pct", "images"} & tables.keys()
    assert StudentInfo.model_validate(tables | {"colour": "red"}).to_json() == tables


def test_a_result_is_what_makes_a_run_complete_and_says_so_itself() -> None:
    run = Run(make_run("run", "fefr", 3))
    assert run.state() == "complete"
    assert isinstance(run.read_result(), Result)
    assert run.read_result().kept.name == "student0 (resnet8)"
