"""Multi-scale feature extraction (MFEF eq. 4 by its text) against loops, and its channels for any width."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from asking import tried
from byhand import array, exported, split_hierarchically
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from okdc.blocks import HierarchicalSplit
from okdc.cohort import count_macs, count_params


def conv(module: HierarchicalSplit, i: int) -> nn.Conv2d:
    found = module.get_submodule(f"convs.{i}.0")
    assert isinstance(found, nn.Conv2d)
    return found


def used(module: HierarchicalSplit, channels: int) -> HierarchicalSplit:
    """In eval mode, with batch statistics that have left 0 and 1."""
    torch.manual_seed(0)
    for _ in range(3):
        module(torch.randn(8, channels, 3, 3) + 0.3)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.5, 0.5)
    return module.eval()


@pytest.mark.parametrize(("channels", "groups"), [(64, 4), (12, 4), (13, 4), (7, 3), (4, 4), (9, 2), (33, 5)])
@pytest.mark.parametrize("training", [False, True])
def test_it_equals_a_slow_transcription(training: bool, channels: int, groups: int) -> None:
    module = used(HierarchicalSplit(channels, groups), channels).train(training)
    x = torch.randn(3, channels, 3, 4)
    convs = [module.get_submodule(f"convs.{i}") for i in range(groups - 1)]
    expected = split_hierarchically(array(x), convs, groups)
    assert expected.shape == (3, channels, 3, 4)
    np.testing.assert_allclose(array(module(x)), expected, atol=1e-5)


def test_64_channels_in_4_groups_cost_what_the_table_says() -> None:
    """14,680 parameters (3·3·(16² + 24² + 28²) and two for each of the 68 BatchNorm channels), 0.93 M MACs at 8×8."""
    module = HierarchicalSplit(64, 4).eval()
    assert count_params(module) == 14_680 == 9 * (16**2 + 24**2 + 28**2) + 2 * (16 + 24 + 28)
    assert count_macs(module, torch.zeros(1, 64, 8, 8)) == 930_816


@pytest.mark.parametrize(
    ("channels", "widths"),
    [
        (64, [16, 8, 12, 28]),
        (128, [32, 16, 24, 56]),
        (132, [33, 17, 25, 57]),  # odd halves: the larger goes out
        (320, [80, 40, 60, 140]),
        (512, [128, 64, 96, 224]),
    ],
)
def test_each_group_hands_out_as_many_channels_as_the_table_says(channels: int, widths: list[int]) -> None:
    module = HierarchicalSplit(channels, 4)
    inside = [conv(module, i).in_channels for i in range(3)]
    assert [conv(module, i).out_channels for i in range(3)] == inside
    group = channels // 4
    passed = [inside[1] - group, inside[2] - group, 0]  # what the next group gets on top of its own
    assert [group, *(a - b for a, b in zip(inside, passed, strict=True))] == widths == exported(channels, 4)


@tried
@given(st.integers(2, 9).flatmap(lambda p: st.tuples(st.just(p), st.integers(p, 70))))
def test_channels_are_conserved_for_any_width(sizes: tuple[int, int]) -> None:
    groups, channels = sizes
    module = HierarchicalSplit(channels, groups).eval()
    assert sum(exported(channels, groups)) == channels
    with torch.no_grad():
        assert module(torch.zeros(1, channels, 2, 2)).shape == (1, channels, 2, 2)


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_the_first_group_goes_out_untouched_and_no_group_sees_a_later_one(groups: int) -> None:
    channels = 12
    module = used(HierarchicalSplit(channels, groups), channels)
    x = torch.randn(2, channels, 3, 3)
    y, width = module(x), channels // groups
    assert torch.equal(y[:, :width], x[:, :width])
    starts = np.cumsum([0, *exported(channels, groups)])
    for i in range(groups):
        moved = x.clone()
        moved[:, i * width : (i + 1) * width] += 1
        changed = [
            not torch.equal(module(moved)[:, starts[j] : starts[j + 1]], y[:, starts[j] : starts[j + 1]])
            for j in range(groups)
        ]
        # the second group starts the chain: from there each passes on to all behind it
        assert changed == [j == i or (0 < i < j) for j in range(groups)]


def test_every_filter_is_used_and_learns() -> None:
    """The equation as printed leaves one half of each group unused."""
    module = HierarchicalSplit(64, 4)
    torch.manual_seed(0)
    (module(torch.randn(4, 64, 5, 5)) * torch.randn(4, 64, 5, 5)).sum().backward()
    for name, p in module.named_parameters():
        assert p.grad is not None
        filters = p.grad.flatten(1) if p.dim() > 1 else p.grad[:, None]
        assert (filters.abs().sum(1) > 0).all(), name


def test_it_leaves_its_input_as_it_is() -> None:
    x = torch.randn(2, 16, 3, 3)
    copy = x.clone()
    HierarchicalSplit(16, 4)(x)
    assert torch.equal(x, copy)


@pytest.mark.parametrize(("channels", "groups"), [(3, 4), (1, 2)])
def test_fewer_channels_than_groups_are_refused(channels: int, groups: int) -> None:
    with pytest.raises(ValueError, match=f"{channels} channels do not divide into {groups} groups"):
        HierarchicalSplit(channels, groups)
