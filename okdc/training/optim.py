"""One optimiser and one schedule for everything that learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from okdc.methods.base import Method
from okdc.recipe.schema import Optim

# torch.optim.lr_scheduler.OneCycleLR's defaults: the share of the run that rises, and what divides the largest rate.
RISE, FIRST_DIVISOR, LAST_DIVISOR = 0.3, 25.0, 25.0 * 1e4


def build_optimizer(method: Method, optim: Optim, backbones: Sequence[Tensor] = ()) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, for what is under `cohort` and for all scaffolding, with its own decay.

    Scaffolding that a method names in `decayed_as_students` has that of the students.

    Frozen parameters are in no group. Each group has a `factor` on the learning rate: `optim.backbone_lr` for the
    parameters in `backbones`, else 1. The memory format of the weights has to be final: the fused kernel walks raw
    memory, and a gradient or momentum with other strides would be added to the wrong weights without an error.
    """
    # By identity, not by name: a trunk's parameters have a name under every student that shares it.
    inside = {id(p) for part in method.student_parts() for p in part.parameters()}
    trained = [p for p in method.parameters() if p.requires_grad]
    slow = {id(p) for p in backbones} if optim.backbone_lr != 1 else set()
    groups = []
    for decay, part in (
        (optim.weight_decay, [p for p in trained if id(p) in inside]),
        (optim.aux_weight_decay, [p for p in trained if id(p) not in inside]),
    ):
        exempt = [] if optim.decay_norm_and_bias else [p for p in part if p.ndim < 2]
        decayed = part if optim.decay_norm_and_bias else [p for p in part if p.ndim >= 2]
        for weight_decay, alike in ((decay, decayed), (0.0, exempt)):
            for factor, group in (
                (1.0, [p for p in alike if id(p) not in slow]),
                (optim.backbone_lr, [p for p in alike if id(p) in slow]),
            ):
                if group:
                    groups.append({"params": group, "weight_decay": weight_decay, "factor": factor})
    if optim.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=True, fused=True)
    on_gpu = trained[0].is_cuda  # where a CUDA graph may hold the step, the count of the steps is a tensor there
    adamw = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True, capturable=on_gpu)
    adamw._warned_capturable_if_run_uncaptured = True  # the first steps are not recorded
    return adamw


def begin_momenta(optimizer: torch.optim.Optimizer) -> None:
    """Give momenta to parameters that learn from here on, beside others that have learned before.

    torch 2.14's fused SGD makes them for all parameters in one step or for none. From zeros the first step is the same.
    AdamW makes its own, each when it is wanted.
    """
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.requires_grad and "momentum_buffer" not in optimizer.state[p]:
                    optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def rate(optim: Optim, progress: float, steps: float = math.inf) -> float:
    """The learning rate when the fraction `progress` of a training of `steps` steps is done.

    step: ×0.1 from each milestone on, so that 300 epochs with milestones 0.5 and 0.75 drop at 150 and 225.
    cosine: half a cosine over what the warm-up leaves of the run, to almost 0.
    onecycle: torch's OneCycleLR to rounding, whose last step has its last rate.

    A warm-up of w steps takes 1/w, 2/w, ... of the rate. With endless steps the rates are the limits of these.
    """
    if optim.schedule == "onecycle":
        return _one_cycle(optim, progress, 1 / steps)
    warmup = optim.warmup or 0.0
    rising = min(1.0, (progress + 1 / steps) / warmup) if progress < warmup else 1.0
    if optim.schedule == "cosine":
        return optim.lr * rising * _between(1.0, 0.0, max(0.0, progress - warmup) / (1 - warmup))
    return optim.lr * rising * 0.1 ** sum(progress >= milestone for milestone in optim.milestones)


def _one_cycle(optim: Optim, progress: float, step: float) -> float:
    """`step` is the fraction of the run that one step is."""
    first, last = optim.lr / FIRST_DIVISOR, optim.lr / LAST_DIVISOR
    top = (RISE if optim.warmup is None else optim.warmup) - step
    if progress <= top:
        return _between(first, optim.lr, progress / top if top else 1.0)
    return _between(optim.lr, last, (progress - top) / (1 - step - top))


def _between(first: float, last: float, way: float) -> float:
    """Half a cosine from `first` to `last`, at the fraction `way` of it."""
    return last + (first - last) * (1 + math.cos(math.pi * way)) / 2


class Rates:
    """The learning rate of each group, which a GPU reads from its memory: a number would be fixed in a CUDA graph."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._optimizer, self.rate = optimizer, 0.0
        factors = {group["factor"] for group in optimizer.param_groups}
        self._on_device = {factor: torch.zeros((), device=device) for factor in factors} if device.type != "cpu" else {}

    def set(self, rate: float) -> None:
        """Give each group `rate` times its factor. Without a host read."""
        self.rate = rate
        for factor, tensor in self._on_device.items():
            tensor.fill_(rate * factor)
        for group in self._optimizer.param_groups:
            group["lr"] = self._on_device.get(group["factor"], rate * group["factor"])

    def state(self) -> dict[str, Any]:
        """The optimiser's state with its rates as numbers, wherever they are."""
        state = self._optimizer.state_dict()
        for group in state["param_groups"]:
            group["lr"] = self.rate * group["factor"]
        return state


def assert_same_strides(optimizer: torch.optim.Optimizer) -> None:
    """Gradients, and what the optimiser keeps of a parameter's size, lie in memory as the parameter does.

    Dimensions of size 1 have no say.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            for tensor in (p.grad, *optimizer.state.get(p, {}).values()):
                if isinstance(tensor, Tensor) and tensor.shape == p.shape:
                    assert _strides(tensor) == _strides(p), f"strides {tensor.stride()} for {p.stride()}"


def _strides(tensor: Tensor) -> list[int]:
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
