from __future__ import annotations

import copy
import pickle

import pytest
import torch
from harness import digest
from torch import Tensor, fx, nn

from okdc.backbones.mobilenet import mobilenetv2
from okdc.training.depthwise import fast, out_of_bfloat16

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
    assert fast(conv, x) is expected
    plain = copy.deepcopy(conv)
    assert out_of_bfloat16(conv) == 1
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
    out_of_bfloat16(conv)
    for a, b in zip(gradients(conv, images(pixels), False), gradients(plain, images(pixels), False), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_only_depthwise_convolutions_are_touched() -> None:
    network = nn.Sequential(
        nn.Conv2d(8, 8, 3, 2), nn.Conv2d(8, 8, 3, 2, groups=4), nn.Conv2d(8, 16, 3, 2, groups=8), nn.Conv2d(1, 8, 3, 2)
    )
    assert out_of_bfloat16(network) == 1
    assert [i for i, module in enumerate(network) if "forward" in vars(module)] == [2]


def test_names_weights_and_copies_are_as_before() -> None:
    plain = mobilenetv2(10)
    network = copy.deepcopy(plain)
    assert out_of_bfloat16(network) == 17
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
    assert out_of_bfloat16(network) == 17
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
    out_of_bfloat16(network)
    eager = gradients(network, images(8))
    network.zero_grad()
    run: nn.Module = torch.compile(network, backend="eager", fullgraph=True)  # type: ignore[assignment]
    for a, b in zip(eager, gradients(run, images(8)), strict=True):
        assert torch.equal(a, b)
