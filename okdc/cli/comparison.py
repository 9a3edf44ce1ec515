"""The tables of `okdc compare` on stdout, an explanation of their numbers below, and notes on stderr."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from okdc.cli import console
from okdc.escaping import prose

Table = tuple[list[str], list[list[str]]]  # headers, rows


def show(facts: dict[str, Any], markdown: bool = False) -> None:
    """A table each of accuracy, differences, costs and a paper's errors, with a row for each variant.

    Four tables fit a terminal of 100 columns; one table would not.
    """
    draw = _markdown if markdown else console.table
    draw(*_accuracies(facts))
    for table in (_differences(facts), _costs(facts), _beside_paper(facts)):
        if table[1]:
            console.out("")
            draw(*table)
    console.out("")
    for line in _explanations(facts):
        console.out(f"- {prose(line)}" if markdown else line)
    for line in facts["notes"]:  # they belong to Markdown, which is copied elsewhere
        console.out(f"- {prose(line)}") if markdown else console.note(line)
    for run in facts["left_out"]:
        console.note(f"left out: {run['why']}")
    if facts["judged_on"] != "test":
        console.warn("the data has no test split: these images also chose the students, so accuracies are too high")


def _accuracies(facts: dict[str, Any]) -> Table:
    rows, split = facts["rows"], facts["judged_on"]
    heads = [head for head in ("fused", "ensemble") if any(head in r["heads_last_epoch"] for r in rows)]
    headers = [f"top-1 % on {split}", "n", "seeds", "kept", "student last", *(f"{head} last" for head in heads)]
    return headers, [
        [
            row["name"],
            str(row["n"]),
            _ranges(row["seeds"]),
            _mean(row["kept"]),
            _mean(row["student_last_epoch"]),
            *(_mean(row["heads_last_epoch"].get(head)) for head in heads),
        ]
        for row in rows
    ]


def _costs(facts: dict[str, Any]) -> Table:
    return ["kept student", "params", "MACs", "training s (mean)"], [
        [row["name"], _range(row["params"]), _range(row["macs"]), f"{row['seconds_mean']:,.1f}"]
        for row in facts["rows"]
    ]


def _differences(facts: dict[str, Any]) -> Table:
    def cells(difference: dict[str, Any] | None) -> list[str]:
        return [_points(difference), difference["verdict"] if difference else "no seed in common"]

    headers = [f"minus {facts['baseline']}, points", "pairs", "kept (95 % interval)", "", "student last", ""]
    return headers, [
        [
            row["name"],
            str(difference["kept"]["n"] if difference["kept"] else 0),
            *cells(difference["kept"]),
            *cells(difference["student_last_epoch"]),
        ]
        for row in facts["rows"]
        if (difference := row["difference"])
    ]


def _beside_paper(facts: dict[str, Any]) -> Table:
    """Errors beside those of a paper, which prints errors and not accuracies."""
    return ["top-1 error %", "kept, here", "student, paper", "fused, here", "fused, paper"], [
        [
            row["name"],
            _mean(row["kept"], error=True),
            _printed(paper["student_error_pct"]),
            _mean(row["heads_last_epoch"].get(row["fused_head"]), error=True),
            _printed(paper["fused_error_pct"]),
        ]
        for row in facts["rows"]
        if (paper := row["paper"])
    ]


def _explanations(facts: dict[str, Any]) -> list[str]:
    """The lines below the tables: the meaning of kept and last, the origin of the numbers, their uncertainty."""
    rows, images = facts["rows"], f"{facts['images']:,} {facts['judged_on']} images"
    seeds = _ranges(sorted({seed for row in rows for seed in row["seeds"]}))
    first = rows[0]
    low, high = first["kept_interval_pct"]
    epochs = f"{facts['epochs']} epoch{'s' * (facts['epochs'] > 1)}"
    lines = [
        f"kept: {_how_kept(facts)}; this student is exported. last: at the last epoch, the first student, or the "
        "leader of a method that has one. ±: standard deviation over n seeds, one training for each",
        f"{facts['dataset']}, {epochs}, seeds {seeds}, all judged on the same {images}: an "
        f"accuracy of {first['kept']['mean_top1_pct']:.2f} % on as many is [{low:.2f}, {high:.2f}] (Wilson's "
        f"{facts['confidence_pct']:g} % interval), which more seeds do not make narrower",
    ]
    if any(row["difference"] for row in rows):
        lines.append(
            f"differences are paired by seed and image; the {facts['confidence_pct']:g} % interval holds the chance of "
            "the seeds and that of the images (Banerjee's, of both Student intervals), for each row alone, without a "
            "correction for several rows"
        )
    for row in rows:
        students = row["students"]
        shown = r"fused|ensemble|student" + (r"\d+" if len(set(students)) == 1 else "0")  # unlike students: list each
        networks = {f"student{k}": f" ({name})" for k, name in enumerate(students)}
        heads = row["heads_last_epoch"].items()
        others = [f"{h}{networks.get(h, '')} {_mean(of)}" for h, of in heads if not re.fullmatch(shown, h)]
        if others:
            lines.append(f"{row['name']}, other heads at the last epoch: {', '.join(others)}")
    if sharing := [f"{row['name']} {row['share']}" for row in rows if row["share"] != "none"]:
        lines.append(f"stages that students share (cohort.share): {', '.join(sharing)}; none in other rows")
    selection = "nothing chosen on the test set" if facts["judged_on"] == "test" else "chosen on the same images"
    for paper in {row["paper"]["source"]: row["paper"] for row in rows if row["paper"]}.values():
        lines.append(
            f"paper: {paper['source']}: {paper['epochs']} epochs, the best of three runs, chosen on the test set; "
            f"here: {facts['epochs']} epochs, the mean of all runs, {selection}"
        )
    return lines


def _how_kept(facts: dict[str, Any]) -> str:
    rules = {"best": "the best student", "smallest": "the smallest student"}
    student = rules.get(facts["keep"][0], "the student that the recipe names")
    if len(facts["keep"]) > 1:
        student = "the student that cohort.keep chooses"
    if facts["keep_epoch"] == "last":
        chosen = " on validation images" if facts["validated"] and facts["keep"] == ["best"] else ""
        return f"{student}{chosen}, at the last epoch"
    without = "" if facts["validated"] else " (without them: at the last epoch)"
    return f"{student} at its best epoch, on validation images{without}"


def _mean(sample: dict[str, Any] | None, error: bool = False) -> str:
    if sample is None:
        return ""
    centre = 100 - sample["mean_top1_pct"] if error else sample["mean_top1_pct"]
    return f"{centre:.2f}" + (f" ± {sample['sd_top1_pct']:.2f}" if sample["sd_top1_pct"] is not None else "")


def _points(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return ""
    interval = difference["interval_points"]
    return f"{difference['mean_points']:+.2f}" + (f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "")


def _printed(error: float | list[float] | None) -> str:
    return "" if error is None else " / ".join(map(str, error)) if isinstance(error, list) else str(error)


def _range(ends: Sequence[int]) -> str:
    return " to ".join(f"{end:,}" for end in dict.fromkeys(ends))


def _ranges(seeds: Sequence[int]) -> str:
    """0, 1, 2, 5 -> `0-2, 5`."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table in GitHub's Markdown."""
    for cells in (headers, ["---"] * len(headers), *rows):
        console.out("| " + " | ".join(prose(cell) for cell in cells) + " |")
