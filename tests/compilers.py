"""Stand-ins for `okdc.training.step.compiled`, which takes half a minute: one only traces, two fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from okdc.methods.base import Method, Step


def traced(method: Method, *_: object) -> nn.Module:
    """Without C++: the graph that was found is run as it is."""
    run: nn.Module = torch.compile(method, dynamic=False, backend="eager")  # type: ignore[assignment]
    return run


def broken_by(error: Exception) -> Callable[..., nn.Module]:
    """A compiler that raises `error`."""

    def compiler(*_: object) -> Any:
        raise error

    return lambda method, *_: torch.compile(method, dynamic=False, backend=compiler)  # type: ignore[return-value]


def failing_at(call: int, where: str, error: Exception | None = None) -> Callable[..., nn.Module]:
    """A compiled method whose `call`th call fails when its forward or its backward pass is nearly done."""
    failure = error or RuntimeError("CUDA error: operation not permitted when stream is capturing")

    class Failing(nn.Module):
        def __init__(self, method: Method) -> None:
            super().__init__()
            self.method, self.calls = method, 0

        def forward(self, *args: Any) -> Step:
            self.calls += 1
            step: Step = self.method(*args)
            if self.calls == call and where == "forward":
                raise failure
            if self.calls == call:
                first = next(self.method.cohort.parameters())  # the last to get its gradient

                def fail(_: object) -> None:
                    hook.remove()
                    raise failure

                hook = first.register_hook(fail)
            return step

    return lambda method, *_: Failing(method)


def dropping(num_classes: int = 10) -> nn.Module:
    """A student with dropout and batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3),
        nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, num_classes),
    )  # fmt: skip
