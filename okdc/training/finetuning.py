"""Backbones that start from trained weights: fixed in the first epochs (`optim.freeze_epochs`), while all else learns.

What is fixed has no gradient: the optimiser passes it by, weight decay and momentum included. Its layers with running
statistics and its computed weights (spectral norm) are as in evaluation, so that those stay too. Any other buffer may
be a constant beside dropout: its module is left as it is, and the buffer is put back after each step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from okdc.assembly.beginnings import Finetuned


class Backbones:
    """All but the heads of the students that start from trained weights."""

    def __init__(self, students: Sequence[Finetuned]) -> None:
        """The modules are final: a batch normalisation that is synchronised is another one than before."""
        self.parameters: list[nn.Parameter] = []
        self._evaluating: list[nn.Module] = []
        self._iterations: list[tuple[SpectralNorm, int]] = []  # of torch.nn.utils.spectral_norm, which is a hook
        self._buffers: list[tuple[nn.Module, str]] = []
        self._kept: list[tuple[nn.Module, str, Tensor, Tensor]] = []  # while fixed: the buffer, and its value
        for student in students:
            head = {id(p) for p in student.head}
            self.parameters += [p for p in student.network.parameters() if p.requires_grad and id(p) not in head]
            for path, module in _modules(student):
                hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, SpectralNorm)]
                self._iterations += [(hook, hook.n_power_iterations) for hook in hooks]
                if isinstance(getattr(module, "running_mean", None), Tensor):
                    self._evaluating.append(module)
                    continue
                if isinstance(module, ParametrizationList):
                    self._evaluating += [m for m in module.modules() if m._buffers]
                names = {name: f"{path}.{name}".removeprefix(".") for name in module._buffers}
                self._buffers += [(module, name) for name in names if names[name] not in student.head_buffers]
        self.fixed = False

    def set(self, fixed: bool) -> bool:
        """Fix them for an epoch, or let them learn; the method is set to training. Returns whether that is new."""
        changed, self.fixed = fixed != self.fixed and bool(self.parameters), fixed
        for parameter in self.parameters:
            parameter.requires_grad_(not fixed)
        for hook, count in self._iterations:
            hook.n_power_iterations = 0 if fixed else count  # its module's mode may be that of a dropout, too
        if fixed:
            for module in self._evaluating:
                module.training = False  # of it alone: eval() would reach the layers inside it
        if not fixed:
            self._kept = []
        elif not self._kept:  # once: a recorded step reads these tensors in all epochs
            buffers = [(module, name, module._buffers[name]) for module, name in self._buffers]
            self._kept = [(module, name, b, b.detach().clone()) for module, name, b in buffers if b is not None]
        return changed

    @torch.no_grad()
    def put_back(self) -> None:
        """After a step's gradients: the buffers of what is fixed are what they were, where a forward changed them."""
        if self._kept:
            torch._foreach_copy_([buffer for *_, buffer, _ in self._kept], [value for *_, value in self._kept])
        for module, name, buffer, _ in self._kept:
            module._buffers[name] = buffer  # a forward may put another tensor in its place


def _modules(student: Finetuned) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a student by path, without those of its head."""
    head, inside = {id(p) for p in student.head}, set[int]()
    for module in student.network.modules():
        if any(id(p) in head for p in module.parameters(recurse=False)):
            inside |= {id(m) for m in (module.modules() if isinstance(module, ParametrizationList) else (module,))}
    return ((path, module) for path, module in student.network.named_modules() if id(module) not in inside)
