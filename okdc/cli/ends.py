"""The end of a command that has both a result and an error."""

from __future__ import annotations

from typing import NoReturn

import typer

from okdc.cli import console
from okdc.errors import OkdcError


def leave(error: OkdcError) -> NoReturn:
    """Print the error on stderr alone, and exit with its code: stdout holds one JSON document already."""
    console.fail(error)
    raise typer.Exit(error.exit_code)
