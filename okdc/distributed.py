"""The processes that train one run together, one a device: which of them this one is, and what they exchange.

torchrun starts them and numbers them in the environment. A process without torchrun is alone, and each exchange gives
it what it brought. torch is imported only where there are several.

Each exchange is collective: every process has to come to it. So an error that one process alone may meet (a full disk,
a damaged image, Ctrl-C) is passed to all before any of them goes on. An unforeseen error ends its process and closes
the connections in which the others wait: they end as well, and the first process that failed says why.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from okdc import signals, torch_errors
from okdc.errors import Interrupted, OkdcError, RunError, ToldElsewhere, UsageError

if TYPE_CHECKING:
    from torch import Tensor

PATIENCE = timedelta(days=1)  # one decodes a data set while the others wait; a process that dies is noticed at once
LOST = "another process of this training died"
HERE, FAILED = "okdc: processes here", "okdc: processes failed"  # counters in the store that all share

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
        """As torchrun sets it. Raises UsageError where the numbers contradict each other or an address is missing.

        A batch system may set WORLD_SIZE=1 for one process, with a LOCAL_RANK that counts other jobs.
        """
        if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        numbers = {name: os.environ.get(name, default) for name, default in zip(names, "0101", strict=True)}
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        with suppress(ValueError):
            rank, count, local, here = map(int, numbers.values())
            if 0 <= rank < count and 0 <= local < here <= count and not missing:
                return cls(rank, count, local, here)
        text = " ".join(f"{name}={number}" for name, number in numbers.items())
        raise UsageError(
            f"the environment describes no group of processes: {text}"
            + (f", without {' and '.join(missing)}" if missing else ""),
            hint="torchrun sets these; for one process, unset RANK and WORLD_SIZE",
        )

    @property
    def first(self) -> bool:
        """The process that writes files and prints."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.count == 1

    @contextmanager
    def joined(self, device: str) -> Iterator[None]:
        """Connected with the others, for tensors on `device` (cpu or cuda) and for objects.

        If several ranks fail, the first to arrive re-raises its error, or RunError if it lost a peer; the rest raise
        ToldElsewhere, so that the error is reported once. From then on this process ignores signals.
        """
        if self.alone:
            yield
            return
        import torch
        from torch import distributed

        gpu = torch.device("cuda", self.local) if device == "cuda" else None
        if gpu:
            torch.cuda.set_device(gpu)  # "cuda" without a number now means this one, also for a checkpoint's counts
        backends = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        store, _, _ = next(distributed.rendezvous("env://"))  # type: ignore[attr-defined]
        # Wait for the others here: `init_process_group` would hear no signal if one of them never came.
        store.add(HERE, 1)
        while store.add(HERE, 0) < self.count:
            time.sleep(0.01)
        distributed.init_process_group(
            backends, store=store, rank=self.rank, world_size=self.count, timeout=PATIENCE, device_id=gpu
        )
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            signals.ignore()  # torchrun terminates all once one has ended, and would cut short the one that says why
            reported = self._reported(error, store)
            if not gpu:  # a GPU might wait for what the others never finish: `leave` ends the process without this
                distributed.destroy_process_group()
            if reported is error:
                raise
            raise reported from None
        distributed.destroy_process_group()

    def _reported(self, error: BaseException, store: Any) -> BaseException:
        """The error that this process ends with, where `error` ends its part of the training."""
        if isinstance(error, ToldElsewhere):
            return error
        if not _first_to_fail(store):
            return ToldElsewhere(_exit_code(error))
        reported = error
        if isinstance(error, KeyboardInterrupt):
            reported = Interrupted("before the training began", exit_code=_exit_code(error))
        elif torch_errors.peer_lost(error):
            reported = RunError(LOST, hint="torchrun's report names it")
        if not self.first:
            reported.add_note(f"in process {self.rank} of {self.count}")
        return reported

    def largest(self, number: int) -> int:
        """The largest number that a process brings."""
        if self.alone:
            return number
        import torch
        from torch import distributed

        maximum = torch.tensor(number)
        distributed.all_reduce(maximum, distributed.ReduceOp.MAX)
        return int(maximum)

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.alone:
            return [value]
        from torch import distributed

        values: list[T | None] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def first_does(self, work: Callable[[], T]) -> T:
        """What `work` returns in the first process, in all of them. An OkdcError of the first process ends them all."""
        if self.alone:
            return work()
        import torch
        from torch import distributed

        values: list[Any] = [self._some_do(work, self.first)]
        distributed.broadcast_object_list(values, 0, device=torch.device("cpu"))
        value: T = values[0]
        return value

    def in_turn(self, work: Callable[[], T]) -> T:
        """`work`, by one process of each machine, and then by the others there, for whom it has filled the cache."""
        turns = [self._some_do(work, mine) for mine in (self.local == 0, self.local > 0)]
        return turns[min(self.local, 1)]  # type: ignore[return-value]

    def _some_do(self, work: Callable[[], T], mine: bool) -> T | None:
        """What `work` returns if this process is to do it. An OkdcError of any process ends them all."""
        value: T | None = None
        error: OkdcError | None = None
        try:
            value = work() if mine else None
        except OkdcError as caught:
            error = caught
        worst = self.largest(error.exit_code if error else 0)
        if error:
            raise error
        if worst:
            raise ToldElsewhere(worst)
        return value

    def agree(self, what: str, value: str) -> None:
        """Raises UsageError where a process brings another value than the first one: each node has its own command."""
        values = self.gathered(value)
        if different := [rank for rank in range(self.count) if values[rank] != values[0]]:
            self.all_raise(
                UsageError(
                    f"{what}: process {different[0]} of {self.count} has others than the first one",
                    hint="the same command, the same files and the same version of okdc on every node",
                )
            )

    def all_raise(self, error: OkdcError) -> NoReturn:
        """End all processes with an error that each of them has found: the first one reports it."""
        raise error if self.first else ToldElsewhere(error.exit_code) from None


def gathered(tensor: Tensor) -> Tensor:
    """R×…: what each of R processes brings, by rank, the same in all of them. No gradient passes.

    A process that is not connected is one of one. Compiled code and any device may call it; the order of the
    processes is fixed, so that a sum over R has the same bits everywhere.
    """
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor.detach()[None]
    parts = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, tensor.detach().contiguous())
    return torch.stack(parts)


def leave(code: int) -> NoReturn:
    """End the program. If an error left this process connected (`Ranks.joined`), nothing is taken down in order: that
    could wait for what the others never finish. They notice its end when its connections close.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _first_to_fail(store: Any) -> bool:
    """Whether no other process has failed before this one."""
    try:
        return bool(store.add(FAILED, 1) == 1)
    except RuntimeError:  # the process that kept the store is gone
        return True


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 128 + signals.signal_of(error)
    return error.exit_code if isinstance(error, OkdcError) else OkdcError.exit_code


ALONE = Ranks()
