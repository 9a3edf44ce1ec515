"""One optimiser and one schedule for everything that learns."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from okdc.methods.base import Method
from okdc.recipe.schema import Optim


def build_optimizer(method: Method, optim: Optim) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum in two groups: what is under `cohort`, and all scaffolding, with its own decay.

    Frozen parameters are in neither. The memory format of the weights has to be final: the fused kernel walks raw
    memory, and a gradient or momentum with other strides would be added to the wrong weights without an error.
    """
    # By identity, not by name: a trunk's parameters have a name under every student that shares it.
    inside = {id(p) for p in method.cohort.parameters()}
    trained = [p for p in method.parameters() if p.requires_grad]
    students = [p for p in trained if id(p) in inside]
    auxiliary = [p for p in trained if id(p) not in inside]
    groups = [{"params": students, "weight_decay": optim.weight_decay}]
    if auxiliary:
        groups.append({"params": auxiliary, "weight_decay": optim.aux_weight_decay})
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=True, fused=True)


def rate(optim: Optim, progress: float) -> float:
    """The learning rate when the fraction `progress` of the training is done.

    step: ×0.1 from each milestone on, so that 300 epochs with milestones 0.5 and 0.75 drop at 150 and 225.
    """
    if optim.schedule == "cosine":
        return optim.lr * (1 + math.cos(math.pi * progress)) / 2
    return optim.lr * 0.1 ** sum(progress >= milestone for milestone in optim.milestones)


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
