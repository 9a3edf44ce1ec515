"""Ctrl-C and SIGTERM: each of the four things that a block does with them, and the handlers after it."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from okdc import signals
from okdc.signals import Terminated

INT, TERM = signals.BOTH
BLOCKS: list[Callable[[], AbstractContextManager[object]]] = [signals.raised, signals.noted, signals.held]


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in signals.BOTH]


@pytest.fixture(autouse=True)
def python_s_own() -> Iterator[list[object]]:
    """The handlers that Python starts with. A shell's background jobs, for example, ignore Ctrl-C."""
    before = handlers()
    own: list[Any] = [signal.default_int_handler, signal.SIG_DFL]
    for number, handler in zip(signals.BOTH, own, strict=True):
        signal.signal(number, handler)
    yield own
    for number, earlier in zip(signals.BOTH, before, strict=True):
        signal.signal(number, earlier)  # type: ignore[arg-type]


def kill(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_gives_back_the_handlers_that_it_found_also_where_it_fails(
    block: Callable[[], AbstractContextManager[object]], python_s_own: list[object]
) -> None:
    with pytest.raises(ZeroDivisionError), block():
        assert handlers() != python_s_own
        raise ZeroDivisionError
    assert handlers() == python_s_own


@pytest.mark.parametrize("block", BLOCKS)
def test_outside_the_main_thread_a_block_changes_nothing(
    block: Callable[[], AbstractContextManager[object]], python_s_own: list[object]
) -> None:
    seen: list[object] = []

    def work() -> None:
        with block():
            seen.append(handlers())
            signals.ignore()
            seen.append(handlers())

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [python_s_own] * 2


@pytest.mark.parametrize("number", signals.BOTH)
def test_a_signal_that_is_raised_has_a_name_and_an_exit_code(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt) as caught, signals.raised() as received:
        kill(number)
    assert signals.signal_of(caught.value) == number
    assert isinstance(caught.value, Terminated) is (number == TERM)
    assert received.signal == number


@pytest.mark.parametrize("number", signals.BOTH)
def test_a_signal_that_is_noted_raises_nothing_and_a_second_one_goes_to_the_handler_of_before(
    number: signal.Signals,
) -> None:
    heard: list[signal.Signals] = []
    with pytest.raises(KeyboardInterrupt) as caught, signals.raised(), signals.noted(heard.append) as received:
        kill(number)
        assert received.signal == number
        kill(number)
    assert signals.signal_of(caught.value) == number
    assert heard == [number]


def test_without_insisting_every_signal_is_noted_and_after_an_error_ignored(
    python_s_own: list[object],
) -> None:
    with signals.noted(insist=False) as received:
        for number in (INT, TERM):
            kill(number)
            assert received.signal == number
    assert handlers() == python_s_own
    with pytest.raises(ZeroDivisionError), signals.raised(), signals.noted(insist=False):
        raise ZeroDivisionError
    assert handlers() == [signal.SIG_IGN] * 2


@pytest.mark.parametrize("number", signals.BOTH)
def test_a_noted_signal_can_be_raised_later_in_the_place_of_another_error(number: signal.Signals) -> None:
    with signals.noted() as received:
        received.raise_for_signal()
        kill(number)
        with pytest.raises(KeyboardInterrupt) as caught:
            try:
                raise ZeroDivisionError
            except ZeroDivisionError:
                received.raise_for_signal()
    assert signals.signal_of(caught.value) == number
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("number", signals.BOTH)
def test_a_signal_that_is_held_comes_when_the_block_has_ended(number: signal.Signals) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt) as caught, signals.raised(), signals.held():
        kill(number)
        done.append("all of the block")
    assert done
    assert signals.signal_of(caught.value) == number
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(signals.BOTH)


def test_processes_that_a_holding_block_starts_have_the_signals_blocked() -> None:
    code = "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())) == [2, 15])"
    with signals.held():
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == "True\n"


def test_a_handler_that_is_not_python_s_becomes_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that embeds Python may have set one in C: Python says None of it, and cannot set it."""
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda _: None)
        block = signals.raised()
        block.__enter__()
    block.__exit__(None, None, None)
    assert handlers() == [signal.SIG_DFL] * 2


@pytest.mark.parametrize("number", signals.BOTH)
def test_what_is_cleared_away_is_not_disturbed_by_a_second_signal(number: signal.Signals) -> None:
    cleared = []
    with pytest.raises(KeyboardInterrupt) as caught, signals.raised():
        try:
            kill(number)
        finally:
            kill(INT)
            signals.check()
            cleared.append("all of it")
    assert cleared
    assert signals.signal_of(caught.value) == number


def test_after_its_work_a_block_raises_nothing() -> None:
    with signals.raised() as received:
        received.over = True
        kill(INT)
        signals.check()
    assert received.signal == INT


@pytest.mark.parametrize("safe", [signals.check, *BLOCKS])
def test_a_signal_that_somebody_swallows_is_raised_where_the_next_block_begins(safe: Callable[[], Any]) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), signals.raised():
        with contextlib.suppress(KeyboardInterrupt):  # as torch does with what it imports
            kill(INT)
        with safe() or contextlib.nullcontext():
            done.append("trained on")
    assert not done
    signals.check()  # nothing is left of it


MODULE = """
import os, signal, time
for _ in range({times}):
    os.kill(os.getpid(), signal.SIGINT)
time.sleep(3 * {again})
whole = True
"""


@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_that_comes_during_an_import_is_raised_when_the_import_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    (tmp_path / "slow_module.py").write_text(MODULE.format(times=times, again=signals.AGAIN_S))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slow_module", raising=False)
    with pytest.raises(KeyboardInterrupt), signals.raised():
        with contextlib.suppress(KeyboardInterrupt, ImportError):
            importlib.import_module("slow_module")
        assert sys.modules.pop("slow_module").whole
        time.sleep(60)  # not waited for


def test_a_block_that_an_import_ends_raises_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_module.py").write_text(MODULE.format(times=1, again=0))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(signals, "AGAIN_S", 60.0)
    with pytest.raises(KeyboardInterrupt), signals.raised():
        importlib.import_module("slow_module")
    assert sys.modules.pop("slow_module").whole


def test_inside_an_import_a_block_raises_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's module may train as it is imported."""
    (tmp_path / "training_module.py").write_text(
        "import os, signal, time\n"
        "from okdc import signals\n"
        "try:\n"
        "    with signals.raised():\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        stopped = False\n"
        "except KeyboardInterrupt:\n"
        "    stopped = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("training_module")
    assert sys.modules.pop("training_module").stopped


def test_ctrl_c_that_a_shell_s_background_job_ignores_stays_ignored() -> None:
    signal.signal(INT, signal.SIG_IGN)
    with signals.raised() as received:
        kill(INT)
        assert handlers()[0] == signal.SIG_IGN
    assert received.signal is None
