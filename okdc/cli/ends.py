"""How a command ends that has a result and an error."""

from __future__ import annotations

from typing import NoReturn

import typer

from okdc.cli import console
from okdc.errors import OkdcError


def leave(error: OkdcError) -> NoReturn:
    """With the error's exit code: stdout has said all there is, and its one JSON document must stay the only one."""
    console.fail(error)
    raise typer.Exit(error.exit_code)
