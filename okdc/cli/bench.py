"""The command that measures: bench."""

from __future__ import annotations

from typing import Annotated

import typer

from okdc.bench import GROUPS, SECONDS
from okdc.cli import console
from okdc.cli.options import Compile, Device, Dtype, Json, Threads


def bench(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE|KEY=VALUE", help="A recipe, and overrides, whose own step is measured too."),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="NAMES", help=f"Some of {','.join(GROUPS)} (default: all).")
    ] = None,
    seconds: Annotated[int, typer.Option(metavar="N", min=1, help="For all measurements together.")] = SECONDS,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    compile_step: Compile = None,
    as_json: Json = False,
) -> None:
    """Measure how fast okdc is here, beside the plain way."""
    keys = {"device": device, "dtype": dtype, "threads": threads, "compile": compile_step}
    flags = [f"engine.{key}={value}" for key, value in keys.items() if value is not None]
    from okdc.bench.request import asked

    wanted = asked(words or [], flags, only, seconds)
    for note in wanted.notes:
        console.note(note)
    from okdc.bench import machine, pairings, suite

    size = wanted.recipe.data.image_size if wanted.recipe and not suite.standard(wanted) else pairings.SIZE
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
