"""What long work reports while it runs. By default nothing is shown; `okdc.cli.console.Talk` prints it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Reading = Callable[[int, int], None]  # (images read, images in all)
WARNING = "warning: "  # a note that begins so is one; the command line shows it as one
Training = Callable[[int, int, str], None]  # (steps done, steps in all, the last epoch in a line)


class Progress(Protocol):
    """An object with these four methods. A subclass that overrides some of them shows nothing of the others.

    class Notebook(Progress):
        def note(self, text): print(text)
    """

    def note(self, text: str) -> None:  # noqa: ARG002
        """A choice with its reason, or where the work is, or a WARNING: one line."""
        return

    def reading(self) -> AbstractContextManager[Reading]:
        """Images are read while the block runs: it yields what is called after some of them."""
        return nullcontext(lambda *_: None)

    def training(self) -> AbstractContextManager[Training]:
        """Steps are taken while the block runs: it yields what is called after each step and each epoch."""
        return nullcontext(lambda *_: None)

    def remaining(self, seconds: float) -> None:  # noqa: ARG002
        """The time to the end of the training, validation and judging included: about once a second and an epoch."""
        return


class Silent(Progress):
    """Shows nothing: the default of the Python API, and the processes of a training that are not the first."""


class EachNoteOnce(Progress):
    """Passes each note on once: what holds for every seed of a series is not repeated for each."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.noted: set[str] = set()

    def note(self, text: str) -> None:
        if text not in self.noted:
            self.noted.add(text)
            self.progress.note(text)

    def reading(self) -> AbstractContextManager[Reading]:
        return self.progress.reading()

    def training(self) -> AbstractContextManager[Training]:
        return self.progress.training()

    def remaining(self, seconds: float) -> None:
        self.progress.remaining(seconds)
