"""The machine and the packages that a run is made with. No torch."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from okdc.runs.artefacts import Provenance
from okdc.version import __version__

PACKAGES = ("torch", "numpy", "pillow", "scikit-learn")
COMPUTING = ("torch", "cuda", "cudnn")  # whose versions change a sum; the last two are recorded where a GPU trains
# Processor flags by which torch and onnxruntime choose their kernels.
KERNEL_FLAGS = (
    "avx2", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
)  # fmt: skip


def provenance(command: Sequence[str]) -> Provenance:
    return Provenance(
        command=tuple(command),
        versions={"okdc": __version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
        platform=platform.platform(),
        processor=processor()[0],
    )


def differences(then: Provenance, now: Provenance) -> list[str]:
    """How the machine of `now` computes otherwise than that of `then`: a continuation is then not exact to the bit."""
    lines = [
        f"{name} {then.versions.get(name, 'none')} then, {now.versions.get(name, 'none')} now"
        for name in COMPUTING
        if then.versions.get(name) != now.versions.get(name)
    ]
    if then.processor != now.processor:
        lines.append(f"processor {then.processor} then, {now.processor} now")
    if then.gpu != now.gpu:
        lines.append(f"GPU {then.gpu or 'none'} then, {now.gpu or 'none'} now")
    return lines


def processor() -> tuple[str, frozenset[str]]:
    """The processor's name and its flags (none outside Linux)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    entries = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return entries.get("model name", platform.machine()), frozenset(entries.get("flags", "").split())


def kernel_flags() -> tuple[str, ...]:
    """Those of KERNEL_FLAGS that this processor has."""
    flags = processor()[1]
    return tuple(flag for flag in KERNEL_FLAGS if flag in flags)


def load_average() -> list[float] | None:
    """Programs that wanted the processor in the last minute, five and fifteen; None where the system keeps no count."""
    try:
        return [round(average, 2) for average in os.getloadavg()]
    except (AttributeError, OSError):
        return None
