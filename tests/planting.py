"""A value of another type planted into a JSON file, and the one error that has to come of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asking import Answer

from okdc.runs.files import read_json, write_json

MISSING = object()


def plant(path: Path, key: str, value: object) -> None:
    """Set `cohort.0.params` of a file, or take it out."""
    tables: Any = read_json(path)
    inside = tables
    *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    for part in parents:
        inside = inside[part]
    if value is MISSING:
        del inside[last]
    else:
        inside[last] = value
    write_json(path, tables)


def refused(answer: Answer, code: int, name: str, key: str) -> None:
    """One error names the file and the key."""
    errors = [line for line in answer.err.splitlines() if line.startswith("error[")]
    assert answer.code == code, answer.err
    assert len(errors) == 1
    assert not errors[0].startswith("error[bug]")
    assert "Traceback" not in answer.err
    assert name in errors[0]
    first, *rest = key.split(".")
    assert "".join([first, *(f"[{part}]" if part.isdigit() else f".{part}" for part in rest)]) in errors[0]
