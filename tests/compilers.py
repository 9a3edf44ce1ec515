"""Stand-ins for `okdc.training.step.compiled`, which takes half a minute: one only traces, one fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from okdc.methods.base import Method


def traced(method: Method, *_: object) -> nn.Module:
    """Without C++: the graph that was found is run as it is."""
    run: nn.Module = torch.compile(method, dynamic=False, backend="eager")  # type: ignore[assignment]
    return run


def broken_by(error: Exception) -> Callable[..., nn.Module]:
    """A compiler that raises `error`."""

    def compiler(*_: object) -> Any:
        raise error

    return lambda method, *_: torch.compile(method, dynamic=False, backend=compiler)  # type: ignore[return-value]
