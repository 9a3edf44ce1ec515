"""The commands: each parses its words, makes one call and prints what came back.

Nothing heavy is imported at module level: `okdc --help` needs neither torch nor numpy nor onnxruntime.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from okdc import __version__, catalog, console, tables
from okdc.errors import CheckFailed, OkdcError, UsageError, nearest

if TYPE_CHECKING:
    from okdc.run import Run
    from okdc.series import Series

app = typer.Typer(
    name="okdc",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON on stdout.")]
DataRoot = Annotated[str | None, typer.Option("--data-root", metavar="DIR", help="Where the images are (data.root).")]
RunPath = Annotated[Path | None, typer.Argument(metavar="RUN", help="A run's directory.", show_default=False)]


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
        typer.Argument(metavar="RECIPE|KEY=VALUE", help="A recipe (default: digits_resnet8) and overrides."),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="DIR", help="The run's directory.")] = None,
    device: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda", help="Short for engine.device=.")] = None,
    dtype: Annotated[str | None, typer.Option(metavar="auto|float32|bfloat16", help="Short for engine.dtype=.")] = None,
    threads: Annotated[str | None, typer.Option(metavar="auto|N", help="Short for engine.threads=.")] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="0,1,2|0-4", help="One run a seed, in one folder, with mean and deviation.")
    ] = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Train a cohort from a recipe and keep one student."""
    from okdc import recipe
    from okdc.series import parse_seeds

    several = parse_seeds(seeds) if seeds is not None else None
    if several and (numbers := [word for word in words or [] if word.isdigit()]):
        raise UsageError(f"{numbers[0]} is no recipe", hint=f"--seeds {','.join([str(seeds), *numbers])}")
    flags = {"engine.device": device, "engine.dtype": dtype, "engine.threads": threads, "data.root": data_root}
    draft = recipe.load([*(words or []), *(f"{key}={value}" for key, value in flags.items() if value is not None)])

    if several and "seed" in draft.overridden:
        raise UsageError("both --seeds and seed= were given, one is expected", hint=f"--seeds {seeds} alone")
    from okdc.resolve import resolve  # torch from here on: a misspelt recipe name is answered before

    resolved, notes = resolve(draft)
    for text in notes:
        console.note(text)
    from okdc.machine import provenance
    from okdc.training import engine, series

    made_by = provenance(["okdc", *sys.argv[1:]])
    if several:
        _finished_series(series.start(resolved, several, draft.stem, out, made_by, console.Talk()), as_json)
        return
    _finished(engine.start(resolved, draft.stem, out, made_by, console.Talk()), as_json)


@app.command()
def resume(run: RunPath = None, data_root: DataRoot = None, as_json: Json = False) -> None:
    """Continue an interrupted run, or a series of runs, to the bit."""
    from okdc.machine import provenance
    from okdc.run import Run
    from okdc.series import Series, newest_resumable, owner

    named = newest_resumable().path if run is None else run
    if Series.is_at(named):
        several = Series.open(named)
        from okdc.training import series

        made_by = provenance(["okdc", *sys.argv[1:]])
        _finished_series(series.resume(several, made_by, console.Talk(), data_root), as_json)
        return
    chosen = Run.open(named)
    from okdc.training import engine

    whole = owner(chosen)
    with whole.held() if whole else contextlib.nullcontext():  # whoever trains a series trains all of it
        engine.resume(chosen, console.Talk(), data_root)
    _finished(chosen, as_json)


@app.command()
def profile(
    things: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN|NAME|RECIPE", help="What to count (default: the newest complete run)."),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Export bare networks too, for file size and latency.")] = False,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Threads of the latency measurement.")] = 1,
    as_json: Json = False,
) -> None:
    """Count parameters and MACs side by side; measure latency."""
    from okdc.run import refuse_series

    for thing in things or []:
        refuse_series(Path(thing))
    from okdc.deploy.profile import profile as measure

    report = measure(things or [], export_names=onnx, threads=threads, tell=console.Talk())
    if as_json:
        console.out_json(report)
        return
    tables.profile(report)
    if any(row["kept"] for row in report["rows"]):
        console.next_step("okdc export", Path(report["run"]), "--onnx")
    else:
        console.next_step("okdc distill")


