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

# Keys that no training reads, that say where something is, and the seed with what is measured of the images it draws.
NOT_COMPARED = ("about", "data.root", "seed", "data.mean", "data.std")


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


def differences(finished: Sequence[Finished]) -> dict[str, Any]:
    """The recipe keys in which runs differ, beside the seed and what follows from it: `columns` of equal runs, and
    `rows` with the key's value in each column, as JSON; None where a method has no such key.

    A key that one column alone has is left out: it is of a method that the others are not.
    """
    groups: dict[str, list[Finished]] = {}
    tables: dict[str, dict[str, str]] = {}
    for run in finished:
        flat = {key: value for key, value in _flat(run.recipe.tables()).items() if not key.startswith(NOT_COMPARED)}
        name = json.dumps(flat, sort_keys=True)
        groups.setdefault(name, []).append(run)
        tables[name] = flat
    rows = []
    for key in sorted({key for flat in tables.values() for key in flat}):
        values = [flat.get(key) for flat in tables.values()]
        if len(set(values)) > 1 and sum(value is not None for value in values) > 1:
            rows.append({"key": key, "values": values})
    columns = [
        {
            "name": f"{runs[0].result.variant}, seed {', '.join(str(run.seed) for run in runs)}",
            "runs": [str(run.path) for run in runs],
        }
        for runs in groups.values()
    ]
    return {"columns": columns, "rows": rows}


def _flat(tables: dict[str, Any], above: str = "") -> dict[str, str]:
    """Values by dotted key, as JSON."""
    flat: dict[str, str] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = json.dumps(value, ensure_ascii=False)
    return flat
