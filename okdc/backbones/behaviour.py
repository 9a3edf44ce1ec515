"""What a network does in two training steps and an evaluation, as numbers that another can be compared by.

Two networks that share their parameters and buffers are compared one after the other: `behaviour` puts back what the
steps moved. Outputs alone would not do. A network that runs a part without gradients, or holds its batch statistics,
gives in one forward what a network gives that trains them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from okdc.seeds import seeded

STEPS = 2
RATE = 0.01
MOST = 2048  # numbers of a tensor that are compared one by one, beside its sum and size

Fingerprint = dict[str, Tensor]  # by what it is of


@contextmanager
def unchanged(net: nn.Module) -> Iterator[None]:
    """Attributes and buffers of all modules of `net` are what they were when the block ends, whatever a forward did."""
    attributes = [(module, dict(vars(module)), dict(module._buffers)) for module in net.modules()]
    copies = [(buffer, buffer.detach().clone()) for buffer in net.buffers()]
    try:
        yield
    finally:
        for module, own, buffers in attributes:
            vars(module).clear()
            vars(module).update(own)
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, copy in copies:
                buffer.copy_(copy)


@contextmanager
def preserved(net: nn.Module) -> Iterator[None]:
    """`unchanged`, and the parameters as well; gradients are gone."""
    copies = [(parameter, parameter.detach().clone()) for parameter in net.parameters()]
    try:
        with unchanged(net):
            yield
    finally:
        with torch.no_grad():
            for parameter, copy in copies:
                parameter.copy_(copy)
                parameter.grad = None


def behaviour(
    net: nn.Module, forward: Callable[[Tensor], Tensor], train: Callable[[bool], object], x: Tensor, classes: int
) -> Fingerprint:
    """Logits, gradients, parameters and buffers of STEPS steps of SGD on the images `x` (NCHW), then of an evaluation.

    `net` owns the tensors, `forward` gives the NK logits, `train` sets the mode. Raises what `forward` raises.
    """
    labels = torch.arange(len(x)) % classes
    prints: Fingerprint = {}
    with preserved(net), seeded(0, "behaviour"), torch.enable_grad():
        optimizer = _optimizer(net)
        train(True)
        for step in range(1, STEPS + 1):
            logits = forward(x.clone())
            prints[f"the logits of training step {step}"] = logits.detach().clone()
            if logits.requires_grad:
                F.cross_entropy(logits.float(), labels).backward()
            for name, parameter in net.named_parameters():
                if parameter.grad is not None:
                    prints[f"the gradient of {name} in step {step}"] = fingerprint(parameter.grad)
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
        train(False)
        with torch.no_grad():
            prints["the logits in evaluation"] = forward(x[:1].clone()).clone()
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            prints[name] = fingerprint(tensor)
    return prints


class WithoutDropout(TorchFunctionMode):
    """Dropout gives its input, as in evaluation: what is compared draws other random numbers, or fewer."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return args[0] if func in DROPOUTS else func(*args, **(kwargs or {}))


DROPOUTS = (
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
)  # fmt: skip


def _optimizer(net: nn.Module) -> torch.optim.Optimizer | None:
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, lr=RATE) if trained else None


def fingerprint(tensor: Tensor) -> Tensor:
    """Some numbers of a tensor and its sum and size: a network of 500 MB is not kept three times."""
    numbers = tensor.detach()
    if numbers.is_complex():
        numbers = torch.view_as_real(numbers)
    numbers = numbers.flatten()
    size = numbers.float().norm() if numbers.is_floating_point() else numbers.abs().sum()
    some = numbers[:: max(1, len(numbers) // MOST)].double()
    return torch.cat([some, numbers.sum().double()[None], size.double()[None]])


def difference(expected: Fingerprint, actual: Fingerprint) -> str:
    """The first thing in which two behaviours differ, or nothing."""
    for name in sorted(expected.keys() ^ actual.keys()):
        return f"{name}, which {'the network' if name in expected else 'a stage'} alone has"
    for name, a in expected.items():
        b = actual[name]
        scale = a.double().abs().nan_to_num(0, 0, 0).amax().item() if a.numel() else 0
        if a.shape != b.shape or not torch.allclose(
            a.double(), b.double(), rtol=1e-4, atol=1e-5 * max(scale, 1e-3), equal_nan=True
        ):
            return name
    return ""
