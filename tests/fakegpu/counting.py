"""What this process asked of the device, read from the library that is preloaded; torch is not needed.

fakegpu.reset()
step()
fakegpu.counts().launches.total()
"""

from __future__ import annotations

import ctypes
import functools
from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Counts:
    """What was asked of the device since `reset`, each by name."""

    launches: Counter[str] = field(default_factory=Counter)  # one by one: by kernel, memsets included
    captured: Counter[str] = field(default_factory=Counter)  # nodes recorded into graphs: by kernel or copy
    graphs: Counter[str] = field(default_factory=Counter)  # "captures", "launches", "nodes" of the graphs launched
    copies: Counter[str] = field(default_factory=Counter)  # one by one, by kind: "pinned>device"
    bytes: Counter[str] = field(default_factory=Counter)  # of these copies
    waits: Counter[str] = field(default_factory=Counter)  # of the host for the device: by call
    refused: Counter[str] = field(default_factory=Counter)  # by call and reason
    calls: Counter[str] = field(default_factory=Counter)  # "cudaMalloc" and the like


KINDS = {
    "launch": "launches", "captured": "captured", "graph": "graphs", "copy": "copies", "bytes": "bytes",
    "wait": "waits", "refused": "refused", "call": "calls",
}  # fmt: skip


@functools.cache
def _library() -> ctypes.CDLL | None:
    process = ctypes.CDLL(None)
    if not hasattr(process, "fake_report"):
        return None
    process.fake_report.restype = ctypes.c_char_p
    return process


def present() -> bool:
    """Whether this process runs on the device that is not there."""
    return _library() is not None


def reset() -> None:
    """Begin to count. Raises RuntimeError where the device is not preloaded."""
    _preloaded().fake_reset()


def counts() -> Counts:
    """All since `reset`, or since the process began. Raises RuntimeError where the device is not preloaded."""
    read = Counts()
    for line in _preloaded().fake_report().decode().splitlines():
        kind, number, name = line.split("\t")
        getattr(read, KINDS[kind])[name] += int(number)  # kernels that differ in a namespace alone have one name
    return read


def _preloaded() -> ctypes.CDLL:
    library = _library()
    if library is None:
        raise RuntimeError("the device is not preloaded: python tests/fakegpu COMMAND")
    return library
