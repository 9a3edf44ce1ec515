"""`package.module:callable`: the user's own code by name, for networks and for data."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from okdc.errors import OkdcError, nearest


@contextlib.contextmanager
def here_first() -> Iterator[None]:
    """The working directory is first on the path, as `python -m` has it; the installed command does not."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def find(name: str, refusal: type[OkdcError]) -> Callable[..., Any]:
    """What `name` names. Raises a `refusal` that says what of it is missing, or what importing it raised."""
    module, _, path = name.partition(":")
    if not module or not path:
        raise refusal(f"{name!r} names nothing", hint="expected package.module:callable")
    importlib.invalidate_caches()  # a file that was written a moment ago
    try:
        with here_first():
            found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        missing = absent is not None and f"{module}.".startswith(f"{absent}.")  # it, or a package that it is in
        reason = f"there is no module {absent}" if missing else f"importing {module} raised {said(error)}"
        raise refusal(f"{name}: {reason}", hint=f"modules are looked for in {Path.cwd()} first") from error
    for part in path.split("."):
        if not hasattr(found, part):
            known = [word for word in dir(found) if not word.startswith("_")]
            raise refusal(f"{name}: {module} has no {path}{nearest(part, known)}")
        found = getattr(found, part)
    if not callable(found):
        raise refusal(f"{name}: expected something to call, found {type(found).__name__}")
    call: Callable[..., Any] = found
    return call


def said(error: BaseException) -> str:
    """`KeyError: 'x'`, on one line of bearable length."""
    lines = str(error).strip().splitlines()
    return type(error).__name__ + (f": {lines[0][:200]}" if lines else "")
