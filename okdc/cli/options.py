"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON on stdout.")]
DataRoot = Annotated[str | None, typer.Option("--data-root", metavar="DIR", help="Where the images are (data.root).")]
RunPath = Annotated[Path | None, typer.Argument(metavar="RUN", help="A run's directory.", show_default=False)]
Device = Annotated[str | None, typer.Option(metavar="auto|cpu|cuda", help="Short for engine.device=.")]
Dtype = Annotated[str | None, typer.Option(metavar="auto|float32|bfloat16", help="Short for engine.dtype=.")]
Threads = Annotated[str | None, typer.Option(metavar="auto|N", help="Short for engine.threads=.")]
Compile = Annotated[str | None, typer.Option("--compile", metavar="auto|on|off", help="Short for engine.compile=.")]
