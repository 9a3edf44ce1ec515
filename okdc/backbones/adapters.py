"""Networks that are not okdc's own as backbones: `torchvision:NAME`, `timm:NAME`, `package.module:callable`.

An adapted network keeps its modules, its initialisation and its keys. Each time a network is adapted, a few images
check that its stages compute what it computes, in training and in evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from okdc.backbones.cutting import Cut, clone_first, cut, out_of_place
from okdc.backbones.maps import Plan
from okdc.backbones.outside import bare_network, check
from okdc.backbones.tracing import CannotCut, trace
from okdc.cohort import Backbone
from okdc.errors import RecipeError, by, one_line
from okdc.plugins import no_exit

_CONVOLUTIONAL = "a convolutional network, whose blocks hand on NCHW maps, such as torchvision:resnet18"


class Adapted(Backbone):
    """A foreign network in stages. `cuts` says where each stage ends; `weights` has the names of the bare network."""

    def __init__(
        self, stages: Sequence[fx.GraphModule], head: fx.GraphModule, cuts: Sequence[Cut], images: torch.Size
    ) -> None:
        strides = [max(1, round(images[1] / cut.size[1])) for cut in cuts]
        super().__init__(stages, head, [cut.size[0] for cut in cuts], strides, [cut.raw for cut in cuts])
        self.cuts = tuple(cuts)
        self.description = ", ".join(f"{cut.after} {'×'.join(map(str, cut.size))}" for cut in cuts)

    def weights(self) -> dict[str, Tensor]:
        """The bare network's state_dict."""
        return {_bare(key): tensor for key, tensor in self.state_dict().items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take a state_dict of the bare network. Raises RuntimeError with the names that are missing or too many."""
        keys = {_bare(key): key for key in self.state_dict()}
        missing, unexpected = sorted(keys.keys() - weights.keys()), sorted(weights.keys() - keys.keys())
        if missing or unexpected:
            raise RuntimeError(f"missing keys: {missing or 'none'}; unexpected keys: {unexpected or 'none'}")
        self.load_state_dict({keys[name]: tensor for name, tensor in weights.items()}, strict=True)


def _bare(key: str) -> str:
    """stages.3.layer2.0.conv1.weight -> layer2.0.conv1.weight"""
    return key.split(".", 2)[2] if key.startswith("stages.") else key.removeprefix("head.")


def adapt(name: str, classes: int, images: torch.Size) -> Backbone:
    """A freshly initialised network with `classes` outputs for images of CHW size `images`, from the global generator.

    A network that is a Backbone already is returned as it is. Raises RecipeError, with the reason, where the name leads
    to no network, or the network cannot become stages.
    """
    check(name)
    with no_exit(name, RecipeError):
        return _adapt(name, classes, images)


def _adapt(name: str, classes: int, images: torch.Size) -> Backbone:
    net = bare_network(name, classes)
    with torch.random.fork_rng(devices=[]):
        _check_output(name, net, classes, images)
        if isinstance(net, Backbone):
            return net.train()
        try:
            plan = Plan(*trace(net), images)
            stages, head, cuts = cut(plan)
            adapted = Adapted(stages, head, cuts, images)
            _check_equal(net, adapted, images)
        except CannotCut as error:
            raise RecipeError(f"{name} cannot be cut into stages: {error}", hint=f"use {_CONVOLUTIONAL}") from None
    return adapted.train()


@torch.no_grad()
def _check_output(name: str, net: nn.Module, classes: int, images: torch.Size) -> None:
    """One image gives 1×K logits. Its pass also gives lazy layers their sizes. Raises RecipeError otherwise."""
    size = by(images)
    try:
        logits = net.eval()(_probe(1, images))
    except Exception as error:
        raise RecipeError(
            f"{name} does not take an image of {size}: {one_line(error)}",
            hint=f"set data.image_size to the size that the network was made for, or use {_CONVOLUTIONAL}",
        ) from error
    output = by(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    if not isinstance(logits, Tensor) or logits.shape != (1, classes):
        raise RecipeError(
            f"{name}: expected logits of 1×{classes} for one image, found {output}",
            hint="the callable gets the number of classes, and its network returns one tensor of logits",
        )


@torch.no_grad()
def _check_equal(net: nn.Module, adapted: Adapted, images: torch.Size) -> None:
    """The stages in a row compute what the network computes, in both modes, and no stage writes into its input.

    Stages and network are the same modules, so each pass restores the batch statistics. Raises CannotCut.
    """
    parts = [part for part in (*adapted.stages, adapted.head) if isinstance(part, fx.GraphModule)]
    for part in parts:
        out_of_place(part)
    for training in (False, True):
        x = _probe(2 if training else 1, images)
        net.train(training)
        adapted.train(training)
        try:
            expected, _ = _pass(net, [net], x)
        except Exception as error:
            raise CannotCut(f"in training it raised {one_line(error)}") from error
        actual, writing = _pass(net, parts, x)
        if writing:
            for i in writing:
                clone_first(parts[i])
            actual, _ = _pass(net, parts, x)
        for a, b in zip(expected, actual, strict=True):
            if not torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True):
                mode = "training" if training else "evaluation"
                raise CannotCut(
                    f"its stages compute something else than the network in {mode}: its forward keeps state, or "
                    "decides by what tracing does not show"
                )


def _pass(net: nn.Module, parts: Sequence[nn.Module], x: Tensor) -> tuple[list[Tensor], list[int]]:
    """The logits and then the buffers of `net` after the pass; the indices of the parts that write into their input.

    The buffers of `net` are restored.
    """
    before = [buffer.clone() for buffer in net.buffers()]
    torch.default_generator.manual_seed(0)
    writing = []
    x = x.clone()
    for i, part in enumerate(parts):
        version = x._version  # counts the writes into a tensor
        y = part(x)
        if x._version != version:
            writing.append(i)
        x = y
    after = [buffer.clone() for buffer in net.buffers()]
    for buffer, value in zip(net.buffers(), before, strict=True):
        buffer.copy_(value)
    return [x, *after], writing


def _probe(count: int, images: torch.Size) -> Tensor:
    return torch.randn(count, *images, generator=torch.Generator().manual_seed(0))
