"""What is faster on a CPU is the same mathematics, under the same names, and leaves no trace in a graph."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from harness import digest
from torch import Tensor, fx, nn

from okdc.backbones.mobilenet import mobilenetv2
from okdc.backbones.resnet import cifar_resnet
from okdc.blocks import PatchConv
from okdc.kernels import Depthwise, Patches, for_bfloat16, global_average

CASES = {  # kernel, stride, pixels -> whether oneDNN has a bfloat16 kernel
    "3x3": ((3, 1, 8), True),
    "1x1": ((1, 1, 8), True),
    "3x3 of the map's size": ((3, 1, 3), True),
    "stride": ((3, 2, 8), False),
    "5x5": ((5, 1, 8), False),
    "larger than the map": ((3, 1, 2), False),
}


def convolution(kernel: int, stride: int, channels: int = 8) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels)


def images(pixels: int, channels: int = 8) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, channels, pixels, pixels).contiguous(memory_format=torch.channels_last)


def gradients(network: nn.Module, x: Tensor, autocast: bool = True) -> list[Tensor]:
    """The output and the gradients of the input and of every weight."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = network(x)
    y.float().square().sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad for p in network.parameters() if p.grad is not None)]


@pytest.mark.parametrize(("shape", "expected"), CASES.values(), ids=CASES)
def test_a_slow_one_is_computed_in_float32_and_handed_on_in_bfloat16(
    shape: tuple[int, int, int], expected: bool
) -> None:
    kernel, stride, pixels = shape
    conv, x = convolution(kernel, stride), images(pixels)
    plain = copy.deepcopy(conv)
    assert for_bfloat16(conv) == [conv]
    assert isinstance(conv, Depthwise)
    assert conv.has_kernel(x) is expected
    found, before, exact = gradients(conv, x), gradients(plain, x), gradients(convolution(kernel, stride), x, False)
    assert found[0].dtype == torch.bfloat16
    for a, b, c in zip(found, before, exact, strict=True):
        torch.testing.assert_close(a.float(), c, rtol=2e-2, atol=0.02 * float(c.abs().max()))
        assert not expected or torch.equal(a, b)
    if not expected:
        assert torch.equal(found[0], exact[0].bfloat16())


