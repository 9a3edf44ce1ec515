"""How much memory there is, on a machine and in a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from okdc.data import memory

GB = 2**30


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    monkeypatch.setattr(memory, "_of_machine", lambda: 16 * GB)
    return tmp_path


@pytest.mark.usefixtures("group")
def test_without_a_container_it_is_the_machines() -> None:
    assert memory.available() == 16 * GB
    assert memory.room() == 8 * GB


@pytest.mark.parametrize(
    ("prefix", "limit", "usage", "cached"),
    [
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_container_has_its_limit_and_files_in_memory_are_given_back(
    group: Path, prefix: str, limit: str, usage: str, cached: str
) -> None:
    folder = group / prefix
    folder.mkdir(exist_ok=True)
    (folder / limit).write_text(f"{4 * GB}\n")
    (folder / usage).write_text(f"{3 * GB}\n")
    (folder / "memory.stat").write_text(f"anon {GB}\n{cached} {2 * GB}\nslab 5\n")
    assert memory.available() == 3 * GB
    (folder / usage).write_text(f"{7 * GB}\n")
    assert memory.available() == 0
    (folder / limit).write_text("max\n")
    assert memory.available() == 16 * GB


def test_this_machine_has_some() -> None:
    assert memory.available() > 0
