"""An exponential moving average of everything that a method has learned, kept beside its weights.

After each step the average a of a weight w becomes d·a + (1 - d)·w, where d = min(decay, (1 + t)/(10 + t)) after t
earlier steps: TensorFlow's warm-up, without which the untrained weights would fill the average of a short run. Batch
statistics are averaged as the weights are (torchvision's `use_buffers`), so that no images are read for them. What is
no floating-point number stays the method's.

The average is judged as heads of its own: `student0_ema` beside `student0`, `fused_ema` beside `fused`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from okdc.methods.base import Batch, Method, Step
from okdc.runs.artefacts import AVERAGED


class Average:
    """The average of a method's weights and batch statistics, on their device. Nothing here waits for it."""

    def __init__(self, method: Method, decay: float) -> None:
        """The weights have their final place and memory format."""
        self.decay = decay
        self._live = _learned(method)
        self._values = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        self._steps = torch.zeros((), dtype=torch.int64, device=next(method.parameters()).device)

    @torch.no_grad()
    def update(self) -> None:
        """Take a step's weights into the average. A CUDA graph may hold it: the number of the step is on the device."""
        weight = torch.clamp(9 / (10 + self._steps), min=1 - self.decay)  # 9/(10 + t) = 1 - (1 + t)/(10 + t)
        values = list(self._values.values())
        moves = torch._foreach_sub(list(self._live.values()), values)
        torch._foreach_mul_(moves, weight)
        torch._foreach_add_(values, moves)
        self._steps += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The method has the average inside the block, and its own tensors after it, where they were."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.inference_mode(False)
    def _exchange(self) -> None:
        for name, tensor in self._live.items():
            tensor.data, self._values[name] = self._values[name], tensor.data
        torch.clear_autocast_cache()  # it would go on with copies of the weights that were there before

    def statistics(self) -> list[Tensor]:
        """The averages of what is no parameter."""
        return [self._values[name] for name, tensor in self._live.items() if not isinstance(tensor, nn.Parameter)]

    def state(self) -> dict[str, Any]:
        """Every tensor that the next step depends on."""
        return {"values": dict(self._values), "steps": self._steps}

    def load(self, state: dict[str, Any]) -> None:
        """Take what `state` gave, before the first step."""
        for name, value in self._values.items():
            value.copy_(state["values"][name])
        self._steps.copy_(state["steps"])


def _learned(method: Method) -> dict[str, Tensor]:
    """Each floating-point tensor that a checkpoint holds of a method, by its first name.

    Of a part without a parameter that learns, a teacher or a moving average of the method's own, nothing.
    """
    parts = [(part, [p.requires_grad for p in part.parameters()]) for part in method.children()]
    fixed = [part for part, learns in parts if learns and not any(learns)]
    seen = {id(tensor) for part in fixed for tensor in part.state_dict(keep_vars=True).values()}
    learned = {}
    for name, tensor in method.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and id(tensor) not in seen:
            seen.add(id(tensor))
            learned[name] = tensor
    return learned


def answers(method: Method, batch: Batch, progress: Tensor, average: Average | None) -> Step:
    """What a method gives for a batch, and the logits of its average under names of their own, if there is one."""
    step: Step = method(batch, progress)
    if average is None:
        return step
    with average.applied():
        averaged: Step = method(batch, progress)
    return Step(step.losses, step.logits | {name + AVERAGED: z for name, z in averaged.logits.items()})
