"""Where a bench is made: the machine, how busy it is, and the settings that okdc chooses on it."""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib import metadata
from typing import Any

import torch

from okdc import __version__
from okdc.data.workers import cores
from okdc.errors import DeviceError
from okdc.recipe.schema import Engine
from okdc.runs import provenance as machine
from okdc.training import compiling, device
from okdc.training.device import Settings

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "onnx")


def settings_of(engine: Engine, size: int) -> Settings:
    """What a training of such images would be run with, but for the compiler. Raises DeviceError."""
    found = device.choose(engine, size)
    if found.compile == "on":
        if missing := compiling.without_compiler(found.device):
            raise DeviceError(f"--compile on, and nothing can be compiled here: {missing}", hint="--compile off")
        why = "as asked; the minute that each compilation takes is not counted in --seconds"
    elif engine.compile == "off":
        why = "as asked"
    else:
        found, why = replace(found, compile="off"), "each step takes about a minute to compile; --compile on does"
    return replace(found, reasons=(*found.reasons, f"compile {found.compile} ({why})"))


def facts(settings: Settings) -> dict[str, Any]:
    cuda = settings.device == "cuda"
    versions = {"okdc": __version__, "python": platform.python_version()}
    versions |= {package: metadata.version(package) for package in PACKAGES}
    if cuda:
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return {
        "processor": machine.processor()[0],
        "flags": list(machine.kernel_flags()),
        "cores": cores(),
        "device": settings.device,
        "device_name": torch.cuda.get_device_name() if cuda else None,
        "threads": settings.threads,
        "versions": versions,
    }
