"""The commands: each parses its words, makes one call and prints what came back.

Nothing heavy is imported at module level: `okdc --help` needs neither torch nor numpy nor onnxruntime.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from okdc import __version__, catalog, console, tables
from okdc.errors import OkdcError, UsageError

if TYPE_CHECKING:
    from okdc.run import Run

app = typer.Typer(
    name="okdc",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON on stdout.")]
DataRoot = Annotated[str | None, typer.Option("--data-root", metavar="DIR", help="Where the images are (data.root).")]
RunPath = Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A run's directory.", show_default=False)]


def _version(wanted: bool) -> None:
    if wanted:
        console.out(f"okdc {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Compress image classifiers by online knowledge distillation, and ship the student."""


@app.command()
def distill(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE] [KEY=VALUE ...]", help="A recipe (default: digits_resnet8) and overrides."),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="DIR", help="The run's directory.")] = None,
    device: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda", help="Short for engine.device=.")] = None,
    dtype: Annotated[str | None, typer.Option(metavar="auto|float32|bfloat16", help="Short for engine.dtype=.")] = None,
    threads: Annotated[str | None, typer.Option(metavar="auto|N", help="Short for engine.threads=.")] = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Train a cohort from a recipe and keep one student."""
    from okdc import recipe

    flags = {"engine.device": device, "engine.dtype": dtype, "engine.threads": threads, "data.root": data_root}
    draft = recipe.load([*(words or []), *(f"{key}={value}" for key, value in flags.items() if value is not None)])

    from okdc.resolve import resolve  # torch from here on: a misspelt recipe name is answered before

    resolved, notes = resolve(draft)
    for text in notes:
        console.note(text)
    from okdc.machine import provenance
    from okdc.training import engine

    run = engine.start(resolved, draft.stem, out, provenance(["okdc", *sys.argv[1:]]), console.Talk())
    _finished(run, as_json)


@app.command()
def resume(run: RunPath = None, data_root: DataRoot = None, as_json: Json = False) -> None:
    """Continue an interrupted run to the bit."""
    from okdc.run import Run

    chosen = Run.open(run) if run else Run.newest("resumable")
    from okdc.training import engine

    _finished(engine.resume(chosen, console.Talk(), data_root), as_json)


@app.command()
def profile(
    things: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN|NAME|RECIPE ...]", help="What to count (default: the newest complete run)."),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Export bare networks too, for file size and latency.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the latency measurement.")] = 1,
    as_json: Json = False,
) -> None:
    """Count parameters and MACs side by side; measure latency."""
    from okdc.deploy.profile import profile as measure

    report = measure(things or [], export_names=onnx, threads=threads, tell=console.Talk())
    if as_json:
        console.out_json(report)
        return
    tables.profile(report)
    if any(row["kind"] == "kept" for row in report["rows"]):
        console.next_step(f"okdc export {report['run']} --onnx")
    else:
        console.next_step("okdc distill")


@app.command()
def export(
    run: RunPath = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX bundle.")] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="DIR", help="The bundle (RUN/bundle).")] = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Export the kept student to ONNX and prove it equal."""
    if not onnx:
        raise UsageError("no format was named", hint="okdc export --onnx")
    from okdc.run import Run

    chosen = Run.open(run) if run else Run.newest("complete")
    if run is None:
        console.note(f"no run named: {chosen.path} is the newest complete one")
    from okdc.deploy import export as deploy

    bundle, parity = deploy.export(chosen, out, data_root, console.Talk())
    if as_json:
        console.out_json({"bundle": str(bundle), "parity": parity})
        return
    tables.parity(parity)
    console.out(f"bundle {bundle}")
    console.next_step(f"python {catalog.folder('export') / 'python' / 'run.py'} {bundle} IMAGE ...")


@app.command()
def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="cifar10, cifar100 or cinic10.")],
    data_root: DataRoot = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help="A mirror; size and MD5 are checked.")] = None,
    as_json: Json = False,
) -> None:
    """Bring a published data set, whole and checked."""
    from okdc.data import download as downloads

    with console.progress(f"downloading {name}") as update:
        facts = downloads.download(name, data_root, url, update)
    if as_json:
        console.out_json(facts)
        return
    where = "scikit-learn, nothing to download" if facts["root"] is None else str(Path(facts["root"]).absolute())
    console.out(f"{name} {'was already' if facts['already_there'] else 'is'} in {where}")
    console.next_step(downloads.next_command(name, facts["root"]))


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes that ship with okdc."""
    from okdc import recipe

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


@app.command()
def runs(as_json: Json = False) -> None:
    """List the runs below ./runs and their states."""
    from okdc import run as runs_

    found = runs_.runs()
    rows = [_summary(run) for run in found]
    if as_json:
        console.out_json(rows)
        return
    if not rows:
        console.say(f"no runs in {runs_.ROOT.absolute()}")
        console.next_step("okdc distill")
        return
    tables.runs(rows)
    last = rows[-1]
    known = {"complete": "okdc profile", "resumable": "okdc resume"}
    console.next_step(f"{known[last['state']]} {last['run']}" if last["state"] in known else "okdc distill")


def _summary(run: Run) -> dict[str, Any]:
    """One damaged run is named and does not hide the others."""
    try:
        return run.summary()
    except OkdcError as error:
        console.warn(error.message)
        nothing = dict.fromkeys(("kept", "top1_pct", "images", "judged_on"))
        return {"run": str(run.path), "state": "failed", "method": "?", "epoch": "?", "epochs": "?", **nothing}


def _finished(run: Run, as_json: bool) -> None:
    from okdc.files import read_json

    facts = read_json(run.result)
    if as_json:
        console.out_json({"run": str(run.path)} | facts)
        return
    tables.result(facts)
    console.next_step(f"okdc profile {run.path}")
