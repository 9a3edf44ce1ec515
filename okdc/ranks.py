"""The processes that train one run together, one a device: who this one is, and what they tell each other.

They are started by torchrun, which says in the environment who is who; without it a process is alone and every exchange
here is what it would do by itself. torch is imported only where there are several.

Each exchange is a collective one: every process has to come to it. What one of them alone may meet (a full disk, a
damaged image, Ctrl-C) is therefore told to all before any of them goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

from okdc.errors import OkdcError, ToldElsewhere, UsageError

PATIENCE = timedelta(days=1)  # one decodes a data set while the others wait; a process that dies is noticed at once

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
        """As torchrun says. Raises UsageError where it says something else than numbers."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        found = [os.environ.get(name, default) for name, default in zip(names, "0101", strict=True)]
        if not all(text.isdigit() for text in found) or not int(found[0]) < int(found[1]):
            told = " ".join(f"{name}={text}" for name, text in zip(names, found, strict=True))
            raise UsageError(
                f"the environment describes no group of processes: {told}",
                hint="torchrun sets these; for one process, unset RANK and WORLD_SIZE",
            )
        return cls(*map(int, found))

    @property
    def first(self) -> bool:
        """The one that writes files and talks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.count == 1

    @contextmanager
    def joined(self, device: str) -> Iterator[None]:
        """Connected with the others, for tensors on `device` (cpu or cuda) and for facts."""
        if self.alone:
            yield
            return
        import torch
        from torch import distributed

        if device == "cuda":
            gpu = torch.device("cuda", self.local)
            distributed.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE, device_id=gpu)
        else:
            distributed.init_process_group("gloo", timeout=PATIENCE)
        try:
            yield
        finally:
            distributed.destroy_process_group()

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
        found: T | None = None
        error: OkdcError | None = None
        if self.first:
            try:
                found = work()
            except OkdcError as caught:
                error = caught
        found, code = self.gathered((found, error.exit_code if error else 0))[0]
        if error:
            raise error
        if code:
            raise ToldElsewhere(code)
        return found  # type: ignore[return-value]

    def in_turn(self, work: Callable[[], T]) -> T:
        """`work`, by one process of each machine, and then by the others there, for whom it has filled the cache."""
        if self.alone:
            return work()
        found: T | None = None
        for turn in (True, False):
            error: OkdcError | None = None
            if (self.local == 0) is turn:
                try:
                    found = work()
                except OkdcError as caught:
                    error = caught
            worst = self.largest(error.exit_code if error else 0)
            if error:
                raise error
            if worst:
                raise ToldElsewhere(worst)
        return found  # type: ignore[return-value]

    def all_raise(self, error: OkdcError) -> NoReturn:
        """End all processes with an error that each of them has found: the first one tells it."""
        raise error if self.first else ToldElsewhere(error.exit_code) from None


ALONE = Ranks()
