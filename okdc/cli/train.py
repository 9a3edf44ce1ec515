"""Commands that train: distill, resume."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from okdc.cli import console, tables
from okdc.cli.ends import leave
from okdc.cli.options import (
    Compile,
    DataRoot,
    Device,
    Dtype,
    Json,
    RunPath,
    Threads,
    TrustCode,
    Words,
    engine_flags,
    flag,
)
from okdc.distributed import Ranks
from okdc.errors import UsageError
from okdc.progress import Silent
from okdc.runs.trust import trusting_code

if TYPE_CHECKING:
    from okdc.api import Run, Series


def distill(
    words: Words = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="Folder of the run (default: runs/RECIPE-N).")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    compile_step: Compile = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="0,1,2|0-4", help="Train one run for each seed, in one folder; print mean and deviation."),
    ] = None,
    data_root: DataRoot = None,
    no_export_check: Annotated[
        bool,
        typer.Option(
            "--no-export-check", help="Train without trying first, untrained, whether the students can be exported."
        ),
    ] = False,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Train a cohort of students from a recipe and keep one of them."""
    from okdc.recipe import draft as recipe
    from okdc.runs.series import parse_seeds

    ranks = Ranks.of_environment()
    several = parse_seeds(seeds) if seeds is not None else None
    if several and (numbers := [word for word in words or [] if word.isdigit()]):
        raise UsageError(f"{numbers[0]} is no recipe", hint=f"--seeds {','.join([str(seeds), *numbers])}")
    flags = (*engine_flags(device, dtype, threads, compile_step), *flag("--data-root", "data.root", data_root))
    draft = recipe.load([*(words or []), *flags])

    if several and not ranks.alone:
        raise UsageError("--seeds under torchrun: expected one seed a command", hint="seed=0, then seed=1, ...")
    if several and "seed" in draft.overridden:
        raise UsageError("both --seeds and seed= were given, one is expected", hint=f"--seeds {seeds} alone")
    from okdc import api
    from okdc.assembly.resolve import resolve  # torch from here on: a misspelt recipe name is answered before

    progress = console.Talk() if ranks.first else Silent()
    options: dict[str, Any] = {"export_check": not no_export_check, "progress": progress, "raise_interrupts": True}
    if several:
        with trusting_code(trust_code):
            series = api.distill_seeds(resolve(draft), several, out, **options)
        _finished_series(series, as_json)
        return
    with trusting_code(trust_code):
        run = api.distill(resolve(draft), out, **options)
    if ranks.first:
        _finished(run, as_json)


def resume(
    run: RunPath = None, data_root: DataRoot = None, trust_code: TrustCode = False, as_json: Json = False
) -> None:
    """Continue an interrupted run or series, bit for bit."""
    from okdc import api

    ranks = Ranks.of_environment()
    progress = console.Talk() if ranks.first else Silent()
    with trusting_code(trust_code):
        resumed = api.resume(run, data_root=data_root, progress=progress, raise_interrupts=True)
    if isinstance(resumed, api.Series):
        _finished_series(resumed, as_json)
    elif ranks.first:
        _finished(resumed, as_json)


def _finished(run: Run, as_json: bool) -> None:
    facts = run.result.to_json()
    if as_json:
        console.out_json({"run": str(run.path)} | facts)
        return
    tables.result(facts)
    console.next_step("okdc profile", run.path)


def _finished_series(series: Series, as_json: bool) -> None:
    """One row a seed, then what is to be said of seeds that failed, with the exit code of a run that did."""
    facts, error = series.summary, series.folder.failure()
    if as_json:
        told = {"error": error.kind, "message": error.message, "hint": error.hint} if error else {}
        console.out_json(facts | told)
        if error:
            leave(error)
        return
    tables.series(facts)
    if error:
        raise error
    console.next_step(series.folder.next_command())
