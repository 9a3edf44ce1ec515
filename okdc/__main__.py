"""`okdc` and `python -m okdc`: runs the CLI and turns every exception into a message and an exit code."""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any

import typer

from okdc.cli import console
from okdc.distributed import ALONE, Ranks, leave
from okdc.errors import OkdcError, ToldElsewhere, UsageError


class UnforeseenError(OkdcError):
    """An exception that okdc did not raise itself, in words."""

    def __init__(self, kind: str, message: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class _Termination:
    """While a command runs, SIGTERM ends it as Ctrl-C does: what is half built is cleared away on the way out.

    The training loop, which saves first, has handlers of its own meanwhile.
    """

    came = False

    def __enter__(self) -> _Termination:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._stop)
        return self

    def _stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.came = True
        raise KeyboardInterrupt("SIGTERM")

    def __exit__(self, *_: object) -> None:
        if self._main and signal.getsignal(signal.SIGTERM) == self._stop:
            signal.signal(signal.SIGTERM, self._before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. 0 done, 1 a check failed, 2 could not do it, 130 interrupted, 143 terminated."""
    with _Termination() as termination:
        code = _run(arguments)
        if code is None:
            if not _ranks().local:
                console.say("terminated" if termination.came else "interrupted")
            code = 130
    return 143 if code == 130 and termination.came else code


def _run(arguments: Sequence[str] | None) -> int | None:
    """The exit code; None for a signal outside the training loop, which saves and says so itself."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    try:
        code = _commands().main(words, prog_name="okdc", standalone_mode=False)
        if code == 130:  # typer's own, for Ctrl-C
            return None
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return None
    except Exception as error:
        if debug:
            traceback.print_exc()
        told = _in_words(error)
        if isinstance(told, ToldElsewhere) or (_ranks().local and not hasattr(error, "__notes__")):
            return told.exit_code
        console.fail(told)
        if "--json" in words:
            facts = {"error": told.kind, "message": told.message, "details": told.details, "hint": told.hint}
            with contextlib.suppress(OSError):  # stdout itself may be what failed
                console.out_json(facts)
        return told.exit_code


@functools.cache
def _commands() -> Any:
    """The commands as typer makes them of functions, once a process: it takes milliseconds."""
    from okdc.cli import app

    return typer.main.get_command(app)


def _ranks() -> Ranks:
    """Who this process is. What all of them find before they are connected, the first of each machine tells; what comes
    later, the one that got a note (`Ranks.joined`). One that the environment describes wrongly tells all.
    """
    try:
        return Ranks.of_environment()
    except UsageError:
        return ALONE


def _in_words(error: Exception) -> OkdcError:
    if isinstance(error, OkdcError):
        return error
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        return UnforeseenError("usage", error.format_message(), f"{context.command_path if context else 'okdc'} --help")
    # torch has an OutOfMemoryError for a GPU and a RuntimeError for a CPU
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error):
        return UnforeseenError(
            "memory", "out of memory", "a smaller optim.batch_size or data.image_size; or --device cpu"
        )
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return UnforeseenError("file", f"{where}{error.strerror or error}", "--debug shows where")
    return UnforeseenError(
        "bug", f"{type(error).__name__}: {error}", "this should not happen; --debug shows the traceback"
    )


if __name__ == "__main__":
    leave(main())
