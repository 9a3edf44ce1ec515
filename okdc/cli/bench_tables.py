"""The report of `okdc bench`: the machine, a row for each measurement, reasons for missing ratios. No torch."""

from __future__ import annotations

from typing import Any

from okdc.cli import console

LEGEND = """\
ratio: the median over n pairs measured in turn [its 95 % interval, by order statistics].
  It says how many times as fast okdc is as the other side, except for
  / step: the time as a share of the step's time
  varied, policy: training images after many operations, after TrivialAugmentWide
  / mobilenet_v2: as a share of its step, at 224×224 pixels, batch 16
  / MACs: how many times as long, divided by how many times as many multiply-adds (of a third student: added ones)"""


def show(facts: dict[str, Any]) -> None:
    """The machine, the table, the reasons."""
    for line in _machine(facts):
        console.out(line)
    console.out("")
    console.table(
        ["measurement", "images/s", "beside, images/s", "ratio", "n"],
        [_row(facts, key, title) for key, title in facts["what"].items()],
    )
    console.out("")
    for key, sides in (facts["launches_a_step"] or {}).items():
        numbers = (f"{side} {'not seen' if count is None else f'{count:,}'}" for side, count in sides.items())
        console.out(f"{facts['what'][key]}: launches a step: {', '.join(numbers)}")
    for key, title in facts["what"].items():
        if facts[key] is None:
            console.out(f"{title}: no ratio: {facts['reasons'][key]}")
    console.out_text(LEGEND)
    console.out(f"measured in {facts['seconds']:,.0f} s")


def _machine(facts: dict[str, Any]) -> list[str]:
    settings, versions, size = facts["settings"], facts["versions"], facts["image_size"]
    flags = f" ({' '.join(facts['flags'])})" if facts["flags"] else ""
    load = f", load {facts['load'][0]:.2f} before" if facts["load"] else ""
    lines = [
        f"{facts['processor']}{flags}, {facts['cores']} cores{load}",
        f"device {facts['device_name'] or facts['device']}, threads {facts['threads']}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"{facts['data']}; no data set was read",
    ]
    parts = [f"{size}×{size} pixels"] if size else []
    parts += [f"batch {facts['batch_size']}", _settings(settings)] if settings else []
    parts += [f"workers of the DataLoader: {facts['workers']}"] if facts["workers"] else []
    if parts:
        lines.append(", ".join(parts))
    if recipe := facts["recipe"]:
        assumed = "" if recipe["classes_known"] else " (assumed: the images were not read)"
        lines.append(
            f"{recipe['name']}: {recipe['method']}, {', '.join(recipe['students'])}, batch {recipe['batch_size']}, "
            f"{recipe['image_size']}×{recipe['image_size']}, {recipe['classes']} classes{assumed}, "
            f"{_settings(recipe['settings'])}"
        )
    return lines


def _settings(settings: dict[str, Any]) -> str:
    compiled = "compiled" if settings["compile"] == "on" else "eager"
    graph = ", replayed as a CUDA graph" if settings["cuda_graph"] == "on" else ""
    return f"{settings['dtype']} {settings['memory_format']} {compiled}{graph}"


def _row(facts: dict[str, Any], key: str, title: str) -> list[str]:
    measured = facts[key]
    ratio = [_interval(measured, key.endswith("_share")), str(measured["n"])] if measured else ["-", ""]
    exports = key == "export_ratio"
    speeds = facts["exports_per_s"] if exports else facts["images_per_s"].get(key)
    if not speeds:
        return [title, "", "", *ratio]
    (_, first), (beside, second) = speeds.items()
    cells = [f"{1 / speed:.2f} s" if exports else f"{speed:,.0f}" for speed in (first, second)]
    return [title, cells[0], f"{beside} {cells[1]}", *ratio]


def _interval(measured: dict[str, float], share: bool) -> str:
    """2.50 [2.41, 2.66], or 1.20 % [1.12, 1.31]."""
    median, low, high = (_digits(measured[key] * (100 if share else 1)) for key in ("median", "low", "high"))
    return f"{median}{' %' if share else ''} [{low}, {high}]"


def _digits(value: float) -> str:
    """Three significant digits, with zeros at the end."""
    return f"{value:#.3g}".rstrip(".") if value < 999.5 else f"{value:,.0f}"