@pytest.mark.parametrize(("shape", "expected"), CASES.values(), ids=CASES)
def test_without_autocast_nothing_changes(shape: tuple[int, int, int], expected: bool) -> None:  # noqa: ARG001
    kernel, stride, pixels = shape
    conv, plain = convolution(kernel, stride), convolution(kernel, stride)
    for_bfloat16(conv)
    for a, b in zip(gradients(conv, images(pixels), False), gradients(plain, images(pixels), False), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_only_depthwise_convolutions_are_touched() -> None:
    network = nn.Sequential(
        nn.Conv2d(8, 8, 3, 2), nn.Conv2d(8, 8, 3, 2, groups=4), nn.Conv2d(8, 16, 3, 2, groups=8), nn.Conv2d(1, 8, 3, 2)
    )
    assert for_bfloat16(network) == [network[2]]
    assert [type(module) for module in network] == [nn.Conv2d, nn.Conv2d, Depthwise, nn.Conv2d]


def test_names_weights_and_copies_are_as_before() -> None:
    plain = mobilenetv2(10)
    network = copy.deepcopy(plain)
    assert len(for_bfloat16(network)) == 17
    assert digest(network.state_dict()) == digest(plain.state_dict())
    other = copy.deepcopy(network)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    x = images(16, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert not other.eval()(x).any()  # a copy runs with its own weights
        assert network.eval()(x).any()


def test_it_is_pickled_exported_and_read_by_torch_fx_as_any_other() -> None:
    network = mobilenetv2(10)
    assert len(for_bfloat16(network)) == 17
    x = images(16, 3)
    expected = network.eval()(x)
    stored = pickle.loads(pickle.dumps(network))
    for copied in (stored, fx.symbolic_trace(network), torch.export.export(network, (x,)).module()):
        torch.testing.assert_close(copied(x), expected)
    nn.init.zeros_(next(network.parameters()))
    torch.testing.assert_close(stored(x), expected)  # it has weights of its own


def test_it_is_traced_in_one_graph() -> None:
    torch._dynamo.reset()
    network = nn.Sequential(convolution(3, 2), nn.ReLU(), convolution(3, 1))
    for_bfloat16(network)
    eager = gradients(network, images(8))
    network.zero_grad()
    run: nn.Module = torch.compile(network, backend="eager", fullgraph=True)  # type: ignore[assignment]
    for a, b in zip(eager, gradients(run, images(8)), strict=True):
        assert torch.equal(a, b)


class Padded(nn.Conv2d):
    """As timm's Conv2dSame: a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


def test_a_convolution_with_a_forward_of_its_own_keeps_it() -> None:
    network = nn.Sequential(Padded(8, 8, 3, 2, groups=8), Padded(8, 8, 2, 2, bias=False))
    assert for_bfloat16(network) == []
    assert {type(module) for module in network} == {Padded}


# ---------------------------------------------------------------------------------------------------------------------
# Patches


@pytest.mark.parametrize(
    ("source", "target"), [((6, 8, 12), (10, 2, 3)), ((5, 25, 25), (4, 13, 13)), ((7, 4, 4), (2, 2, 2))]
)
def test_patches_as_a_matrix_product_are_the_convolution(
    source: tuple[int, int, int], target: tuple[int, int, int]
) -> None:
    """Values, gradients and how they lie in memory, on which the fused optimiser depends."""
    block = PatchConv(torch.Size(source), torch.Size(target)).to(memory_format=torch.channels_last)
    rows, columns = block.conv.kernel_size
    x = torch.randn(4, source[0], rows * target[1], columns * target[2]).to(memory_format=torch.channels_last)
    found = []
    (conv,) = for_bfloat16(block)
    assert isinstance(conv, Patches)
    for way in (conv.product, conv):
        leaf = x.clone().requires_grad_()
        block.zero_grad()
        y = way(leaf)
        (y * torch.arange(y.numel()).view(y.shape).sin()).sum().backward()
        assert leaf.grad is not None
        assert conv.weight.grad is not None
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert conv.weight.grad.stride() == conv.weight.stride()
        found.append((y, leaf.grad, conv.weight.grad.clone()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_patches_are_a_matrix_product_under_autocast_alone_and_where_they_cover_the_map() -> None:
    conv = nn.Conv2d(6, 4, 4, 4, bias=False)
    for_bfloat16(conv)
    assert isinstance(conv, Patches)
    with mock.patch.object(conv, "product", wraps=conv.product) as product:
        assert conv(torch.randn(2, 6, 8, 8)).dtype == torch.float32
        with torch.autocast("cpu"):
            assert conv(torch.randn(2, 6, 10, 10)).shape == (2, 4, 2, 2)
            assert not product.called
            assert conv(torch.randn(2, 6, 8, 8)).dtype == torch.bfloat16
        assert product.called


def test_other_convolutions_are_no_patches() -> None:
    others = [
        nn.Conv2d(6, 4, 1, bias=False), nn.Conv2d(6, 4, 4, 2, bias=False), nn.Conv2d(6, 4, 2, 2, 1, bias=False),
        nn.Conv2d(6, 4, 2, 2, groups=2, bias=False), nn.Conv2d(6, 4, 2, 2, dilation=2, bias=False),
        nn.Conv2d(6, 4, 2, 2),
    ]  # fmt: skip
    assert for_bfloat16(nn.Sequential(*others)) == []


# ---------------------------------------------------------------------------------------------------------------------
# Pooling

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "some channels of a channels_last map": lambda x: torch.cat([x, x], 1).contiguous(
        memory_format=torch.channels_last
    )[:, : x.shape[1]],
    "width and height exchanged": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(4, 6, 5, 3), (4, 6, 1, 1), (1, 1, 4, 4)])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_pooling_and_its_gradient_are_those_of_a_mean(
    layout: Callable[[Tensor], Tensor], size: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    values, given = torch.randn(size, dtype=dtype), torch.randn(size[:2], dtype=dtype)
    x, plain = layout(values).requires_grad_(), values.requires_grad_()
    found, expected = global_average(x), plain.mean((2, 3))
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, x, given)
    assert torch.equal(gradient, *torch.autograd.grad(expected, plain, given))
    if dtype == torch.float64:
        assert torch.autograd.gradgradcheck(global_average, layout(values.detach()).requires_grad_())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_gradient_of_pooling_lies_in_memory_as_the_map_does(layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(4, 6, 5, 3)).requires_grad_()
    (gradient,) = torch.autograd.grad(global_average(x).sum(), x)
    assert gradient.stride() == x.stride()


def test_a_network_that_pools_is_read_as_a_graph_whatever_reads_it() -> None:
    """torch.fx's stand-ins have no memory to look at, and torch.jit compares two traces operator by operator."""
    network = cifar_resnet(8, 10).to(memory_format=torch.channels_last).eval()
    x = LAYOUTS["channels_last"](torch.randn(2, 3, 8, 8))
    torch.testing.assert_close(fx.symbolic_trace(network)(x), network(x))
    exported = torch.export.export(network, (x,))
    assert not [node for node in exported.graph.nodes if "permute" in node.name]
    torch.testing.assert_close(exported.module()(x), network(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(network, x)  # with its own check on
    assert "PythonOp" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), network(x))
