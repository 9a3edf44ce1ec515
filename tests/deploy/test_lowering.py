"""What is rewritten for an export gives the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from okdc.backbones.parts import PoolLinear
from okdc.blocks import MatrixPool
from okdc.cohort import Backbone
from okdc.deploy.lowering import plain


@pytest.mark.parametrize("target", [(7, 7), (1, 1), (3, 2), (5, 8)])
@pytest.mark.parametrize("size", [(2, 2), (1, 1), (4, 4), (7, 7), (13, 6), (8, 5)])
def test_matrices_pool_as_adaptive_average_pooling_does(size: tuple[int, int], target: tuple[int, int]) -> None:
    x = torch.randn(3, 5, *size)
    assert torch.allclose(MatrixPool(size, target)(x), nn.AdaptiveAvgPool2d(target)(x), atol=1e-6)


def network(target: object) -> Backbone:
    pool = nn.AdaptiveAvgPool2d(target)  # type: ignore[arg-type]
    stages = [nn.Conv2d(3, 4, 3, 2, 1), nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), pool)]
    return Backbone(stages, PoolLinear(8, 5), (4, 8), (2, 4)).eval()


@pytest.mark.parametrize(
    ("target", "replaced"), [(7, True), ((3, None), True), (1, False), ((2, 4), False), ((None, None), False)]
)
def test_only_a_pooling_that_does_not_divide_its_map_is_replaced(target: object, replaced: bool) -> None:
    before, images = network(target), torch.randn(2, 3, 16, 16)
    expected = before(images)
    after = plain(before, images)
    assert any(isinstance(module, MatrixPool) for module in after.modules()) == replaced
    assert torch.allclose(after(images), expected, atol=1e-6)
    assert torch.allclose(after(images[:1]), expected[:1], atol=1e-6), "any batch size"
