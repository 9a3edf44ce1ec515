"""A study's table in words: the cells of a row, its Markdown, and the sentences below it. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from okdc.escaping import prose
from okdc.units import number

MOST_SEEDS = 5  # whose errors stand in a cell
NAMES = ("column", "method", "head")
NUMBERS = (
    "paper", "error % [95 %]", "each seed", "minus paper", "verdict", "minus baseline", "verdict", "training MACs", "s"
)  # fmt: skip


def grid(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The headers and the rows of the table, without the columns in which nothing stands."""
    headers, rows = _numbers(report)
    names = [[row["column"], row["method"], _head(row)] for row in report["rows"]]
    return [*NAMES, *headers], [[*name, *row] for name, row in zip(names, rows, strict=True)]


def narrow(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The same for a terminal, which shows a wide table in parts: the name of a row is one cell, and so in each."""
    headers, rows = _numbers(report)
    heads = ["" if row["head"] == "student" else _head(row) for row in report["rows"]]
    names = [f"{row['column']}/{row['method']} {head}".strip() for row, head in zip(report["rows"], heads, strict=True)]
    return ["column/method", *headers], [[name, *row] for name, row in zip(names, rows, strict=True)]


def _head(row: Mapping[str, Any]) -> str:
    return f"{row['head']} ({row['network']})" if row["head"].startswith("student") and row["network"] else row["head"]


def _numbers(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The columns of NUMBERS in which anything stands."""
    rows = [
        [
            f"{row['paper']['error_pct']:.2f}" if row["paper"] else "",
            _mean(row),
            _each(list(row["error_pct_by_seed"].values())),
            *_difference(row["minus_paper"]),
            *_difference(row["minus_baseline"]),
            "" if row["training_macs"] is None else number(row["training_macs"]),
            "" if row["training_seconds"] is None else f"{row['training_seconds']:,.0f}",
        ]
        for row in report["rows"]
    ]
    used = [i for i in range(len(NUMBERS)) if any(row[i] for row in rows)]
    return [NUMBERS[i] for i in used], [[row[i] for i in used] for row in rows]


def _each(errors: Sequence[float]) -> str:
    """Of many seeds the span alone: the report as JSON has them all."""
    if len(errors) > MOST_SEEDS:
        return f"{min(errors):.2f} to {max(errors):.2f}, {len(errors)} seeds"
    return ", ".join(f"{error:.2f}" for error in errors)


def _mean(row: Mapping[str, Any]) -> str:
    if row["error_pct"] is None:
        return ""
    interval = row["interval_pct"]
    return f"{row['error_pct']:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def _difference(difference: Mapping[str, Any] | None) -> tuple[str, str]:
    if difference is None:
        return "", ""
    interval = difference["interval_points"]
    ends = f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else ""
    return f"{difference['points']:+.2f}{ends}", difference["verdict"]


def sentences(report: Mapping[str, Any]) -> list[str]:
    """What the numbers are, then what is missing and what differs."""
    shown = [row for row in report["rows"] if row["n"]]
    lines = [
        "errors are 100 - top-1 in %, of the last epoch, on the images that judged the runs; student is the first, or "
        "the leader of a method that has one, and nobody chose it",
        f"the {report['confidence_pct']:g} % intervals hold the chance of the seeds and that of the images; below "
        "three seeds nothing is resolved, and an interval of two is wide",
    ]
    for source in dict.fromkeys(row["paper"]["source"] for row in shown if row["paper"]):
        lines.append(f"paper: {source}; one number without a spread, the best of several runs and of the test set")
    if report["baseline"]:
        lines.append(f"minus baseline: less {report['baseline']}'s student, paired by seed and image")
    for method, words in report["methods"].items():
        others = _unnamed(words, [row["variant"] for row in shown if row["method"] == method])
        with_others = f"; its runs have {', '.join(others)}" if others else ""
        if len(words) > 1 or others:
            lines.append(f"{method}: {' '.join(words)}{with_others}")
    if any(row["training_macs"] for row in shown):
        lines.append(
            "training MACs: multiply-adds of all steps, forward and backward, counted; s: the seconds of these steps, "
            "the mean over the seeds; a teacher's own training is in neither"
        )
    lines += report["remarks"]
    by_state: dict[str, list[str]] = {}
    for left in report["left_out"]:
        by_state.setdefault(left["state"], []).append(left["run"])
    for state, runs in by_state.items():
        lines.append(f"{state}: {len(runs)} run{'s' if len(runs) > 1 else ''} ({_few(runs)})")
    return [*lines, *report["notes"]]


def _unnamed(words: Sequence[str], variants: Sequence[str]) -> list[str]:
    """The keys of a method in its runs' variants that its words do not name: the column's recipe sets them."""
    named = {word.partition("=")[0].rpartition(".")[2] for word in words}
    keys = [key for variant in variants for key in re.split(r" (?=\w+=)", variant)[1:]]
    return [key for key in dict.fromkeys(keys) if key.partition("=")[0] not in named]


def reasons(report: Mapping[str, Any]) -> list[str]:
    """Why runs are left out that are neither missing nor under way."""
    return [left["why"] for left in report["left_out"] if left["why"]]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report as GitHub's Markdown."""
    headers, rows = grid(report)
    lines = [f"# {prose(report['title'])}", ""]
    for line in (headers, ["---"] * len(headers), *rows):
        lines.append("| " + " | ".join(prose(cell) for cell in line) + " |")
    lines += ["", *(f"- {prose(sentence)}" for sentence in (*sentences(report), *reasons(report)))]
    return "\n".join(lines) + "\n"
