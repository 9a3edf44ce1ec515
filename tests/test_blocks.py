"""Each block against explicit loops, in eval mode with batch statistics that have left their start."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from okdc.blocks import (
    ChannelAttention,
    DualAttention,
    OverallFusion,
    PatchConv,
    SpatialAttention,
    match,
    reordered,
    split_order,
)

Array = npt.NDArray[np.float64]


def used(module: nn.Module, *shapes: tuple[int, ...]) -> nn.Module:
    """The module after some training-mode passes, in eval mode: its batch statistics are no longer 0 and 1."""
    torch.manual_seed(0)
    for _ in range(5):
        maps = [torch.randn(8, *shape) + 0.3 for shape in shapes]
        module(maps) if len(maps) > 1 else module(*maps)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.5, 0.5)
    return module.eval()


def array(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy()


def normalised(x: Array, bn: nn.BatchNorm2d) -> Array:
    """x is NCHW."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    mean, var, weight, bias = (
        array(t)[None, :, None, None] for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
    )
    result: Array = (x - mean) / np.sqrt(var + bn.eps) * weight + bias
    return result


def convolved(x: Array, w: Array, stride: tuple[int, int], padding: int, groups: int = 1) -> Array:
    """A convolution by its definition: w is O, I/groups, K, L."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    n, _, height, width = x.shape
    outputs, inputs, kh, kw = w.shape
    oh, ow = (height - kh) // stride[0] + 1, (width - kw) // stride[1] + 1
    y = np.zeros((n, outputs, oh, ow))
    for o in range(outputs):
        first = (o // (outputs // groups)) * inputs
        for i in range(oh):
            for j in range(ow):
                seen = x[
                    :, first : first + inputs, i * stride[0] : i * stride[0] + kh, j * stride[1] : j * stride[1] + kw
                ]
                y[:, o, i, j] = (seen * w[o]).sum((1, 2, 3))
    return y


def sigmoid(x: Array) -> Array:
    result: Array = 1 / (1 + np.exp(-x))
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Matching


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((3, 8, 8), (5, 2, 2)),
        ((3, 4, 4), (5, 4, 4)),  # equal sizes: a 1×1 convolution
        ((3, 25, 25), (4, 13, 13)),  # 25 / 13 is no integer: one row and one column of zeros
        ((2, 50, 50), (4, 13, 13)),
        ((2, 9, 6), (3, 3, 3)),  # not square
    ],
)
def test_patch_conv_is_one_weighted_sum_for_each_patch(source: tuple[int, ...], target: tuple[int, ...]) -> None:
    module = used(PatchConv(torch.Size(source), torch.Size(target)), source)
    assert isinstance(module, PatchConv)
    x = torch.randn(2, *source)
    r = (math.ceil(source[1] / target[1]), math.ceil(source[2] / target[2]))
    assert module.conv.kernel_size == module.conv.stride == r
    full = np.zeros((2, source[0], r[0] * target[1], r[1] * target[2]))
    full[:, :, : source[1], : source[2]] = array(x)  # padded at the bottom and on the right alone
    assert module.bn is not None
    expected = np.maximum(normalised(convolved(full, array(module.conv.weight), r, 0), module.bn), 0)
    assert expected.shape[1:] == target
    np.testing.assert_allclose(array(module(x)), expected, atol=1e-5)
    linear = PatchConv(torch.Size(source), torch.Size(target), norm=False)
    assert linear.conv.bias is not None
    expected = convolved(full, array(linear.conv.weight), r, 0) + array(linear.conv.bias)[:, None, None]
    np.testing.assert_allclose(array(linear(x)), expected, atol=1e-5)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("kind", ["patch", "conv3x3_s2", "pool1x1"])
@pytest.mark.parametrize(("height", "out"), [(8, 2), (8, 8), (50, 13), (100, 25), (7, 4)])
def test_every_matching_reaches_the_size_and_ends_in_relu(kind: str, raw: bool, height: int, out: int) -> None:
    module = match(kind, torch.Size((3, height, height)), torch.Size((8, out, out)), raw)
    y = module(torch.randn(4, 3, height, height))
    assert y.shape == (4, 8, out, out)
    assert y.min() == 0
    assert y.max() > 0


@pytest.mark.parametrize("kind", ["patch", "conv3x3_s2", "pool1x1"])
@pytest.mark.parametrize(("height", "out"), [(8, 2), (8, 8), (50, 13)])
def test_a_matching_without_norm_is_affine_and_has_biases(kind: str, height: int, out: int) -> None:
    module = match(kind, torch.Size((3, height, height)), torch.Size((8, out, out)), norm=False)
    assert not [m for m in module.modules() if isinstance(m, nn.BatchNorm2d | nn.ReLU)]
    assert all(m.bias is not None for m in module.modules() if isinstance(m, nn.Conv2d))
    x, y = torch.randn(2, 4, 3, height, height)
    torch.testing.assert_close(module(x) + module(y), module(x + y) + module(torch.zeros_like(x)), atol=1e-5, rtol=1e-4)
    assert module(x).min() < 0


@pytest.mark.parametrize("kind", ["patch", "conv3x3_s2", "pool1x1"])
def test_a_raw_map_is_normalised_and_rectified_before_it_is_matched(kind: str) -> None:
    """A pre-activation network hands on residual sums (WRN); the weights meet BN-ReLU of them, not the sums."""
    plain, raw = (match(kind, torch.Size((3, 8, 8)), torch.Size((4, 4, 4)), flag) for flag in (False, True))
    assert isinstance(raw, nn.Sequential)
    used(raw, (3, 8, 8))
    bn = raw[0]
    assert isinstance(bn, nn.BatchNorm2d)
    raw[2:].train()
    plain.load_state_dict(
        {
            f"{int(k.split('.')[0]) - 2}.{k.partition('.')[2]}": v
            for k, v in raw.state_dict().items()
            if k[0] not in "01"
        }
    )
    x = 5 * torch.randn(6, 3, 8, 8) - 3
    ready = torch.from_numpy(np.maximum(normalised(array(x), bn), 0)).float()
    torch.testing.assert_close(raw(x), plain(ready), rtol=1e-4, atol=1e-5)


def test_pool1x1_averages_before_it_mixes_channels() -> None:
    module = used(match("pool1x1", torch.Size((3, 8, 8)), torch.Size((4, 2, 2))), (3, 8, 8))
    assert isinstance(module, nn.Sequential)
    conv, bn = module[1], module[2]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(bn, nn.BatchNorm2d)
    x = torch.randn(2, 3, 8, 8)
    averages = array(x).reshape(2, 3, 2, 4, 2, 4).mean((3, 5))
    expected = np.maximum(normalised(convolved(averages, array(conv.weight), (1, 1), 0), bn), 0)
    np.testing.assert_allclose(array(module(x)), expected, atol=1e-5)


def test_halving_takes_one_convolution_a_step_and_doubles_channels_up_to_the_target() -> None:
    module = match("conv3x3_s2", torch.Size((4, 32, 32)), torch.Size((10, 4, 4)))
    convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in convs] == [
        (4, 8, 3, 2),
        (8, 10, 3, 2),
        (10, 10, 3, 2),
    ]


def test_halving_past_the_target_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="9×9 past 4×4; use match='patch'"):
        match("conv3x3_s2", torch.Size((3, 9, 9)), torch.Size((4, 4, 4)))


def test_an_unknown_matching_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="patch, conv3x3_s2, pool1x1"):
        match("conv5x5", torch.Size((3, 8, 8)), torch.Size((4, 4, 4)))


# ---------------------------------------------------------------------------------------------------------------------
# Attention


@pytest.mark.parametrize(("channels", "reduction", "hidden"), [(64, 16, 4), (8, 16, 4), (64, 2, 32)])
def test_channel_attention_is_mfef_equations_5_and_6(channels: int, reduction: int, hidden: int) -> None:
    torch.manual_seed(1)
    module = ChannelAttention(channels, reduction)
    first, second = module.mlp[0], module.mlp[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    assert first.out_features == hidden
    x = torch.randn(2, channels, 3, 5)
    expected = array(x)
    for n in range(2):
        total = np.zeros(channels)
        for seen in (expected[n].mean((1, 2)), expected[n].max((1, 2))):
            between = np.maximum(array(first.weight) @ seen + array(first.bias), 0)
            total += array(second.weight) @ between + array(second.bias)
        for c in range(channels):
            expected[n, c] *= sigmoid(total)[c]
    np.testing.assert_allclose(array(module(x)), expected, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_spatial_attention_is_mfef_equations_7_and_8(kernel: int) -> None:
    module = used(SpatialAttention(kernel), (6, 5, 4))
    assert isinstance(module, SpatialAttention)
    assert isinstance(module.bn, nn.BatchNorm2d)
    x = torch.randn(2, 6, 5, 4)
    seen = np.stack([array(x).mean(1), array(x).max(1)], 1)
    weight = sigmoid(normalised(convolved(seen, array(module.conv.weight), (1, 1), kernel // 2), module.bn))
    np.testing.assert_allclose(array(module(x)), array(x) * weight, atol=1e-5)


def test_dual_attention_is_channels_first_then_places() -> None:
    module = used(DualAttention(8), (8, 4, 4))
    assert isinstance(module, DualAttention)
    x = torch.randn(2, 8, 4, 4)
    channel, spatial = module
    assert isinstance(channel, ChannelAttention)
    assert isinstance(spatial, SpatialAttention)
    assert torch.equal(module(x), spatial(channel(x)))
    assert not torch.allclose(module(x), channel(spatial(x)))


# ---------------------------------------------------------------------------------------------------------------------
# The fused classifier


def test_overall_fusion_is_depthwise_pointwise_average_linear() -> None:
    sizes = [torch.Size((4, 3, 3)), torch.Size((6, 3, 3))]
    module = used(OverallFusion(sizes, 10), *sizes)
    assert isinstance(module, OverallFusion)
    maps = [torch.randn(2, *size) for size in sizes]
    x = np.concatenate([array(m) for m in maps], 1)
    for block, padding, groups in ((module.depthwise, 1, 10), (module.pointwise, 0, 1)):
        conv, bn = block[0], block[1]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(bn, nn.BatchNorm2d)
        assert conv.bias is None
        x = np.maximum(normalised(convolved(x, array(conv.weight), (1, 1), padding, groups), bn), 0)
    assert x.shape[1] == 4  # the fewest channels of any student
    expected = x.mean((2, 3)) @ array(module.fc.weight).T + array(module.fc.bias)
    np.testing.assert_allclose(array(module(maps)), expected, atol=1e-5)


def test_overall_fusion_brings_maps_of_several_sizes_to_the_smallest() -> None:
    sizes = [torch.Size((4, 8, 8)), torch.Size((6, 3, 3)), torch.Size((5, 4, 3))]
    module = OverallFusion(sizes, 7)
    assert [isinstance(r, nn.Identity) for r in module.regressors] == [False, True, False]
    maps = [torch.randn(2, *size) for size in sizes]
    assert [r(m).shape[1:] for r, m in zip(module.regressors, maps, strict=True)] == [(4, 3, 3), (6, 3, 3), (5, 3, 3)]
    assert module(maps).shape == (2, 7)


def test_overall_fusion_gives_float32_under_autocast() -> None:
    sizes = [torch.Size((4, 3, 3))] * 2
    with torch.autocast("cpu", torch.bfloat16):
        assert OverallFusion(sizes, 10)([torch.randn(2, *s) for s in sizes]).dtype == torch.float32


def test_the_loops_above_convolve_as_torch_does() -> None:
    """The reference itself, checked once: a mistake in it could hide one in the blocks."""
    x, w = torch.randn(2, 4, 7, 6), torch.randn(6, 2, 3, 3)
    expected = F.conv2d(x.double(), w.double(), stride=2, padding=1, groups=2)
    np.testing.assert_allclose(convolved(array(x), array(w), (2, 2), 1, 2), expected.numpy(), atol=1e-10)


# ---------------------------------------------------------------------------------------------------------------------
# A hierarchical split without convolutions


def test_the_order_of_96_channels_in_4_groups_is_written_out_in_public_code() -> None:
    assert split_order(96, 4) == [(0, 24), (36, 48), (54, 72), (24, 36), (48, 54), (72, 96)]


@pytest.mark.parametrize(
    ("channels", "groups", "order"),
    [
        (8, 4, [0, 1, 3, 4, 5, 2, 6, 7]),  # A = 0 1, B = 2 3, C = 4 5, D = 6 7; of 2, then of 2 4 5, 2 is passed on
        (9, 3, [0, 1, 2, 4, 5, 3, 6, 7, 8]),
        (10, 4, [0, 1, 2, 4, 5, 6, 7, 3, 8, 9]),  # groups of 3, 3, 2, 2
        (6, 2, [0, 1, 2, 3, 4, 5]),
        (4, 4, [0, 1, 2, 3]),
    ],
)
def test_of_each_group_the_first_half_is_passed_on_and_the_second_goes_out(
    channels: int, groups: int, order: list[int]
) -> None:
    x = torch.arange(float(channels))[None, :, None, None].expand(2, channels, 2, 3)
    found = reordered(x, split_order(channels, groups))
    assert found[1, :, 1, 2].tolist() == order


@pytest.mark.parametrize("channels", [7, 48, 60, 96, 99, 192])
@pytest.mark.parametrize("groups", [2, 3, 4, 5, 7])
def test_it_is_a_permutation_that_leaves_the_first_group(channels: int, groups: int) -> None:
    order = [i for start, stop in split_order(channels, groups) for i in range(start, stop)]
    assert sorted(order) == list(range(channels))
    first = -(-channels // groups)
    assert order[:first] == list(range(first))
    assert (order == sorted(order)) is (groups == 2 or channels == groups)


def test_fewer_channels_than_groups_have_no_order() -> None:
    with pytest.raises(ValueError, match="3 channels do not divide into 4 groups"):
        split_order(3, 4)


def test_a_1x1_convolution_mixes_what_is_joined_into_the_widths_that_are_asked_for() -> None:
    sizes = [torch.Size((6, 4, 4)), torch.Size((10, 4, 4))]
    fusion = used(OverallFusion(sizes, 5, [3, 8]), *sizes)
    assert isinstance(fusion, OverallFusion)
    assert isinstance(fusion.premix, nn.Conv2d)
    assert (fusion.premix.in_channels, fusion.premix.out_channels, fusion.fc.in_features) == (16, 11, 3)
    assert fusion.premix.bias is not None
    maps = [torch.randn(2, *size) for size in sizes]
    mixed = np.einsum("oc,nchw->nohw", array(fusion.premix.weight)[:, :, 0, 0], array(torch.cat(maps, 1)))
    mixed += array(fusion.premix.bias)[:, None, None]
    behind = fusion.fc(fusion.pointwise(fusion.depthwise(torch.from_numpy(mixed).float())).mean((2, 3)))
    torch.testing.assert_close(fusion(maps), behind, rtol=1e-4, atol=1e-5)
    assert isinstance(OverallFusion(sizes, 5).premix, nn.Identity)
