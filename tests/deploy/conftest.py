"""One short real run and one export of it, shared by all tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from okdc import build
from okdc.__main__ import main
from okdc.deploy import onnx
from okdc.run import Run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A complete run on the digits; tests that write into it take `run` instead."""
    path = tmp_path_factory.mktemp("finished") / "run"
    assert main(["distill", "optim.epochs=8", "-o", str(path)]) == 0
    return Run.open(path)


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    """A copy of the finished run, the test's own."""
    shutil.copytree(finished.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


@pytest.fixture(scope="session")
def blob(finished: Run) -> bytes:
    """The run's student as an ONNX file: an export takes seconds, so there is one."""
    return onnx.to_onnx(*build.student(finished))


@pytest.fixture
def exported(run: Run, blob: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle of a run, made by the command from the one export."""
    monkeypatch.setattr(onnx, "to_onnx", lambda *_: blob)
    assert main(["export", str(run.path), "--onnx"]) == 0
    return run.path / "bundle"
