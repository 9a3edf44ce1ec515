"""Networks that are not okdc's own: `torchvision:NAME`, `timm:NAME`, `package.module:callable`, entry points."""

from __future__ import annotations

import importlib.util
import warnings

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from okdc.backbones import NETWORKS
from okdc.errors import RecipeError, nearest, one_line
from okdc.plugins import working_directory_first

CALLED = "okdc calls it with the number of classes alone, and it returns a torch.nn.Module"


def check(name: str) -> None:
    """Raises RecipeError for a name that leads to no network. Imports the module or the library that holds it."""
    library, _, rest = name.partition(":")
    if library == "torchvision":
        _check_torchvision(rest)
    elif library == "timm":
        _check_timm(rest)
    else:
        NETWORKS.load(name)


def _check_torchvision(name: str) -> None:
    import torchvision.models as models

    classifiers = models.list_models(module=models)  # without `module` also detectors and the like
    if name not in classifiers:
        raise RecipeError(
            f"torchvision has no classifier called {name!r}{nearest(name, classifiers)}",
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
    """The network as its library, or its author, builds it, freshly initialised.

    Raises RecipeError where building it raises, or returns something else.
    """
    library, _, rest = name.partition(":")
    try:
        with warnings.catch_warnings():
            if library in ("torchvision", "timm"):
                warnings.simplefilter("ignore")  # both announce that an initialisation will change in a later version
            if library == "torchvision":
                from torchvision.models import get_model

                net = get_model(rest, weights=None, num_classes=classes)
            elif library == "timm":
                import timm

                net = timm.create_model(rest, pretrained=False, num_classes=classes)
            else:
                with working_directory_first():  # it may import what lies beside it
                    net = NETWORKS.load(name)(classes)
    except RecipeError:
        raise
    except Exception as error:
        hint = CALLED if isinstance(error, TypeError) else "it raises that without okdc as well"
        raise RecipeError(f"{name}, called with {classes} classes, raised {one_line(error)}", hint=hint) from error
    if not isinstance(net, nn.Module):
        raise RecipeError(f"{name}({classes}): expected a torch.nn.Module, found {type(net).__name__}", hint=CALLED)
    return net


@torch.no_grad()
def shapes(name: str, classes: int, images: torch.Size) -> dict[str, torch.Size]:
    """The shape of each tensor of the network's state_dict, by key. Raises RecipeError as `bare_network`."""
    net = bare_network(name, classes)
    if any(is_lazy(tensor) for tensor in (*net.parameters(), *net.buffers())):
        net.eval()(torch.zeros(1, *images))  # a pass gives lazy layers their sizes
    return {key: tensor.shape for key, tensor in net.state_dict().items()}
