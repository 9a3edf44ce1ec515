"""What can go wrong, and what the process says about it.

    OkdcError                 exit 2   could not do what was asked
    ├── UsageError            usage    the command line
    ├── RecipeError           recipe   a recipe, with every problem in it
    ├── DataError             data     images, folders, classes
    ├── RunError              run      a run that is missing, unfinished or damaged
    ├── DeviceError           device   a device, dtype or setting this machine lacks
    ├── OutOfMemoryError      memory   the memory of the machine or of its GPU is full
    ├── TrainingError         training the optimisation itself (a loss that is not finite), a method from outside okdc
    ├── DiskError             disk     a full disk, a read-only folder
    ├── CheckFailed           exit 1   a check that was asked for did not hold
    ├── Interrupted           exit 130 or 143, after the state was saved
    └── ToldElsewhere         the exit code of an error that another process of the same training tells

Each message is one line that says what, where, expected and found. `hint` is what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


class OkdcError(Exception):
    """Base of every error that okdc raises for its user."""

    kind = "error"
    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        details: Sequence[str] = (),
        corrections: Mapping[tuple[str, ...], tuple[str, ...]] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = tuple(details)  # one line each: all the problems, all the files
        self.corrections = dict(corrections or {})  # words of the command, and those to type in their place


class UsageError(OkdcError):
    kind = "usage"


class RecipeError(OkdcError):
    kind = "recipe"


class DataError(OkdcError):
    kind = "data"


class RunError(OkdcError):
    kind = "run"


class DeviceError(OkdcError):
    kind = "device"


class OutOfMemoryError(OkdcError):
    kind = "memory"


class TrainingError(OkdcError):
    kind = "training"


class DiskError(OkdcError):
    kind = "disk"


class CheckFailed(OkdcError):  # noqa: N818  (it reads as what it is: a check that failed, not a fault of the program)
    """A check failed. `kind` is the check: structure, opset, parity, int8, float16, counting, accuracy, require; of a
    bundle also files, samples, labels, images.
    """

    exit_code = 1

    def __init__(self, kind: str, message: str, *, hint: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint, details=details)
        self.kind = kind


class Interrupted(OkdcError):  # noqa: N818
    """SIGINT (130) or SIGTERM (143) arrived and the state of `run`, a run's or a series' folder, is on disk."""

    kind = "interrupted"
    BY_CTRL_C = 130

    def __init__(self, message: str, *, exit_code: int, hint: str = "", run: Path | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code
        self.run = run


class ToldElsewhere(OkdcError):  # noqa: N818
    """One of several processes ends for a reason that another one prints."""

    kind = "elsewhere"

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of this training says why")
        self.exit_code = exit_code


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def quoted(value: object, most: int = 200) -> str:
    """A value from a file as Python writes it, its first `most` characters: one line, nothing that a terminal obeys."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, printable, or its type where it has no message."""
    line = next((line for line in str(error).splitlines() if line.strip()), "").strip() or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in line)


def one_line(error: BaseException) -> str:
    """An exception as `KeyError: 'x'`, on one line of bearable length."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line[:200]}"


def by(sizes: Iterable[int | str]) -> str:
    """A size in a message: `3×32×32`."""
    return "×".join(map(str, sizes))
