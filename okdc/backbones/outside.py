"""Names that lead out of the zoo: `torchvision:NAME`, `timm:NAME`, `package.module:callable`."""

from __future__ import annotations

import importlib.util
import warnings

from torch import nn

from okdc.errors import RecipeError, nearest
from okdc.plugins import load as load_object
from okdc.plugins import one_line, working_directory_first

PREFIXES = ("torchvision:", "timm:")


def check(name: str) -> None:
    """Raises RecipeError for a name that leads to no network. Imports what the name names."""
    if name.startswith("torchvision:"):
        _check_torchvision(name.partition(":")[2])
    elif name.startswith("timm:"):
        _check_timm(name.partition(":")[2])
    else:
        load_object(name, RecipeError)


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
                with working_directory_first():  # it may import what lies beside it
                    net = load_object(name, RecipeError)(classes)
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(f"{name}, called with {classes} classes, raised {one_line(error)}") from error
    if not isinstance(net, nn.Module):
        raise RecipeError(f"{name}({classes}): expected a torch.nn.Module, found {type(net).__name__}")
    return net
