"""What an error of torch means, where its type does not say. torch is not imported here.

torch 2.14 raises the plain RuntimeError, without an attribute, for each of the following; only the text tells them
apart. If torch changes a text, the error is shown as torch's own again: with its message, and without okdc's advice.

    a worker of a DataLoader died     torch/utils/data/dataloader.py, _try_get_data, and the SIGCHLD handler in C++
    the CPU's memory is full          c10/core/impl/alloc_cpu.cpp; only a GPU's allocator raises torch.OutOfMemoryError
    cuBLAS, cuDNN got no memory       ATen/cuda/Exceptions.h and the libraries' own names of the status
    a peer vanished, over gloo        gloo's own exception; DistError covers the store and NCCL
    launches cannot be recorded       cuBLAS, cuDNN, the generator and the allocator each check it for themselves
    no deterministic kernel           aten/src/ATen/Context.cpp, alertNotDeterministic
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

CUDA_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


@dataclass(frozen=True)
class Shortage:
    """Memory that was asked for and was not there."""

    device: str  # cpu, or cuda with the number of the GPU where the error names it
    asked: str = ""  # an amount with its unit, as are the next two; empty where the error does not say
    free: str = ""
    total: str = ""

    @property
    def words(self) -> str:
        """`out of memory on cuda:0: 2.00 GiB asked for, 10.50 MiB of 15.77 GiB free`."""
        asked = [f"{self.asked} asked for"] if self.asked else []
        free = [f"{self.free} of {self.total} free"] if self.total else []
        return f"out of memory on {self.device}" + (f": {', '.join(asked + free)}" if asked or free else "")


def shortage(error: BaseException) -> Shortage | None:
    """What memory was full, and how much was asked of it; None where the error is another one."""
    text = str(error)
    if _is(error, "torch", "OutOfMemoryError"):
        number, total, free = _parts(text, r"GPU (\d+) has a total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+)", 3)
        (asked,) = _parts(text, r"Tried to allocate ([\d.]+ \w+)", 1)
        return Shortage(f"cuda:{number}" if number else "cuda", asked, free, total)
    if isinstance(error, MemoryError):  # numpy's names the amount
        return Shortage("cpu", *_parts(text, r"allocate ([\d.]+ \w+)", 1))
    if _says(error, "can't allocate memory"):
        (count,) = _parts(text, r"allocate (\d+) bytes", 1)
        return Shortage("cpu", f"{int(count) / 2**30:,.2f} GiB" if count else "")
    by_driver = _is(error, "torch", "AcceleratorError") and getattr(error, "error_code", 0) == CUDA_OUT_OF_MEMORY
    if by_driver or _says(error, "STATUS_ALLOC_FAILED") or _says(error, "DEVICE_ALLOCATION_FAILED"):
        return Shortage("cuda")
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the machine or of its GPU is full."""
    return shortage(error) is not None


def worker_died(error: BaseException) -> bool:
    """Whether a process that decodes images for a DataLoader died. The error may come up in any line of the loop."""
    return _says(error, "DataLoader worker (pid")


def peer_lost(error: BaseException) -> bool:
    """Whether this process waited for another one of its training that is gone."""
    return _is(error, "torch.distributed", "DistError") or _says(error, "gloo/transport")


def not_compilable(error: BaseException) -> bool:
    """Whether the compiler failed, or the recording of launches: the same step would run without it."""
    compiler = type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
    return compiler or _says(error, "captur")


def without_deterministic_kernel(error: BaseException) -> str:
    """The operation that torch has no deterministic kernel of, or nothing where the error is another one."""
    operation, says, _ = str(error).partition(" does not have a deterministic implementation")
    return operation if says and isinstance(error, RuntimeError) else ""


def _parts(text: str, pattern: str, count: int) -> tuple[str, ...]:
    """The groups of the first match, of which there are `count`; empty ones where nothing matches."""
    match = re.search(pattern, text)
    return match.groups() if match else ("",) * count


def _is(error: BaseException, module: str, name: str) -> bool:
    """Whether an error is of a class of torch. A module that nobody has imported yet has raised nothing."""
    return isinstance(error, getattr(sys.modules.get(module), name, ()))


def _says(error: BaseException, text: str) -> bool:
    return isinstance(error, RuntimeError) and text in str(error)
