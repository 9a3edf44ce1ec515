"""Names that recipes use, and the objects behind them: one mechanism for okdc's own, for packages' and for the user's.

    registry = Registry("method", "okdc.methods", {"fefr": "okdc.methods.fefr:FEFR"}, RecipeError)
    registry.load("fefr")                      # okdc's own table
    registry.load("mine")                      # an installed package's: [project.entry-points."okdc.methods"]
    registry.load("package.module:attribute")  # the user's own code; the working directory is searched first

okdc's own table and the entry points say the same thing in the same form, `name = "module:attribute"`; nothing is
imported before its name is asked for.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from okdc.errors import OkdcError, nearest, one_line


@dataclass(frozen=True)
class Registry:
    """The names of one kind of thing: okdc's own first, then those that installed packages bring."""

    kind: str  # what a name stands for, in messages: method, network, data set
    group: str  # of the entry points
    own: Mapping[str, str]  # name -> "module:attribute"
    error: type[OkdcError]
    outside: str = "package.module:attribute"  # how to write what neither table names, for hints
    callables: bool = True  # what a name of another package leads to has to be callable

    def names(self) -> list[str]:
        """Every name there is, okdc's own first."""
        return [*self.own, *(name for name in _entry_points(self.group) if name not in self.own)]

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in _entry_points(self.group)

    def target(self, name: str) -> str:
        """The `module:attribute` behind a name. Raises `error`, naming the nearest, for a name that leads nowhere."""
        if name in self.own:
            return self.own[name]
        if targets := _entry_points(self.group).get(name, ()):
            if len(targets) > 1:
                raise self.error(
                    f"several packages bring a {self.kind} called {name!r}: {', '.join(targets)}",
                    hint=f"name one of them by its module: {targets[0]}",
                )
            return targets[0]
        if ":" in name:
            return name
        raise self.error(
            f"no {self.kind} is called {name!r}{nearest(name, self.names())}",
            hint=f"there is: {', '.join(self.names())}; or {self.outside}",
        )

    def load(self, name: str) -> Any:
        """The object behind a name. Raises `error` where the name leads nowhere, or its module cannot be imported."""
        target = self.target(name)
        if name in self.own:
            module, _, attribute = target.partition(":")
            return getattr(importlib.import_module(module), attribute)
        return load(target, self.error, self.callables)


@functools.cache
def _entry_points(group: str) -> dict[str, tuple[str, ...]]:
    """name -> the targets that installed packages give it; several packages may use one name."""
    targets: dict[str, tuple[str, ...]] = {}
    for point in importlib.metadata.entry_points(group=group):
        target = point.value.partition("[")[0].strip()  # without extras in brackets
        targets[point.name] = (*targets.get(point.name, ()), target)
    return targets


@contextlib.contextmanager
def working_directory_first() -> Iterator[None]:
    """The working directory is first on the path, as `python -m` has it; the installed command does not."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


@contextlib.contextmanager
def no_exit(what: str, error: type[OkdcError]) -> Iterator[None]:
    """Code outside okdc runs in the block: it may not end the program. Its SystemExit becomes `error`, about `what`."""
    try:
        yield
    except SystemExit as cause:
        raise error(f"{what} called sys.exit({cause.code!r})", hint="--debug shows where") from cause


def load(target: str, error: type[OkdcError], callables: bool = True) -> Any:
    """The object at `module:attribute`. Raises `error` that says which part is missing, or what importing it raised."""
    module, _, path = target.partition(":")
    if not module or not path:
        raise error(f"{target!r} names nothing", hint="expected package.module:attribute")
    importlib.invalidate_caches()  # a file that was written a moment ago
    try:
        with working_directory_first():
            value: Any = importlib.import_module(module)
    except (Exception, SystemExit) as cause:
        absent = cause.name if isinstance(cause, ModuleNotFoundError) else None
        missing = absent is not None and f"{module}.".startswith(f"{absent}.")  # it, or a package that it is in
        reason = f"there is no module {absent}" if missing else f"importing {module} raised {one_line(cause)}"
        raise error(f"{target}: {reason}", hint=f"modules are looked for in {Path.cwd()} first") from cause
    for part in path.split("."):
        if not hasattr(value, part):
            names = [name for name in dir(value) if not name.startswith("_")]
            raise error(f"{target}: {module} has no {path}{nearest(part, names)}")
        value = getattr(value, part)
    if callables and not callable(value):
        raise error(f"{target}: expected something to call, found {type(value).__name__}")
    return value
