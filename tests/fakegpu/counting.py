"""What this process did on the device: read from the library that is preloaded, without torch.

fakegpu.reset()
step()
fakegpu.counts().eager     launches one by one, graphs and memsets included
"""

from __future__ import annotations

import ctypes
import functools
from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Counts:
    """What was asked of the device since `reset`, each by name."""

    launches: Counter[str] = field(default_factory=Counter)  # by kernel, outside graphs
    captured: Counter[str] = field(default_factory=Counter)  # by kernel, recorded into graphs
    copies: Counter[str] = field(default_factory=Counter)  # by kind: "pinned>device"
    bytes: Counter[str] = field(default_factory=Counter)  # of the copies, by kind
    waits: Counter[str] = field(default_factory=Counter)  # the host waited: by call
    refused: Counter[str] = field(default_factory=Counter)  # what CUDA forbids: by call and reason
    graphs: int = 0  # launches of graphs
    replayed: int = 0  # kernels in the graphs that were launched

    @property
    def eager(self) -> int:
        """Launches that the host pays for one by one, graphs not included."""
        return self.launches.total()


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
    """Begin to count. RuntimeError where the device is not preloaded."""
    _preloaded().fake_reset()


def counts() -> Counts:
    """All since `reset`, or since the process began. RuntimeError where the device is not preloaded."""
    read = Counts()
    graphs = replayed = 0
    for line in _preloaded().fake_report().decode().splitlines():
        kind, number, name = line.split("\t")
        word, _, rest = name.partition(" ")
        if kind == "C":
            read.captured[_plain(name)] += int(number)
        elif kind == "L" and name == "<graph launch>":
            graphs += int(number)
        elif kind == "L":
            read.launches[_plain(name)] += int(number)
        elif word in ("memcpy", "memcpyAsync"):
            read.copies[rest] += int(number)
        elif word == "bytes":
            read.bytes[rest] += int(number)
        elif name.startswith("wait:"):
            read.waits[name.removeprefix("wait:")] += int(number)
        elif word == "ILLEGAL":
            read.refused[rest] += int(number)
        elif name == "kernels replayed by graphs":
            replayed += int(number)
    return Counts(read.launches, read.captured, read.copies, read.bytes, read.waits, read.refused, graphs, replayed)


def _preloaded() -> ctypes.CDLL:
    library = _library()
    if library is None:
        raise RuntimeError("the device is not preloaded: python tests/fakegpu COMMAND")
    return library


@functools.cache
def _plain(name: str) -> str:
    """A kernel's name as C++ writes it, without the namespaces that all of torch's have."""
    demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    demangle.restype = ctypes.c_char_p  # one string a kernel: not freed
    if name.startswith("_Z") and (readable := demangle(name.encode(), None, None, None)):
        name = readable.decode()
    for part in ("void ", "at::native::", "(anonymous namespace)::"):
        name = name.replace(part, "")
    return name
