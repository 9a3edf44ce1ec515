"""One launch for all layers computes what one launch a layer does: outputs, gradients, counts, under the same names."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm

from okdc.launches import BatchCounts, Casts, blend

DTYPE = torch.bfloat16


class Network(nn.Module):
    """A convolution that is used twice, one with a bias, a frozen one, one whose weight is computed, one unused."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.biased = nn.Conv2d(4, 4, 1)
        self.frozen = nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.computed = weight_norm(nn.Conv2d(4, 4, 1))
        self.unused = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)
        self.tied = nn.Linear(4, 3)
        self.tied.weight = self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.twice(self.twice(x)))
        x = self.computed(self.frozen(self.biased(x))).mean((2, 3))
        y: Tensor = self.fc(x) + self.tied(x)
        return y


@contextmanager
def autocast() -> Iterator[None]:
    with torch.autocast("cpu", DTYPE):
        yield


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_cast_together_or_one_by_one_outputs_and_gradients_are_the_same_bits(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    plain = Network().to(memory_format=layout)
    together = copy.deepcopy(plain)
    casts = Casts(together, DTYPE)
    x = torch.randn(5, 4, 6, 6).to(memory_format=layout)
    with autocast():
        expected = plain(x)
    with autocast(), casts.applied():
        actual = together(x)
    assert torch.equal(actual, expected)
    for y in (expected, actual):
        y.float().square().sum().backward()
    for (name, p), q in zip(plain.named_parameters(), together.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None and q.grad is not None:
            assert torch.equal(p.grad, q.grad), name
            assert q.grad.dtype == q.dtype
            assert q.grad.stride() == p.grad.stride(), name
    assert together.unused.weight.grad is together.frozen.weight.grad is None
    assert list(together.state_dict()) == list(plain.state_dict())


def test_outside_the_block_layers_have_their_own_weights() -> None:
    network = Network().eval()
    x, before = torch.randn(2, 4, 6, 6), copy.deepcopy(network)
    casts = Casts(network, DTYPE)
    with pytest.raises(KeyError), casts.applied():
        raise KeyError
    assert torch.equal(network(x), before(x))
    with casts.applied():
        assert network.twice.cast is not None
    with torch.no_grad():
        network.twice.weight.zero_()
        nn.init.constant_(network.get_parameter("biased.bias"), 3)
    assert torch.equal(network.biased(network.twice(x)), torch.full((2, 4, 6, 6), 3.0))


def test_layers_that_are_called_with_other_weights_take_these_and_not_the_copies_of_their_own() -> None:
    torch.manual_seed(0)
    network, other = Network().eval(), Network().eval()
    casts, x = Casts(network, DTYPE), torch.randn(5, 4, 6, 6)
    tensors = dict(other.named_parameters()) | dict(other.named_buffers())
    with autocast(), casts.applied():
        actual, own = functional_call(network, tensors, (x,)), network(x)
    with autocast():
        assert torch.equal(actual, other(x))
    assert not torch.equal(actual, own)


def test_a_hook_that_changes_a_weight_keeps_its_layer() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    network[0].register_forward_pre_hook(lambda conv, _: conv.weight.data.fill_(1))
    assert Casts(network, DTYPE).layers == [network[1]]


def normed() -> nn.Sequential:
    """Batch normalisations of each kind."""
    return nn.Sequential(
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, momentum=None),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.BatchNorm2d(4, affine=False),
    )


def test_batches_that_are_normalised_with_other_tensors_are_not_counted() -> None:
    network = normed().train()
    counts, x = BatchCounts(network), torch.randn(6, 4, 5, 5)
    network(x)
    functional_call(network, {name: buffer.clone() for name, buffer in network.named_buffers()}, (x,))
    counts.add()
    assert [int(layer.num_batches_tracked) for layer in counts.layers] == [1, 1]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_tensors_are_blended_with_others_and_exactly_at_both_ends(weight: float, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    tensors, others = ([torch.randn(3, 2, 4, 4).to(memory_format=layout), torch.randn(())] for _ in range(2))
    before = [tensor.clone() for tensor in tensors]
    blend(tensors, others, torch.tensor(weight))
    for tensor, first, other in zip(tensors, before, others, strict=True):
        expected = {0.0: first, 1.0: other}.get(weight)
        if expected is not None:
            assert torch.equal(tensor, expected)
        torch.testing.assert_close(tensor, first.lerp(other, weight))
        assert tensor.stride() == first.stride()


@pytest.mark.parametrize("frozen", [None, 0])
def test_batches_counted_together_are_the_same_numbers(frozen: int | None) -> None:
    torch.manual_seed(0)
    plain = normed()
    together = copy.deepcopy(plain)
    counts = BatchCounts(together)
    assert counts.layers == [together[0], together[3]]
    x = torch.randn(6, 4, 5, 5)
    for _ in range(2):
        for network in (plain, together):
            network.train()
            if frozen is not None:
                network[frozen].eval()
        steps: list[Callable[[Tensor], Tensor]] = [plain, together]
        for _ in range(3):  # a step may run a layer several times
            assert torch.equal(*(step(x) for step in steps))
        counts.add()
        assert torch.equal(plain.eval()(x), together.eval()(x))
        counts.add()  # nothing was normalised in training
    for (name, a), b in zip(plain.named_buffers(), together.buffers(), strict=True):
        assert torch.equal(a, b), name
    assert int(together.get_buffer("3.num_batches_tracked")) == 6
    together.train()(x)
    counts.forget()
    counts.add()
    assert int(together.get_buffer("3.num_batches_tracked")) == 6


def test_a_batch_of_one_value_a_channel_is_still_refused() -> None:
    network = nn.Sequential(nn.BatchNorm1d(4))
    BatchCounts(network)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="2D or 3D"):
        network(torch.zeros(2, 4, 3, 3))
