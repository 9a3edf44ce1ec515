"""The errors of a study over the number of students, as SVG: equal tables give equal bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

# Okabe and Ito's colours, which people with any colour vision tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def over_students(report: Mapping[str, Any]) -> bytes:
    """One line a method and head, with the 95 % intervals as bars; the baseline's single student is a level."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    rows = [row for row in report["rows"] if row["error_pct"] is not None]
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["method"] != report["baseline"]:
            lines.setdefault((row["method"], row["head"]), []).append(row)
    if level := [row["error_pct"] for row in rows if row["method"] == report["baseline"]]:
        axes.axhline(sum(level) / len(level), color="0.5", linestyle="--", label=report["baseline"])
    for i, ((method, head), points) in enumerate(lines.items()):
        ordered = sorted(points, key=lambda row: row["students"])
        axes.errorbar(
            [row["students"] + 0.04 * (i - (len(lines) - 1) / 2) for row in ordered],  # bars do not cover each other
            [row["error_pct"] for row in ordered],
            yerr=_bars(ordered),
            color=COLOURS[i % len(COLOURS)],
            marker="os^Dv"[i % 5],
            capsize=3,
            label=f"{method}, {head}",
        )
    counts = sorted({row["students"] for points in lines.values() for row in points})
    axes.set_xticks(counts)
    axes.set_xlabel("students")
    axes.set_ylabel("top-1 error, %")
    axes.set_title(report["title"], fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    if lines or level:
        axes.legend(frameon=False, fontsize=8)
    stream = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "okdc", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def _bars(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """How far each interval reaches below and above; nothing where there is one seed."""
    ends = [row["interval_pct"] or [row["error_pct"]] * 2 for row in rows]
    return [
        [row["error_pct"] - low for row, (low, _) in zip(rows, ends, strict=True)],
        [high - row["error_pct"] for row, (_, high) in zip(rows, ends, strict=True)],
    ]
