"""`okdc` and `python -m okdc`: runs one command. Nothing but `signals` is imported before Ctrl-C has its meaning."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from okdc import signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. 0 done, 1 a check failed, 2 could not do it, 130 interrupted, 143 terminated."""
    with signals.raised() as received:
        code = None
        with contextlib.suppress(KeyboardInterrupt):
            from okdc.cli.run import run

            code = run(sys.argv[1:] if arguments is None else arguments, received)
        if code is None:
            received.over = True
            from okdc.cli.run import say_stopped

            say_stopped(received)
            code = 128 + (received.signal or signal.SIGINT)
    return code


def program() -> NoReturn:
    """The command of this process, which ends with its exit code."""
    signals.own_process()
    _open_streams()
    _quieten_torch()
    code = main()
    signals.ignore()  # nothing is left to stop
    from okdc.cli import console
    from okdc.distributed import leave

    if not console.settle() and code == 0:
        code = 2
    leave(code)


def _open_streams() -> None:
    """No file of a run takes the number of a standard stream that the process was started without. Other printers than
    okdc's console, such as that of the help, print what their alphabet lacks in an escaped form.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _quieten_torch() -> None:
    """torch's C++ code prints a warning before some errors, a full GPU's twice; okdc's own error says the same."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


if __name__ == "__main__":
    program()
