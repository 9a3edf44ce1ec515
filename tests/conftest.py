"""Shared fixtures. Every test runs offline, on one thread, in a folder of its own."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: two workers share two cores

from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """runs/, the cache and the working directory of a test are its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OKDC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OKDC_DATA_ROOT", raising=False)
    yield
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
