"""The command `features`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from okdc.cli import completion, console
from okdc.cli.options import DataRoot, Json, TrustCode
from okdc.runs.run import refuse_series
from okdc.runs.trust import trusting_code


def features(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN", help="Complete runs (default: the newest one).", autocompletion=completion.finished
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The file to write (default: RUN/features.npz)."),
    ] = None,
    neighbours: Annotated[
        int, typer.Option(metavar="N", min=1, help="Neighbours that decide on the class of an image.")
    ] = 10,
    images: Annotated[int, typer.Option(metavar="N", min=3, help="Judging images, at most.")] = 10_000,
    points: Annotated[
        int, typer.Option(metavar="N", min=0, help="Images of the t-SNE map, at most; 0: no map.")
    ] = 2_000,
    data_root: DataRoot = None,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Write the features that each classifier reads, and a t-SNE map. Prints how far they tell classes apart."""
    from okdc import api

    for path in paths or []:
        refuse_series(path)
    with trusting_code(trust_code):
        report = api.features(
            *(paths or []),
            out=out,
            data_root=data_root,
            neighbours=neighbours,
            images=images,
            points=points,
            progress=console.Talk(),
        )
    if as_json:
        console.out_json(report)
        return
    _show(report)
    runs = [Path(run["run"]) for run in report["runs"]]
    console.next_step("okdc compare" if len(runs) > 1 else "okdc report", *runs)


def _show(report: dict[str, Any]) -> None:
    for run in report["runs"]:
        console.say(
            f"{run['run']}: {run['method']}, {run['images']:,} {run['split']} images; kept: "
            f"student{run['kept_student']} of epoch {run['kept_epoch']}, the other heads of epoch {run['last_epoch']}"
        )
        of = f" of {run['judging_images']:,}" if run["images"] < run["judging_images"] else ""
        headers = ["head", "components", f"top-1 %{of}", f"{run['neighbours']} nearest, %", "silhouette"]
        rows = [
            [
                head["head"],
                str(head["components"]),
                "" if head["top1_pct"] is None else f"{head['top1_pct']:.2f}",
                f"{head['knn_pct']:.2f}",
                "" if head["silhouette"] is None else f"{head['silhouette']:+.3f}",
            ]
            for head in run["heads"]
        ]
        console.table(headers, rows)
        if without := ", ".join(run["without_features"]):
            console.say(f"no features of {without}: no linear layer makes its answers of one vector")
        on_map = f", and {run['points']:,} of them on a t-SNE map of each head" if run["points"] else ""
        console.say(f"features of {run['images']:,} images are in {run['file']}{on_map}")
