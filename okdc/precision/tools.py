"""Tools of other packages: their log is not for okdc's user, and their errors are no bug of the command."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from okdc.errors import CheckFailed, OkdcError, first_line


@contextmanager
def quiet() -> Iterator[None]:
    """Silences every logger; errors still come as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(level)


@contextmanager
def refusals(kind: str, failure: str) -> Iterator[None]:
    """Turns any exception of such a tool into CheckFailed (`kind`) with the words of `failure`."""
    try:
        yield
    except (OkdcError, MemoryError):
        raise
    except Exception as error:
        raise CheckFailed(kind, f"{failure}: {first_line(error)}") from error
