"""What one unit of a side asks of a GPU, by torch's profiler: launches of kernels, of graphs, and copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile

# Calls of CUDA's runtime and driver, as the profiler names them.
LAUNCHES = (
    "cudaLaunchKernel", "cudaLaunchKernelExC", "cudaLaunchCooperativeKernel", "cuLaunchKernel", "cuLaunchKernelEx",
    "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync",
)  # fmt: skip


def launches(run: Callable[[], object]) -> int | None:
    """How often the host calls the GPU in `run`; None where the profiler sees no GPU (a container may forbid it)."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    return counted(event.name for event in seen.events() or ())


def counted(names: Iterable[str]) -> int | None:
    """The launches among the names of events; None where there is none."""
    number = Counter(names)
    return sum(number[name] for name in LAUNCHES) or None
