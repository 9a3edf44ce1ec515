"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from okdc.cli import completion

if TYPE_CHECKING:
    from okdc.recipe.words import Flag

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
DataRoot = Annotated[
    str | None, typer.Option("--data-root", metavar="DIR", help="The folder of the images, in place of data.root.")
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE|KEY=VALUE",
        help="A recipe (default: digits_resnet8), and values that replace some of its own.",
        autocompletion=completion.recipes,
    ),
]
RunPath = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN",
        help="The folder of a run or a series (default: the one started last that can be continued).",
        show_default=False,
        autocompletion=completion.resumable,
    ),
]
Device = Annotated[
    str | None, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="Where to compute; short for engine.device=.")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="auto|float32|bfloat16|float16", help="Precision of the training step; short for engine.dtype=."
    ),
]
Threads = Annotated[str | None, typer.Option(metavar="auto|N", help="CPU threads; short for engine.threads=.")]
Compile = Annotated[
    str | None,
    typer.Option(
        "--compile", metavar="auto|on|off", help="Whether to compile the training step; short for engine.compile=."
    ),
]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code", help="Import code that a run names, though okdc has not trained the run on this machine."
    ),
]
BundlePath = Annotated[
    Path,
    typer.Argument(
        metavar="BUNDLE", help="The folder of a bundle.", show_default=False, autocompletion=completion.bundles
    ),
]


def flag(option: str, key: str, value: str | None) -> Sequence[Flag]:
    """An option that is short for a key; nothing where it was not given."""
    from okdc.recipe.words import Flag

    return () if value is None else (Flag(option, key, value),)


def engine_flags(
    device: str | None, dtype: str | None, threads: str | None, compile_step: str | None
) -> Sequence[Flag]:
    """The options that are short for keys of [engine]."""
    values = {"device": device, "dtype": dtype, "threads": threads, "compile": compile_step}
    return [each for name, value in values.items() for each in flag(f"--{name}", f"engine.{name}", value)]
