"""Whether a training compiles its step: what it gains, against the minute that it costs, from facts and no timing.

One thread of a processor with AVX512 compiles a step in 25 to 100 s (okdc/bench/README.md has the table). For ResNet-20
that gains 1.4 times over float32 in contiguous maps. Most of it channels_last has at once: over that, compilation gains
0.93 to 1.07 times in float32 and 0.9 to 1.15 times in bfloat16.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from okdc.assembly.job import Job
from okdc.cohort import count_macs
from okdc.errors import DeviceError
from okdc.methods.base import Batch, Method
from okdc.training.device import Settings

# The eager training in float32 and contiguous maps from which on a compiled one is through earlier, in multiply-adds of
# its forward passes: about five minutes of a thread, which trains 15 GMACs (of the forward pass) in a second.
ENOUGH_GMACS_A_THREAD = 4_500
# A guess: no GPU was at hand. Compiled, a step has fewer kernels: 840 instead of 954 (okdc/bench/README.md).
ENOUGH_STEPS_ON_CUDA = 5_000


def decide(settings: Settings, job: Job) -> Settings:
    """The settings with `compile` on or off, and the reason at the end of the reasons.

    Raises DeviceError where it was asked for, or the run began so, and nothing here compiles.
    """
    chosen, reason = _choose(settings, job)
    if chosen == "on" and (missing := without_compiler(settings.device)):
        if settings.compile == "on":
            raise DeviceError(
                f"engine.compile=on, and nothing can be compiled here: {missing}",
                hint="a C++ compiler and Python's headers (Debian: g++ and python3-dev); a new run: --compile off",
            )
        chosen, reason = "off", f"it would pay, and nothing can be compiled here: {missing}"
    may_fall_back = settings.compile == "auto" and chosen == "on"
    reasons = (*settings.reasons, f"compile {chosen} ({reason})")
    return replace(settings, compile=chosen, may_fall_back=may_fall_back, reasons=reasons)


def without(settings: Settings, failure: str) -> Settings:
    """The settings of a training that goes on without the compiler, which failed at its first steps."""
    reasons = (*settings.reasons, f"compile off (it was tried and failed: {failure})")
    return replace(settings, compile="off", may_fall_back=False, reasons=reasons)


class Before:
    """What a forward pass changes, as it is now: the buffers of a method, and the place in the random numbers."""

    def __init__(self, method: Method) -> None:
        self._buffers = [(buffer, buffer.clone()) for buffer in method.buffers()]
        self._random = torch.get_rng_state()
        self._cuda_random = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None

    @torch.no_grad()
    def restore(self) -> None:
        for buffer, kept in self._buffers:
            buffer.copy_(kept)
        torch.set_rng_state(self._random)
        if self._cuda_random is not None:
            torch.cuda.set_rng_state(self._cuda_random)


def _choose(settings: Settings, job: Job) -> tuple[str, str]:
    if settings.compile != "auto":
        return settings.compile, "as asked"
    if job.method.unrolled:
        return "off", "the method repeats small operations, which compiling unrolls: minutes, and little gained"
    steps = job.steps
    if settings.cuda:
        return _above(steps, ENOUGH_STEPS_ON_CUDA, f"{steps:,} steps")
    if settings.dtype == "bfloat16" or settings.memory_format == "channels_last":
        return "off", f"gains too little over {settings.dtype} in {settings.memory_format} on a CPU"
    gmacs = steps * job.recipe.optim.batch_size * forward_macs(job.method, job.dataset.size) / 1e9
    return _above(gmacs, ENOUGH_GMACS_A_THREAD * settings.threads, f"{gmacs:,.0f} GMACs in {steps:,} steps")


def _above(work: float, enough: int, words: str) -> tuple[str, str]:
    return ("on" if work >= enough else "off"), f"{words}; compiling (about a minute) pays off above {enough:,}"


@torch.inference_mode()
def forward_macs(method: Method, images: torch.Size) -> int:
    """Multiply-adds of one image of CHW size `images` through the whole method, what is discarded included.

    The method is on the CPU; it is left in eval mode.
    """
    batch = Batch(torch.zeros(1, *images), torch.zeros(1, dtype=torch.int64))
    return count_macs(method.eval(), batch, torch.ones(()))


def without_compiler(device: str) -> str:
    """Why torch.compile cannot be used here, in a line; nothing where a trial succeeds."""
    quiet()
    try:
        torch.compile(lambda x: torch.relu(x) + 1, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # no compiler, no header, no Triton: each raises a kind of its own
        return in_a_line(error)
    return ""


def in_a_line(error: Exception) -> str:
    """What the compiler says is wrong: its report is pages of commands and of its own stack."""
    cause = getattr(error, "inner_exception", error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [""]
    line = next((line for line in lines if "error: " in line), lines[0])  # as a C++ compiler marks it
    kind = type(cause).__name__
    return (line if line.startswith(kind) else f"{kind}: {line}")[:300]


def quiet() -> None:
    """On a CPU the compiler's own log misses a CUDA runtime."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
