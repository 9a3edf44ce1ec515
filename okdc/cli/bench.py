"""The command that measures: bench."""

from __future__ import annotations

from typing import Annotated

import typer

from okdc.bench import GROUPS, SECONDS
from okdc.cli import completion, console
from okdc.cli.options import Compile, Device, Dtype, Json, Threads, engine_flags


def bench(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE|KEY=VALUE",
            help="A recipe, and values that replace some of its own: its training step is measured too.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="NAMES", help=f"Groups to measure, of {','.join(GROUPS)} (default: all).")
    ] = None,
    seconds: Annotated[int, typer.Option(metavar="N", min=1, help="Time for all measurements together.")] = SECONDS,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    compile_step: Compile = None,
    as_json: Json = False,
) -> None:
    """Measure the speed of okdc here, beside plain PyTorch."""
    from okdc.bench.request import request

    wanted = request(words or [], engine_flags(device, dtype, threads, compile_step), only, seconds)
    for note in wanted.notes:
        console.note(note)
    from okdc.bench import machine, pairings, suite

    size = wanted.resolved.recipe.data.image_size if wanted.resolved and not suite.standard(wanted) else pairings.SIZE
    settings = machine.settings_of(wanted.engine, size)
    for reason in settings.reasons:
        console.note(reason)
    with console.progress("measuring, second") as update:
        facts = suite.run(wanted, settings, update=update)
    if as_json:
        console.out_json(facts)
        return
    from okdc.cli.bench_tables import show

    show(facts)
    console.next_step("okdc distill", *(words or []))
