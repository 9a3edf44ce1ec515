"""How a training ends before its last epoch: a signal, a loss that is not finite, an image that cannot be read, a full
disk. Nothing is lost.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn

from torch import Tensor

from okdc.errors import DataError, DiskError, Interrupted, TrainingError
from okdc.run import Run
from okdc.training.metrics import Summary

Batch = tuple[Tensor, Tensor]


class StopRequest:
    """Ctrl-C and SIGTERM become a flag that the loop looks at between two steps. A second one stops at once.

    `with StopRequest() as stop:` ... `if stop.signal:` save and leave. Outside the main thread it never fires.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._take)
        return self

    def _take(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.signal = signal.Signals(number)
        self._restore()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        return 128 + (self.signal or 0)


@contextmanager
def continuable(run: Run) -> Iterator[None]:
    """Whatever ends a training from outside, its last checkpoint stands: say how to go on from it."""
    try:
        yield
    except KeyboardInterrupt:  # before the first step, while judging, or a second Ctrl-C
        raise Interrupted(
            f"SIGINT: {run.path} is as its last checkpoint left it", exit_code=130, hint=f"okdc resume {run.path}"
        ) from None
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):  # torch's words, raised wherever the loop happens to be
            raise
        raise DataError(
            f"a process that decodes images died: {str(error).splitlines()[0]}",
            hint=f"out of memory, or of shared memory (/dev/shm)? fewer engine.workers; okdc resume {run.path}",
        ) from None
    except DiskError as error:
        raise DiskError(error.message, hint=f"free some space, then: okdc resume {run.path}") from error


def or_pause(batches: Iterator[Batch], run: Run, pause: Callable[[], None]) -> Iterator[Batch]:
    """The batches as they come. Where an image of one cannot be read, `pause` saves what was trained before it."""
    try:
        yield from batches
    except DataError as error:
        pause()
        hint = f"{error.hint}, then: okdc resume {run.path}"
        raise DataError(error.message, hint=hint, details=error.details) from None


def interrupt(stop: StopRequest, run: Run, epoch: int, step: int) -> NoReturn:
    """Leave as the signal asked, after the state was saved."""
    assert stop.signal is not None
    raise Interrupted(
        f"{stop.signal.name} after epoch {epoch}, step {step}: saved in {run.path}",
        exit_code=stop.exit_code,
        hint=f"okdc resume {run.path}",
    )


def stop_if_bad(summary: Summary, run: Run, steps: int) -> None:
    """Raises TrainingError where a loss term was not finite, with the first step and the term."""
    if summary.bad:
        step, term = summary.bad
        fail(run, f"the loss term {term} is not finite at step {step + 1} (epoch {step // steps + 1})")


def fail(run: Run, why: str) -> NoReturn:
    """Mark the run as failed and raise TrainingError."""
    run.note(failed=why)
    kept = "the checkpoint before it is kept" if run.checkpoint.exists() else "no epoch was finished before it"
    raise TrainingError(f"{why}; {kept} in {run.path}", hint="a lower optim.lr, or optim.clip=1.0")
