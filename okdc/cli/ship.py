"""Commands that choose, make and use what is shipped: profile, export, evaluate, verify, predict."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from okdc.cli import completion, console, tables
from okdc.cli.ends import leave
from okdc.cli.options import BundlePath, DataRoot, Json, TrustCode
from okdc.errors import CheckFailed, UsageError, nearest
from okdc.recipe import catalog
from okdc.runs.trust import trusting_code

if TYPE_CHECKING:
    from okdc.api import Run


def profile(
    things: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|NETWORK|RECIPE",
            help="The networks to count: of a run, by name, or of a recipe (default: the newest complete run).",
            autocompletion=completion.countable,
        ),
    ] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also export networks that no run has trained: adds file size and latency.")
    ] = False,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="CPU threads for the latency.")] = 1,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Count parameters and MACs of networks; measure latency."""
    from okdc import api
    from okdc.runs.run import RunDir, refuse_series

    for thing in things or []:
        refuse_series(Path(thing))
    with trusting_code(trust_code):
        report = api.profile(*(things or []), onnx=onnx, threads=threads, progress=console.Talk())
    if as_json:
        console.out_json(report)
        return
    tables.profile(report)
    run = RunDir(Path(report["run"])) if report["run"] else None
    if any(row["kept"] for row in report["rows"]):
        console.next_step("okdc export", Path(report["run"]), "--onnx")
    elif run and run.state() == "resumable":
        console.next_step(run.resume_command())
    else:
        recipes = [Path(thing) for thing in things or [] if Path(thing).is_file() or catalog.find_recipe(thing)]
        console.next_step("okdc distill", *recipes[:1])


def export(
    thing: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN|BUNDLE",
            help="The folder of a run (default: the newest complete one); with --target web also of a bundle.",
            show_default=False,
            autocompletion=completion.finished_or_bundles,
        ),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX bundle.")] = False,
    target: Annotated[
        str | None,
        typer.Option(metavar="web", help="Make a folder for any web server: the bundle, and a page that runs it."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="DIR", help="Folder of the bundle (default: RUN/bundle; with --target web RUN/web)."
        ),
    ] = None,
    data_root: DataRoot = None,
    student: Annotated[
        str | None, typer.Option(metavar="NAME|INDEX", help="Export this student instead of the kept one.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="'params<300k,latency_ms<2'", help="Export the most accurate student within these limits."
        ),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Add a model in 8-bit integers, if it stays accurate enough.")
    ] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Add a model in 16-bit floats: half the size.")] = False,
    calib_images: Annotated[
        int | None, typer.Option(metavar="N", min=64, help="Training images that calibrate int8 (default: 512).")
    ] = None,
    full_range: Annotated[
        bool,
        typer.Option("--full-range", help="int8 weights of 8 bits instead of 7; these overflow on x86 without VNNI."),
    ] = False,
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="POINTS", min=0, help="Top-1 points that a model may lose (default: int8 1.0, fp16 0.2)."),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT", min=0, max=100, help="Predictions that must stay the same (default: int8 97, fp16 99.5)."
        ),
    ] = None,
    diagnose: Annotated[bool, typer.Option("--diagnose", help="List the layers with the largest int8 error.")] = False,
    license_: Annotated[
        str | None, typer.Option("--license", metavar="SPDX", help="Licence of the weights, for the model card.")
    ] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Give up the int8 and float16 models of a bundle there, if not asked for now."),
    ] = False,
    runtime: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of onnxruntime-web, for --target web (default: in node_modules)."),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page of --target web to this machine's browser, until Ctrl-C.")
    ] = False,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Export a student to ONNX and prove the file equal to it."""
    from okdc.bundle import web
    from okdc.bundle.layout import MANIFEST

    exported = thing is not None and (thing / MANIFEST).is_file()
    if not onnx and target is None:
        words = ["okdc export", *([console.quoted(thing)] if thing else []), "--target web" if exported else "--onnx"]
        raise UsageError("no format was named", hint=" ".join(words))
    if target not in (None, "web"):
        raise UsageError(f"--target {target}: expected web{nearest(str(target), ['web'])}")
    if target:
        runtime = web.find_runtime(runtime)  # before an export that takes minutes
    elif runtime is not None or serve:
        option = "--serve" if runtime is None else "--runtime"
        raise UsageError(f"{option} is an option of --target web, which was not asked for")
    if thing and exported:
        if target is None or any((student, budget, int8, fp16, license_, data_root, replace)):
            again = f"okdc export {console.quoted(thing)} --target web"
            raise UsageError(f"{thing} is a bundle: it was exported", hint=again)
        _finished_page(thing, out or thing.with_name("web"), runtime, serve, as_json)
        return
    from okdc import api
    from okdc.deploy.reduced import Wanted
    from okdc.runs.run import RunDir

    wanted = Wanted(int8, fp16, full_range, calib_images, max_drop, min_agreement, diagnose)
    run = thing or RunDir.newest_complete(console.note).path
    place = None if target else out  # with a page, -o is the page's
    keep = target is not None and not any((int8, fp16, license_, data_root, replace))
    with trusting_code(trust_code):
        done = api.write_bundle(run, place, student, budget, wanted, license_, data_root, console.Talk(), replace, keep)
    if not as_json:
        tables.parity(done.parity.to_json())
        console.out(f"bundle {done.folder}")
    elif done.error or not target:
        console.out_json({"schema": 1, "bundle": str(done.folder), "parity": done.parity.to_json()})
    if done.error:
        leave(done.error)
    if target:
        _finished_page(done.folder, out or run / "web", runtime, serve, as_json)
    elif not as_json:
        console.next_step("okdc verify", done.folder, *_where_images_are(api.Run(run), data_root))


def evaluate(
    thing: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN|BUNDLE",
            help="The folder of a run or a bundle (default: the newest complete run).",
            show_default=False,
            autocompletion=completion.finished_or_bundles,
        ),
    ] = None,
    data_root: DataRoot = None,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Measure accuracy on the test split again, class by class."""
    from okdc import api
    from okdc.runs.run import RunDir

    chosen = thing or RunDir.newest_complete(console.note).path
    with trusting_code(trust_code):
        report = api.evaluate(chosen, data_root=data_root, progress=console.Talk())
    if as_json:
        console.out_json(report)
        return
    tables.evaluation(report)
    if report["kind"] == "run":
        moved = ("--data-root", Path(data_root)) if data_root else ()
        console.next_step("okdc export", chosen, "--onnx", *moved)
    else:
        console.next_step("okdc predict", chosen, "IMAGE ...")


