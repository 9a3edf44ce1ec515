"""What Ctrl-C (SIGINT) and SIGTERM do while a block runs. All handlers that okdc sets for its own process are set here.

    raised()   each raises KeyboardInterrupt, SIGTERM as Terminated, so that half-built work is cleared away
    noted()    both are noted, and the block asks for them when it can stop
    held()     both wait until the block has ended
    ignore()   both are ignored until the process ends

Python lets only the main thread set handlers, and runs them there. In any other thread these blocks change nothing and
note nothing: a program that calls okdc from a thread keeps its own handlers. A block gives back the handlers that it
found, unless other code has set one since, and may stand inside another block.

An exception that a handler raises may be lost: torch, for one, goes on without a module whose import failed, and Python
drops what is raised in a destructor. So nothing is raised while a module is imported; and what was raised and lost is
raised again by `check`, which every block that begins calls, and the command line whenever it says something.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

BOTH = (signal.SIGINT, signal.SIGTERM)
AGAIN_S = 0.02  # after which a signal is looked at again that came while a module was imported
INSISTED = 3  # so many signals end a program wherever it is


class Terminated(KeyboardInterrupt):
    """SIGTERM came, where Ctrl-C would raise KeyboardInterrupt."""


@dataclass(eq=False)
class Received:
    """The signal that came to this process during a block: the last one, or None."""

    signal: signal.Signals | None = None
    count: int = 0
    raised: bool = False
    over: bool = False  # the block's work has ended, and what comes now is late

    def raise_for_signal(self) -> None:
        """Raise KeyboardInterrupt if SIGINT came and Terminated if SIGTERM came, instead of the error at hand."""
        if self.signal:
            self.raised = True
            raise (Terminated if self.signal == signal.SIGTERM else KeyboardInterrupt)(self.signal.name) from None


_raising: list[Received] = []  # of the blocks `raised` that the main thread is in, the innermost last
_program = False  # whether this process is okdc's own, and nobody else's work is in it


def signal_of(stop: KeyboardInterrupt) -> signal.Signals:
    """The signal behind an exception. The exit code of a process that it ends is 128 + its number."""
    return signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT


def words_of(number: int) -> str:
    """What is said of a command that a signal ended with nothing to save."""
    return "terminated" if number == signal.SIGTERM else "interrupted"


def own_process() -> None:
    """This process is a program of okdc's: until its work begins, and after it, a signal ends it at once.

    No traceback is printed of an exception that a handler raised where Python drops it.
    """
    global _program
    _program = True
    for number in BOTH:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)
    dropped = sys.unraisablehook

    def without_signals(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            dropped(unraisable)

    sys.unraisablehook = without_signals


def _end(number: int, frame: FrameType | None = None) -> NoReturn:  # noqa: ARG001
    with contextlib.suppress(OSError):
        os.write(2, f"{words_of(number)}\n".encode())
    os._exit(128 + number)


def check() -> None:
    """Raise a signal that a block `raised` has received and somebody has swallowed. Anywhere else, nothing."""
    if not _raising or isinstance(sys.exception(), KeyboardInterrupt) or not _in_main_thread():
        return
    for received in _raising:
        if not received.over:
            received.raise_for_signal()


@contextmanager
def raised() -> Iterator[Received]:
    """Both signals raise, the first time: what is cleared away then is not disturbed by a second one.

    A signal that comes while a module is imported raises when that import is done.
    """
    check()
    received, before, sent_again, waiting = Received(), _imports(sys._getframe()), False, False

    def send_again(number: int) -> None:
        nonlocal sent_again, waiting
        sent_again, waiting = received in _raising, False
        if sent_again:
            signal.pthread_kill(threading.main_thread().ident or 0, number)

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal sent_again, waiting
        if not sent_again:
            received.signal = signal.Signals(number)
            received.count += 1
            if _program and received.count >= INSISTED:
                os._exit(128 + number) if received.over else _end(number)
        sent_again = False
        if received.over or received.raised:
            return
        if _imports(frame) > before:
            if waiting:  # of two that are sent again at once the second would count as one of the user's
                return
            waiting = True
            timer = threading.Timer(AGAIN_S, send_again, (number,))
            timer.daemon = True
            timer.start()
        else:
            received.raise_for_signal()

    numbers = tuple(number for number in BOTH if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN)
    with _handled(stop, numbers):
        if not _in_main_thread():
            yield received
            return
        _raising.append(received)
        try:
            yield received
            if not received.raised and not received.over:
                received.raise_for_signal()
        finally:
            _raising.remove(received)


def _imports(frame: FrameType | None) -> int:
    """How many imports are in progress."""
    count = 0
    while frame is not None:
        count += frame.f_code.co_filename.startswith("<frozen importlib")
        frame = frame.f_back
    return count


@contextmanager
def noted(heard: Callable[[signal.Signals], object] | None = None, insist: bool = True) -> Iterator[Received]:
    """Both signals are noted; `heard` is called at once, inside the handler.

    `insist`: the first signal gives the earlier handlers back, so a second one stops the block wherever it is. Without
    it no further signal stops the block, nor anything after it if the block ends by an error: torchrun signals all
    processes as soon as one has ended, and would cut short the one that has to say why.
    """
    check()
    received = Received()

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.signal = signal.Signals(number)
        if insist:
            give_back()
        if heard:
            heard(received.signal)

    with _handled(note) as give_back:
        try:
            yield received
        except BaseException:
            if not insist:
                ignore()
            raise


@contextmanager
def held() -> Iterator[None]:
    """Both signals wait until the block has ended. Processes that the block starts have them blocked from the first."""
    if not _in_main_thread():
        yield
        return
    check()
    received = Received()

    def hold(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.signal = signal.Signals(number)

    try:
        # The children inherit the mask. Here it is not enough: another thread of this process may take the signal.
        with _handled(hold):
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, BOTH)
            try:
                yield
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    finally:
        if received.signal:
            signal.raise_signal(received.signal)


def ignore() -> None:
    """Both signals are ignored until the process ends; no block gives their handlers back."""
    if _in_main_thread():
        for number in BOTH:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def _handled(
    handler: Callable[[int, FrameType | None], None], numbers: tuple[signal.Signals, ...] = BOTH
) -> Iterator[Callable[[], None]]:
    """`handler` takes the signals. Yields what gives the earlier handlers back before the block ends."""
    if not _in_main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in numbers}

    def give_back() -> None:
        for number, earlier in before.items():
            if signal.getsignal(number) == handler:
                # None: a program that embeds Python set it in C, and Python cannot set it again.
                signal.signal(number, signal.SIG_DFL if earlier is None else earlier)

    try:
        for number in numbers:
            signal.signal(number, handler)
        yield give_back
    finally:
        give_back()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
