"""The command `study`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from okdc.cli import completion, console
from okdc.cli.options import Json, TrustCode
from okdc.errors import TrainingError, UsageError
from okdc.runs.trust import trusting_code
from okdc.studies.schema import FILE

if TYPE_CHECKING:
    from okdc.studies.study import Opened


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
        typer.Option(metavar="PATTERN", help="Runs whose column, method or seedN matches; may be given again."),
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
    """Train the runs of a table of a paper that are missing, and print the table."""
    from okdc import api

    if not words:
        _list(as_json)
        return
    if sum((dry_run, commands, table)) > 1:
        raise UsageError("--dry-run, --commands and --table each print another thing", hint="one of them")
    if markdown and as_json:
        raise UsageError("--md and --json are two ways to print the same", hint="one of them")
    from okdc.studies import study as studies

    with trusting_code(trust_code):
        opened = studies.opened(words, out)
        if commands:
            _commands(opened, only or [], as_json)
        elif dry_run:
            _dry_run(studies.dry_run(opened, only or [], console.Talk()), opened, as_json)
        else:
            report = api.study(
                *words, out=out, only=only or [], jobs=jobs, train=not table, progress=console.Talk(),
                raise_interrupts=True,
            )  # fmt: skip
            _show(report, opened, markdown, as_json)


def _list(as_json: bool) -> None:
    from okdc.studies.schema import read, studies

    shipped = {name: read(path) for name, path in studies().items()}
    rows = [{"name": name, "path": str(studies()[name]), **study.model_dump()} for name, study in shipped.items()]
    if as_json:
        console.out_json(rows)
        return
    console.table(
        ["study", "title", "runs"],
        [
            [name, study.title, str(len(study.cells()) * len(study.seeds) + study.teachers)]
            for name, study in shipped.items()
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
    console.next_step("okdc study", *_again(opened), "--table")


def _again(opened: Opened) -> tuple[str | Path, ...]:
    """How a command names the study: by its folder, once that says what it is of."""
    return (opened.folder,) if (opened.folder / FILE).is_file() else opened.words


def _dry_run(facts: dict[str, Any], opened: Opened, as_json: bool) -> None:
    if as_json:
        console.out_json(facts)
        return
    console.table(
        ["run", "state", "hours", "MB"],
        [
            [
                row["run"],
                row["state"],
                "" if row["seconds"] is None else f"{row['seconds'] / 3600:,.2f}",
                "" if row["disk_bytes"] is None else f"{row['disk_bytes'] / 1e6:,.1f}",
            ]
            for row in facts["runs"]
        ],
    )
    unknown = f"; of {facts['unknown']} runs nobody knows the number of images" if facts["unknown"] else ""
    console.say(
        f"{facts['left']} of {len(facts['runs'])} runs are left: {facts['seconds'] / 3600:,.1f} hours on this "
        f"machine, by steps timed on made-up images, and {facts['disk_bytes'] / 1e9:,.2f} GB{unknown}"
    )
    console.next_step("okdc study", *_again(opened))


def _show(report: dict[str, Any], opened: Opened, as_markdown: bool, as_json: bool) -> None:
    from okdc.studies import markdown

    failed = [left["run"] for left in report["left_out"] if left["state"] == "failed"]
    if as_json:
        console.out_json(report)
    elif as_markdown:
        console.out_text(markdown.markdown(report).rstrip("\n"))
    else:
        console.say(report["title"])
        console.table(list(markdown.HEADERS), [markdown.cells(row) for row in report["rows"]])
        for sentence in markdown.sentences(report):
            console.say(sentence)
    if failed:
        raise TrainingError(
            f"{len(failed)} run{'s' if len(failed) > 1 else ''} of the study failed", details=failed,
            hint="another study, or other keys: a failed run would fail again",
        )  # fmt: skip
    if as_json:
        return
    if report["left_out"]:
        console.next_step("okdc study", *_again(opened))
    else:
        console.next_step("okdc study", opened.folder, "--table --md")
