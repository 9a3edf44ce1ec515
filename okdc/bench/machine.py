"""What a bench is measured on: the machine, its packages, and the settings that okdc chooses on it."""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib import metadata
from typing import Any

import torch

from okdc.data.workers import cores
from okdc.errors import DeviceError
from okdc.recipe.schema import Engine
from okdc.runs import provenance
from okdc.training import cards, compiling, device
from okdc.training.device import Settings
from okdc.version import __version__

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "onnx")


def settings_of(engine: Engine, size: int) -> Settings:
    """The settings of a training on images of `size` pixels. Only `compile` may differ. Raises DeviceError."""
    settings = device.choose(engine, size)
    settings = replace(settings, cuda_graph="on" if settings.cuda and engine.cuda_graph != "off" else "off")
    if settings.compile == "on":
        if missing := compiling.without_compiler(settings.device):
            raise DeviceError(f"--compile on, and nothing can be compiled here: {missing}", hint="--compile off")
        reason = "as asked; the minute that each compilation takes is not counted in --seconds"
    elif engine.compile == "off":
        reason = "as asked"
    else:
        settings = replace(settings, compile="off")
        reason = "each step takes about a minute to compile; --compile on does"
    return replace(settings, reasons=(*settings.reasons, f"compile {settings.compile} ({reason})"))


def facts(settings: Settings) -> dict[str, Any]:
    """What a bench was measured on and with."""
    versions = {"okdc": __version__, "python": platform.python_version()}
    versions |= {package: metadata.version(package) for package in PACKAGES}
    if settings.cuda:
        versions |= cards.libraries()
    return {
        "processor": provenance.processor()[0],
        "flags": list(provenance.kernel_flags()),
        "cores": cores(),
        "device": settings.device,
        "device_name": torch.cuda.get_device_name(settings.torch_device) if settings.cuda else None,
        "threads": settings.threads,
        "versions": versions,
    }
