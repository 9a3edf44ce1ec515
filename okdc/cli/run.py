"""One command: its words in, its exit code out, and every exception in the user's words."""

from __future__ import annotations

import contextlib
import functools
import os
import traceback
from collections.abc import Sequence
from typing import Any

import typer

from okdc import signals, torch_errors
from okdc.cli import console, corrections
from okdc.distributed import ALONE, Ranks
from okdc.errors import DiskError, OkdcError, OutOfMemoryError, ToldElsewhere, UsageError

COMPLETION = "_OKDC_COMPLETE"  # set by a shell that asks for completions


class UnforeseenError(OkdcError):
    """An exception that okdc did not raise itself, in words."""

    def __init__(self, kind: str, message: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


def run(arguments: Sequence[str], received: signals.Received) -> int | None:
    """The exit code; None for a signal that nothing was saved at. A training raises Interrupted, with its own code."""
    debug = "--debug" in arguments
    words = [word for word in arguments if word != "--debug"] or ["--help"]
    try:
        try:
            _check_environment()
            code = _commands().main(words, prog_name="okdc", standalone_mode=False)
            signals.check()
        finally:
            received.over = True  # what is left is to say how it ended
        if code == 130:  # typer's own, for Ctrl-C
            return None
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return None
    except (Exception, SystemExit) as error:  # code outside okdc may call sys.exit, and its code is not okdc's
        if isinstance(error, SystemExit) and COMPLETION in os.environ:  # typer ends a completion so
            raise
        if debug:
            traceback.print_exc()
        reported = _in_words(error, arguments)
        if isinstance(reported, ToldElsewhere) or (_ranks().local and not hasattr(error, "__notes__")):
            return reported.exit_code
        console.fail(reported)
        if "--json" in words:
            document = {
                "error": reported.kind,
                "message": reported.message,
                "details": reported.details,
                "hint": reported.hint,
            }
            with contextlib.suppress(DiskError):  # stdout itself may have failed
                console.out_json(document)
        return reported.exit_code


def _check_environment() -> None:
    """Raises DeviceError for a number of threads in the environment that torch or onnxruntime would die of."""
    threads = os.environ.get("OMP_NUM_THREADS", "").strip()
    if threads.isdecimal() and int(threads[:9]) > 1000:  # fewer are slow at most, and are the batch system's choice
        from okdc.data.workers import refuse_too_many

        refuse_too_many("OMP_NUM_THREADS", int(threads[:9]))


@functools.cache
def _commands() -> Any:
    """The commands as typer makes them of functions, once a process: it takes milliseconds."""
    from okdc.cli import app

    return typer.main.get_command(app)


def say_stopped(received: signals.Received) -> None:
    """The one line of a command that a signal ended with nothing to save."""
    if not _ranks().local:
        console.say(signals.words_of(received.signal or 0))


def _ranks() -> Ranks:
    """Which process of a training this is. Before the process group exists, only local rank 0 prints errors; afterwards
    the process whose error got a note does (`Ranks.joined`). A process with a wrong environment prints its errors.
    """
    try:
        return Ranks.of_environment()
    except UsageError:
        return ALONE


def _in_words(error: Exception | SystemExit, arguments: Sequence[str]) -> OkdcError:
    if isinstance(error, OkdcError):
        if error.corrections:
            error.hint = corrections.line(arguments, error.corrections)
        return error
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        named = next((f"okdc {word}" for word in arguments[:1] if word in _commands().commands), "okdc")
        command = context.command_path if context else named  # an option without its value comes without
        right = corrections.guess(arguments, _commands())
        hint = corrections.line(arguments, right) if right else f"{command} --help"
        return UnforeseenError("usage", error.format_message(), hint)
    if isinstance(error, SystemExit):
        return UnforeseenError("code", f"code outside okdc called sys.exit({error.code!r})", "--debug shows where")
    if full := torch_errors.shortage(error):
        another = "" if full.device == "cpu" else "; or --device cpu"
        return OutOfMemoryError(full.words, hint=f"a smaller optim.batch_size or data.image_size{another}")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return UnforeseenError("file", f"{where}{error.strerror or error}", "--debug shows where")
    return UnforeseenError(
        "bug", f"{type(error).__name__}: {error}", "this should not happen; --debug shows the traceback"
    )
