"""What long work tells while it runs, without knowing who listens. `okdc.cli.console.Talk` draws it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Listener(Protocol):
    """Notes, and two progress lines: `update(done, total)` of images read, `update(done, total, text)` of steps."""

    def note(self, text: str) -> None: ...
    def reading(self) -> AbstractContextManager[Callable[[int, int], None]]: ...
    def training(self) -> AbstractContextManager[Callable[[int, int, str], None]]: ...


class Nobody:
    """Listens to the processes of a training that are not the first."""

    def note(self, text: str) -> None: ...

    def reading(self) -> AbstractContextManager[Callable[[int, int], None]]:
        return nullcontext(lambda *_: None)

    def training(self) -> AbstractContextManager[Callable[[int, int, str], None]]:
        return nullcontext(lambda *_: None)
