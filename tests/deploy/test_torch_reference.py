"""The float64 witness: as exact as its number, and with the rounding that the network's author wrote, no other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from making import student_info
from torch import Tensor, nn

from okdc.bundle.checks import largest
from okdc.cohort import Backbone
from okdc.deploy.torch_reference import Torch, in_float64
from okdc.errors import CheckFailed
from okdc.seeds import seeded

RULE = student_info().preprocessing
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


class _Front(nn.Module):
    """A function of the image, with a buffer of each type and a filter that is none."""

    def __init__(self, function: Callable[[_Front, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.factors = nn.Buffer(torch.tensor([1.0, 2.0, 0.3], dtype=torch.float64).view(1, 3, 1, 1))
        self.halves = nn.Buffer(torch.tensor([1.0, 2.0, 0.3], dtype=torch.float16).view(1, 3, 1, 1))
        self.filter = torch.full((3, 1, 3, 3), 1 / 9)
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.convolution(self.function(self, x))
        return maps


def side(function: Callable[[_Front, Tensor], Tensor]) -> Torch:
    with seeded(0, "student", 0):
        stages = [_Front(function)]
        head = nn.Sequential(nn.Flatten(), nn.Linear(144, 5))
    return Torch(Backbone(stages, head, (4,), (1,)), RULE)


FORWARDS: dict[str, Callable[[_Front, Tensor], Tensor]] = {
    "none": lambda _, x: x,
    "float": lambda _, x: x.float(),
    "to a type": lambda _, x: x.to(torch.float32),
    "to a type by name": lambda _, x: x.to(dtype=torch.float32),
    "type": lambda _, x: x.type(torch.float32),
    "type by its old name": lambda _, x: x.type("torch.FloatTensor"),
    "the type of another tensor": lambda front, x: x.to(front.convolution.weight),
    "made in float32": lambda _, x: x + torch.full((1, 3, 1, 1), 0.1, dtype=torch.float32),
    "made in the usual type": lambda _, x: x + torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1),
    "a buffer of float64": lambda front, x: (x * front.factors).float(),
    "softmax in float32": lambda _, x: F.softmax(x.flatten(2), -1, dtype=torch.float32).view_as(x),
    "a filter that is no buffer": lambda front, x: F.conv2d(x, front.filter, padding=1, groups=3),
    "a list with a tensor that is no buffer": lambda front, x: torch.cat([x[:, :2], front.filter.mean() * x[:, 2:]], 1),
    "autocast that is off": lambda _, x: _without_autocast(x),
}  # fmt: skip
ROUNDED: dict[str, Callable[[_Front, Tensor], Tensor]] = {
    "half": lambda _, x: x.half().float(),
    "to half": lambda _, x: x.to(torch.float16).to(torch.float32),
    "bfloat16": lambda _, x: x.bfloat16().float(),
    "the type of a weight": lambda front, x: x.half().to(front.convolution.weight.dtype),
    "a buffer of float16": lambda front, x: (x.half() * front.halves).float(),
}


def _without_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return x.float()


@pytest.mark.parametrize("name", FORWARDS)
def test_it_is_exact_where_a_forward_asks_for_float32(name: str) -> None:
    """The difference is float32's own rounding, and there is one: nothing of the witness is float32."""
    witness = side(FORWARDS[name])
    exact = witness.exact(IMAGES)
    assert exact.dtype == np.float64
    assert 0 < largest(witness.logits(IMAGES), exact) < 1e-6
    assert np.abs(exact - exact.astype(np.float32)).max() > 0
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("name", ROUNDED)
def test_what_the_author_rounds_is_rounded_in_the_witness_too(name: str) -> None:
    witness = side(ROUNDED[name])
    plain = side(lambda front, x: x * front.factors.float() if name == "a buffer of float16" else x)
    assert largest(witness.logits(IMAGES), plain.exact(IMAGES)) > 1e-5, "the rounding shows"
    assert largest(witness.logits(IMAGES), witness.exact(IMAGES)) < 1e-6


def test_the_network_itself_is_left_as_it_is() -> None:
    witness = side(FORWARDS["a buffer of float64"])
    before = {name: (tensor.dtype, tensor.clone()) for name, tensor in witness.network.state_dict().items()}
    witness.exact(IMAGES)
    for name, tensor in witness.network.state_dict().items():
        assert tensor.dtype == before[name][0]
        assert torch.equal(tensor, before[name][1])


class _Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("float32 alone")
        return x


def test_a_network_that_runs_in_float32_alone_fails_the_check_with_the_reason() -> None:
    witness = side(lambda _, x: _Fixed()(x))
    with pytest.raises(CheckFailed, match="TypeError: float32 alone") as caught:
        witness.exact(IMAGES)
    assert caught.value.kind == "parity"
    assert torch.get_default_dtype() == torch.float32
    assert witness.logits(IMAGES).shape == (3, 5)


def test_writing_into_a_tensor_of_float32_reaches_that_tensor() -> None:
    kept = torch.zeros(2)
    with in_float64():
        kept.add_(torch.ones(2))
        kept[0] = torch.tensor(5.0)
        assert torch.ones(1).dtype == torch.float64
    assert kept.tolist() == [5.0, 1.0]
    assert kept.dtype == torch.float32
