"""The page of one run: from its tables to what the template shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from okdc.errors import UsageError
from okdc.reporting import charts, words
from okdc.reporting.answers import ALIKE_FROM
from okdc.reporting.charts import Point
from okdc.reporting.pictures import SMALL
from okdc.runs.accuracy import interval_pct, with_interval
from okdc.units import duration, number

MOST_ROWS = 200  # of a table with a row a class
MACS, TORCH_MS, ORT_MS = "macs", "latency_ms_p50_torch", "latency_ms_p50_onnxruntime"
Facts = Mapping[str, Any]


def of_run(facts: Facts) -> dict[str, Any]:
    """The names that run.html.j2 uses."""
    costs = facts["costs"]["rows"] if facts["costs"] else []
    answers, data = facts["answers"], facts["data"]
    return {
        "facts": facts,
        "title": facts["title"] or facts["run"],
        "sentences": words.sentences(facts),
        "tiles": _tiles(facts),
        "sections": _sections(facts),
        "classes": facts["classes"],
        "charts": _charts(facts, costs),
        "order": answers["order"] if answers else [],
        "cells": charts.cells(answers["confusion"], answers["order"], facts["classes"]) if answers else [],
        "alike_from": ALIKE_FROM,
        "by_class": _by_class(answers["classes"]) if answers else [],
        "maps": _maps(facts),
        "costs": costs,
        "engine": "onnxruntime" if any(row[ORT_MS] for row in costs) else "torch",
        "machine": _machine(facts["costs"]["latency"]) if facts["costs"] else "",
        "small": bool(data) and data["image_size"] <= SMALL,
        "data_rows": data["classes"][:MOST_ROWS] if data else [],
        "time_parts": _time(facts["time"]["split"]),
    }


def of_picture(facts: Facts) -> dict[str, Any]:
    """The names that picture.svg.j2 uses. Raises UsageError for a run that is not complete or was not validated."""
    made = _charts(facts, []) if facts["result"] else {}
    if not made or made["accuracy"] is None:
        raise UsageError(f"{facts['run']} has no picture: it is not complete, or was not validated")
    result = facts["result"]
    kept, images = result["kept"], f"{result['images']:,} {result['judged_on']} images"
    others = f"; {words.networks(facts['students'])} trained together" if len(facts["students"]) > 1 else ""
    return {
        "title": facts["title"] or facts["run"],
        "subtitle": f"{facts['card']['title']}, seed {facts['seed']}, one run{others}",
        "label": f"Curves and test accuracies of {facts['title'] or facts['run']}",
        "curves": made["accuracy"],
        "heads": made["heads"],
        "heading": f"Right of {images}, %, with 95 % intervals",
        "notes": [
            f"Kept: student{kept['student']}, {kept['params']:,} parameters, {kept['macs']:,} multiply-adds",
            "The training alone needed all else",
        ],
    }


def _tiles(facts: Facts) -> list[tuple[str, str]]:
    """The numbers at the top, each with its words."""
    if not (result := facts["result"]):
        return []
    kept, images = result["kept"], f"{result['images']:,} {result['judged_on']} images"
    low, high = kept["interval_pct"]
    tiles = [
        (f"{kept['top1_pct']:.2f} %",
         f"of {images} right, 95 % interval {low:.2f} to {high:.2f}"),
        (number(kept["params"]), "parameters of the student that is kept"),
        (number(kept["macs"]), "multiply-adds an image"),
    ]  # fmt: skip
    if facts["costs"]:
        if shrink := facts["costs"]["shrink"]:
            tiles.append((f"1/{shrink['params']:.1f}", "of the parameters that were trained"))
        if row := next((row for row in facts["costs"]["rows"] if row["kept"]), None):
            ms, engine = (row[ORT_MS], "onnxruntime") if row[ORT_MS] else (row[TORCH_MS], "torch")
            if ms:
                tiles.append((f"{ms:.2f} ms", f"an image in {engine}, {_machine(facts['costs']['latency'])}"))
    return tiles


def _machine(latency: Facts) -> str:
    threads = latency["threads"]
    return f"{threads} thread{'s' if threads > 1 else ''}, {latency['processor']}"


def _sections(facts: Facts) -> list[tuple[str, str]]:
    complete = facts["result"] is not None
    present = (
        ("training", "Training", True),
        ("accuracy", "Accuracy", complete),
        ("classes", "Classes", complete),
        ("mistakes", "Mistakes", complete),
        ("confidence", "Confidence", complete),
        ("features", "Features", bool(facts["features"] and facts["features"]["maps"])),
        ("cost", "Cost", bool(facts["costs"])),
        ("precision", "Precision", bool(facts["bundle"])),
        ("data", "Data", bool(facts["data"])),
        ("time", "Time", True),
        ("repeat", "Repeat", True),
    )
    return [(anchor, name) for anchor, name, there in present if there]


def _by_class(rows: Sequence[Facts]) -> list[dict[str, Any]]:
    """The classes in their own order; of very many, those with the lowest recall first. `label`: their number."""
    numbered = [{**row, "label": k} for k, row in enumerate(rows)]
    if len(numbered) <= MOST_ROWS:
        return numbered
    judged = [row for row in numbered if row["recall_pct"] is not None]
    return sorted(judged, key=lambda row: row["recall_pct"])[:MOST_ROWS]


def _time(split: Mapping[str, float]) -> list[dict[str, Any]]:
    names = {"steps": "training steps", "data": "waiting for images", "validation": "validation"}
    whole = sum(split.values())
    parts, start = [], 0.0
    for key, name in names.items():
        if whole and split[key]:
            width = 400 * split[key] / whole
            parts.append({"name": name, "words": duration(split[key]), "share_pct": 100 * split[key] / whole,
                          "start": round(start, 2), "width": round(width, 2)})  # fmt: skip
            start += width
    return parts


def _maps(facts: Facts) -> list[dict[str, Any]]:
    features, count = facts["features"], len(facts["classes"])
    if not features:
        return []
    numbers = {row["head"]: row for row in features["numbers"]}
    heads = {row["head"]: words.head(row) for row in facts["heads"]}
    maps = []
    for head, points in features["maps"].items():
        row = numbers[head]
        silhouette = "" if row["silhouette"] is None else f", silhouette {row['silhouette']:+.2f}"
        clouds = charts.cloud(points, features["labels"], count, 220)
        maps.append(
            {
                "name": heads.get(head, head),
                "note": f"{row['knn_pct']:.1f} %{silhouette}",
                "clouds": [{"label": label, "path": path, "hue": charts.hue(label, count)} for label, path in clouds],
            }
        )
    return maps


# ---------------------------------------------------------------------------------------------------------------------
# Charts


def _charts(facts: Facts, costs: Sequence[Facts]) -> dict[str, Any]:
    curves, result = facts["curves"], facts["result"]
    xs, last = curves["epochs"], curves["planned"]
    # A training that `optim.patience` ended has no more epochs to come.
    last = last if result is None else result["last_epoch"]
    marks = {"kept": result["kept"]["epoch"]} if result and len(xs) > 1 else {}
    named = {row["head"]: words.head(row) for row in facts["heads"] or ()}

    def series(values: Mapping[str, Any]) -> dict[str, Any]:
        return {named.get(name, name): of_name for name, of_name in values.items()}

    made = {
        "accuracy": charts.lines(xs, series(curves["accuracy"]), "%", ".2f", last, marks=marks, ceiling=100.0),
        "balanced": charts.lines(xs, series(curves["balanced"]), "%", ".2f", last, marks=marks, ceiling=100.0),
        "train": charts.lines(xs, series(curves["train"]), "%", ".2f", last, ceiling=100.0),
        "losses": charts.lines(xs, curves["losses"], "nats", ".4f", last, shade=curves["ramp"]),
        "rate": charts.lines(xs, {"lr": curves["lr"]}, "", ".3g", last),
    }
    if result is None:
        return made
    points = [_head(row, k, result["images"]) for k, row in enumerate(facts["heads"])]
    engine = ORT_MS if any(row[ORT_MS] for row in costs) else TORCH_MS
    return made | {
        "heads": charts.dots(points, 0.0, 100.0),
        "macs": charts.scatter(_spots(costs, MACS), "multiply-adds", "%"),
        "latency": charts.scatter(_spots(costs, engine), "ms", "%"),
    }


def _head(row: Facts, index: int, images: int) -> Point:
    name, (low, high) = words.head(row), row["interval_pct"]
    tip = f"{name}: {with_interval(row['top1_pct'], images)} %"
    return Point(name, row["top1_pct"], low, high, index % charts.COLOURS, tip)


def _spots(costs: Sequence[Facts], key: str) -> list[Point]:
    """The classifiers whose accuracy and whose cost `key` are known."""
    rows = [row for row in costs if row["top1_pct"] is not None and row[key]]
    return [_spot(row, k, key) for k, row in enumerate(rows)]


def _spot(row: Facts, index: int, key: str) -> Point:
    name, top1, images = row["name"], row["top1_pct"], row["images"]
    name += f" ({row['architecture']})" if row["kind"] == "student" else ", thrown away"
    low, high = interval_pct(top1, images)
    cost = f"{number(row[key])} {'multiply-adds' if key == MACS else 'ms'}"
    tip = f"{name}: {with_interval(top1, images)} %, {cost}"
    kept, front = ", kept" * row["kept"], bool(row["front"])
    return Point(name + kept, top1, low, high, index % charts.COLOURS, tip, at=row[key], front=front)
