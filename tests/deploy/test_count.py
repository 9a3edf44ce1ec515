"""Counting: the published numbers, to the unit, and no silent zero."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from okdc import backbones
from okdc.cohort import Backbone
from okdc.deploy.count import count, exported
from okdc.errors import CheckFailed
from okdc.products import Products

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
    assert counts.fvcore_total is not None
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


class _Called(nn.Module):
    """A function of the image and of weights, as a network of one layer."""

    def __init__(self, function: Callable[..., Tensor], *weights: tuple[int, ...], layer: nn.Module | None = None):
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList([nn.Parameter(torch.ones(shape)) for shape in weights])
        self.layer = layer or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer, x, *self.weights)


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)  # 1×1024×3


def _fours(x: Tensor) -> Tensor:
    return x.reshape(1, 768, 4)


def _alike(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


PIXELS = 32 * 32
ATTENTION = 2 * PIXELS**2 * 3  # q·kᵀ and the weighted sum of v, of one head
COUNTED: dict[str, tuple[nn.Module, int]] = {
    "same padding": (nn.Conv2d(3, 4, 3, padding="same"), PIXELS * 4 * 27),
    "valid padding, groups": (nn.Conv2d(3, 6, 3, padding="valid", groups=3), 30 * 30 * 6 * 9),
    "a transposed convolution": (nn.ConvTranspose2d(3, 4, 2, 2), PIXELS * 3 * 4 * 4),
    "attention": (_Called(lambda _, x: _alike(_tokens(x)[:, None])), ATTENTION),
    "attention by its layer": (  # an even number of heads, without which it has no fast path
        _Called(lambda layer, x: layer(*[_fours(x)] * 3)[0], layer=nn.MultiheadAttention(4, 2, batch_first=True)),
        2 * 768**2 * 4 + 768 * 4 * 16,
    ),
    "a transformer's layer": (
        _Called(lambda layer, x: layer(_fours(x)), layer=nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)),
        2 * 768**2 * 4 + 768 * (4 * 16 + 2 * 24),
    ),
    "bilinear": (
        _Called(lambda layer, x: layer(_tokens(x), _tokens(x)), layer=nn.Bilinear(3, 3, 7)),
        PIXELS * 7 * (3 * 3 + 3),
    ),
    "LSTM": (
        _Called(lambda layer, x: layer(_tokens(x))[0], layer=nn.LSTM(3, 5, 2, batch_first=True, bidirectional=True)),
        PIXELS * 2 * 4 * 5 * (3 + 5 + 10 + 5),
    ),
    "GRU": (
        _Called(lambda layer, x: layer(_tokens(x))[0], layer=nn.GRU(3, 5, batch_first=True)),
        PIXELS * 3 * 5 * (3 + 5),
    ),
    "RNN": (_Called(lambda layer, x: layer(_tokens(x))[0], layer=nn.RNN(3, 5, batch_first=True)), PIXELS * 5 * (3 + 5)),
    "einsum that is a matrix product": (
        _Called(lambda _, x, w: torch.einsum("bchw,dc->bdhw", x, w), (8, 3)),
        PIXELS * 8 * 3,
    ),
    "einsum that is none": (_Called(lambda _, x: torch.einsum("nchw,nchw->nchw", x, x)), 0),
    "einsum of three": (
        _Called(lambda _, x, v, w: torch.einsum("bchw,dc,ed->behw", x, v, w), (8, 3), (1, 8)),
        PIXELS * (3 * 8 + 8),  # from the left to the right
    ),
    "a matrix by a vector": (_Called(lambda _, x: x[0, 0] @ x[0, 0, 0]), 32 * 32),
    "a vector by a vector": (_Called(lambda _, x: x[0, 0, 0] @ x[0, 0, 1]), 32),
    "matrices and a sum": (_Called(lambda _, x: torch.baddbmm(x[0], x[0], x[0])), 3 * 32**3),
    "weight norm": (parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), PIXELS * 12),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_operators_that_one_counter_lacks_are_counted_as_by_hand(name: str) -> None:
    module, macs = COUNTED[name]
    counts = count(module, IMAGE)
    assert counts.macs == macs
    assert not counts.uncounted
    assert torch.backends.mha.get_fastpath_enabled()


def test_distances_make_the_count_a_lower_bound() -> None:
    counts = count(
        _Called(lambda layer, x: torch.cdist(layer(_tokens(x))[:, :9], _tokens(x)[:, :9]), layer=nn.Linear(3, 3)), IMAGE
    )
    assert counts.macs == PIXELS * 9, "the projection alone"
    assert counts.uncounted == ("aten::cdist",)


class _Hidden(torch.autograd.Function):
    @staticmethod
    def forward(_: object, x: Tensor) -> Tensor:
        return x @ x


def test_where_fvcore_sees_a_python_function_alone_torchs_count_stands() -> None:
    counts = count(_Called(lambda _, x: _Hidden.apply(x)), IMAGE)
    assert counts.macs == 3 * 32**3
    assert counts.uncounted == ()


def test_where_a_forward_leaves_torch_for_numpy_torchs_count_stands() -> None:
    network = _Called(lambda layer, x: F.avg_pool2d(torch.from_numpy(layer(x).numpy()), 2), layer=nn.Conv2d(3, 4, 1))
    counts = count(network, IMAGE)
    assert (counts.macs, counts.uncounted) == (PIXELS * 12, ())


def test_what_another_library_computes_makes_the_count_a_lower_bound() -> None:
    network = _Called(lambda _, x, w: torch.ops.okdc_tests.convolve(F.conv2d(x, w)), (4, 3, 1, 1))
    with torch.library._scoped_library("okdc_tests", "DEF") as library:
        library.define("convolve(Tensor x) -> Tensor")
        library.impl("convolve", lambda x: x * 2, "CPU")
        counts = count(network, IMAGE)
    assert (counts.macs, counts.uncounted) == (PIXELS * 12, ("okdc_tests::convolve",))


def test_counters_that_disagree_are_an_error_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("okdc.deploy.count.products", lambda *_: Products(7))
    with pytest.raises(CheckFailed, match="fvcore counts 3,072 MACs, torch's FlopCounterMode 7;") as caught:
        count(nn.Conv2d(3, 1, 1), IMAGE)
    assert (caught.value.kind, caught.value.exit_code) == ("counting", 1)


def test_a_counter_that_does_not_know_every_operator_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("okdc.deploy.count.products", lambda *_: Products(7, ("aten::other",)))
    counts = count(nn.Conv2d(3, 1, 1), IMAGE)
    assert (counts.macs, counts.uncounted) == (PIXELS * 3, ())


def test_a_network_that_fvcore_falls_over_is_counted_by_torch_stage_by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    def falls_over(*_: object) -> None:
        raise KeyError("aten::new")

    expected = count(backbones.build("resnet8", 10, torch.Size((3, 32, 32))), IMAGE)
    monkeypatch.setattr("okdc.deploy.count.FlopCountAnalysis", falls_over)
    counts = count(backbones.build("resnet8", 10, torch.Size((3, 32, 32))), IMAGE)
    assert (counts.macs, counts.uncounted) == (MACS["resnet8"], ())
    assert (counts.fvcore_total, counts.activations) == (None, None)
    for name in ("", "head", *(f"stages.{i}" for i in range(4)), "stages.1.0.conv1"):
        assert counts.modules[name] == expected.modules[name] > 0, name


def test_a_product_of_weights_alone_is_no_work_of_an_image() -> None:
    """The exporter makes one constant of it."""
    head = _Called(lambda _, x, v, w: x.mean((2, 3)) @ (v @ w), (8, 2), (2, 10))
    network = Backbone([nn.Conv2d(3, 8, 1)], head, (8,), (1,)).eval()
    assert count(network, IMAGE).macs == PIXELS * 24 + 8 * 10 + 8 * 2 * 10
    assert exported(network, IMAGE).macs == PIXELS * 24 + 8 * 10
