"""log.jsonl of a run: a line an epoch, read as far as a kill, a full disk or an editor has left it whole."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

NUMBERS = ("lr", "loss", "seconds", "seconds_steps", "seconds_data", "seconds_validation")
TABLES = ("losses", "train_top1_pct", "val_top1_pct")  # numbers by the name of a term or of a classifier
SOMETIMES = ("val_balanced_pct",)  # a table, where the recipe asks for it


def log_bytes(rows: Sequence[dict[str, Any]]) -> bytes:
    """log.jsonl of these rows."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def whole_rows(content: bytes) -> list[dict[str, Any]]:
    """The rows before the first one that is cut short, out of order, or not as a training writes it."""
    rows: list[dict[str, Any]] = []
    for line in content.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # nested a thousand deep
            break
        if not isinstance(row, dict) or row.get("epoch") != len(rows) + 1 or not _is_whole(row):
            break
        rows.append(row)
    return rows


def _is_whole(row: dict[str, Any]) -> bool:
    tables = [row.get(key) for key in TABLES] + [row.get(key, {}) for key in SOMETIMES]
    return all(_is_number(row.get(key)) for key in NUMBERS) and all(
        isinstance(table, dict) and all(map(_is_number, table.values())) for table in tables
    )


def _is_number(value: object) -> bool:
    """A finite one: a training ends before it writes another, and JSON has no other."""
    return isinstance(value, int | float) and math.isfinite(value)
