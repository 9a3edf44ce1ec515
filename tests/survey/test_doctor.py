"""`okdc doctor`: versions, device, folders, extras, and a self-test that would notice a broken export."""

from __future__ import annotations

import json
import os
import shutil
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from asking import ask

from okdc.deploy import trial
from okdc.errors import CheckFailed
from okdc.survey import doctor

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def untested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the seconds of an export."""
    monkeypatch.setattr(trial, "attempt", lambda *_: [])


def test_the_self_test_exports_a_network_and_says_how_long_that_took() -> None:
    test = doctor.self_test()
    assert test["failed"] is None
    assert test["seconds"] > 0
    assert test["network"] == "resnet8"


def test_a_broken_export_fails_it_and_the_command(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> list[str]:
        raise CheckFailed("parity", "the file is another network")

    monkeypatch.setattr(trial, "attempt", broken)
    answer = ask(capsys, "doctor", "--json")
    assert answer.code == 1
    facts = json.loads(answer.out)
    assert "the file is another network" in facts["self_test"]["failed"]
    assert len(facts["failures"]) == 1
    assert "error[doctor]" in answer.err


@pytest.mark.usefixtures("untested")
def test_it_says_what_is_installed_and_what_a_training_would_choose(capsys: Captured) -> None:
    answer = ask(capsys, "doctor", "--json")
    assert answer.code == 0, answer.err
    facts = json.loads(answer.out)
    assert facts["versions"]["torch"] == metadata.version("torch")
    assert facts["settings"]["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert len(facts["reasons"]) >= 4
    assert "CPUExecutionProvider" in facts["onnxruntime_providers"]
    assert len(facts["gpus"]) == torch.cuda.device_count()
    assert {folder["kind"] for folder in facts["folders"]} >= {"runs", "cache of images", "state"}
    assert all(folder["free_bytes"] > 0 for folder in facts["folders"])
    words = ask(capsys, "doctor")
    assert words.code == 0
    assert all(reason in words.out for reason in facts["reasons"])


@pytest.mark.usefixtures("untested")
def test_an_extra_that_is_missing_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "duplicates", (("no-such-package",), "nothing"))
    extras = {extra["extra"]: extra for extra in doctor.doctor()["extras"]}
    assert extras["duplicates"]["installed"] is False
    assert extras["duplicates"]["install"] == "pip install 'okdc[duplicates]'"


def test_the_extras_are_those_that_okdc_declares() -> None:
    declared = set(metadata.metadata("okdc").get_all("Provides-Extra") or ())
    assert set(doctor.EXTRAS) | {"test", "lint"} == declared


@pytest.mark.usefixtures("untested")
def test_a_package_that_is_missing_is_a_failure(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", (*doctor.PACKAGES, "no-such-package"))
    answer = ask(capsys, "doctor")
    assert answer.code == 1
    assert "no-such-package" in answer.err


@pytest.mark.usefixtures("untested")
def test_a_folder_that_cannot_be_written_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert len(doctor.doctor()["failures"]) == 4


@pytest.mark.usefixtures("untested")
@pytest.mark.parametrize("chosen", ["~no-such-user/x", "/" + "x" * 300])
def test_a_folder_that_cannot_be_is_a_failure_and_the_rest_is_said(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    monkeypatch.setenv("OKDC_CACHE", chosen)
    assert len(doctor.doctor()["failures"]) == 1
    answer = ask(capsys, "doctor")
    assert answer.code == 1
    assert "cache of images" in answer.err
    assert "self-test" in answer.out


@pytest.mark.usefixtures("untested")
def test_a_full_disk_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert len(doctor.doctor()["failures"]) == 4