@app.command()
def export(
    thing: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN|BUNDLE", help="A run's directory; for --target web also a bundle's.", show_default=False
        ),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX bundle.")] = False,
    target: Annotated[
        str | None, typer.Option(metavar="web", help="A folder for any web server: the bundle and a page for it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="Where to (default: RUN/bundle, or RUN/web).")
    ] = None,
    data_root: DataRoot = None,
    student: Annotated[str | None, typer.Option(metavar="NAME|INDEX", help="This student, not the kept one.")] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="'params<300k,latency_ms<2'", help="The most accurate student that fits.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Also a model of 8-bit integers, held to a gate.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Also a model of 16-bit floats: half the download.")] = False,
    calib_images: Annotated[
        int | None, typer.Option(metavar="N", min=64, help="Training images that int8 is calibrated on (512).")
    ] = None,
    full_range: Annotated[
        bool, typer.Option("--full-range", help="int8 weights of 8 bits, not 7: overflows on x86 without VNNI.")
    ] = False,
    max_drop: Annotated[
        float | None, typer.Option(metavar="POINTS", min=0, help="Top-1 that may be lost (int8 1.0, fp16 0.2).")
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(metavar="PERCENT", min=0, max=100, help="Predictions that must stay (int8 97, fp16 99.5)."),
    ] = None,
    diagnose: Annotated[bool, typer.Option("--diagnose", help="Name the layers that int8 costs most.")] = False,
    license_: Annotated[
        str | None, typer.Option("--license", metavar="SPDX", help="Of the weights, for the model card.")
    ] = None,
    runtime: Annotated[
        Path | None, typer.Option(metavar="DIR", help="onnxruntime-web, for --target web (node_modules).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a student to ONNX and prove it equal."""
    if not onnx and target is None:
        made = thing is not None and (thing / "manifest.json").is_file()
        words = ["okdc export", *([console.quoted(thing)] if thing else []), "--target web" if made else "--onnx"]
        raise UsageError("no format was named", hint=" ".join(words))
    if target not in (None, "web"):
        raise UsageError(f"--target {target}: expected web{nearest(str(target), ['web'])}")
    if student is not None and budget is not None:
        raise UsageError("--student and --budget both choose a student", hint="one of them")
    _refuse_idle({"--runtime": runtime}, "--target web", target is not None)
    _refuse_idle({"--full-range": full_range, "--calib-images": calib_images, "--diagnose": diagnose}, "--int8", int8)
    _refuse_idle({"--max-drop": max_drop, "--min-agreement": min_agreement}, "--int8 or --fp16", int8 or fp16)
    from okdc.bundle import web
    from okdc.bundle.layout import MANIFEST

    if target:
        runtime = web.find_runtime(runtime)  # before an export that takes minutes
    if thing and (thing / MANIFEST).is_file():
        if target is None or any((student, budget, int8, fp16, license_, data_root)):
            again = f"okdc export {console.quoted(thing)} --target web"
            raise UsageError(f"{thing} is a bundle: it was exported", hint=again)
        _finished_page(thing, out or thing.with_name("web"), runtime, as_json)
        return
    from okdc.run import Run

    chosen = Run.open(thing) if thing else Run.newest("complete")
    if thing is None:
        console.note(f"no run named: {chosen.path} is the newest complete one")
    from okdc.deploy import budget as budgets
    from okdc.deploy import export as deploy
    from okdc.deploy import students
    from okdc.deploy.reduced import Wanted

    talk, index = console.Talk(), None
    if student is not None or budget is not None:
        index, why = (
            students.by_name(chosen, student)
            if student is not None
            else budgets.choose(chosen, budgets.parse(budget or ""), talk)
        )
        talk.note(why)
    wanted = Wanted(int8, fp16, full_range, calib_images, max_drop, min_agreement, diagnose)
    done = deploy.export(chosen, None if target else out, data_root, talk, index, wanted, license_)
    if not as_json:
        tables.parity(done.parity)
        console.out(f"bundle {done.folder}")
    elif done.error or not target:
        console.out_json({"schema": 1, "bundle": str(done.folder), "parity": done.parity})
    if done.error:  # stdout has said all of it
        console.fail(done.error)
        raise typer.Exit(done.error.exit_code)
    if target:
        _finished_page(done.folder, out or chosen.path / "web", runtime, as_json)
    elif not as_json:
        console.next_step("okdc verify", done.folder, *_where_images_are(chosen, data_root))


@app.command()
def evaluate(
    thing: Annotated[
        Path | None,
        typer.Argument(metavar="RUN|BUNDLE", help="A run's directory, or a bundle's.", show_default=False),
    ] = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Read the test split again: accuracy class by class, checked against the record."""
    from okdc.run import Run

    chosen = thing or Run.newest("complete").path
    if thing is None:
        console.note(f"nothing named: {chosen} is the newest complete run")
    from okdc.deploy import evaluate as again

    report = again.evaluate(chosen, data_root, console.Talk())
    if as_json:
        console.out_json(report)
        return
    tables.evaluation(report)
    if report["kind"] == "run":
        console.next_step("okdc export", chosen, "--onnx")
    else:
        console.next_step("okdc predict", chosen, "IMAGE ...")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's directory.", show_default=False)],
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Is a bundle whole, and does it do here what it did where it was made? Without torch."""
    from okdc.bundle import verify as again

    report = again.verify(bundle, data_root, console.Talk())
    if as_json:
        console.out_json(report)
        try:
            again.check(report)
        except CheckFailed as error:  # stdout holds its one JSON document already, in which it says so
            console.fail(error)
            raise typer.Exit(error.exit_code) from None
        return
    tables.verification(report)
    again.check(report)
    console.next_step("okdc predict", bundle, "IMAGE ...")


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's directory.", show_default=False)],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE|DIR", help="Image files, or folders of them.", show_default=False)
    ],
    model: Annotated[str, typer.Option(metavar="float32|int8|float16", help="Which of its models.")] = "float32",
    top: Annotated[int, typer.Option(metavar="N", min=1, help="Classes to name, the likeliest first.")] = 5,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Images that the model gets at a time.")] = 64,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Threads of the model.")] = 1,
) -> None:
    """Classify images with a bundle: one JSON line an image. Without torch."""
    from okdc.bundle import predict as answers
    from okdc.bundle.opened import Bundle

    opened = Bundle.open(bundle)
    files = answers.listed(images)
    lines = answers.predict(opened, files, model, top, batch, threads)
    with contextlib.closing(lines), console.beside_lines("predicting") as update:
        for done, line in enumerate(lines, 1):
            if not console.out_line(line):
                return
            update(done, len(files), "")


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
    from okdc.series import all_series, owner

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
    known = {"complete": "okdc profile", "resumable": "okdc resume"}
    state = rows[-1]["state"] if rows else None
    if state in known:
        console.next_step(known[state], Path(rows[-1]["run"]))
    else:
        console.next_step("okdc distill")


