"""The commands: each parses its words, makes one call and prints what came back.

Nothing heavy is imported at module level: `okdc --help` needs neither torch nor numpy nor onnxruntime.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from okdc import __version__, console
from okdc.errors import OkdcError, UsageError

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

    from okdc import build  # torch from here on: a misspelt recipe name is answered before

    resolved, notes = build.resolve(draft)
    for text in notes:
        console.note(text)
    from okdc.run import provenance
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

    report = measure(things or [], export_names=onnx, threads=threads, tell=console.note)
    if as_json:
        console.out_json(report)
        return
    _profile_tables(report)
    if any(row["kind"] == "kept" for row in report["rows"]):
        console.next_step(f"okdc export {report['run']} --onnx")


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
    _parity_table(parity)
    console.out(f"bundle {bundle}")
    console.next_step(f"python {_runner()} {bundle} IMAGE ...")


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes that ship with okdc."""
    from okdc import catalog, recipe

    rows = []
    for name, path in catalog.recipes().items():
        found, problems = recipe.check(recipe.Draft(path, recipe.read(path)))
        assert found is not None, problems
        rows.append({"name": name, "path": str(path), **found.portable()})
    if as_json:
        console.out_json(rows)
        return
    console.table(
        ["recipe", "what", "data", "students", "method", "epochs", "paper's student error %"],
        [
            [
                row["name"],
                row["about"]["title"],
                row["data"]["name"],
                ", ".join(row["cohort"]["students"]),
                row["method"]["name"],
                str(row["optim"]["epochs"]),
                _paper(row["about"].get("paper")),
            ]
            for row in rows
        ],
    )
    console.next_step("okdc distill RECIPE")


@app.command()
def runs(as_json: Json = False) -> None:
    """List the runs below ./runs and their states."""
    from okdc import run as runs_

    rows = [_run_facts(run) for run in runs_.runs()]
    if as_json:
        console.out_json(rows)
        return
    if not rows:
        console.say(f"no runs in {runs_.ROOT.absolute()}")
        console.next_step("okdc distill")
        return
    console.table(
        ["run", "state", "method", "epoch", "kept", "top-1 %", "on"],
        [
            [
                row["run"],
                row["state"],
                row["method"],
                f"{row['epoch']}/{row['epochs']}",
                row["kept"] or "",
                f"{row['top1_pct']:.2f}" if row["top1_pct"] is not None else "",
                row["judged_on"] or "",
            ]
            for row in rows
        ],
    )


# ---------------------------------------------------------------------------------------------------------------------
# Facts to tables


def _paper(paper: dict[str, Any] | None) -> str:
    return f"{paper['student_error']} ({paper['method']})" if paper and "student_error" in paper else ""


def _run_facts(run: Any) -> dict[str, Any]:
    from okdc.recipe import read
    from okdc.run import read_json

    try:
        recipe, state = read(run.recipe), run.state
        result = read_json(run.result) if state == "complete" else {}
    except OkdcError as error:  # one damaged run does not hide the others
        console.warn(error.message)
        recipe, state, result = {}, "failed", {}
    kept = result.get("kept", {})
    return {
        "run": str(run.path),
        "state": state,
        "method": recipe.get("method", {}).get("name", "?"),
        "epoch": len(run.rows()),
        "epochs": recipe.get("optim", {}).get("epochs", "?"),
        "kept": kept.get("architecture"),
        "top1_pct": kept.get("top1_pct"),
        "judged_on": result.get("judged_on"),
    }


