"""What Ctrl-C (SIGINT) and SIGTERM do while a block runs. All handlers that okdc sets for its own process are set here.

    raised()   SIGTERM raises Terminated as Ctrl-C raises KeyboardInterrupt, so that half-built work is cleared away
    noted()    both are noted, and the block asks for them when it can stop
    held()     both wait until the block has ended
    ignore()   both are ignored until the process ends

Python lets only the main thread set handlers, and runs them there. In any other thread these blocks change nothing and
note nothing: a program that calls okdc from a thread keeps its own handlers. A block gives back the handlers that it
found, unless other code has set one since, and may stand inside another block.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

BOTH = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM came, where Ctrl-C would raise KeyboardInterrupt."""


@dataclass
class Received:
    """The signal that came to this process during a block: the last one, or None."""

    signal: signal.Signals | None = None

    def raise_for_signal(self) -> None:
        """Raise KeyboardInterrupt if SIGINT came and Terminated if SIGTERM came, instead of the error at hand."""
        if self.signal:
            raise (Terminated if self.signal == signal.SIGTERM else KeyboardInterrupt)(self.signal.name) from None


def signal_of(stop: KeyboardInterrupt) -> signal.Signals:
    """The signal behind an exception. The exit code of a process that it ends is 128 + its number."""
    return signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT


@contextmanager
def raised() -> Iterator[Received]:
    """SIGTERM raises Terminated. Python itself raises KeyboardInterrupt for Ctrl-C."""
    received = Received()

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.signal = signal.Signals(number)
        raise Terminated(received.signal.name)

    with _handled(stop, (signal.SIGTERM,)):
        yield received


@contextmanager
def noted(heard: Callable[[signal.Signals], object] | None = None, insist: bool = True) -> Iterator[Received]:
    """Both signals are noted; `heard` is called at once, inside the handler.

    `insist`: the first signal gives the earlier handlers back, so a second one stops the block wherever it is. Without
    it no further signal stops the block, nor anything after it if the block ends by an error: torchrun signals all
    processes as soon as one has ended, and would cut short the one that has to say why.
    """
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
