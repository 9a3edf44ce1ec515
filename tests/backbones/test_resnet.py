from __future__ import annotations

import pytest
import torch
from torch import nn

from okdc import backbones
from okdc.backbones.resnet import cifar_resnet
from okdc.cohort import Cohort


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("depth", "classes", "parameters"),
    [
        (8, 10, 78_042),
        (14, 10, 175_258),
        (20, 10, 272_474),
        (20, 100, 278_324),
        (32, 10, 466_906),
        (32, 100, 472_756),
        (56, 10, 855_770),
        (56, 100, 861_620),
        (110, 10, 1_730_714),
        (110, 100, 1_736_564),
    ],
)
def test_parameter_counts_are_those_of_the_papers_baselines(depth: int, classes: int, parameters: int) -> None:
    assert count(cifar_resnet(depth, classes)) == parameters
    assert count(backbones.build(f"resnet{depth}", classes, torch.Size((3, 32, 32)))) == parameters


@pytest.mark.parametrize("depth", [-4, 0, 2, 7, 9, 18, 34, 51])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="6n\\+2"):
        cifar_resnet(depth, 10)


def test_the_stages_and_the_head_in_order_are_the_forward() -> None:
    network = cifar_resnet(14, 10).eval()
    images = torch.randn(3, 3, 16, 16)
    x = images
    for stage in network.stages:
        x = stage(x)
    assert torch.equal(network.head(x), network(images))
    assert network(images).shape == (3, 10)


@pytest.mark.parametrize("depth", [8, 20])
def test_channels_and_strides_are_what_an_image_shows(depth: int) -> None:
    network = cifar_resnet(depth, 10)
    (maps,) = Cohort([network]).probe(torch.Size((3, 32, 32)))
    assert network.channels == tuple(size[0] for size in maps) == (16, 16, 32, 64)
    assert network.strides == tuple(32 // size[1] for size in maps) == (1, 1, 2, 4)
    assert network.raw == (False,) * 4


def test_convolutions_start_with_the_deviation_of_he_et_al_by_outputs() -> None:
    torch.manual_seed(0)
    for name, module in cifar_resnet(20, 10).named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5_000:
            expected = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05), name
            assert module.weight.mean().item() == pytest.approx(0, abs=expected / 20), name


def test_a_block_leaves_its_input_and_its_own_maps_alone() -> None:
    """Later modules tap these maps; an in-place ReLU would change what they see."""
    network = cifar_resnet(8, 10).train()
    x = torch.randn(2, 3, 8, 8)
    seen = []
    for stage in network.stages:
        x = stage(x)
        seen.append((x, x.detach().clone()))
    network.head(x)
    assert all(torch.equal(x, copy) for x, copy in seen)
