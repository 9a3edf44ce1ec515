"""What differs between training and evaluation, what is frozen in a forward, hooks, and state that a forward writes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from networks.trunk import CHANNELS, After, Trunk, block

# ---------------------------------------------------------------------------------------------------------------------
# Random numbers


def dropout2d(classes: int) -> nn.Module:
    return After(classes, nn.Dropout2d(0.3))


def alpha_dropout(classes: int) -> nn.Module:
    return After(classes, nn.AlphaDropout(0.2))


class _Dropout(Trunk):
    def pool(self, x: Tensor) -> Tensor:
        return F.dropout(super().pool(x), p=0.3, training=self.training)


def dropout_by_flag(classes: int) -> nn.Module:
    return _Dropout(classes)


class _DropoutAlways(Trunk):
    def pool(self, x: Tensor) -> Tensor:
        return F.dropout(super().pool(x), p=0.3)


def dropout_always(classes: int) -> nn.Module:
    """Random in evaluation too."""
    return _DropoutAlways(classes)


class _Noise(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + torch.randn_like(x) * 0.1
        return super().forward(x)


def noise_in_training(classes: int) -> nn.Module:
    return _Noise(classes)


# ---------------------------------------------------------------------------------------------------------------------
# Parts that are not trained


class _FrozenFront(nn.Module):
    """A front without gradients, whose BatchNorm stays in evaluation in either mode."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.front = block(3, 16)
        self.middle, self.last = block(16, 32, 2), block(32, CHANNELS, 2)
        self.fc = nn.Linear(CHANNELS, classes)
        for module in self.front.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.running_mean, 0.5)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> _FrozenFront:
        super().train(mode)
        self.front.train(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.front(x)
        logits: Tensor = self.fc(self.last(self.middle(x)).mean((2, 3)))
        return logits


def frozen_front(classes: int) -> nn.Module:
    return _FrozenFront(classes)


class _WithoutGradients(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        map_: Tensor = self.inner(x)
        return map_


def frozen_submodule(classes: int) -> nn.Module:
    """torch.no_grad() inside a module of the network."""
    network = Trunk(classes)
    network.stem = _WithoutGradients(network.stem)
    return network


class _Evaluated(nn.Sequential):
    """A part that is never in training mode."""

    def train(self, mode: bool = True) -> _Evaluated:  # noqa: ARG002
        super().train(False)
        return self


def frozen_batchnorm_in_submodule(classes: int) -> nn.Module:
    """A module's own train() keeps its BatchNorm in evaluation; its weights are trained."""
    network = Trunk(classes)
    network.middle = _Evaluated(*network.middle.children()).train()
    return network


class _Checkpointed(Trunk):
    def features(self, x: Tensor) -> Tensor:
        middle = checkpoint(self.middle, self.stem(x), use_reentrant=False)
        map_: Tensor = self.last(middle)
        return map_


def activation_checkpoint(classes: int) -> nn.Module:
    return _Checkpointed(classes)


# ---------------------------------------------------------------------------------------------------------------------
# Hooks


def hook_keeps(classes: int) -> nn.Module:
    """A hook that stores what a stage gives, in a list that grows."""
    network = Trunk(classes)
    stored: list[Tensor] = []
    network.last.register_forward_hook(lambda _module, _inputs, output: stored.append(output))
    return network


def hook_changes(classes: int) -> nn.Module:
    """A hook whose value takes the place of a stage's."""
    network = Trunk(classes)
    network.last.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    return network


def hook_before(classes: int) -> nn.Module:
    """A hook that changes what a stage is given."""
    network = Trunk(classes)
    network.middle.register_forward_pre_hook(lambda _module, inputs: (inputs[0] * 0.5,))
    return network


def hook_backward(classes: int) -> nn.Module:
    """A hook on gradients, which doubles them."""
    network = Trunk(classes)

    def double(_module: nn.Module, gradients: Any, _outputs: Any) -> Any:
        return tuple(gradient if gradient is None else 2 * gradient for gradient in gradients)

    network.last.register_full_backward_hook(double)
    return network


# ---------------------------------------------------------------------------------------------------------------------
# State


class _Counting(Trunk):
    seen: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += x.shape[0]
        return super().forward(x)


def counting_buffer(classes: int) -> nn.Module:
    return _Counting(classes)


class _Remembers(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        self.remembered = self.features(x)
        logits: Tensor = self.fc(self.pool(self.remembered))
        return logits


def features_on_self(classes: int) -> nn.Module:
    """The last map as an attribute after each forward."""
    return _Remembers(classes)


def in_evaluation(classes: int) -> nn.Module:
    """Handed over in evaluation mode."""
    return Trunk(classes).eval()
