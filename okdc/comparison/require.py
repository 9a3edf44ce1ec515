"""`--require 'fefr>baseline'`: a condition on a comparison, for scripts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from okdc.comparison import stats
from okdc.comparison.rows import KEPT, Row, called
from okdc.errors import CheckFailed, UsageError


def parse(text: str) -> tuple[str, str, str]:
    """`fefr reconstruct=cyclic>baseline` -> its two rows and the sign between them. Raises UsageError."""
    match = re.fullmatch(r"\s*([^<>]*[^<>\s])\s*(>=?)\s*([^<>=\s][^<>]*?)\s*", text)
    if match is None:
        raise UsageError(f"--require {text!r}: expected two rows and > or >= between them", hint="'fefr>baseline'")
    return match[1], match[2], match[3]


def verdict(left: str, sign: str, right: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Whether the 95 % interval of `left` - `right` lies above 0 (>), or does not lie below it (>=)."""
    row, other = (called(name, rows, "--require") for name in (left, right))
    if row is other:
        raise UsageError(f"--require {left}{sign}{right}: a row is not compared with itself")
    difference = stats.paired(row.right(KEPT), other.right(KEPT))
    resolved = difference is not None and difference["n"] >= stats.ENOUGH
    word = difference["verdict"] if difference else ""
    return {
        "require": f"{row.name}{sign}{other.name}",
        "holds": resolved and (word == "better" if sign == ">" else word != "worse"),
        "difference": difference,
    }


def _described(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return "no seed in common"
    words = f"kept {difference['mean_points']:+.2f} points, "
    if difference["interval_points"]:
        low, high = difference["interval_points"]
        words += f"95 % interval [{low:+.2f}, {high:+.2f}] over {difference['n']} seeds, "
    needs = "" if difference["n"] >= stats.ENOUGH else f": a verdict needs {stats.ENOUGH}"
    return f"{words}{difference['images']:,} images: {difference['verdict']}{needs}"


def check(report: Mapping[str, Any]) -> None:
    """Raises CheckFailed where a requirement does not hold, with the difference."""
    failed = [each for each in report["required"] if not each["holds"]]
    if failed:
        lines = [f"{each['require']} does not hold: {_described(each['difference'])}" for each in failed]
        raise CheckFailed(
            "require",
            lines[0] if len(lines) == 1 else f"{len(lines)} of {len(report['required'])} requirements do not hold",
            hint="'>' asks for an interval above 0, '>=' for one that is not below it; more seeds or images narrow it",
            details=lines if len(lines) > 1 else (),
        )
