"""Backbones that start from trained weights: fixed in the first epochs (`optim.freeze_epochs`), while all else learns.

What is fixed has no gradient: the optimiser passes it by, weight decay and momentum included. Its layers with running
statistics are in evaluation mode, so that those stay too. Dropout stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from okdc.assembly.beginnings import Finetuned


class Backbones:
    """All but the heads of the students that start from trained weights."""

    def __init__(self, students: Sequence[Finetuned]) -> None:
        """The modules are final: a batch normalisation that is synchronised is another one than before."""
        self.parameters: list[nn.Parameter] = []
        self._normalising: list[nn.Module] = []
        for student in students:
            head = {id(p) for p in student.head}
            self.parameters += [p for p in student.network.parameters() if p.requires_grad and id(p) not in head]
            for module in student.network.modules():
                statistics = isinstance(getattr(module, "running_mean", None), Tensor)
                if statistics and not any(id(p) in head for p in module.parameters(recurse=False)):
                    self._normalising.append(module)
        self.fixed = False

    def set(self, fixed: bool) -> bool:
        """Fix them for an epoch, or let them learn; the method is set to training. Returns whether that is new."""
        changed, self.fixed = fixed != self.fixed and bool(self.parameters), fixed
        for parameter in self.parameters:
            parameter.requires_grad_(not fixed)
        if fixed:
            for module in self._normalising:
                module.training = False  # of it alone: eval() would reach the layers inside it
        return changed
