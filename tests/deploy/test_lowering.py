"""What is rewritten for an export gives the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from okdc.backbones.parts import PoolLinear
from okdc.blocks import MatrixPool
from okdc.cohort import Backbone
from okdc.deploy.lowering import Rewritten, in_float32, plain
from okdc.errors import CheckFailed


@pytest.mark.parametrize("target", [(7, 7), (1, 1), (3, 2), (5, 8)])
@pytest.mark.parametrize("size", [(2, 2), (1, 1), (4, 4), (7, 7), (13, 6), (8, 5)])
def test_matrices_pool_as_adaptive_average_pooling_does(size: tuple[int, int], target: tuple[int, int]) -> None:
    x = torch.randn(3, 5, *size)
    assert torch.allclose(MatrixPool(size, target)(x), nn.AdaptiveAvgPool2d(target)(x), atol=1e-6)


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "average, not dividing": (lambda x: F.adaptive_avg_pool2d(x, 3), True),
    "average, larger": (nn.AdaptiveAvgPool2d((7, None)), True),
    "average, dividing": (nn.AdaptiveAvgPool2d((2, 4)), False),
    "average, whole": (lambda x: F.adaptive_avg_pool2d(x, (None, None)), False),
    "largest, not dividing": (nn.AdaptiveMaxPool2d((3, 5)), True),
    "largest, dividing": (lambda x: F.adaptive_max_pool2d(x, 2), False),
    "distances": (lambda x: torch.cdist(x.flatten(2), x.flatten(2)[:, :5]), True),
    "distances of another kind": (lambda x: torch.cdist(x.flatten(2), x.flatten(2)[:, :5], p=1.0), False),
    "the mean slope": (nn.RReLU(0.1, 0.4).eval(), True),
    "a random slope": (lambda x: F.rrelu(x, training=True), False),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_rewritten_answers_as_before_for_any_number_of_images(name: str) -> None:
    function, rewritten = FUNCTIONS[name]
    x = torch.randn(3, 8, 4, 4)
    with Rewritten(), _Names() as names:
        torch.manual_seed(0)
        actual, one = function(x), function(x[:1])
    torch.manual_seed(0)
    with _Names() as before:
        expected = function(x), function(x[:1])
    assert torch.allclose(actual, expected[0], atol=1e-5)
    assert torch.allclose(one, expected[1], atol=1e-5)
    assert (names.seen != before.seen) == rewritten


class _Names(TorchDispatchMode):
    """The operators that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_the_largest_of_a_window_keeps_its_places_where_they_are_asked_for() -> None:
    x = torch.randn(2, 3, 7, 7)
    with Rewritten():
        values, places = F.adaptive_max_pool2d(x, 3, return_indices=True)
    assert torch.equal(x.flatten(2).gather(2, places.flatten(2)), values.flatten(2))


def test_a_write_under_a_mask_reaches_the_same_places() -> None:
    x = torch.randn(2, 3, 4, 4)
    expected, actual, row = x.clone(), x.clone(), torch.tensor([True, False])
    expected[expected < 0.1], expected[row], expected[:, :1] = 0, 2.0, 3
    with Rewritten(), _Names() as names:
        actual[actual < 0.1], actual[row], actual[:, :1] = 0, 2.0, 3
    assert torch.equal(actual, expected)
    assert not any("index_put" in name or "nonzero" in name for name in names.seen)


def test_the_data_of_a_parameter_is_its_values_without_a_gradient() -> None:
    parameter = nn.Parameter(torch.randn(3))
    with Rewritten():
        assert torch.equal(parameter.data, parameter)
        assert not parameter.data.requires_grad
        (parameter.data * 2 + parameter).sum().backward()
    assert parameter.grad is not None
    assert torch.equal(parameter.grad, torch.ones(3))


def test_a_forward_under_autocast_is_refused_and_one_that_switches_it_off_is_not() -> None:
    x = torch.randn(1, 3)
    with Rewritten():
        with torch.autocast("cpu", enabled=False):
            assert x.abs().dtype == torch.float32
        with torch.autocast("cpu"), pytest.raises(CheckFailed, match=r"torch\.autocast") as caught:
            x.abs()
    assert caught.value.kind == "structure"


def test_a_head_gets_its_map_in_the_usual_memory_format() -> None:
    seen: list[bool] = []
    head = PoolLinear(4, 5)
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    convolution = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    network = Backbone([convolution], head, (4,), (1,)).eval()
    images = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    expected = network(images)
    assert torch.allclose(plain(network)(images), expected, atol=1e-6)
    assert seen == [False, True]


@pytest.mark.parametrize(("dtype", "buffer"), [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_a_buffer_of_another_type_stays_where_the_parameters_are_float32(
    dtype: torch.dtype, buffer: torch.dtype
) -> None:
    module = nn.Linear(2, 2).to(dtype)
    module.scale = nn.Buffer(torch.ones(1, dtype=torch.float64))
    assert in_float32(module).weight.dtype == torch.float32
    assert module.scale.dtype == buffer
