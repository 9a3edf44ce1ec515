"""The command `study`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from okdc.cli import completion, console
from okdc.cli.ends import leave
from okdc.cli.options import Json, TrustCode
from okdc.errors import RunError, UsageError
from okdc.runs.trust import trusting_code
from okdc.units import duration

if TYPE_CHECKING:
    from okdc.studies.opened import Opened


def study(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STUDY|KEY=VALUE",
            help="A study by name, file or folder, and values for every run of it; nothing: lists the studies.",
            autocompletion=completion.studies,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="The folder of its runs (default: studies/STUDY)."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Runs by column, method, COLUMN/METHOD or seedN; may be given again."),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, help="Runs side by side.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the runs, their hours on this machine and their room on disk.")
    ] = False,
    commands: Annotated[
        bool, typer.Option("--commands", help="Print one command for each run that is left, for other machines.")
    ] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Print the table of what there is, and train nothing.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--md", help="Print the table in GitHub's Markdown.")] = False,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Train the runs of a paper's table, and print the table. Runs that are complete are not trained again."""
    from okdc import api

    if not words:
        _list(as_json)
        return
    if sum((dry_run, commands, table)) > 1:
        raise UsageError("--dry-run, --commands and --table each print another thing", hint="one of them")
    if markdown and as_json:
        raise UsageError("--md and --json are two ways to print the same", hint="one of them")
    from okdc.studies.opened import opened as open_study

    patterns = only or []
    with trusting_code(trust_code):
        opened = open_study(words, out)
        if commands:
            _commands(opened, patterns, as_json)
        elif dry_run:
            _dry_run(opened, patterns, as_json)
        else:
            report = api.study(
                *words, out=out, only=patterns, jobs=jobs, train=not table, progress=console.Talk(),
                raise_interrupts=True,
            )  # fmt: skip
            _show(report, opened, markdown, as_json)


def _list(as_json: bool) -> None:
    from okdc.studies.schema import read, studies

    shipped = {name: (path, read(path)) for name, path in studies().items()}
    if as_json:
        console.out_json(
            [{"name": name, "path": str(path), **study.model_dump()} for name, (path, study) in shipped.items()]
        )
        return
    console.table(
        ["study", "title", "runs"],
        [
            [name, study.title, str(len(study.cells()) * len(study.seeds) + study.teachers)]
            for name, (_, study) in shipped.items()
        ],
    )
    console.next_step("okdc study STUDY --dry-run")


def _commands(opened: Opened, only: list[str], as_json: bool) -> None:
    from okdc.studies import study as studies

    rows = studies.commands(opened, only)
    if as_json:
        console.out_json([{"command": command, "needed_first": first} for command, first in rows])
        return
    for wanted, comment in ((True, "# teachers: these have to end before the others begin"), (False, "")):
        chosen = [command for command, first in rows if first is wanted]
        if chosen and comment:
            console.out(comment)
        elif chosen and len(chosen) < len(rows):
            console.out("# all others, in any order")
        for command in chosen:
            console.out(command)
    if not rows:
        console.say("no run is left")
    console.next_step("okdc study", opened.again, "--table")


def _dry_run(opened: Opened, only: list[str], as_json: bool) -> None:
    from okdc.studies import study as studies

    facts = studies.dry_run(opened, only, console.Talk())
    if as_json:
        console.out_json(facts)
        return
    console.table(
        ["run", "state", "time", "MB"],
        [
            [
                row["run"],
                row["state"],
                "" if row["seconds"] is None else duration(row["seconds"]),
                "" if row["disk_bytes"] is None else f"{row['disk_bytes'] / 1e6:,.1f}",
            ]
            for row in facts["runs"]
        ],
    )
    for row in facts["runs"]:
        if row["why"]:
            console.say(row["why"])
    if not facts["left"]:
        console.say(f"none of {len(facts['runs'])} runs is left")
        console.next_step("okdc study", opened.again, "--table")
        return
    unknown = f"; of {facts['unknown']} runs nobody knows the number of images" if facts["unknown"] else ""
    console.say(
        f"{facts['left']} of {len(facts['runs'])} runs are left: {duration(facts['seconds'])} on this machine, one "
        f"after the other, by steps timed on made-up images, and {facts['disk_bytes'] / 1e9:,.2f} GB{unknown}"
    )
    console.next_step("okdc study", opened.again, *(f"--only {shlex.quote(pattern)}" for pattern in only))


def _show(report: dict[str, Any], opened: Opened, as_markdown: bool, as_json: bool) -> None:
    from okdc.studies import markdown, table

    if as_json:
        console.out_json(report)
    elif as_markdown:
        console.out_text(markdown.markdown(report).rstrip("\n"))
    else:
        console.say(report["title"])
        console.table(*markdown.narrow(report))
        for sentence in markdown.sentences(report):
            console.say(sentence)
    try:
        table.check(report)
    except RunError as error:
        leave(error)
    if as_json:
        return
    if report["left_out"]:
        console.next_step("okdc study", opened.again)
    else:
        console.next_step("okdc study", opened.folder, "--table --md")
