"""What a network does in two training steps and an evaluation, as numbers that another can be compared by.

Two networks that share their parameters and buffers are compared one after the other: `behaviour` puts back what the
steps moved. Outputs alone would not do. A network that runs a part without gradients, or holds its batch statistics,
gives in one forward what a network gives that trains them.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from okdc.seeds import seeded

STEPS = 2
RATE = 0.01
MOST = 2048  # numbers of a tensor that are compared one by one, beside its sum and size

Fingerprint = dict[str, Tensor]  # by what it is of
EVALUATION, FROM_FILE = "the logits in evaluation", "the logits of the weights that it learned"


class State:
    """What a forward may change in a network: attributes of modules, modes and hooks among them, and tensors."""

    def __init__(self, net: nn.Module, tensors: bool = True) -> None:
        """`tensors=False` leaves out the values of parameters and buffers, which may be half a gigabyte."""
        self.attributes = [
            (module, {name: (value, _content(value)) for name, value in vars(module).items()})
            for module in net.modules()
        ]
        self.learning = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
        copied = (*net.parameters(), *net.buffers()) if tensors else ()
        self.tensors = [(tensor, tensor.detach().clone()) for tensor in copied]

    def restore(self) -> None:
        """Everything is what it was; gradients are gone."""
        for module, attributes in self.attributes:
            vars(module).clear()
            for name, (value, content) in attributes.items():
                vars(module)[name] = _without_history(value)
                if content is not None:
                    value.clear()
                    (value.update if isinstance(value, dict | set) else value.extend)(content)
        with torch.no_grad():
            for tensor, copied in self.tensors:
                tensor.copy_(copied)
        for parameter, learns in self.learning:
            parameter.grad = None
            parameter.requires_grad_(learns)

    def changed_number(self, modules: Collection[nn.Module]) -> tuple[nn.Module, str] | None:
        """The first of some modules that has another number or flag than before, and the name of the attribute."""
        for module, attributes in self.attributes:
            for name, after in vars(module).items() if module in modules else ():
                before = attributes[name][0] if name in attributes else getattr(type(module), name, None)
                plain = isinstance(before, int | float | str) and type(after) in (int, float, bool, str)
                if plain and after != before and name != "training":
                    return module, name
        return None


def _without_history(value: Any) -> Any:
    """A computed tensor, such as a weight norm's hook leaves, without its graph, which copy.deepcopy refuses."""
    return value.detach() if isinstance(value, Tensor) and not value.is_leaf else value


def _content(value: Any) -> Any:
    """A copy of what a container holds; None for anything else."""
    return copy.copy(value) if isinstance(value, dict | list | set | deque) else None


@contextmanager
def preserved(net: nn.Module, tensors: bool = True) -> Iterator[State]:
    """The network is what it was when the block ends, whatever a forward did; it yields the state before."""
    state = State(net, tensors)
    try:
        yield state
    finally:
        state.restore()


@contextmanager
def chance() -> Iterator[None]:
    """Draws of the block come from fixed states, of torch, Python and numpy; theirs are then as before."""
    before: Any = random.getstate(), np.random.get_state()
    try:
        with seeded(0, "behaviour"):
            random.seed(0)
            np.random.seed(0)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def behaviour(
    net: nn.Module, forward: Callable[[Tensor], Tensor], train: Callable[[bool], object], x: Tensor, classes: int
) -> Fingerprint:
    """Logits, gradients, parameters and buffers of STEPS steps of SGD on the images `x` (NCHW), then of an evaluation.

    Then once more the evaluation, with the weights learned and all else as it was: as a file of the weights would give
    it. `net` owns the tensors, `forward` gives the NK logits, `train` sets the mode. Raises what `forward` raises.
    """
    labels = torch.arange(len(x)) % classes
    prints: Fingerprint = {}
    with preserved(net) as start, chance(), torch.enable_grad():
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
            prints[EVALUATION] = forward(x[:1].clone()).clone()
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            prints[name] = fingerprint(tensor)
        weights = {key: tensor.clone() for key, tensor in net.state_dict().items()}
        start.restore()
        net.load_state_dict(weights)
        train(False)
        with torch.no_grad():
            prints[FROM_FILE] = forward(x[:1].clone()).clone()
    return prints


@torch.no_grad()
def random_in_evaluation(net: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether two evaluations of the images `x` (NCHW) differ, from one state of `net` and other random numbers."""
    answers = []
    with chance():
        for _ in range(2):
            with preserved(net):
                net.eval()
                answers.append(forward(x.clone()).clone())
    return not same(*answers)


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
    if numbers.layout != torch.strided:
        numbers = numbers.to_dense()
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
    return next((name for name, a in expected.items() if not same(a, actual[name])), "")


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two fingerprints, or two tensors of logits, are equal but for rounding."""
    scale = a.double().abs().nan_to_num(0, 0, 0).amax().item() if a.numel() else 0
    tolerance = 1e-5 * max(scale, 1e-3)
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=tolerance, equal_nan=True)
