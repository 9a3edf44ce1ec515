"""Commands that bring and list: download, recipes, runs, compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from okdc.cli import completion, console, tables
from okdc.cli.ends import leave
from okdc.cli.options import DataRoot, Json
from okdc.errors import CheckFailed, OkdcError, UsageError
from okdc.recipe import catalog

if TYPE_CHECKING:
    from okdc.runs.run import Run


def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The data set: cifar10, cifar100 or cinic10.")],
    data_root: DataRoot = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="Download from this mirror; size and MD5 are checked.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Download a published data set and check it."""
    from okdc.data import download as downloads

    with console.progress(f"downloading {name}") as update:
        facts = downloads.download(name, data_root, url, update)
    if as_json:
        console.out_json(facts)
        return
    where = "scikit-learn, nothing to download" if facts["root"] is None else str(Path(facts["root"]).absolute())
    console.out(f"{name} {'was already' if facts['already_there'] else 'is'} in {where}")
    console.next_step(downloads.next_command(name, facts["root"]))


def recipes(as_json: Json = False) -> None:
    """List the recipes that ship with okdc."""
    from okdc.recipe import schema as recipe

    rows = []
    for name, path in catalog.recipes().items():
        found, problems = recipe.check(recipe.Draft(path, recipe.read(path)))
        assert found is not None, problems
        rows.append({"name": name, "path": str(path), **found.portable()})
    if as_json:
        console.out_json(rows)
        return
    tables.recipes(rows)
    console.next_step("okdc distill RECIPE")


def runs(as_json: Json = False) -> None:
    """List the runs below ./runs with their states."""
    from okdc.runs import run as runs_
    from okdc.runs.series import all_series, owner

    found = runs_.runs()
    rows = [_summary(run) for run in found]
    if as_json:
        console.out_json(rows)
        return
    unfinished = [series for series in all_series() if series.state == "resumable"]
    if rows:
        tables.runs(rows)
    elif not unfinished:
        console.say(f"no runs in {runs_.ROOT.absolute()}")
    for series in unfinished:
        console.say(f"{series.path}: left of its {len(series.seeds)} seeds: {', '.join(map(str, series.left))}")
    whole = owner(found[-1]) if found else None
    if unfinished and (not found or whole in unfinished):
        console.next_step("okdc resume", (whole or unfinished[-1]).path)
        return
    state = rows[-1]["state"] if rows else None
    if state == "complete":
        console.next_step("okdc profile", found[-1].path)
    elif state == "resumable":
        console.next_step(found[-1].go_on)
    else:
        console.next_step("okdc distill")


def compare(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN|DIR",
            help="Finished runs, or folders of them (default: ./runs).",
            autocompletion=completion.comparable,
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="VARIANT", help="The row that the others are compared with (default: baseline)."),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'A>B'",
            help="Exit 1 unless the 95 % interval of A - B lies above 0 (A>=B: unless it lies below 0).",
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--md", help="Print tables in GitHub's Markdown.")] = False,
    as_json: Json = False,
) -> None:
    """Compare finished runs: means over seeds, paired differences."""
    if markdown and as_json:
        raise UsageError("--md and --json are two ways to print the same", hint="one of them")
    from okdc.cli.comparison import show
    from okdc.study import compare as study
    from okdc.study.require import check

    facts = study.compare(paths or [], baseline, require or [])
    if as_json:
        console.out_json(facts)
        try:
            check(facts)
        except CheckFailed as error:
            leave(error)
        return
    show(facts, markdown)
    check(facts)
    console.next_step(study.next_step(facts))


def _summary(run: Run) -> dict[str, Any]:
    """One damaged run is named and does not hide the others."""
    try:
        return run.summary()
    except OkdcError as error:
        console.warn(error.message)
        nothing = dict.fromkeys(("kept", "top1_pct", "images", "judged_on"))
        return {"run": str(run.path), "state": "failed", "method": "?", "epoch": "?", "epochs": "?", **nothing}
