"""What an error of torch means, where its type does not say. torch is not imported here.

torch 2.14 raises the plain RuntimeError, without an attribute, for each of the following; only the text tells them
apart. If torch changes a text, the error is shown as torch's own again: with its message, and without okdc's advice.

    a worker of a DataLoader died     torch/utils/data/dataloader.py, _try_get_data, and the SIGCHLD handler in C++
    the CPU's memory is full          c10/core/impl/alloc_cpu.cpp; only a GPU's allocator raises torch.OutOfMemoryError
    a peer vanished, over gloo        gloo's own exception; DistError covers the store and NCCL
    launches cannot be recorded       cuBLAS, cuDNN, the generator and the allocator each check it for themselves
    no deterministic kernel           aten/src/ATen/Context.cpp, alertNotDeterministic
"""

from __future__ import annotations

import sys


def out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the machine or of its GPU is full."""
    full = isinstance(error, MemoryError) or _is(error, "torch", "OutOfMemoryError")
    return full or _says(error, "can't allocate memory")


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


def _is(error: BaseException, module: str, name: str) -> bool:
    """Whether an error is of a class of torch. A module that nobody has imported yet has raised nothing."""
    return isinstance(error, getattr(sys.modules.get(module), name, ()))


def _says(error: BaseException, text: str) -> bool:
    return isinstance(error, RuntimeError) and text in str(error)