def verify(
    bundle: BundlePath,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Check a bundle: its files, and its answers on this processor."""
    from okdc.bundle import verify as again

    report = again.verify(bundle, data_root, console.Talk())
    if as_json:
        console.out_json(report)
        try:
            again.check(report)
        except CheckFailed as error:
            leave(error)
        return
    tables.verification(report)
    again.check(report)
    console.next_step("okdc predict", bundle, "IMAGE ...")


def predict(
    bundle: BundlePath,
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE|DIR", help="Image files, or folders of image files.", show_default=False),
    ],
    model: Annotated[
        str, typer.Option(metavar="float32|int8|float16", help="The model of the bundle to use.")
    ] = "float32",
    top: Annotated[int, typer.Option(metavar="N", min=1, help="Number of classes to print, the likeliest first.")] = 5,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Images in one batch.")] = 64,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="CPU threads.")] = 1,
) -> None:
    """Classify images with a bundle: one JSON line for each."""
    from okdc.bundle import predict as answers
    from okdc.bundle.bundle import BundleDir

    opened = BundleDir.open(bundle)
    files, left_out = answers.listed(images)
    if left_out:
        console.note(left_out)
    lines = answers.predict(opened, files, model, top, batch, threads)
    with contextlib.closing(lines), console.beside_lines("predicting") as update:
        for done, line in enumerate(lines, 1):
            if not console.out_line(line):
                return
            update(done, len(files), "")


def _where_images_are(run: Run, data_root: str | None) -> tuple[str | Path, ...]:
    """What a bundle does not say: where this machine has the images that judged it. Nothing where verify knows."""
    resolved = run.recipe
    root = data_root or resolved.recipe.data.root
    return () if root in (None, resolved.source.root) else ("--data-root", Path(root))


def _finished_page(bundle: Path, out: Path, runtime: Path | None, serve: bool, as_json: bool) -> None:
    from okdc.bundle import web

    page = web.lay(bundle, out, runtime)
    facts = {"page": str(page), "bundle": str(bundle)}
    if not as_json:
        console.out(f"page {page}")
    if not serve:
        if as_json:
            console.out_json(facts)
        else:
            console.next_step("python -m http.server -b localhost -d", page, " # then open http://localhost:8000")
        return
    with web.PageServer(page) as server:
        if as_json:
            console.out_json(facts | {"url": server.url})
        else:
            console.out(f"open {server.url}")
            console.say("Ctrl-C ends the server; the page stays")
        server.serve_forever()
