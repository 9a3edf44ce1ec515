"""Commands before a training: new, check."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from okdc.cli import console, prepare_tables
from okdc.cli.ends import leave
from okdc.cli.options import Compile, DataRoot, Device, Dtype, Json, Threads, TrustCode, Words, engine_flags, flag
from okdc.errors import CheckFailed
from okdc.runs.trust import trusting_code

if TYPE_CHECKING:
    from okdc.profiling.budget import Limit
    from okdc.survey.folder import Folder


def new(
    root: Annotated[
        str,
        typer.Argument(metavar="PATH", help="A folder of images: PATH/<class>/* or PATH/<split>/<class>/*."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="RECIPE.toml", help="The file to write (default: the folder's name)."),
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option(
            "--flip/--no-flip",
            help="Whether a mirrored image is still of its class (asked on a terminal; else: no).",
            show_default=False,
        ),
    ] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option(
            "--pretrained/--no-pretrained",
            help="Whether the networks start from ImageNet's weights (default: where these are on this machine).",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="'params<1M,latency_ms<5'",
            help="Choose networks within limits: params, macs, flops, bytes, latency_ms.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look at a folder of images and write a recipe for it. Each line has its reason beside it."""
    from okdc.survey import folder as folders
    from okdc.survey import networks, plan, writing

    limits: tuple[Limit, ...] = ()
    if budget is not None:
        from okdc.profiling.budget import parse

        limits = parse(budget)
    path = writing.place(Path(root), out)
    talk = console.Talk()
    with talk.reading() as update:
        folder = folders.look(root, update)
    if not as_json:
        prepare_tables.folder(folder)
    if flip is None and not as_json:
        flip = _ask_about_mirrors(folder)
    chosen = networks.choose(folder, pretrained, limits, talk)
    planned = plan.plan(folder, chosen, flip)
    writing.save(path, writing.text(planned, path))
    if as_json:
        console.out_json(
            {
                "recipe": str(path),
                "folder": folder.facts(),
                "division": {name: list(counts) for name, counts in planned.division.counts().items()},
                "steps_per_epoch": planned.steps,
                "keys": [{"key": line.key, "value": line.value, "reason": line.reason} for line in planned.lines],
            }
        )
        return
    console.say(f"{path} is written, with the reason beside each of its {len(planned.lines)} lines")
    for line in planned.printed:
        console.note(f"{line.name} = {writing.toml(line.value)}: {line.reason}")
    console.next_step("okdc distill", path)


def _ask_about_mirrors(folder: Folder) -> bool | None:
    """Whether a mirrored image is of its class, as the user says. None where no terminal is there to ask at."""
    from okdc.survey.plan import directed

    turned = directed(folder.classes)
    example = f" ({', '.join(turned[:3])}?)" if turned else ""
    return console.ask(f"Is every image, mirrored left to right, still of its class{example}? [y/N]")


def check(
    words: Words = None,
    images: Annotated[
        bool,
        typer.Option("--images", help="Also look for images that occur twice, or look the same, and damaged ones."),
    ] = False,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    compile_step: Compile = None,
    data_root: DataRoot = None,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Do everything but train: keys, images, export, memory, time. Exit 1 where a check fails."""
    from okdc.recipe import draft as recipe

    flags = (*engine_flags(device, dtype, threads, compile_step), *flag("--data-root", "data.root", data_root))
    draft = recipe.load([*(words or []), *flags])
    from okdc import api
    from okdc.assembly.resolve import resolve
    from okdc.survey.check import raise_failures

    with trusting_code(trust_code):
        report = api.check(resolve(draft), images=images, progress=console.Talk())
    if as_json:
        console.out_json(report)
        try:
            raise_failures(report)
        except CheckFailed as error:
            leave(error)
        return
    prepare_tables.checked(report)
    raise_failures(report)
    given = [word for each in flags for word in (each.option, each.value)] + (["--trust-code"] if trust_code else [])
    console.next_step("okdc distill", *map(shlex.quote, [*(words or []), *given]))
