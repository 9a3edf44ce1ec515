"""What the page says of several runs: the comparison, their curves over each other, the keys in which they differ.

No torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from okdc.comparison import compare as comparison
from okdc.comparison.finished import Finished, find
from okdc.errors import RunError
from okdc.reporting import curves
from okdc.runs.accuracy import interval_pct
from okdc.runs.run import RunDir

PLACES = ("about", "data.root")  # keys that no training reads, or that say where something is


def of_runs(paths: Sequence[Path], baseline: str | None) -> dict[str, Any]:
    """The tables of finished runs, and the report of `okdc compare` where they compare: else `refused` says why not.

    Raises RunError for a run that is named and not complete, and where there is none.
    """
    finished, left_out = find(paths)
    finished.sort(key=lambda run: (run.info.started_at, str(run.path)))
    report, refused = None, []
    try:
        report = comparison.compare([run.path for run in finished], baseline)
    except RunError as error:
        refused = [error.message, *error.details]
    return {
        "compare": report,
        "refused": refused,
        "left_out": left_out,
        "runs": [_run(run) for run in finished],
        "differences": differences(finished),
    }


def _run(run: Finished) -> dict[str, Any]:
    result, recipe = run.result, run.recipe
    series = curves.curves(RunDir(run.path).rows(), recipe.optim.epochs, None)
    return {
        "run": str(run.path),
        "method": result.variant,
        "seed": run.seed,
        "dataset": result.dataset,
        "students": list(result.students),
        "kept": result.kept.name,
        "top1_pct": result.kept.top1_pct,
        "interval_pct": interval_pct(result.kept.top1_pct, result.images),
        "images": result.images,
        "judged_on": result.judged_on,
        "params": result.kept.params,
        "macs": result.kept.macs,
        "seconds": result.seconds,
        "started_at": run.info.started_at,
        "epochs": series["epochs"],
        "val_top1_pct": series["accuracy"].get(f"student{result.kept.student}", []),
        "loss": series["losses"],
    }


def differences(finished: Sequence[Finished]) -> list[dict[str, Any]]:
    """A row a recipe key whose value is not the same in all runs: the value of each, as JSON; None: it has none."""
    flat = [_flat(run.recipe.tables()) for run in finished]
    keys = sorted({key for tables in flat for key in tables})
    rows = []
    for key in keys:
        values = [tables.get(key) for tables in flat]
        if key.startswith(PLACES) or len(set(values)) < 2:
            continue
        rows.append({"key": key, "values": values})
    return rows


def _flat(tables: dict[str, Any], above: str = "") -> dict[str, str]:
    """Values by dotted key, as JSON."""
    flat: dict[str, str] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = json.dumps(value, ensure_ascii=False)
    return flat
