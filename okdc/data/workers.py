"""Workers that decode, one for each core that this process may use. No torch."""

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

from okdc.errors import DeviceError

MANY = 1000  # files from which processes are worth their start
# In a worker process: a byte that the parent sets when the results are no longer needed. A pool's initialiser can leave
# something for the tasks of its process in a global alone.
_stop: mmap.mmap | None = None


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def refuse_too_many(name: str, count: int, processes: bool = False) -> None:
    """Raises DeviceError for more threads than four a core: OpenMP's spin, and a hundred thousand end the process.

    Worker `processes` do not spin: 64 are allowed anywhere, for a run that began on a large machine.
    """
    most = max(4 * cores(), 64 if processes else 0)
    if count > most:
        raise DeviceError(
            f"{name}: expected {most:,} at most on this machine of {cores():,} cores, found {count:,}",
            hint="as many as cores, or fewer: more gain nothing",
        )


def forks(files: int) -> bool:
    """Whether processes, and not threads, decode so many files.

    Most of the time of a small image is Pillow's Python code, which one thread at a time can run: two threads decode
    32×32 JPEGs no faster than a single thread.
    """
    can_fork = "fork" in multiprocessing.get_all_start_methods() and not multiprocessing.current_process().daemon
    return files >= MANY and cores() > 1 and can_fork


@contextmanager
def pool(files: int) -> Iterator[Executor]:
    """Processes for many files, else threads. An error or Ctrl-C drops the tasks that have not begun."""
    stop = mmap.mmap(-1, 1)
    with forking():
        with _executor(files, stop) as workers:
            try:
                yield workers
            except BaseException:
                stop[0] = 1
                workers.shutdown(cancel_futures=True)  # or each sends back an empty array of full size
                raise


def _executor(files: int, stop: mmap.mmap) -> Executor:
    if not forks(files):
        return ThreadPoolExecutor(cores())
    context = multiprocessing.get_context("fork")  # starts at once and does not import the caller's script again
    return ProcessPoolExecutor(min(cores(), files), context, _begin, (os.getpid(), stop))


def stopped() -> bool:
    """In a worker, between two files: whether the parent no longer needs the rest."""
    return _stop is not None and _stop[0] == 1


def _begin(parent: int, stop: mmap.mmap) -> None:
    global _stop
    _stop = stop
    follow_parent(parent)


@contextmanager
def forking() -> Iterator[None]:
    """No warning that a process with threads forks: the children take no lock that those threads may hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def of_loader(parent: int, worker: int) -> None:  # noqa: ARG001
    """The first call of a DataLoader's worker. torch has set the number of threads to 1 before."""
    follow_parent(parent)


def end(loader: Any) -> None:
    """End the workers of a DataLoader and wait for them.

    A DataLoader ends them when it is collected, but the traceback of an error may hold it until the process ends.
    """
    running = getattr(loader, "_iterator", None)
    if running is not None:
        running._shutdown_workers()


def follow_parent(parent: int) -> None:
    """Make this worker end when its parent ends or sends SIGTERM, and ignore signals from all others.

    Ctrl-C, `timeout` and batch systems signal the whole process group, and the parent decides what they mean.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, 1)
        if received is not None and received.si_pid == parent:
            break
    os._exit(128 + signal.SIGTERM)
