"""The zoo: every network that a recipe may name. Importing this imports no network."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from okdc.errors import RecipeError, nearest

if TYPE_CHECKING:
    from okdc.cohort import Backbone

# name -> "module:function", and what the function is called with before the number of classes
ZOO: dict[str, tuple[str, tuple[int, ...]]] = {
    f"resnet{depth}": ("okdc.backbones.resnet:cifar_resnet", (depth,)) for depth in (8, 14, 20, 32, 56, 110)
}


def check(name: str) -> None:
    """Raises RecipeError for a name that is not in the zoo."""
    if name not in ZOO:
        raise RecipeError(f"no network is called {name!r}{nearest(name, ZOO)}", hint="there is: " + ", ".join(ZOO))


def build(name: str, classes: int) -> Backbone:
    """A freshly initialised backbone with `classes` outputs, from the global generator."""
    check(name)
    target, arguments = ZOO[name]
    module, _, function = target.partition(":")
    network: Backbone = getattr(importlib.import_module(module), function)(*arguments, classes=classes)
    return network
