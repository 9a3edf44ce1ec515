"""`okdc doctor`: what this machine and installation bring, and whether the way to a bundle works here.

The self-test exports an untrained ResNet-8 and compares its ONNX file with it in onnxruntime, as every training does
with a foreign network before its first step.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from okdc import backbones
from okdc.assembly.student import square
from okdc.data import memory
from okdc.data.cache import cache_folder
from okdc.data.workers import cores
from okdc.deploy import trial
from okdc.errors import CheckFailed, DeviceError, OkdcError, one_line
from okdc.recipe.schema import Engine
from okdc.runs import trust
from okdc.runs.provenance import kernel_flags, processor
from okdc.runs.run import ROOT
from okdc.training import cards, device
from okdc.version import __version__

NETWORK, SIZE, CLASSES = "resnet8", 32, 10  # of the self-test
PACKAGES = (
    "torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "numpy", "pillow", "scikit-learn", "scipy", "fvcore",
    "pydantic", "safetensors", "typer", "rich", "jinja2", "matplotlib",
)  # fmt: skip
# By extra, its packages and what they are for.
EXTRAS = {
    "timm": (("timm",), "students named timm:NAME"),
    "duplicates": (("imagehash",), "pictures that look the same, in okdc check --images"),
    "track": (("tensorboard",), "engine.track and okdc track"),
}
CACHE = "cache of images"
FOLDERS: dict[str, Callable[[], Path]] = {
    "runs": ROOT.absolute,
    CACHE: cache_folder,
    "state": trust.state_folder,
    "cache of torch": lambda: Path(torch.hub.get_dir()),
}


def doctor() -> dict[str, Any]:
    """The report of `okdc doctor --json`. `failures` are sentences: what keeps okdc from working here."""
    name, _ = processor()
    report: dict[str, Any] = {
        "schema": 1,
        "versions": {"okdc": __version__, "python": platform.python_version(), **versions(PACKAGES)},
        "platform": platform.platform(),
        "processor": name,
        "processor_flags": list(kernel_flags()),
        "cores": cores(),
        "memory_available_bytes": memory.available(),
        "gpus": _gpus(),
        "settings": None,
        "reasons": [],
        "onnxruntime_providers": onnxruntime.get_available_providers(),
        "folders": [_folder(kind, place) for kind, place in FOLDERS.items()],
        "extras": [extra(name) for name in EXTRAS],
        "self_test": None,
        "failures": [],
    }
    missing = [package for package in PACKAGES if report["versions"][package] is None]
    if missing:
        report["failures"].append(f"packages are missing: {', '.join(missing)}; pip install okdc brings them")
    try:
        settings = device.choose(Engine(), SIZE)
        report |= {"settings": settings.saved(), "reasons": list(settings.reasons)}
    except DeviceError as error:
        report["failures"].append(error.message)
    report["self_test"] = self_test()
    if reason := report["self_test"]["failed"]:
        report["failures"].append(f"the self-test failed: {reason}")
    report["failures"] += [
        f"{folder['kind']}: {folder['problem']}" for folder in report["folders"] if folder["problem"]
    ]
    return report


def raise_failures(report: Mapping[str, Any]) -> None:
    """Raises CheckFailed ("doctor") where something keeps okdc from working."""
    if failures := report["failures"]:
        raise CheckFailed("doctor", failures[0], details=failures[1:])


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Of each package the version that is installed; None where it is not."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def extra(name: str) -> dict[str, Any]:
    """Whether an extra of okdc is installed, and the line that installs it."""
    packages, purpose = EXTRAS[name]
    found = versions(packages)
    return {
        "extra": name,
        "installed": all(found.values()),
        "versions": found,
        "purpose": purpose,
        "install": f"pip install 'okdc[{name}]'",
    }


def self_test() -> dict[str, Any]:
    """Export NETWORK, untrained, and verify its file. `failed` has the reason; the seconds are those of the whole."""
    began, failed, warnings = time.perf_counter(), None, list[str]()
    try:
        network = backbones.build(NETWORK, CLASSES, square(SIZE)).eval()
        warnings = trial.attempt(network, SIZE, CLASSES)
    except OkdcError as error:
        failed = error.message
    return {
        "network": NETWORK,
        "input": [3, SIZE, SIZE],
        "seconds": round(time.perf_counter() - began, 2),
        "warnings": warnings,
        "failed": failed,
    }


def _gpus() -> list[dict[str, Any]]:
    """Each GPU that torch finds: its memory, and why no kernel runs on it."""
    found = []
    for number in range(cards.count()):
        card = torch.device("cuda", number)
        about = torch.cuda.get_device_properties(card)
        found.append(
            {
                "name": about.name,
                "memory_bytes": about.total_memory,
                "capability": f"{about.major}.{about.minor}",
                "unusable": cards.unusable(card) or None,
            }
        )
    return found


def _folder(kind: str, place: Callable[[], Path]) -> dict[str, Any]:
    """A folder that okdc writes, or the nearest one above it that is there. `problem`: why nothing can be written."""
    facts: dict[str, Any] = {"kind": kind, "path": None, "exists": False, "writable": False, "free_bytes": None}
    facts |= {"bytes": None, "problem": None}
    try:
        path = place()
        nearest = next(above for above in (path, *path.parents) if above.exists())
        facts |= {
            "path": str(path),
            "exists": path.is_dir(),
            "writable": nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK),
            "free_bytes": shutil.disk_usage(nearest).free,
            "bytes": _size(path) if kind == CACHE else None,
        }
    except OkdcError as error:
        return facts | {"problem": error.message}
    except OSError as error:  # a name that is too long, a disk that is gone
        return facts | {"problem": one_line(error)}
    if not facts["writable"]:
        facts["problem"] = f"{path} cannot be written"
    elif not facts["free_bytes"]:
        facts["problem"] = f"{path} has no room: its disk is full"
    return facts


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
