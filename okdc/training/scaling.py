"""The scale of the loss in float16, whose gradients would vanish below 6e-8: chosen while it trains, by torch.

The loss is multiplied before the backward pass, and the gradients are divided after it. A step whose gradients overflow
is skipped and halves the scale; 2,000 steps without an overflow double it. The choice stays on the device: torch's
fused optimiser reads there whether a step is skipped, so the host never waits for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# A gradient that overflows under this scale is infinite without any, or far too large for float16: halved 28 times.
LEAST = 2.0**-12


class Scaler:
    """The scale, and how many steps were skipped. Of several processes each has the same: they share the gradients."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._scaler = torch.amp.GradScaler(device.type)
        self._optimizer = optimizer
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        # Before its step torch gives the optimiser this number: 1.0 where a gradient is not finite.
        optimizer.register_step_pre_hook(lambda optimizer, *_: self._count(optimizer.found_inf))
        # torch 2.14's SGD makes momenta in the first step, and leaves them uninitialised where it skips that one. From
        # zeros the first step is the same. Its AdamW begins with zeros.
        if isinstance(optimizer, torch.optim.SGD):
            for group in optimizer.param_groups:
                for p in group["params"]:
                    optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)

    def _count(self, overflow: Tensor) -> None:
        self._skipped += overflow.long()

    def scale(self, loss: Tensor) -> Tensor:
        return self._scaler.scale(loss)

    def unscale(self) -> None:
        """Divide the gradients by the scale before `step` does, for what reads them."""
        self._scaler.unscale_(self._optimizer)

    def step(self) -> None:
        """Take the optimiser's step if all gradients are finite, and choose the next scale."""
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def forget(self) -> None:
        """Be between two steps, after one that did not come to its end. Waits for the device."""
        state = self._scaler.state_dict()
        self._scaler = torch.amp.GradScaler(self._skipped.device.type)
        self._scaler.load_state_dict(state)

    @property
    def skipped(self) -> int:
        """The steps that were skipped since the training began. Waits for the device, as do the following."""
        return int(self._skipped)

    def stuck(self, steps: int) -> str:
        """Why a training of `steps` steps in all comes to nothing, or nothing."""
        if self.skipped >= steps:
            return f"all {steps} steps were skipped"
        if self._scaler.get_scale() < LEAST:
            return f"the last steps were skipped, down to a scale of {self._scaler.get_scale():.1e}"
        return ""

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, as numbers."""
        return self._scaler.state_dict() | {"skipped": self.skipped}

    def load(self, state: dict[str, Any]) -> None:
        """Take what `state` gave, before the first step."""
        self._skipped.fill_(state["skipped"])
        self._scaler.load_state_dict({name: value for name, value in state.items() if name != "skipped"})
