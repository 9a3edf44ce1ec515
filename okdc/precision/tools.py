"""Other people's tools: what they log is not for okdc's user, and what they raise is no bug of the command."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from okdc.errors import CheckFailed, OkdcError


@contextmanager
def quiet() -> Iterator[None]:
    """Advice through whatever logger; errors still come as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(level)


@contextmanager
def refusals(kind: str, what: str) -> Iterator[None]:
    """These tools raise whatever Python does: CheckFailed (`kind`), which says `what` could not be done."""
    try:
        yield
    except (OkdcError, MemoryError):
        raise
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckFailed(kind, f"{what}: {why}") from error
