"""That the device that is not there refuses what a real one refuses: without these, the other gpu tests prove nothing.

Each is one mistake, and the error that torch or CUDA makes of it. What depends on the card is tried in a process of its
own. Then what is allowed: a device that refuses too much would be no better.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from harness import no_waiting
from torch import Tensor, nn
from torch.nn import functional as F

import fakegpu

pytestmark = [pytest.mark.gpu, pytest.mark.fakegpu]

WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "cpu": lambda x: x.cpu(),
    "nonzero": torch.nonzero,
    "mask": lambda x: x[x > 0],
}


@pytest.fixture
def images() -> Tensor:
    return torch.ones(4, 3, 8, 8, device="cuda")


@pytest.fixture
def stream() -> Iterator[torch.cuda.Stream]:
    """A stream to capture in, with the memory of an allocation already there."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    yield stream
    torch.cuda.synchronize()


def output(code: str, **settings: object) -> str:
    """What Python code prints on a card with the settings, its traceback included."""
    done = subprocess.run(
        [sys.executable, "-c", f"import torch\n{code}"], env=fakegpu.environ(**settings), capture_output=True, text=True
    )
    return done.stdout + done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_of_the_host_is_an_error_where_none_is_allowed_and_is_counted(wait: str, images: Tensor) -> None:
    with no_waiting(), pytest.raises(RuntimeError, match="synchronizing"):
        WAITS[wait](images)
    fakegpu.reset()
    WAITS[wait](images)
    assert fakegpu.counts().waits.total() > 0
    fakegpu.reset()
    with no_waiting():
        torch.relu(images).sum()
    assert not fakegpu.counts().waits


def test_tensors_of_two_devices_do_not_mix(images: Tensor) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        F.linear(images.flatten(1), torch.ones(2, 192))


def test_a_kernel_that_is_not_deterministic_is_an_error_where_none_is_allowed(images: Tensor) -> None:
    loss = F.adaptive_avg_pool2d(images.requires_grad_(), 3).sum()
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            loss.backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_wait_in_a_capture_is_an_error_and_spoils_the_capture(images: Tensor) -> None:
    graph, refusals = torch.cuda.CUDAGraph(), []
    with pytest.raises(RuntimeError, match="previous error during capture"), torch.cuda.graph(graph):
        with pytest.raises(RuntimeError) as refusal:
            images.sum().item()
        refusals.append(str(refusal.value))
    assert "not permitted when stream is capturing" in refusals[0]


def test_pageable_memory_is_not_copied_in_a_capture(images: Tensor) -> None:
    with pytest.raises(RuntimeError, match="unless the CPU tensor is pinned"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.relu(images)
        images.copy_(torch.ones(4, 3, 8, 8))


def test_a_capture_does_not_wait_for_work_outside_it(images: Tensor, stream: torch.cuda.Stream) -> None:
    outside = torch.cuda.Event()
    outside.record()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError), torch.cuda.graph(graph, stream=stream):
        torch.relu(images)
        stream.wait_event(outside)
    assert any("uncaptured work" in name for name in fakegpu.counts().refused)


def test_a_stream_that_joined_a_capture_is_waited_for_before_its_end(images: Tensor, stream: torch.cuda.Stream) -> None:
    side = torch.cuda.Stream()
    with pytest.raises(RuntimeError, match="unjoined"), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
        side.wait_stream(stream)
        with torch.cuda.stream(side):
            torch.relu(images)


def test_memory_ends() -> None:
    said = output("torch.empty(600 << 20, dtype=torch.uint8, device='cuda')", GB=1)
    assert "torch.OutOfMemoryError" in said
    assert "GPU 0 has a total capacity of 1024.00 MiB" in said
    assert output("print(torch.empty(400 << 20, dtype=torch.uint8, device='cuda').shape)", GB=1).startswith(
        "torch.Size"
    )


@pytest.mark.parametrize("settings", [{"NOKERNEL": 1}, {"CC": 70, "NAME": "Tesla V100-SXM2-16GB"}])
def test_a_card_that_torch_has_no_kernels_for_has_memory_and_runs_nothing(settings: dict[str, object]) -> None:
    said = output("x = torch.empty(8, device='cuda')\nprint('memory')\nx + 1", **settings)
    assert "memory\n" in said
    assert "no kernel image is available" in said


def test_an_old_driver_is_no_device() -> None:
    said = output("print(torch.cuda.is_available())\ntorch.empty(8, device='cuda')", OLD_DRIVER=12040)
    assert "False\n" in said
    assert "too old (found version 12040)" in said


def test_a_card_is_what_the_settings_say() -> None:
    code = "p = torch.cuda.get_device_properties(1)\nprint(p.name, p.major, p.minor, torch.cuda.device_count())"
    assert output(code, CC=75, COUNT=2) == "Tesla T4 7 5 2\n"


# ---------------------------------------------------------------------------------------------------------------------
# What is allowed


def test_work_is_counted_by_kernel_and_copies_by_kind(images: Tensor) -> None:
    pinned = torch.ones(4, 3, 8, 8).pin_memory()
    fakegpu.reset()
    images.copy_(pinned, non_blocking=True)
    torch.relu(images)
    F.conv2d(images, torch.empty(5, 3, 3, 3, device="cuda"))
    counts = fakegpu.counts()
    assert counts.copies == {"pinned>device": 1}
    assert counts.bytes == {"pinned>device": pinned.nbytes}
    assert counts.launches["cudnn convolution forward"] == 1
    assert sum(number for name, number in counts.launches.items() if "launch_clamp_scalar" in name) == 1
    assert not counts.waits
    assert not counts.refused


def test_streams_that_join_a_capture_and_are_waited_for_are_part_of_its_graph(
    images: Tensor, stream: torch.cuda.Stream
) -> None:
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    fakegpu.reset()
    with torch.cuda.graph(graph, stream=stream):
        one = images + 1
        side.wait_stream(stream)
        with torch.cuda.stream(side):
            two = one * 2
        stream.wait_stream(side)
        three = two + one
    counts = fakegpu.counts()
    assert counts.captured.total() == 3
    assert not counts.launches
    fakegpu.reset()
    graph.replay()
    counts = fakegpu.counts()
    assert counts.graphs == {"launches": 1, "nodes": 3}
    assert not counts.refused
    assert (three == 6).all()


def test_a_replay_computes_anew_what_was_captured_and_a_capture_computes_nothing(images: Tensor) -> None:
    layer = nn.Conv2d(3, 2, 3, padding=1, bias=False, device="cuda")
    layer(images).sum().backward()  # the first of each kernel is no part of it
    graph = torch.cuda.CUDAGraph()
    layer.zero_grad(set_to_none=False)
    with torch.cuda.graph(graph):
        result = layer(images)
        result.square().sum().backward()
    assert layer.weight.grad is not None
    assert not layer.weight.grad.any()
    for scale in (1.0, 3.0):
        images.fill_(scale)
        layer.weight.grad.zero_()
        graph.replay()
        weight = layer.weight.detach().cpu().requires_grad_()
        expected = F.conv2d(images.cpu(), weight, padding=1)
        expected.square().sum().backward()
        torch.testing.assert_close(result.cpu(), expected, rtol=0, atol=0)
        torch.testing.assert_close(layer.weight.grad.cpu(), weight.grad, rtol=0, atol=0)
