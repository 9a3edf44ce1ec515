"""What a run is made on and with: the processor and the versions of what computes. No torch."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from okdc import __version__

PACKAGES = ("torch", "numpy", "pillow", "scikit-learn")
# By which torch and onnxruntime choose kernels.
KERNEL_FLAGS = (
    "avx2", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
)  # fmt: skip


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """What made a run: the command, the versions of what computes, the processor."""
    return {
        "command": list(command),
        "versions": {"okdc": __version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": processor()[0],
    }


def differences(then: Mapping[str, Any]) -> list[str]:
    """What computes otherwise now than in the provenance `then`: with it a continuation is not exact to the bit."""
    now = provenance([])
    found = []
    if then.get("versions", {}).get("torch") != now["versions"]["torch"]:
        found.append(f"torch {then.get('versions', {}).get('torch')} then, {now['versions']['torch']} now")
    if then.get("processor") != now["processor"]:
        found.append(f"processor {then.get('processor')} then, {now['processor']} now")
    return found


def processor() -> tuple[str, frozenset[str]]:
    """The processor's name and its flags (none outside Linux)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return facts.get("model name", platform.machine()), frozenset(facts.get("flags", "").split())


def kernel_flags() -> list[str]:
    """Those flags of the processor by which torch and onnxruntime choose kernels."""
    flags = processor()[1]
    return [flag for flag in KERNEL_FLAGS if flag in flags]


def load_average() -> list[float] | None:
    """Programs that wanted the processor in the last minute, five and fifteen; None where the system keeps no count."""
    try:
        return [round(average, 2) for average in os.getloadavg()]
    except (AttributeError, OSError):
        return None
