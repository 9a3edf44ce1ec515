"""Names that lead out of the zoo: `torchvision:NAME`, `timm:NAME`, `package.module:callable`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from okdc.backbones.tracing import first_line
from okdc.errors import RecipeError, nearest

PREFIXES = ("torchvision:", "timm:")


def check(name: str) -> None:
    """Raises RecipeError for a name that leads to no network. Imports what the name names."""
    if name.startswith("torchvision:"):
        _check_torchvision(name.partition(":")[2])
    elif name.startswith("timm:"):
        _check_timm(name.partition(":")[2])
    else:
        _callable(name)


def _check_torchvision(name: str) -> None:
    import torchvision.models as models

    known = models.list_models(module=models)  # the classifiers; without `module` also detectors and the like
    if name not in known:
        raise RecipeError(
            f"torchvision has no classifier called {name!r}{nearest(name, known)}",
            hint='python -c "from torchvision import models; print(models.list_models(module=models))" lists them',
        )


def _check_timm(name: str) -> None:
    if importlib.util.find_spec("timm") is None:
        raise RecipeError(f"timm:{name} needs timm, which is not installed", hint="pip install 'okdc[timm]'")
    import timm

    if not timm.is_model(name):
        raise RecipeError(
            f"timm has no network called {name!r}{nearest(name, timm.list_models())}",
            hint='python -c "import timm; print(timm.list_models())" lists them',
        )


def _callable(name: str) -> Callable[[int], Any]:
    """`package.module:callable`, with the current folder first among those that Python looks in."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise RecipeError(
            f"{name!r} names no network", hint="expected package.module:callable, torchvision:NAME or timm:NAME"
        )
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = importlib.import_module(module)
    except Exception as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        missing = absent is not None and f"{module}.".startswith(f"{absent}.")  # it, or a package that it is in
        reason = f"there is no module {absent}" if missing else f"importing {module} raised {said(error)}"
        raise RecipeError(f"{name}: {reason}", hint=f"modules are looked for in {folder} first") from error
    function = getattr(found, attribute, None)
    if not callable(function):
        kind = f"is {type(function).__name__}, not callable" if hasattr(found, attribute) else "does not exist"
        there = [key for key, value in vars(found).items() if callable(value)]
        raise RecipeError(
            f"{name}: {attribute} {kind} in {found.__file__}{nearest(attribute, there)}",
            hint="expected a function or class that takes the number of classes and gives a torch.nn.Module",
        )
    return function  # type: ignore[no-any-return]


def bare_network(name: str, classes: int) -> nn.Module:
    """The network as its own library, or its own author, makes it."""
    source, _, rest = name.partition(":")
    try:
        with warnings.catch_warnings():
            if source in ("torchvision", "timm"):
                warnings.simplefilter("ignore")  # on initialisations that will change one day
            if source == "torchvision":
                from torchvision.models import get_model

                net = get_model(rest, weights=None, num_classes=classes)
            elif source == "timm":
                import timm

                net = timm.create_model(rest, pretrained=False, num_classes=classes)
            else:
                net = _callable(name)(classes)
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(f"{name}, called with {classes} classes, raised {said(error)}") from error
    if not isinstance(net, nn.Module):
        raise RecipeError(f"{name}({classes}): expected a torch.nn.Module, found {type(net).__name__}")
    return net


def said(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
