"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON on stdout.")]
DataRoot = Annotated[str | None, typer.Option("--data-root", metavar="DIR", help="Where the images are (data.root).")]
RunPath = Annotated[Path | None, typer.Argument(metavar="RUN", help="A run's directory.", show_default=False)]
