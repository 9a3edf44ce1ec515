"""Asked before the first step: whether the students can be computed in the type of maps that a training takes.

Autocast casts the operators that it knows. Others see both types at once, as nn.Bilinear does on a CPU, or have no
kernel for half precision, as Fourier transforms on a GPU.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch

from okdc import signals, torch_errors
from okdc.cohort import Backbone
from okdc.errors import RecipeError, one_line
from okdc.training.device import Settings
from okdc.training.exportable import foreign

IMAGES = 2  # a layer of batch statistics needs two


def settled(settings: Settings, students: Iterable[Backbone], size: int, asked: str, place: str) -> Settings:
    """The settings with a type that every architecture which is not okdc's own computes in, at images of `size` pixels.

    That is float32, with the reason at the end of the reasons, where `asked`, the recipe's engine.dtype, leaves the
    choice and a student refuses what was chosen. Raises RecipeError, of the recipe at `place`, where it does not.
    """
    if settings.dtype == "float32":
        return settings
    for name, student in foreign(students).items():
        if not (reason := _refusal(student, size, settings)):
            continue
        refused = f"{name} cannot be computed in {settings.dtype} on {settings.device}: {reason}"
        if asked != "auto":
            raise RecipeError(f"{place}: engine.dtype={asked}: {refused}", hint="engine.dtype=float32")
        return replace(settings, dtype="float32", reasons=(*settings.reasons, f"dtype float32 ({refused})"))
    return settings


def _refusal(student: Backbone, size: int, settings: Settings) -> str:
    """What a step raises in the settings' type and not in float32; empty where there is nothing."""
    try:
        _step(student, size, settings, settings.autocast())
    except Exception as error:
        signals.check()
        reason = one_line(error)
        if torch_errors.out_of_memory(error):
            return ""  # the first step of the training says so
    else:
        return ""
    try:
        _step(student, size, settings, nullcontext())
    except Exception:
        signals.check()
        return ""
    return reason


def _step(student: Backbone, size: int, settings: Settings, autocast: AbstractContextManager[None]) -> None:
    """A forward and a backward pass of a copy."""
    from okdc.deploy.trial import undisturbed  # imports torch.onnx and onnxruntime, which takes seconds

    with undisturbed():
        network = copy.deepcopy(student).to(settings.torch_device).train()
        images = torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))
        with autocast:
            logits = network(images.to(settings.torch_device))
        logits.float().square().sum().backward()
