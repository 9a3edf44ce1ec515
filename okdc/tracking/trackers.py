"""The trackers of one training: `engine.track`'s, and the caller's `progress=`. What one raises stays here.

A training with trackers has the weights of one without, to the bit. They are called after a checkpoint, never between
steps; every step seeds the global generators anew (`okdc.seeds`); and a tracker gets its own copy of a row, since the
loop's goes into the checkpoint and the log.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from okdc.data.datasets import Dataset
from okdc.errors import one_line
from okdc.progress import WARNING, Progress, Row
from okdc.recipe.schema import Engine
from okdc.runs.run import RunDir
from okdc.tracking import tensorboard

Logged = Callable[[Row], None]  # what the loop calls after each epoch


def require(engine: Engine) -> None:
    """Raises UsageError where the package of a tracker is not installed: before any image is read."""
    for name in engine.track:
        tensorboard.require(f"engine.track={name}")


def of(engine: Engine, progress: Progress, dataset: Dataset) -> list[Progress]:
    """The recipe's trackers, and `progress`, which may be one. `dataset`: the images of the training."""
    return [tensorboard.TensorBoard(dataset) for _ in dict.fromkeys(engine.track)] + [progress]


@contextmanager
def following(
    trackers: Sequence[Progress], run: RunDir, rows: Sequence[Row], note: Callable[[str], None]
) -> Iterator[Logged]:
    """The training runs in the block, after the epochs of `rows`; it calls what the block gets with each further row.

    At the end, whatever the reason, trackers hear the run's state: complete, resumable or failed.
    """
    guarded = _Guarded(trackers, note)
    guarded.tell("begun", run.path, list(rows))
    try:
        yield lambda row: guarded.tell("epoch", row)
    finally:
        state = run.state()
        guarded.tell("ended", run.path, "resumable" if state == "running" else state)  # it still holds the run


class _Guarded:
    """Trackers whose errors become warnings, one a tracker."""

    def __init__(self, trackers: Sequence[Progress], note: Callable[[str], None]) -> None:
        self.trackers, self.note = trackers, note
        self.warned: set[int] = set()

    def tell(self, method: str, *arguments: Any) -> None:
        """Call a method of each tracker. One that failed is called again: its server may be back.

        An object with the four older methods of a Progress alone is no tracker.
        """
        for number, tracker in enumerate(self.trackers):
            try:
                if (call := getattr(tracker, method, None)) is not None:
                    call(*copy.deepcopy(arguments))
            except (Exception, SystemExit) as error:
                if number not in self.warned:
                    self.warned.add(number)
                    self.note(f"{WARNING}{_name(tracker)}.{method}: {one_line(error)}; the training goes on without it")


def _name(tracker: Progress) -> str:
    """The tracker's class; of a series' the one that is inside."""
    return type(getattr(tracker, "progress", tracker)).__name__
