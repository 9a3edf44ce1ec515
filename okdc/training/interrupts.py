"""How a training ends before its last epoch: a signal, a bad loss, an unreadable image, a full memory, a full disk.

In each case the state is saved or the last checkpoint stands, and the error names the command that continues. Of
several processes none ends alone: what one of them meets is passed to all, and all end at the same step. An image that
one of them cannot read is passed on before the step that it belongs to; a signal within eight steps.
"""

from __future__ import annotations

import contextlib
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from okdc import signals, torch_errors
from okdc.data.images import DamagedError
from okdc.distributed import ALONE, LOST, Ranks
from okdc.errors import (
    DataError,
    DiskError,
    Interrupted,
    OutOfMemoryError,
    RunError,
    ToldElsewhere,
    TrainingError,
    first_line,
)
from okdc.plugins import no_exit
from okdc.runs.run import RunDir
from okdc.training.checkpoint import Position
from okdc.training.metrics import Summary

T = TypeVar("T")
STEPS_OF_SIGNAL = 8  # after so many of an epoch all processes ask for signals; each time all of them wait for the last
UNREADABLE = 1000  # larger than any signal: where both come, the unreadable image is reported


@contextmanager
def continuable(run: RunDir) -> Iterator[None]:
    """Give what ends a training from outside the name of its run and the command that continues it.

    A signal raises Interrupted, and the last checkpoint stands: this is for a signal that does not come between two
    steps, but before the first one, while it compiles or while the test split is read, and for a second one.
    """
    try:
        with signals.raised(), no_exit(f"{run.path}: code outside okdc", RunError):
            yield
    except KeyboardInterrupt as stop:
        number = signals.signal_of(stop)
        stands = f"{run.path} is as its last checkpoint left it"
        raise Interrupted(
            f"{number.name}: {stands if run.checkpoint.exists() else f'no epoch was finished in {run.path}'}",
            exit_code=128 + number,
            hint=run.resume_command(),
            run=run.path,
        ) from None
    except (RuntimeError, MemoryError) as error:
        if full := torch_errors.shortage(error):
            # The frames of the training hold its tensors: a notebook that shows the error would keep the memory full.
            traceback.clear_frames(error.__traceback__)
            raise OutOfMemoryError(full.words, hint=_with_less_memory(run, full.device)) from error
        if torch_errors.peer_lost(error):
            raise RunError(LOST, hint=f"torchrun's report names it; then: {run.resume_command()}") from None
        if not torch_errors.worker_died(error):
            raise
        raise DataError(
            f"a process that decodes images died: {first_line(error)}",
            hint=f"out of memory, or of shared memory (/dev/shm)? fewer engine.workers; {run.resume_command()}",
        ) from None
    except DamagedError as error:  # outside the steps: when it is continued, or while the test split is read
        raise DataError(error.message, hint=_with_the_images(run), details=error.details) from None
    except DiskError as error:
        raise DiskError(error.message, hint=f"free some space, then: {run.resume_command()}") from error


def _with_the_images(run: RunDir) -> str:
    return f"restore these files as they were when it was started, then: {run.resume_command()}"


def _with_less_memory(run: RunDir, device: str) -> str:
    """What helps a run that found too little memory on `device`."""
    stands = "the last checkpoint stands" if run.checkpoint.exists() else "no epoch was finished"
    new = ["a smaller optim.batch_size or data.image_size"]
    with contextlib.suppress(RunError):
        settings = run.read_info().settings
        if device == "cpu":
            new += ["fewer engine.workers"] * (settings.workers > 0)
        else:
            new += ["--dtype bfloat16 or float16"] * (settings.dtype == "float32") + ["--device cpu"]
    return f"{stands}: {run.resume_command()} where more memory is free; or a new run with {', or with '.join(new)}"


@dataclass(frozen=True)
class Stops:
    """What stops the loop between two steps: a signal to any of its processes, or an image that any cannot read."""

    run: RunDir
    position: Position
    ranks: Ranks
    received: signals.Received  # by this process
    save: Callable[[], None]  # writes a checkpoint of all steps taken so far
    unreadable: bool = False  # whether a batch may hold an image that its process cannot read

    def requested(self) -> int:
        """The signal that came to any of the processes, or 0: the same number in all of them."""
        return self.ranks.largest(self.received.signal or 0)

    def between_steps(self, inputs: Iterator[T]) -> Iterator[T]:
        """The inputs of each step. A signal that came while one was drawn ends them.

        Several processes ask each other before each step only where an image may be unreadable. Otherwise a signal
        waits until the next time; after the last batch it is left to the end of the epoch. Then the state is saved, and
        Interrupted is raised.
        """
        while True:
            if self.ranks.alone or self.unreadable or self.position.step % STEPS_OF_SIGNAL == 0:
                drawn, number = self.attempt(lambda: next(inputs, None))
            else:  # `position.step` is the same in all processes: all of them come here
                drawn, number = next(inputs, None), 0
            if drawn is None:
                return
            if number:
                self.save()
                self.leave(number)
            yield drawn

    def attempt(self, work: Callable[[], T]) -> tuple[T, int]:
        """What `work` returns, and the signal that came to any process by then, or 0.

        Where an image cannot be read, the state is saved. The process that met it then raises DataError with the
        command that continues the run, the others raise ToldElsewhere.
        """
        result: T | None = None
        error: DataError | None = None
        try:
            result = work()
        except DataError as caught:
            error = caught
        # One exchange for both: each costs several processes the time of a message.
        number = self.ranks.largest(UNREADABLE if error else self.received.signal or 0)
        if number == UNREADABLE:
            self.save()
            if error is None:
                raise ToldElsewhere(DataError.exit_code)
            raise DataError(error.message, hint=_with_the_images(self.run), details=error.details)
        return result, number  # type: ignore[return-value]

    def leave(self, number: int) -> NoReturn:
        """Raise Interrupted for a signal, in the first process; the state has been saved."""
        at = f"epoch {self.position.epoch}, step {self.position.step}"
        self.ranks.all_raise(
            Interrupted(
                f"{signal.Signals(number).name} after {at}: saved in {self.run.path}",
                exit_code=128 + number,
                hint=self.run.resume_command(),
                run=self.run.path,
            )
        )


def stop_if_bad(summary: Summary, run: RunDir, steps: int, ranks: Ranks = ALONE) -> None:
    """Raises TrainingError where a loss term was not finite, with the first such step and the term."""
    if summary.bad:
        step, term = summary.bad
        fail(run, f"the loss term {term} is not finite at step {step + 1} (epoch {step // steps + 1})", ranks)


def fail(run: RunDir, reason: str, ranks: Ranks = ALONE, hint: str = "a lower optim.lr, or optim.clip=1.0") -> NoReturn:
    """Mark the run as failed and raise TrainingError. Every process calls this, having found the same."""
    if ranks.first:
        run.note(failed=reason)
    kept = "the checkpoint before it is kept" if run.checkpoint.exists() else "no epoch was finished before it"
    ranks.all_raise(TrainingError(f"{reason}; {kept} in {run.path}", hint=hint))
