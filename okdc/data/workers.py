"""Workers that decode: as many as this process may use cores. No torch."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

MANY = 1000  # files from which processes are worth their start
_stop: mmap.mmap | None = None  # of a worker process: one byte that its parent sets when nobody waits for it any more


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def forks(files: int) -> bool:
    """Whether so many files are decoded by processes.

    Of a small image most of the time is Pillow's Python, and threads take turns at it: two of them decode 32×32 JPEGs
    no faster than one does.
    """
    able = "fork" in multiprocessing.get_all_start_methods() and not multiprocessing.current_process().daemon
    return files >= MANY and cores() > 1 and able


@contextmanager
def pool(files: int) -> Iterator[Executor]:
    """Processes for many files, else threads. Where an error comes, or Ctrl-C, what was not begun is dropped."""
    stop = mmap.mmap(-1, 1)
    with forking():
        with _executor(files, stop) as workers:
            try:
                yield workers
            except BaseException:
                stop[0] = 1
                workers.shutdown(cancel_futures=True)  # or each comes back, empty and of full size
                raise


def _executor(files: int, stop: mmap.mmap) -> Executor:
    if not forks(files):
        return ThreadPoolExecutor(cores())
    context = multiprocessing.get_context("fork")  # no second import of the caller's script, and no start to wait for
    return ProcessPoolExecutor(min(cores(), files), context, _begin, (os.getpid(), stop))


def stopped() -> bool:
    """In a worker, between two files: whether the rest is not wanted any more."""
    return _stop is not None and _stop[0] == 1


def _begin(parent: int, stop: mmap.mmap) -> None:
    global _stop
    _stop = stop
    on_its_own(parent)


@contextmanager
def forking() -> Iterator[None]:
    """A process with threads forks, and is not warned: what the child runs takes no lock of theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def of_loader(parent: int, worker: int) -> None:  # noqa: ARG001
    """What a worker of a DataLoader begins with. torch has set one thread by now."""
    on_its_own(parent)


def end(loader: Any) -> None:
    """End the workers of a DataLoader and wait for them.

    It ends them itself when it is collected, but the traceback of an error may hold it until the process ends.
    """
    running = getattr(loader, "_iterator", None)
    if running is not None:
        running._shutdown_workers()


def on_its_own(parent: int) -> None:
    """Signals are for the parent, which ends its workers: a worker obeys nobody else, and does not outlive it.

    Ctrl-C, `timeout` and batch systems signal the whole process group.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey, args=(parent,), daemon=True).start()


def _obey(parent: int) -> None:
    while os.getppid() == parent:
        told = signal.sigtimedwait({signal.SIGTERM}, 1)
        if told is not None and told.si_pid == parent:
            break
    os._exit(128 + signal.SIGTERM)
