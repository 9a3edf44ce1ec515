"""Counting: the published numbers, to the unit, and no silent zero."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from okdc import backbones
from okdc.deploy.count import count
from okdc.errors import CheckFailed

IMAGE = torch.zeros(1, 3, 32, 32)

MACS = {
    "resnet8": 12_501_632,
    "resnet14": 26_657_408,
    "resnet20": 40_813_184,
    "resnet32": 69_124_736,
    "resnet56": 125_747_840,
    "resnet110": 253_149_824,
}


@pytest.mark.parametrize(("name", "macs"), MACS.items())
def test_macs_are_the_published_ones(name: str, macs: int) -> None:
    counts = count(backbones.build(name, 10, torch.Size((3, 32, 32))), IMAGE)
    assert (counts.macs, counts.flops) == (macs, 2 * macs)
    assert counts.fvcore_total > macs, "fvcore adds BatchNorm and pooling"
    assert not counts.uncounted


def test_counts_are_of_one_image_and_split_by_stage() -> None:
    counts = count(backbones.build("resnet8", 10, torch.Size((3, 32, 32))), IMAGE)
    parts = [counts.modules[name] for name in ("stages.0", "stages.1", "stages.2", "stages.3", "head")]
    assert sum(parts) == counts.macs
    assert counts.params == 78_042


def test_the_counted_module_is_left_as_it_was() -> None:
    network = backbones.build("resnet8", 10, torch.Size((3, 32, 32))).train()
    before = copy.deepcopy(network.state_dict())
    count(network, IMAGE)
    assert network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.project(x.flatten(2).transpose(1, 2))
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


def test_attention_makes_the_count_a_lower_bound() -> None:
    counts = count(_Attention(), IMAGE)
    assert counts.macs == 32 * 32 * 9, "the projection alone"
    assert counts.uncounted == ("aten::scaled_dot_product_attention",)


class _Elementwise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,nchw->nchw", x, x)  # fvcore counts every einsum, torch sees no matrix product here


def test_counters_that_disagree_are_an_error_not_a_number() -> None:
    with pytest.raises(CheckFailed, match="FlopCounterMode 0") as caught:
        count(_Elementwise(), IMAGE)
    assert (caught.value.kind, caught.value.exit_code) == ("counting", 1)


class _MatrixVector(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[0, 0] @ x[0, 0, 0]


def test_a_network_that_fvcore_falls_over_is_an_error_that_says_so() -> None:
    with pytest.raises(CheckFailed, match="fvcore cannot count"):
        count(_MatrixVector(), IMAGE)