def _finished(run: Any, as_json: bool) -> None:
    from okdc.run import read_json

    result = read_json(run.result)
    if as_json:
        console.out_json({"run": str(run.path)} | result)
        return
    kept, n, split = result["kept"], result["images"], result["judged_on"]
    share = kept["top1_pct"] / 100
    error = 100 * (share * (1 - share) / n) ** 0.5
    rows = [[name, f"{value:.2f}", "last"] for name, value in result["heads_last_epoch_top1_pct"].items()]
    rows.append([f"kept: student{kept['student']}", f"{kept['top1_pct']:.2f}", str(kept["epoch"])])
    console.table(["head", f"top-1 % on {split}", "epoch"], rows)
    console.out(
        f"kept student{kept['student']} ({kept['architecture']}): {kept['top1_pct']:.2f} % on {n} {split} images "
        f"(standard error {error:.2f}), seed {result['seed']}, one run"
    )
    if split != "test":
        console.warn("the data has no test split: this number was also used to choose, and flatters")
    console.out(
        f"trained {result['epochs']} epochs in {result['seconds']:.1f} s, {result['images_per_s']:,.0f} images/s"
    )
    console.next_step(f"okdc profile {run.path}")


def _profile_tables(report: dict[str, Any]) -> None:
    def pair(row: dict[str, Any], engine: str) -> str:
        p50, p90 = row[f"latency_ms_p50_{engine}"], row[f"latency_ms_p90_{engine}"]
        return "" if p50 is None else f"{p50:.2f} / {p90:.2f}"

    console.table(
        ["", "input", "params", "MACs", "FLOPs", "fvcore", "activations", "ONNX file", "torch ms", "onnxruntime ms"],
        [
            [
                row["name"] if row["kind"] in ("network", "training") else f"{row['name']} {row['architecture']}",
                "×".join(map(str, row["input"])),
                f"{row['params']:,}",
                ("≥ " if row["lower_bound"] else "") + f"{row['macs']:,}",
                ("≥ " if row["lower_bound"] else "") + f"{row['flops']:,}",
                f"{row['fvcore_total']:,}",
                f"{row['activations']:,}",
                f"{row['onnx_bytes'] / 1000:,.0f} kB" if row["onnx_bytes"] else "",
                pair(row, "torch"),
                pair(row, "onnxruntime"),
            ]
            for row in report["rows"]
        ],
    )
    for name, stages in report["stages"].items():
        console.out("")
        console.table(
            [name, "output", "params", "MACs"],
            [[s["stage"], "×".join(map(str, s["output"])), f"{s['params']:,}", f"{s['macs']:,}"] for s in stages],
        )
    console.out("")
    for row in report["rows"]:
        if row["uncounted"]:
            console.warn(f"{row['name']}: no counter knows {', '.join(row['uncounted'])}; its MACs are a lower bound")
    if shrink := report["shrink"]:
        console.out(
            f"kept of what was trained: 1/{shrink['params']:.1f} of the parameters, 1/{shrink['macs']:.1f} of the MACs"
        )
    how = report["latency"]
    console.note(
        "MACs: convolutions and linear layers, as torch's FlopCounterMode counts them too; FLOPs: 2 × MACs; fvcore: "
        f"its own total, BatchNorm and pooling included. Latency p50 / p90, batch {how['batch']}, {how['threads']} "
        f"thread{'s' if how['threads'] > 1 else ''}, {how['processor']}"
    )


def _parity_table(parity: dict[str, Any]) -> None:
    logits, top1 = parity["logits"], parity["top1_pct"]
    console.table(
        ["parity", "found", "allowed"],
        [
            [f"images of the {parity['split']} split", f"{parity['images']:,}", ""],
            ["top-1 %, torch", f"{top1['torch']:.2f}", f"{top1['recorded']:.2f} recorded"],
            ["top-1 %, onnxruntime", f"{top1['onnx']:.2f}", f"{top1['torch']:.2f}"],
            ["predictions that differ", str(len(parity["flips"])), "0 beyond rounding"],
            *[
                [f"logits, max |d|, {name.replace('_', ' ')}", f"{value:.1e}", f"{logits['allowed']:.1e}"]
                for name, value in logits["max_abs"].items()
            ],
            [
                "batches 1 to 135, threads 1 and 2",
                f"{max(parity['invariance_max_abs'].values()):.1e}",
                f"{logits['allowed']:.1e}",
            ],
            ["second engine (onnx.reference)", f"{parity['onnx_reference_max_abs']:.1e}", f"{logits['allowed']:.1e}"],
        ],
    )


def _runner() -> str:
    from okdc import catalog

    return str(catalog.folder("export") / "python" / "run.py")
