"""What long work reports while it runs. By default nothing is shown; `okdc.cli.console.Talk` prints it.

A tracker is a Progress that overrides the last three methods: it keeps what a training logs somewhere else. What these
three raise never stops a training (`okdc.tracking.trackers`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

Reading = Callable[[int, int], None]  # (images read, images in all)
WARNING = "warning: "  # a note that begins so is one; the command line shows it as one
Training = Callable[[int, int, str], None]  # (steps done, steps in all, the last epoch in a line)
Row = Mapping[str, Any]  # of log.jsonl


class Progress(Protocol):
    """An object with these methods. A subclass that overrides some of them shows nothing of the others.

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

    def begun(self, run: Path, rows: Sequence[Row]) -> None:  # noqa: ARG002
        """A training begins in the folder `run`, or goes on there after the epochs of `rows`.

        A tracker continues its own run by these: what it has of later epochs will come again.
        """
        return

    def epoch(self, row: Row) -> None:  # noqa: ARG002
        """An epoch is over and its checkpoint is written: the row of log.jsonl, the tracker's own copy."""
        return

    def ended(self, run: Path, state: str) -> None:  # noqa: ARG002
        """The training ends, and `run` is then complete, resumable or failed."""
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

    def begun(self, run: Path, rows: Sequence[Row]) -> None:
        self.progress.begun(run, rows)

    def epoch(self, row: Row) -> None:
        self.progress.epoch(row)

    def ended(self, run: Path, state: str) -> None:
        self.progress.ended(run, state)
