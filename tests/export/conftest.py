"""Bundles for all clients: a run's and that of a network of many operators, exported by the command."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from runners import PYTHON
from sharing import Shared

from okdc.__main__ import main


@pytest.fixture(scope="session")
def many_operators(shared: Shared) -> Path:
    """The bundle, with all three models, of a network of operators that okdc's own do not have."""
    words = ["method.name=baseline", 'cohort.students=["networks.operators:many_operators"]', "data.val_fraction=0.2"]

    def export(folder: Path) -> None:
        assert main(["distill", *words, "optim.epochs=12", "optim.lr=0.02", "-o", str(folder / "run")]) == 0
        assert main(["export", str(folder / "run"), "--onnx", "--int8", "--fp16"]) == 0

    return shared.made("many_operators", export) / "run" / "bundle"


@pytest.fixture
def bundle(shipped: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(shipped, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def script() -> ModuleType:
    """export/python/run.py as a module."""
    spec = importlib.util.spec_from_file_location("runner", PYTHON)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