@app.command()
def compare(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN|DIR", help="Finished runs, or folders of them (default: ./runs)."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="VARIANT", help="Differences are to this row (default: the baseline).")
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(metavar="'A>B'", help="Exit 1 unless the 95 % interval of A - B is above 0 (>=: not below)."),
    ] = None,
    markdown: Annotated[bool, typer.Option("--md", help="Print GitHub tables.")] = False,
    as_json: Json = False,
) -> None:
    """Compare finished runs: means over seeds, paired differences."""
    if markdown and as_json:
        raise UsageError("--md and --json are two ways to print the same", hint="one of them")
    from okdc.study import compare as study
    from okdc.study.require import check
    from okdc.study.show import show

    facts = study.compare(paths or [], baseline, require or [])
    if as_json:
        console.out_json(facts)
        try:
            check(facts)
        except CheckFailed as error:  # stdout holds its one JSON document already, in which it says so
            console.fail(error)
            raise typer.Exit(error.exit_code) from None
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


def _where_images_are(run: Run, data_root: str | None) -> tuple[str | Path, ...]:
    """What a bundle does not say: where this machine has the images that judged it. Nothing where verify knows."""
    from okdc import reopen
    from okdc.recipe import ROOTS

    data = reopen.recipe_of(run, data_root)[0].data
    return () if data.root in (None, ROOTS.get(data.name)) else ("--data-root", Path(data.root))


def _refuse_idle(options: Mapping[str, object], of: str, asked: bool) -> None:
    """Raises UsageError for an option of something that was not asked for: it would do nothing."""
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given and not asked:
        raise UsageError(f"{given[0]} is of {of}, which was not asked for")


def _finished_page(bundle: Path, out: Path, runtime: Path | None, as_json: bool) -> None:
    from okdc.bundle import web

    page = web.lay(bundle, out, runtime)
    if as_json:
        console.out_json({"page": str(page), "bundle": str(bundle)})
        return
    console.out(f"page {page}")
    console.next_step("python -m http.server -b localhost -d", page, " # then open http://localhost:8000")


def _finished(run: Run, as_json: bool) -> None:
    from okdc.files import read_json

    facts = read_json(run.result)
    if as_json:
        console.out_json({"run": str(run.path)} | facts)
        return
    tables.result(facts)
    console.next_step("okdc profile", run.path)


def _finished_series(series: Series, as_json: bool) -> None:
    """One row a seed, then what is to be said of seeds that failed, with the exit code of a run that did."""
    facts, error = series.summary(), series.failure()
    if as_json:
        told = {"error": error.kind, "message": error.message, "hint": error.hint} if error else {}
        console.out_json(facts | told)
        if error:
            console.fail(error)
            raise typer.Exit(error.exit_code)
        return
    tables.series(facts)
    if error:
        raise error
    console.next_step(series.next_step)
