"""How much memory images may take: half of what this process can still have. No torch."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

SHARE = 0.5  # the other half is for networks, maps and everybody else on the machine
_GROUP = Path("/sys/fs/cgroup")  # of a container, as it sees itself


def room(processes: int = 1) -> int:
    """The bytes that the images of one of so many processes on this machine may take."""
    return int(SHARE * available() / processes)


def available() -> int:
    """The bytes that the machine can give without swapping, and that the container may take, if this is one."""
    limits = [_of_machine()]
    for limit, usage, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):  # no such group, or no limit ("max")
            most, used = (int((_GROUP / name).read_text()) for name in (limit, usage))
            stat = (_GROUP / limit).with_name("memory.stat").read_text().split()
            limits.append(most - used + int(stat[stat.index(cached) + 1]))  # pages of files are given back
    return max(0, min(limits))


def _of_machine() -> int:
    with contextlib.suppress(OSError, ValueError):  # Linux alone has it
        words = Path("/proc/meminfo").read_text().split()
        return int(words[words.index("MemAvailable:") + 1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if hasattr(os, "sysconf") else 2**32
