"""Trained weights that torchvision and timm publish for their networks: what is known of them, and the tensors.

    timm:mobilenetv4_conv_small.e2400_r224_in1k      a network of timm and a tag; without a tag timm's default
    torchvision:ResNet18_Weights.IMAGENET1K_V1       a member of one of torchvision's enumerations

Each library loads its own weights, from its own cache or from the network. Nothing here is called unless a recipe, or
`okdc download weights`, asks for weights.
"""

from __future__ import annotations

import io
import logging
import math
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import getproxies

from torch import Tensor

from okdc.backbones.outside import check
from okdc.errors import DataError, RecipeError, nearest, one_line

CONNECT_S = 10  # seconds within which a server has to answer

# Built with weights these two take ImageNet's mean and deviation and turn them into a half: built without they do not.
HALF = ("torchvision:googlenet", "torchvision:inception_v3")

CENTER = "center"  # the crop that keeps the middle of an image

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Facts:
    """What is known of how weights were trained, and of the images that they answer. None or empty: it is not known."""

    size: int | None = None  # height and width of an image in pixels
    crop: float | None = None  # the share of the shorter side that the centre crop keeps
    mean: Colour | None = None  # of each channel, of pixels scaled to 0..1
    std: Colour | None = None
    interpolation: str = ""
    classes: int | None = None
    labels: tuple[str, ...] = ()  # in the order of the logits
    licence: str = ""  # as their library states it
    name: str = ""  # in full, as `find` takes it
    crop_mode: str = ""  # as timm says: center; squash, of the whole image; border, which pads it

    def shorter_side(self, size: int) -> int:
        """The pixels that the shorter side is resized to before the centre of `size` pixels is cut out."""
        return math.floor(size / (self.crop or 1.0) + 1e-6)


@dataclass(frozen=True)
class Pretrained:
    """Weights by their full name."""

    name: str  # timm:NETWORK.TAG, or torchvision:ENUMERATION.MEMBER
    network: str  # the network that they are of: timm:NETWORK, torchvision:NETWORK
    facts: Facts

    @property
    def file(self) -> str:
        """The name of a file that holds them."""
        return f"{self.name.partition(':')[2]}.safetensors"

    def load(self) -> dict[str, Tensor]:
        """The state_dict of the network, by its library's own loader.

        Raises DataError where the weights are not on this machine and cannot be downloaded, or are damaged.
        """
        library, _, rest = self.name.partition(":")
        try:
            with _quiet():
                if library == "torchvision":
                    from torchvision.models import get_weight

                    return dict(get_weight(rest).get_state_dict(progress=False, check_hash=True))
                return _from_timm(rest)
        except Exception as error:  # each library and each client of a network has errors of its own
            if isinstance(error, HTTPError):
                error.close()
            raise DataError(
                f"{self.name}: these weights are not on this machine, and {library} cannot load them: {one_line(error)}"
            ) from error


def _from_timm(name: str) -> dict[str, Tensor]:
    """The cache first: its client asks the network for a newer file, and without one it tries for most of a minute."""
    import timm
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        constants.HF_HUB_OFFLINE = True
        try:
            return dict(timm.create_model(name, pretrained=True).state_dict())
        except OSError:  # the client's error for a file that the cache lacks
            pass
        finally:
            constants.HF_HUB_OFFLINE = False
        _reach(constants.ENDPOINT)
    return dict(timm.create_model(name, pretrained=True).state_dict())


def _reach(endpoint: str) -> None:
    """Raises OSError where a server does not answer. Behind a proxy nobody but the client can ask."""
    address = urlsplit(endpoint)
    if address.hostname and not getproxies():
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname, port), timeout=CONNECT_S).close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars, lines and warnings of the libraries' loaders: okdc says itself what it loads."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def split_tag(name: str) -> tuple[str, str]:
    """A network of timm without the tag of its weights, and the tag; empty where there is none."""
    network, dot, tag = name.partition(".")
    return (network, tag) if dot and name.startswith("timm:") else (name, "")


def is_name(value: str) -> bool:
    """Whether it is written like the name of a library's weights, and not like a path."""
    return value.startswith(("timm:", "torchvision:"))


