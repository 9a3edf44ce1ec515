"""Methods with networks take steps that a training would take, and shipped recipes take every method.

Every network is trained by FEFR, which asks most of its maps, and by two more methods, taken in turn. Deep networks and
those from outside are left to FEFR, unless tests may take long. All pairs, 210 at that time, were tried once, and
found no more than these.

Two steps of the optimiser at four images: losses are finite, and every student has moved.
"""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from asking import case
from byhand import batch, make, table
from torch import Tensor

from okdc import backbones, methods
from okdc.assembly import job as assembly
from okdc.assembly.resolve import resolve
from okdc.assembly.student import square
from okdc.cohort import Backbone
from okdc.recipe.draft import load
from okdc.training.optim import build_optimizer

# One of each kind of block and of joining that torchvision has, as small as it comes.
OUTSIDE = [
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "torchvision:efficientnet_b0",
    "torchvision:densenet121",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:regnet_y_400mf",
    "torchvision:convnext_tiny",
]
SLOW = ("torchvision:convnext_tiny", "torchvision:densenet121")
DEEP = (
    "resnet56",
    "resnet110",
    "wrn16_8",
    "wrn40_2",
    "densenet40_12_vanilla",
    "resnet34",
)  # more of the others' blocks


@pytest.fixture(autouse=True)
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network from outside is traced, cut and checked once, and copied for all methods: that takes a second each."""
    real = backbones.build

    def build(name: str, classes: int, images: torch.Size) -> Backbone:
        if name not in OUTSIDE:
            return real(name, classes, images)
        key = name, classes, images, torch.default_generator.initial_seed()  # a student's start is that of its place
        if key not in BUILT:
            while len(BUILT) >= 4:
                del BUILT[next(iter(BUILT))]
            BUILT[key] = real(name, classes, images)
        return copy.deepcopy(BUILT[key])

    monkeypatch.setattr(backbones, "build", build)


BUILT: dict[tuple[str, int, torch.Size, int], Backbone] = {}


def trains(name: str, network: str, size: int) -> None:
    images = torch.Size((3, size, size))
    # Branches of growing depth are for networks whose last stage is a chain of blocks.
    keys = {"aux": 0} if name == "ahbf" and network not in backbones.DEEPER else {}
    method = make(name, [network] * (1 if methods.find(name).single else 2), "low", images, **keys).train()
    optimizer = build_optimizer(method, table(name).recipe.optim)
    students = dict(method.cohort.named_parameters())
    before = {key: corner(p) for key, p in students.items()}
    for t in (0.0, 0.5):
        losses = method(batch(images), torch.tensor(t)).losses
        total = torch.stack(list(losses.values())).sum()
        assert torch.isfinite(total), {key: loss.item() for key, loss in losses.items()}
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        assert [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
        optimizer.step()
    assert torch.isfinite(torch.stack([p.detach().sum() for p in method.parameters()])).all()
    assert [key for key, p in students.items() if torch.equal(corner(p), before[key])] == []


def corner(p: Tensor) -> Tensor:
    """A few of its weights: copies of all take longer than the steps."""
    return p.detach().flatten()[:64].clone()


def pairs(networks: list[str]) -> list[tuple[str, str]]:
    """Each network with FEFR and with two of the others in turn."""
    others = itertools.cycle(name for name in methods.METHODS.own if name != "fefr")
    return [(network, method) for network in networks for method in ("fefr", next(others), next(others))]


@pytest.mark.parametrize(
    ("network", "method"),
    [
        case(network, method, long=method != "fefr" and network in DEEP)
        for network, method in pairs(list(backbones.NETWORKS.own))
    ],
)
def test_methods_train_every_network_of_the_zoo(network: str, method: str) -> None:
    trains(method, network, 16 if network in DEEP else 32)


@pytest.mark.parametrize(
    ("network", "method"),
    [case(network, method, long=method != "fefr" or network in SLOW) for network, method in pairs(OUTSIDE)],
)
def test_methods_train_networks_from_outside(network: str, method: str) -> None:
    trains(method, network, 64)


@pytest.mark.long
def test_a_head_of_a_hundred_million_weights_is_trained_too() -> None:
    """By one student: two of them take many seconds, nearly all of it to find the memory."""
    trains("baseline", "torchvision:vgg11_bn", 64)


# ---------------------------------------------------------------------------------------------------------------------
# Recipes


def words(recipe: str, method: str) -> list[str]:
    if method != "kd":
        return [recipe, f"method.name={method}"]
    return [recipe, "method.name=kd", "method.teacher=resnet8"]


@pytest.mark.parametrize("method", methods.METHODS.own)
@pytest.mark.parametrize("name", ["digits_resnet8", "cifar10_resnet20", "folder_resnet20"])
def test_a_shipped_recipe_takes_every_method(name: str, method: str) -> None:
    given = words(name, method)
    if method in ("one", "ahbf"):  # it stands on a trunk, and some recipes share none
        given.append("cohort.share=low")
    resolved = resolve(load(given), needs_data=False)
    recipe, images = resolved.recipe, square(resolved.recipe.data.image_size)
    assert recipe.method["name"] == method
    assembly.method(resolved, images, 10, backbones.build("resnet8", 10, images) if method == "kd" else None)
    keys = set(methods.find(method).Config.model_fields)
    assert set(recipe.method) <= keys
