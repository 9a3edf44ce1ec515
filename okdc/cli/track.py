"""The command `track`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from okdc.cli import completion, console
from okdc.cli.options import DataRoot, Json, TrustCode
from okdc.runs.run import refuse_series
from okdc.runs.trust import trusting_code


def track(
    tensorboard: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="The folder of the event files: empty, or of this run, which is written anew."
        ),
    ],
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN",
            help="A run in any state (default: the newest complete one).",
            autocompletion=completion.begun,
        ),
    ] = None,
    data_root: DataRoot = None,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Write TensorBoard's event files of a run. They have scalars, the confusion matrix, and pictures of mistakes."""
    from okdc import api

    if run is not None:
        refuse_series(run)
    with trusting_code(trust_code):
        report = api.track(run, tensorboard=tensorboard, data_root=data_root, progress=console.Talk())
    if as_json:
        console.out_json(report)
        return
    console.say(f"{report['run']}: {report['epochs']:,} epochs, {report['pictures']} pictures of mistakes")
    if report["missing"]:
        console.say(f"no pictures: {report['missing']}")
    console.next_step("tensorboard --logdir", tensorboard)
