"""The GPUs of this machine, as far as torch can use them.

torch counts a GPU that it has no kernels for, whose memory is full, or that another process holds for itself. All of
that shows when a kernel is launched there, so one is launched before a training begins.
"""

from __future__ import annotations

import functools
import warnings

import torch

from okdc.errors import first_line
from okdc.runs.artefacts import Provenance

TENSOR_CORES = (7, 0)  # compute capability from which on float16 is faster than float32: V100
BFLOAT16 = (8, 0)  # A100; older GPUs emulate it in float32


def count() -> int:
    """The GPUs that torch finds. Silent: `missing` has torch's warning of a driver that is too old."""
    return 0 if missing() else torch.cuda.device_count()


def missing() -> str:
    """Why torch finds no GPU; nothing where it finds one."""
    warning = _warning()
    if torch.cuda.is_available():
        return ""
    return warning or "no CUDA device"


@functools.cache
def _warning() -> str:
    """The first sentence of what torch says when it is first asked for GPUs. It says it once a process."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.is_available()
    if not caught:
        return ""
    text = " ".join(str(caught[0].message).split())
    return text.removeprefix("CUDA initialization: ").split(". ")[0]


def unusable(card: torch.device) -> str:
    """Why no kernel runs on a GPU, in a line with its name; nothing where one ran. Drops torch's warnings of it."""
    name = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            name = torch.cuda.get_device_name(card)
            torch.ones(2, device=card).add(1).cpu()  # waits for the kernels: a launch reports an error late
    except RuntimeError as error:  # torch.AcceleratorError and torch.OutOfMemoryError are some
        return f"{name or card}: {first_line(error)}"
    return ""


def has_bfloat16(card: torch.device) -> bool:
    """Whether the GPU computes in bfloat16, and does not emulate it."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(card) >= BFLOAT16


def has_float16(card: torch.device) -> bool:
    """Whether the GPU has units for products in float16, without which it is as slow as float32 or slower."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(card) >= TENSOR_CORES


def recorded(provenance: Provenance, device: torch.device) -> Provenance:
    """`provenance` with the GPU that computes, and the libraries that choose its kernels; of a CPU as it is."""
    if device.type != "cuda":
        return provenance
    update = {"versions": provenance.versions | libraries(), "gpu": torch.cuda.get_device_name(device)}
    return provenance.model_copy(update=update)


def libraries() -> dict[str, str]:
    """The versions of what torch computes with on a GPU."""
    return {"cuda": str(torch.version.cuda or torch.version.hip), "cudnn": str(torch.backends.cudnn.version())}
