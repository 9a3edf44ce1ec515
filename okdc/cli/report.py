"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from okdc.cli import completion, console
from okdc.cli.options import DataRoot, Json, TrustCode
from okdc.errors import UsageError
from okdc.runs.run import RunDir, State, runs
from okdc.runs.trust import trusting_code
from okdc.units import size


def report(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN|DIR",
            help="A run, several runs, or a folder of runs such as a study's (default: the newest complete run).",
            autocompletion=completion.comparable,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The page (default: report.html in the folder named)."),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write curves and accuracies of one run as SVG, light and dark."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="While the run trains, write the page anew after each epoch.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out what takes seconds: times, and the map of the features.")
    ] = False,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="VARIANT", help="Of several runs, the row that the others are compared with."),
    ] = None,
    data_root: DataRoot = None,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Write one HTML page of a run or of several. It has curves, mistakes, confidence, costs; it needs no network."""
    from okdc.reporting import report as reporting
    from okdc.reporting.run import Wanted

    talk = console.Talk()
    named = paths or [_newest(watch, talk)]
    if watch and (len(named) > 1 or not RunDir.is_at(named[0])):
        raise UsageError("--watch: expected one run", hint="okdc runs --watch shows all of them")
    file = reporting.place(named, out)
    if picture is not None:
        reporting.check_picture(picture, reporting.is_one_run(named))
        if picture.resolve() == file.resolve():
            raise UsageError(f"--picture {picture}: expected another name than the page's", hint="leave one out")
    wanted = Wanted(quick, data_root)
    with trusting_code(trust_code):
        if watch:
            facts = reporting.watch(RunDir.open(named[0]), file, wanted, talk)
        else:
            facts = reporting.facts(named, wanted, baseline, talk)
            reporting.write_page(file, facts)
        if picture is not None:
            reporting.write_picture(picture, facts)
    if as_json:
        console.out_json(facts)
        return
    for line in facts["run"]["missing"] if facts["run"] else ():
        console.say(line)
    console.out(f"{file} ({size(file.stat().st_size)})")
    console.say(f"open it in a browser: {file.absolute().as_uri()}")


def _newest(watch: bool, talk: console.Talk) -> Path:
    state: State = "running" if watch and any(run.state() == "running" for run in runs()) else "complete"
    path = RunDir.newest(state).path
    talk.note(f"nothing named: {path} is the newest {state} run")
    return path
