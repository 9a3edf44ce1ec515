"""How a training ends before its last epoch: a signal, a loss that is not finite, an image that cannot be read, a full
disk. Nothing is lost.

Of several processes none ends alone: what one of them meets is told to all before the next step, and all end there.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn, TypeVar

from torch import Tensor

from okdc.distributed import ALONE, LOST, Ranks, lost
from okdc.errors import DataError, DiskError, Interrupted, RunError, ToldElsewhere, TrainingError
from okdc.runs.run import Run
from okdc.training.metrics import Summary

Batch = tuple[Tensor, Tensor]
T = TypeVar("T")
UNREADABLE = 1000  # larger than any signal: an image that cannot be read comes first


class StopRequest:
    """Ctrl-C and SIGTERM become a flag that the loop asks for between two steps. A second one stops at once.

    `with StopRequest(ranks) as stop:` ... `if stop.asked():` save and leave. Outside the main thread it never fires.
    Of several processes a second one stops none: torchrun sends one to all as soon as the first has ended, and kills
    who does not end. So they stay deaf where an error leaves the loop.
    """

    def __init__(self, ranks: Ranks = ALONE, say: Callable[[str], None] | None = None) -> None:
        """`say`: what to tell at once that a signal came, where a step may take a minute."""
        self.say = say
        self.signal: signal.Signals | None = None  # that came to this process
        self.ranks = ranks
        self._before: dict[signal.Signals, Any] = {}

    def asked(self) -> int:
        """The signal that came to any of the processes, or 0: the same in all of them."""
        return self.ranks.largest(self.signal or 0)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._take)
        return self

    def _take(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.signal = signal.Signals(number)
        again = ""
        if self.ranks.alone:
            self._restore()
            again = "; another one stops at once"
        if self.say:
            self.say(f"{self.signal.name}: stopping after this step, which may still be compiling{again}")

    def heard(self) -> None:
        """Raises KeyboardInterrupt if a signal came: what failed just now, it may have killed in the middle."""
        if self.signal:
            raise KeyboardInterrupt(self.signal.name) from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None or self.ranks.alone:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def name_and_code(stop: KeyboardInterrupt) -> tuple[str, int]:
    """Which signal it was, and the exit code: Python's own, of Ctrl-C, bears no name."""
    number = signal.SIGTERM if str(stop) == signal.SIGTERM.name else signal.SIGINT
    return number.name, 128 + number


@contextmanager
def continuable(run: Run) -> Iterator[None]:
    """Whatever ends a training from outside, its last checkpoint stands: say how to go on from it."""
    try:
        yield
    except KeyboardInterrupt as error:  # before the first step, while judging or compiling, or a second Ctrl-C
        name, code = name_and_code(error)
        raise Interrupted(
            f"{name}: {run.path} is as its last checkpoint left it", exit_code=code, hint=run.resume_command()
        ) from None
    except RuntimeError as error:
        if lost(error):
            raise RunError(LOST, hint=f"torchrun's report names it; then: {run.resume_command()}") from None
        if not str(error).startswith("DataLoader worker"):  # torch's words, raised wherever the loop happens to be
            raise
        raise DataError(
            f"a process that decodes images died: {str(error).splitlines()[0]}",
            hint=f"out of memory, or of shared memory (/dev/shm)? fewer engine.workers; {run.resume_command()}",
        ) from None
    except DiskError as error:
        raise DiskError(error.message, hint=f"free some space, then: {run.resume_command()}") from error


def until_asked(
    batches: Iterator[Batch], stop: StopRequest, run: Run, pause: Callable[[], None], leave: Callable[[int], NoReturn]
) -> Iterator[Batch]:
    """The batches as they come. At a signal, and where an image cannot be read, `pause` saves what was trained before.

    A signal that comes with the last batch is left to the end of the epoch.
    """
    while True:
        batch, asked = attempt(lambda: next(batches, None), stop, run, pause)
        if batch is None:
            return
        if asked:
            pause()
            leave(asked)
        yield batch


def attempt(work: Callable[[], T], stop: StopRequest, run: Run, pause: Callable[[], None]) -> tuple[T, int]:
    """What `work` gives, and the signal that came to any process meanwhile, or 0.

    Raises DataError, after `pause`, where an image cannot be read: ToldElsewhere in the other processes.
    """
    found: T | None = None
    error: DataError | None = None
    try:
        found = work()
    except DataError as caught:
        error = caught
    asked = stop.ranks.largest(UNREADABLE if error else stop.signal or 0)
    if asked == UNREADABLE:
        pause()
        if error is None:
            raise ToldElsewhere(DataError.exit_code)
        hint = f"{error.hint}, then: {run.resume_command()}"
        raise DataError(error.message, hint=hint, details=error.details)
    return found, asked  # type: ignore[return-value]


def interrupt(number: int, run: Run, epoch: int, step: int, ranks: Ranks) -> NoReturn:
    """Leave as the signal asked, after the state was saved."""
    ranks.all_raise(
        Interrupted(
            f"{signal.Signals(number).name} after epoch {epoch}, step {step}: saved in {run.path}",
            exit_code=128 + number,
            hint=run.resume_command(),
        )
    )


def stop_if_bad(summary: Summary, run: Run, steps: int, ranks: Ranks = ALONE) -> None:
    """Raises TrainingError where a loss term was not finite, with the first step and the term."""
    if summary.bad:
        step, term = summary.bad
        fail(run, f"the loss term {term} is not finite at step {step + 1} (epoch {step // steps + 1})", ranks)


def fail(run: Run, why: str, ranks: Ranks = ALONE) -> NoReturn:
    """Mark the run as failed and raise TrainingError. Every process has found the same."""
    if ranks.first:
        run.note(failed=why)
    kept = "the checkpoint before it is kept" if run.checkpoint.exists() else "no epoch was finished before it"
    ranks.all_raise(TrainingError(f"{why}; {kept} in {run.path}", hint="a lower optim.lr, or optim.clip=1.0"))
