"""`okdc` and `python -m okdc`: runs the CLI and turns every exception into a message and an exit code."""

from __future__ import annotations

import contextlib
import functools
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer

from okdc import console
from okdc.errors import OkdcError


class UnforeseenError(OkdcError):
    """An exception that okdc did not raise itself, in words."""

    def __init__(self, kind: str, message: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. 0 done, 1 a check failed, 2 could not do it, 130 interrupted, 143 terminated."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    try:
        code = _commands().main(words, prog_name="okdc", standalone_mode=False)
        if code == 130:  # Ctrl-C outside the training loop, which saves and says so itself
            console.say("interrupted")
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        console.say("interrupted")
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        told = _in_words(error)
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


def _in_words(error: Exception) -> OkdcError:
    if isinstance(error, OkdcError):
        return error
    if isinstance(error, typer.TyperException):
        return UnforeseenError("usage", error.format_message(), "okdc --help")
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
    sys.exit(main())
