"""The zoo: every network that a recipe may name. Importing this imports no network.

A name is one of the zoo, or leads outside: `torchvision:NAME`, `timm:NAME`, `package.module:callable`. `NAME+msfe` is
any of them with MFEF's multi-scale feature extraction in its path, `NAME+msfe-da` the same without dual attention.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from okdc.errors import RecipeError, nearest

if TYPE_CHECKING:
    import torch

    from okdc.cohort import Backbone

# A network with MFEF's extraction in its path: with dual attention behind it, and without.
MSFE = {True: "+msfe", False: "+msfe-da"}

# name -> "module:function", and what the function is called with before the number of classes
ZOO: dict[str, tuple[str, tuple[int, ...]]] = {
    **{f"resnet{depth}": ("okdc.backbones.resnet:cifar_resnet", (depth,)) for depth in (8, 14, 20, 32, 56, 110)},
    "wrn16_1": ("okdc.backbones.wide_resnet:wide_resnet", (16, 1)),
    "wrn16_2": ("okdc.backbones.wide_resnet:wide_resnet", (16, 2)),
    "wrn40_2": ("okdc.backbones.wide_resnet:wide_resnet", (40, 2)),
    "densenet40_12": ("okdc.backbones.densenet:densenet_bc", (40, 12)),
    "densenet40_12_vanilla": ("okdc.backbones.densenet:densenet", (40, 12)),
    "mobilenetv2": ("okdc.backbones.mobilenet:mobilenetv2", ()),
    "resnet18": ("okdc.backbones.resnet:resnet", (18,)),
    "resnet34": ("okdc.backbones.resnet:resnet", (34,)),
}


def is_name(name: str) -> bool:
    """Whether it is written like the name of a network; `check` tells whether it leads to one."""
    bare, _ = _variant(name)
    return bare in ZOO or (":" in bare and not bare.startswith(":"))


def check(name: str) -> None:
    """Raises RecipeError for a name that leads to no network."""
    bare, _ = _variant(name)
    if bare in ZOO:
        return
    if ":" in bare:
        from okdc.backbones import adapters

        adapters.check(bare)
        return
    hint = f"there is: {', '.join(ZOO)}; torchvision:NAME, timm:NAME, package.module:callable; NAME+msfe"
    raise RecipeError(f"no network is called {name!r}{nearest(name, ZOO)}", hint=hint)


def build(name: str, classes: int, images: torch.Size) -> Backbone:
    """A freshly initialised backbone with `classes` outputs for images of CHW size, from the global generator.

    Raises RecipeError for a name that leads to no network, or to one that cannot be cut into stages.
    """
    check(name)
    bare, attention = _variant(name)
    if bare in ZOO:
        target, arguments = ZOO[bare]
        module, _, function = target.partition(":")
        network: Backbone = getattr(importlib.import_module(module), function)(*arguments, classes=classes)
    else:
        from okdc.backbones import adapters

        network = adapters.adapt(bare, classes, images)
        network.description = adapters.describe(network)
    if attention is not None:
        from okdc.backbones.msfe import with_extraction

        network = with_extraction(network, attention)
    network.architecture = name
    return network


def _variant(name: str) -> tuple[str, bool | None]:
    """The network's own name, and whether the extraction in its path has attention; None: there is none."""
    bare, plus, _ = name.rpartition("+")
    for attention, suffix in MSFE.items():
        if plus and name == bare + suffix:
            return bare, attention
    return name, None