def default(network: str) -> Pretrained:
    """The weights that its library takes for a network where no others are named.

    Raises RecipeError for a network without any.
    """
    if network.startswith("timm:"):
        return _of_timm(network)
    if network.startswith("torchvision:"):
        import torchvision.models as models

        check(network)
        return _of_torchvision(models.get_model_weights(network.partition(":")[2]).DEFAULT, network)
    raise RecipeError(
        f"nobody publishes weights of {network}",
        hint="a file, cohort.weights=PATH.safetensors; or the student of a run, cohort.weights=runs/NAME",
    )


def find(name: str) -> Pretrained:
    """The weights called `name`; of a network's name the default ones. Raises RecipeError that names the nearest."""
    if name.startswith("timm:"):
        return _of_timm(name)
    import torchvision.models as models

    enumeration, _, member = name.removeprefix("torchvision:").partition(".")
    kinds = {
        models.get_model_weights(network).__name__: network for network in reversed(models.list_models(module=models))
    }
    if enumeration in kinds.values():
        return default(name)
    if enumeration not in kinds:
        raise RecipeError(
            f"torchvision has no weights called {name.removeprefix('torchvision:')!r}{nearest(enumeration, kinds)}",
            hint="as torchvision writes them: torchvision:ResNet18_Weights.IMAGENET1K_V1",
        )
    kind = models.get_model_weights(kinds[enumeration])
    if member not in kind.__members__:
        raise RecipeError(
            f"torchvision's {enumeration} has no {member!r}{nearest(member, kind.__members__)}",
            hint=f"there is: {', '.join(kind.__members__)}",
        )
    return _of_torchvision(kind[member], f"torchvision:{kinds[enumeration]}")


def _of_torchvision(weights: Any, network: str) -> Pretrained:
    rule, meta = weights.transforms(), weights.meta
    resized, cropped = getattr(rule, "resize_size", None), getattr(rule, "crop_size", None)
    labels = tuple(meta.get("categories", ()))
    name = f"torchvision:{weights}"
    facts = Facts(
        name=name,
        size=cropped[0] if cropped else None,
        crop=cropped[0] / resized[0] if cropped and resized else None,
        mean=(0.5, 0.5, 0.5) if network in HALF else _colour(getattr(rule, "mean", None)),
        std=(0.5, 0.5, 0.5) if network in HALF else _colour(getattr(rule, "std", None)),
        interpolation=str(getattr(getattr(rule, "interpolation", None), "value", "")),
        classes=len(labels) or None,
        labels=labels,
        licence=str(meta.get("license", "")),
        crop_mode=CENTER if cropped else "",
    )
    return Pretrained(name, network, facts)


def _of_timm(name: str) -> Pretrained:
    network, tag = split_tag(name)
    check(network)
    import timm
    from timm.models import get_pretrained_cfg

    bare = network.removeprefix("timm:")
    try:
        config = get_pretrained_cfg(name.removeprefix("timm:"))
    except RuntimeError:
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{bare}.*")]
        raise RecipeError(
            f"timm has no weights {tag!r} of {network}{nearest(tag, tags)}",
            hint=f"there is: {', '.join(f'timm:{bare}.{tag}' for tag in tags)}" if tags else "train it: no weights",
        ) from None
    if config is None or not config.has_weights:
        raise RecipeError(f"timm publishes no weights of {network}", hint=f"timm.list_pretrained({bare!r}) lists them")
    full = f"{network}.{config.tag}" if config.tag else network
    channels, height, width = config.input_size
    facts = Facts(
        name=full,
        size=height if height == width else None,
        crop=config.crop_pct,
        mean=_colour(config.mean) if channels == 3 else None,
        std=_colour(config.std) if channels == 3 else None,
        interpolation=config.interpolation,
        classes=config.num_classes or None,
        labels=tuple(config.label_names or ()),
        licence=config.license or "",
        crop_mode=config.crop_mode or "",
    )
    return Pretrained(full, network, facts)


def _colour(values: Any) -> Colour | None:
    if values is None or len(values) != 3:
        return None
    first, second, third = map(float, values)
    return first, second, third


def facts_of(tables: Mapping[str, Any]) -> Facts:
    """What `vars` of Facts gave, after JSON. Raises TypeError or ValueError for anything else."""
    return Facts(
        **{
            **tables,
            "mean": _colour(tables.get("mean")),
            "std": _colour(tables.get("std")),
            "labels": tuple(tables.get("labels", ())),
            "crop_mode": str(tables.get("crop_mode", "")),
        }
    )
