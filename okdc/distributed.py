"""The processes that train one run together, one a device: who this one is, and what they tell each other.

They are started by torchrun, which says in the environment who is who; without it a process is alone and every exchange
here is what it would do by itself. torch is imported only where there are several.

Each exchange is a collective one: every process has to come to it. What one of them alone may meet (a full disk, a
damaged image, Ctrl-C) is therefore told to all before any of them goes on. What was not foreseen ends that process, and
with it the connections in which the others wait: they end as well, and whoever failed first says why.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from okdc.errors import Interrupted, OkdcError, RunError, ToldElsewhere, UsageError

PATIENCE = timedelta(days=1)  # one decodes a data set while the others wait; a process that dies is noticed at once
LOST = "another process of this training died"
HERE, FAILED = "okdc: processes here", "okdc: processes failed"  # counters that they share

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those of one training."""

    rank: int = 0
    count: int = 1
    local: int = 0  # among those of this machine: the number of its GPU
    here: int = 1  # how many of them this machine has

    @classmethod
    def of_environment(cls) -> Ranks:
        """As torchrun says. Raises UsageError where it says something else than who and where.

        Batch systems say WORLD_SIZE=1 to one process, with a LOCAL_RANK that counts those of other jobs.
        """
        if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        found = {name: os.environ.get(name, default) for name, default in zip(names, "0101", strict=True)}
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        with suppress(ValueError):
            rank, count, local, here = map(int, found.values())
            if 0 <= rank < count and 0 <= local < here <= count and not missing:
                return cls(rank, count, local, here)
        told = " ".join(f"{name}={text}" for name, text in found.items())
        raise UsageError(
            f"the environment describes no group of processes: {told}"
            + (f", without {' and '.join(missing)}" if missing else ""),
            hint="torchrun sets these; for one process, unset RANK and WORLD_SIZE",
        )

    @property
    def first(self) -> bool:
        """The one that writes files and talks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.count == 1

    @contextmanager
    def joined(self, device: str) -> Iterator[None]:
        """Connected with the others, for tensors on `device` (cpu or cuda) and for facts.

        An error that leaves it in several processes, as their own or for lack of the one that failed, stays what it is
        in the first of them to get here. In the others it becomes ToldElsewhere. Where a process vanished: RunError.
        """
        if self.alone:
            yield
            return
        import torch
        from torch import distributed

        gpu = torch.device("cuda", self.local) if device == "cuda" else None
        if gpu:
            torch.cuda.set_device(gpu)  # what is said to lie on "cuda" lies on this one, a checkpoint's counts too
        backends = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        store, _, _ = next(distributed.rendezvous("env://"))  # type: ignore[attr-defined]
        # Waited for here: within the next call no signal would be heard, if one of them never came.
        store.add(HERE, 1)
        while store.add(HERE, 0) < self.count:
            time.sleep(0.01)
        distributed.init_process_group(
            backends, store=store, rank=self.rank, world_size=self.count, timeout=PATIENCE, device_id=gpu
        )
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            _deaf()
            told = self._told(error, store)
            if not gpu:  # on one it might wait for what the others never finish: `leave`
                distributed.destroy_process_group()
            if told is error:
                raise
            raise told from None
        distributed.destroy_process_group()

    def _told(self, error: BaseException, store: Any) -> BaseException:
        """What this process says of an error that ends it."""
        if isinstance(error, ToldElsewhere):
            return error
        if not _before_all_others(store):
            return ToldElsewhere(_code(error))
        told = error
        if isinstance(error, KeyboardInterrupt):
            told = Interrupted("before the training began", exit_code=_code(error))
        elif lost(error):
            told = RunError(LOST, hint="torchrun's report names it")
        if not self.first:
            told.add_note(f"in process {self.rank} of {self.count}")
        return told

    def largest(self, number: int) -> int:
        """Of the numbers that the processes bring."""
        if self.alone:
            return number
        import torch
        from torch import distributed

        found = torch.tensor(number)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return int(found)

    def gathered(self, fact: T) -> list[T]:
        """What each process brings, in their order."""
        if self.alone:
            return [fact]
        from torch import distributed

        found: list[T | None] = [None] * self.count
        distributed.all_gather_object(found, fact)
        return found  # type: ignore[return-value]

    def first_does(self, work: Callable[[], T]) -> T:
        """What `work` gives the first process. What it raises there ends them all."""
        if self.alone:
            return work()
        import torch
        from torch import distributed

        found: list[Any] = [self._some_do(work, self.first)]
        distributed.broadcast_object_list(found, 0, device=torch.device("cpu"))
        result: T = found[0]
        return result

    def in_turn(self, work: Callable[[], T]) -> T:
        """`work`, by one process of each machine, and then by the others there, for whom it has filled the cache."""
        turns = [self._some_do(work, mine) for mine in (self.local == 0, self.local > 0)]
        return turns[min(self.local, 1)]  # type: ignore[return-value]

    def _some_do(self, work: Callable[[], T], mine: bool) -> T | None:
        """What `work` gives this process where it is one of those that do it. What it raises in any ends them all."""
        found: T | None = None
        error: OkdcError | None = None
        try:
            found = work() if mine else None
        except OkdcError as caught:
            error = caught
        worst = self.largest(error.exit_code if error else 0)
        if error:
            raise error
        if worst:
            raise ToldElsewhere(worst)
        return found

    def agree(self, what: str, fact: str) -> None:
        """Raises UsageError where a process brings another `fact` than the first one: each node has its own command."""
        facts = self.gathered(fact)
        if other := [rank for rank, found in enumerate(facts) if found != facts[0]]:
            self.all_raise(
                UsageError(
                    f"{what}: process {other[0]} of {self.count} has others than the first one",
                    hint="the same command, the same files and the same version of okdc on every node",
                )
            )

    def all_raise(self, error: OkdcError) -> NoReturn:
        """End all processes with an error that each of them has found: the first one tells it."""
        raise error if self.first else ToldElsewhere(error.exit_code) from None


def lost(error: BaseException) -> bool:
    """Whether this is what a process meets that waits for one that is gone."""
    from torch import distributed

    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    )


def leave(code: int) -> NoReturn:
    """End the program. Where an error left processes connected (`Ranks.joined`), nothing is taken down in order: that
    could wait for what the others never finish, and they notice the end by its connections.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _before_all_others(store: Any) -> bool:
    """Whether this process is the first to ask."""
    try:
        return bool(store.add(FAILED, 1) == 1)
    except RuntimeError:  # who kept the store is gone
        return True


def _deaf() -> None:
    """torchrun terminates all as soon as one has ended; the one that has to say why is not to be cut short by that."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _code(error: BaseException) -> int:
    if isinstance(error, OkdcError):
        return error.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else OkdcError.exit_code


ALONE = Ranks()
