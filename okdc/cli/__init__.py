"""The commands: each parses its words, makes one call and prints what came back.

    prepare.py  new, check
    train.py    distill, resume
    ship.py     profile, export, evaluate, verify, predict
    look.py     download, recipes, compare
    bench.py  doctor.py  features.py  report.py  runs.py  study.py  track.py    the command of that name
    completion.py   the names that a shell completes

Nothing heavy is imported at module level: `okdc --help` needs neither torch nor numpy nor onnxruntime.
"""

from __future__ import annotations

from typing import Annotated

import typer

from okdc.cli import console
from okdc.cli.bench import bench
from okdc.cli.doctor import doctor
from okdc.cli.features import features
from okdc.cli.look import compare, download, recipes
from okdc.cli.prepare import check, new
from okdc.cli.report import report
from okdc.cli.runs import runs
from okdc.cli.ship import evaluate, export, predict, profile, verify
from okdc.cli.study import study
from okdc.cli.track import track
from okdc.cli.train import distill, resume
from okdc.distributed import Ranks
from okdc.errors import UsageError
from okdc.version import __version__

__all__ = ["app"]

# Two processes of these would write one file, or slow each other.
BY_ONE = ("new", "check", "profile", "export", "evaluate", "features", "report", "track", "study", "download", "bench")

app = typer.Typer(
    name="okdc",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        console.out(f"okdc {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001
) -> None:
    """Compress image classifiers by online knowledge distillation, and ship the student.

    First steps: okdc distill, then okdc profile, then okdc export --onnx. For your own images: okdc new.
    """
    command = context.invoked_subcommand
    if command in BY_ONE and not Ranks.of_environment().alone:
        raise UsageError(f"{command} under torchrun: expected one process", hint=f"okdc {command}")


PREPARE = (new, check)
TRAIN = (distill, resume, study)
SHIP = (profile, export, evaluate, verify, predict)
LOOK = (runs, compare, report, features, track, recipes, download, bench, doctor)

for command in (*PREPARE, *TRAIN, *SHIP, *LOOK):
    app.command()(command)  # in the order in which --help lists them
