"""The networks that a recipe may name. Importing this imports no network.

A name is okdc's own, or an installed package's (entry point group `okdc.networks`), or leads outside:
`torchvision:NAME`, `timm:NAME`, `package.module:callable`. `resnet32+4` is one of okdc's own with four more blocks in
its last stage (`DEEPER`). `NAME+msfe` is any of these with MFEF's multi-scale feature extraction behind its last stage,
`NAME+msfe-da` the same without dual attention. `NAME[KEY]` says which of a network's outputs are its logits,
`package.module:callable[logits]`: recipes say it by `cohort.output`. README.md is the guide to your own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from okdc.backbones.naming import MOST_ADDED, MSFE, Key, split_depth, split_output, variant
from okdc.errors import RecipeError
from okdc.plugins import Registry

if TYPE_CHECKING:
    import torch

    from okdc.cohort import Backbone

# Each is called with the number of classes and returns a Backbone.
NETWORKS = Registry(
    "network",
    "okdc.networks",
    {
        "resnet8": "okdc.backbones.resnet:resnet8",
        "resnet14": "okdc.backbones.resnet:resnet14",
        "resnet20": "okdc.backbones.resnet:resnet20",
        "resnet32": "okdc.backbones.resnet:resnet32",
        "resnet56": "okdc.backbones.resnet:resnet56",
        "resnet110": "okdc.backbones.resnet:resnet110",
        "wrn16_1": "okdc.backbones.wide_resnet:wrn16_1",
        "wrn16_2": "okdc.backbones.wide_resnet:wrn16_2",
        "wrn16_8": "okdc.backbones.wide_resnet:wrn16_8",
        "wrn40_2": "okdc.backbones.wide_resnet:wrn40_2",
        "densenet40_12": "okdc.backbones.densenet:densenet40_12",
        "densenet40_12_vanilla": "okdc.backbones.densenet:densenet40_12_vanilla",
        "mobilenetv2": "okdc.backbones.mobilenet:mobilenetv2",
        "resnet18": "okdc.backbones.resnet:resnet18",
        "resnet34": "okdc.backbones.resnet:resnet34",
    },
    RecipeError,
    outside="torchvision:NAME, timm:NAME, package.module:callable; any of them as NAME+msfe; resnet20+4 and the like",
)

# Whose last stage is a chain of equal blocks, so that NAME+N is the same network with N more of them. A layer more
# makes a DenseNet wider, and MobileNetV2's last stage has blocks of three widths.
DEEPER = tuple(name for name in NETWORKS.own if name.startswith(("resnet", "wrn")))


def is_name(name: str) -> bool:
    """Whether it is written like the name of a network; `check` tells whether there is such a network."""
    base, _ = split_output(split_depth(variant(name)[0])[0])
    return base in NETWORKS or (":" in base and not base.startswith(":"))


def is_proven(name: str) -> bool:
    """Whether it is okdc's own: that its export is the network, tests/deploy/test_every_network.py proves once for all.

    So for any number of classes and any size of image: no module of these networks decides by either.
    """
    return split_depth(variant(name)[0])[0] in NETWORKS.own


def check(name: str) -> None:
    """Raises RecipeError for a name that leads to no network."""
    base, key = split_output(variant(name)[0])
    if key is not None and split_depth(base)[1]:
        raise RecipeError(
            f"{name}: a network that okdc adds blocks to returns its logits alone", hint=f"without the key: {base}"
        )
    base, added = split_depth(variant(name)[0])
    if added:
        _check_deeper(base, added)
    base, _ = split_output(base)
    if ":" in base:
        from okdc.backbones import outside

        outside.check(base)
    elif base not in NETWORKS.own:
        NETWORKS.load(base)


def _check_deeper(base: str, added: int) -> None:
    name = f"{base}+{added}"
    if ":" not in base and split_output(base)[0] not in NETWORKS:
        NETWORKS.target(name)  # raises, and names the nearest
    if base not in DEEPER:
        raise RecipeError(
            f"{name}: okdc adds no blocks to the last stage of {base}",
            hint=f"NAME+N, N from 1 to {MOST_ADDED}, takes {', '.join(DEEPER)}",
        )


def with_output(name: str, key: Key | None) -> str:
    """The name of a network whose logits lie at `key`. okdc's own networks return nothing else than logits."""
    base, attention = variant(name)
    if key is None or is_proven(base) or split_output(base)[1] is not None:
        return name
    return f"{base}[{key}]" + ("" if attention is None else MSFE[attention])


def build(name: str, classes: int, images: torch.Size) -> Backbone:
    """A freshly initialised backbone with `classes` outputs for images of CHW size, from the global generator.

    Raises RecipeError for a name that leads to no network, or to one that cannot be cut into stages.
    """
    base, attention = variant(name)
    own = _own(base, classes)
    if own is not None:
        network = own
    else:
        from okdc.backbones import adapters

        network = adapters.adapt(base, classes, images)
    if attention is not None:
        from okdc.backbones.msfe import with_extraction

        network = with_extraction(network, attention)
    network.architecture = name
    return network


def shapes(name: str, classes: int, images: torch.Size) -> dict[str, torch.Size]:
    """The shape of each tensor of a network with so many outputs, by the names that its author gave them.

    Outputs that the stages leave out are among them, an extraction is not. Raises RecipeError as `build`.
    """
    import torch

    base, _ = variant(name)
    with torch.random.fork_rng(devices=[]):
        if (own := _own(base, classes)) is not None:
            return {key: tensor.shape for key, tensor in own.weights().items()}
        from okdc.backbones import outside

        return outside.shapes(split_output(base)[0], classes, images)


def _own(base: str, classes: int) -> Backbone | None:
    """A fresh network of okdc's own, named without MFEF's suffix; None for a name that leads outside.

    Raises RecipeError for blocks that are added to a network that takes none.
    """
    plain, added = split_depth(base)
    if added or split_depth(split_output(base)[0])[1]:
        check(base)
    if plain not in NETWORKS.own:
        return None
    network: Backbone = NETWORKS.load(plain)(classes, **({"added": added} if added else {}))
    return network
