"""The command `runs`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from okdc.cli import console, tables
from okdc.cli.options import Json
from okdc.errors import OkdcError, UsageError, nearest

if TYPE_CHECKING:
    from okdc.runs.run import RunDir

POLL_S = 1.0  # between two looks at the runs
# What is not known of a damaged run.
UNKNOWN = (
    "method", "epoch", "epochs", "best_val_pct", "best_epoch", "seconds_left", "kept", "top1_pct", "images",
    "judged_on",
)  # fmt: skip
# Columns by which `okdc runs` sorts; what has no value comes last.
SORTS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "run": lambda row: row["run"],
    "state": lambda row: row["state"],
    "method": lambda row: (row["method"] is None, row["method"] or ""),
    "best": lambda row: -(row["best_val_pct"] or 0.0),
    "left": lambda row: math.inf if row["seconds_left"] is None else row["seconds_left"],
    "top1": lambda row: -(row["top1_pct"] or 0.0),
}


def runs(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORD", help="Only runs whose name, state, method or student has each word in it."),
    ] = None,
    sort: Annotated[str | None, typer.Option(metavar="|".join(SORTS), help="By this column, the best first.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show them anew until none is being trained.")] = False,
    as_json: Json = False,
) -> None:
    """List the runs below ./runs: state, epoch, accuracy, time left."""
    if sort is not None and sort not in SORTS:
        raise UsageError(f"--sort {sort}: no such column{nearest(sort, SORTS)}", hint=f"one of {', '.join(SORTS)}")
    if watch:
        _watch(words or [], sort, as_json)
    else:
        found, damaged = _summaries(words or [])
        _warn(damaged)
        if words and not found and not as_json:
            console.say(
                f"no run below ./runs has {' and '.join(map(repr, words))} in its name, state, method or student"
            )
            return
        _list_runs(found, sort, as_json)


def _list_runs(found: Sequence[tuple[RunDir, dict[str, Any]]], sort: str | None, as_json: bool) -> None:
    from okdc.runs import run as runs_
    from okdc.runs.series import all_series, owner

    rows = _sorted(found, sort)
    if as_json:
        console.out_json(rows)
        return
    unfinished = [series for series in all_series() if series.state() == "resumable"]
    if rows:
        tables.runs(rows)
    elif not unfinished:
        console.say(f"no runs in {runs_.ROOT.absolute()}")
    for series in unfinished:
        console.say(f"{series.path}: left of its {len(series.seeds())} seeds: {', '.join(map(str, series.left()))}")
    last, row = found[-1] if found else (None, None)
    whole = owner(last) if last else None
    if unfinished and (last is None or whole in unfinished):
        console.next_step("okdc resume", (whole or unfinished[-1]).path)
        return
    state = row["state"] if row else None
    if last and state == "complete":
        console.next_step("okdc profile", last.path)
    elif last and state == "resumable":
        console.next_step(last.resume_command())
    elif last and state == "running":
        console.next_step("okdc report", last.path, "--watch")
    else:
        console.next_step("okdc distill")


def _watch(words: Sequence[str], sort: str | None, as_json: bool) -> None:
    """Print the table again whenever it has changed, until no run is being trained. Below it is what is damaged."""
    if as_json or not console.is_terminal():
        reason = "it does not go with --json" if as_json else "stdout is no terminal"
        raise UsageError(f"--watch: {reason}", hint="okdc runs --json, as often as you like")
    before: list[dict[str, Any]] | None = None
    while True:
        found, damaged = _summaries(words)
        rows = _sorted(found, sort)
        if rows != before:
            console.clear()
            tables.runs(rows)
            _warn(damaged)
            before = rows
        if not any(row["state"] == "running" for row in rows):
            break
        time.sleep(POLL_S)
    console.clear()
    _warn(damaged)
    _list_runs(found, sort, False)


def _warn(damaged: Sequence[str]) -> None:
    for message in damaged:
        console.warn(message)


def _summaries(words: Sequence[str]) -> tuple[list[tuple[RunDir, dict[str, Any]]], list[str]]:
    """The runs that the words choose, the last started last; and of each that is damaged, whatever the words, why."""
    from okdc.runs.run import runs as all_runs

    damaged: list[str] = []
    rows = [(run, _summary(run, damaged)) for run in all_runs()]
    return [(run, row) for run, row in rows if all(word.lower() in _searched(row) for word in words)], damaged


def _sorted(found: Sequence[tuple[RunDir, dict[str, Any]]], sort: str | None) -> list[dict[str, Any]]:
    rows = [row for _, row in found]
    return sorted(rows, key=SORTS[sort]) if sort else rows


def _searched(row: Mapping[str, Any]) -> str:
    return " ".join(str(row[key] or "") for key in ("run", "state", "method", "kept")).lower()


def _summary(run: RunDir, damaged: list[str]) -> dict[str, Any]:
    """One damaged run does not hide the others: its row has a state alone, and `damaged` gets the reason."""
    try:
        return run.summary()
    except OkdcError as error:
        damaged.append(error.message)
        return {"run": str(run.path), "state": "failed"} | dict.fromkeys(UNKNOWN)
