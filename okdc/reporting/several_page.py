"""The page of several runs: from their tables to what the template shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from okdc.reporting import charts
from okdc.reporting.charts import Point
from okdc.runs.accuracy import interval_pct
from okdc.studies import markdown

MOST_LINES = 30  # of a figure: more cannot be told apart
Facts = Mapping[str, Any]


def of_several(facts: Facts) -> dict[str, Any]:
    """The names that several.html.j2 uses."""
    several, study = facts["several"], facts["study"]
    compare = several["compare"]
    rows = [row["name"] for row in compare["rows"]] if compare else []
    colours = charts.in_order(dict.fromkeys([*rows, *(run["method"] for run in several["runs"])]))
    sections = [
        ("study", "Study", study),
        ("comparison", "Comparison", compare or several["refused"]),
        ("curves", "Curves", True),
        ("differences", "Recipes", several["differences"]["rows"]),
        ("runs", "Runs", True),
    ]
    return {
        "facts": {**several, "study": study},
        "compare": compare,
        "title": study["title"] if study else _title(several["runs"]),
        "sentences": [] if study else _sentences(several),
        "sections": [(anchor, name) for anchor, name, there in sections if there],
        "study_grid": markdown.grid(study) if study else None,
        "study_sentences": [*markdown.sentences(study), *markdown.reasons(study)] if study else [],
        "charts": {**_comparison(compare, colours), "curves": _curves(several["runs"], colours)},
    }


def _title(runs: Sequence[Facts]) -> str:
    data = ", ".join(dict.fromkeys(run["dataset"] for run in runs))
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''} on {data}"


def _sentences(several: Facts) -> list[str]:
    """What the verdicts come to."""
    compare = several["compare"]
    if not compare:
        return ["These runs do not compare, so no difference is taken."]
    lines = []
    for verdict in ("better", "worse"):
        rows = [row["name"] for row in compare["rows"] if row["difference"] and _verdict(row) == verdict]
        if rows:
            lines.append(f"Resolved as {verdict} than {compare['baseline']}: {', '.join(rows)}.")
    open_rows = [row["name"] for row in compare["rows"] if row["difference"] and _verdict(row).startswith("not")]
    if open_rows:
        lines.append(f"Not resolved against {compare['baseline']}: {', '.join(open_rows)}.")
    return lines


def _verdict(row: Facts) -> str:
    kept = row["difference"]["kept"]
    return kept["verdict"] if kept else ""


def _comparison(compare: Facts | None, colours: Mapping[str, int]) -> dict[str, Any]:
    nothing = dict.fromkeys(("kept", "differences", "macs"))
    if not compare:
        return nothing
    points, differences = [], []
    for row in compare["rows"]:
        values = list(row["kept"]["top1_pct_by_seed"].values())
        low, high = (min(values), max(values)) if len(values) > 1 else interval_pct(values[0], compare["images"])
        mean, n = row["kept"]["mean_top1_pct"], row["n"]
        tip = f"{row['name']}: {mean:.2f} %, {low:.2f} to {high:.2f}, {n} seed{'s' if n > 1 else ''}"
        colour = colours[row["name"]]
        points.append(Point(row["name"], mean, low, high, colour, tip, at=row["macs"][0]))
        paired = row["difference"] and row["difference"]["kept"]
        if paired and paired["interval_points"]:
            low, high = paired["interval_points"]
            tip = f"{row['name']}: {paired['mean_points']:+.2f} [{low:+.2f}, {high:+.2f}], {paired['verdict']}"
            differences.append(Point(row["name"], paired["mean_points"], low, high, colour, tip))
    return {
        "kept": charts.dots(points, 0.0, 100.0),
        "differences": charts.dots(differences, -100.0, 100.0, zero=True),
        "macs": charts.scatter(points, "multiply-adds", "%"),
    }


def _curves(runs: Sequence[Facts], colours: Mapping[str, int]) -> list[dict[str, Any]]:
    """Validation accuracy of the kept student: a figure a number of epochs, a line a run, a colour a method."""
    by_length: dict[int, list[Facts]] = {}
    for run in runs:
        by_length.setdefault(len(run["epochs"]), []).append(run)
    made = []
    for length, group in by_length.items():
        shown, xs = group[:MOST_LINES], group[0]["epochs"]
        note = f"top-1 % on validation, {length} epoch{'s' if length > 1 else ''}" + (
            f"; {len(shown)} of {len(group)} runs" if len(shown) < len(group) else ""
        )
        validated = {run["run"]: run["val_top1_pct"] for run in shown if run["val_top1_pct"]}
        methods = {run["run"]: run["method"] for run in shown}
        chart = charts.lines(xs, validated, "%", ".2f", groups=methods, ceiling=100.0, colours=colours)
        made.append({"chart": chart, "title": "Kept student", "note": note})
    return made
