"""What a training's log says epoch by epoch, and where its time went. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]  # of log.jsonl
SECONDS = ("seconds_steps", "seconds_data", "seconds_validation")


def curves(rows: Sequence[Row], epochs: int, ramp: Sequence[float] | None) -> dict[str, Any]:
    """Series by name, one value an epoch that was trained.

    `accuracy` is of the validation images, `balanced` too where a student is kept by it; `train` is of the training
    images as they were augmented, under the weights that changed meanwhile. `ramp` is the weight of distillation at the
    end of each epoch, None for a method without a ramp-up.
    """
    return {
        "epochs": [row["epoch"] for row in rows],
        "planned": epochs,
        "accuracy": _by_name(rows, "val_top1_pct"),
        "balanced": _by_name(rows, "val_balanced_pct"),
        "train": _by_name(rows, "train_top1_pct"),
        "losses": _by_name(rows, "losses"),
        "lr": [row["lr"] for row in rows],
        "ramp": None if ramp is None else [round(weight, 6) for weight in ramp],
    }


def _by_name(rows: Sequence[Row], key: str) -> dict[str, list[float | None]]:
    names = dict.fromkeys(name for row in rows for name in row.get(key, {}))
    return {name: [row.get(key, {}).get(name) for row in rows] for name in names}


def seconds(rows: Sequence[Row]) -> dict[str, float]:
    """Those of all epochs: of steps, of waiting for images, of validation."""
    return {key.removeprefix("seconds_"): round(sum(row[key] for row in rows), 3) for key in SECONDS}
