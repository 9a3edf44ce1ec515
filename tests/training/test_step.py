"""The training step as an object: eager here, and compiled by a compiler that only traces, which takes no time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from compilers import broken_by, traced
from harness import built, digest, recipe
from torch import nn
from torch._dynamo.utils import counters
from torch.fx import GraphModule

from okdc.errors import DeviceError
from okdc.kernels import Depthwise
from okdc.methods.base import Batch
from okdc.training import step as steps
from okdc.training.device import Settings, choose
from okdc.training.step import TrainStep
from okdc.training.synchronised import has_shared_buffers

PLAIN = Settings("cpu", "float32", "contiguous", 1)
COMPILED = replace(PLAIN, compile="on")


def train_step(settings: Settings, *words: str) -> TrainStep:
    job = built(recipe(*words))
    job.method.train()
    return TrainStep(job.method, job.recipe.optim, settings)


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(16, 3, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator))


def trained(step: TrainStep, count: int = 3) -> list[float]:
    """The losses of a few steps."""
    return [sum(v.item() for v in step(batch(i), i / count).losses.values()) for i in range(count)]


@pytest.fixture
def without_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(steps, "compiled", traced)


@pytest.mark.usefixtures("without_cpp")
def test_a_traced_step_is_the_eager_one_to_the_bit_under_the_same_names() -> None:
    eager, compiled = train_step(PLAIN), train_step(COMPILED)
    assert trained(eager) == trained(compiled)
    assert digest(eager.state()) == digest(compiled.state())
    assert counters["stats"]["unique_graphs"] == 1


def test_the_step_is_one_graph_whatever_is_evaluated_between_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by a compiler of its own: torch counts whatever is called within a step, a collection's callbacks too."""
    torch._dynamo.reset()
    counters.clear()
    graphs: list[GraphModule] = []
    ran: list[GraphModule] = []

    def counting(graph: GraphModule, _: object) -> Callable[..., Any]:
        graphs.append(graph)

        def run(*inputs: Any) -> Any:
            ran.append(graph)
            return graph(*inputs)

        return run

    monkeypatch.setattr(steps, "compiled", lambda method, *_: torch.compile(method, dynamic=False, backend=counting))
    step = train_step(COMPILED)
    for done, images in enumerate((16, 5, 1, 16, 500)):
        step.method.train()
        step(batch(), done / 5)
        assert len(ran) == done + 1
        with torch.inference_mode():
            few = Batch(torch.randn(images, 3, 8, 8), torch.zeros(images, dtype=torch.long))
            step.method.eval()(few, torch.ones(()))
        assert len(ran) == done + 1
    assert len(graphs) == 1
    assert not counters["graph_break"]


def test_later_trainings_of_the_same_process_run_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracer gives up on a function, silently, after it was traced eight times: a series may have more seeds."""
    torch._dynamo.reset()
    ran: list[int] = []

    def counting(graph: GraphModule, _: object) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            ran[-1] += 1
            return graph(*inputs)

        return run

    monkeypatch.setattr(steps, "compiled", lambda method, *_: torch.compile(method, dynamic=False, backend=counting))
    for seed in range(10):
        ran.append(0)
        trained(train_step(COMPILED, "method.name=baseline", f"seed={seed}"), 2)
    assert ran == [2] * 10


def test_a_step_that_cannot_be_compiled_is_told_in_a_line_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    report = (
        "C++ compile error\n\nCommand:\ng++ x.cpp\n\nOutput:\nx.cpp:1:10: fatal error: Python.h: No such file\n  1 |"
    )
    monkeypatch.setattr(steps, "compiled", broken_by(RuntimeError(report)))
    step = train_step(COMPILED)
    before = digest(step.state()["method"])
    with pytest.raises(DeviceError) as caught:
        step(batch(), 0.0)
    assert caught.value.message.splitlines() == [
        "the training step cannot be compiled: RuntimeError: x.cpp:1:10: fatal error: Python.h: No such file"
    ]
    assert "--compile off" in caught.value.hint
    assert digest(step.state()["method"]) == before


@pytest.mark.parametrize(
    ("settings", "report", "told"),
    [
        (
            COMPILED,
            "CUDA error: operation not permitted when stream is capturing\nCUDA kernel errors might be ...",
            "the training step cannot be compiled: RuntimeError: CUDA error: operation not permitted when stream is "
            "capturing",
        ),
        (
            PLAIN,
            "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set ...",
            "deterministic=true: adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation",
        ),
    ],
    ids=["recording", "determinism"],
)
def test_what_only_a_gpu_refuses_is_told_in_a_line_when_its_launches_are_recorded_in_the_second_step(
    settings: Settings, report: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "compiled", lambda method, *_: method)
    step = train_step(settings)
    step(batch(), 0.0)

    def refused(*_: object) -> None:
        raise RuntimeError(report)

    monkeypatch.setattr(step, "_run", refused)
    with pytest.raises(DeviceError) as caught:
        step(batch(), 0.0)
    assert caught.value.message == told
    assert caught.value.hint


@pytest.mark.parametrize("settings", [PLAIN, COMPILED], ids=["eager", "compiled"])
def test_what_is_no_fault_of_the_compiler_is_raised_as_it_is(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = train_step(settings)
    monkeypatch.setattr(step, "_run", nn.Module())

    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(nn.Module, "__call__", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        step(batch(), 0.0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_step_reads_no_loss_and_follows_the_schedule(layout: str) -> None:
    step = train_step(replace(PLAIN, memory_format=layout), "optim.clip=0.5")
    for done, rate in ((0.0, 0.05), (0.5, 0.005), (0.75, 0.0005)):
        made = step(batch(), done)
        assert float(step.progress) == done
        assert [group["lr"] for group in step.optimizer.param_groups] == [pytest.approx(rate)] * 2
        assert all(loss.requires_grad for loss in made.losses.values())
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in step.parameters if p.grad is not None]))
    assert norm <= 0.5 * 1.001
    convolutions = [p for p in step.parameters if p.ndim == 4 and min(p.shape) > 1]
    assert convolutions
    assert all(p.is_contiguous(memory_format=step.settings.torch_memory_format) for p in convolutions)


def test_a_step_learns_from_its_own_batch_alone() -> None:
    """Where nothing moves, the gradients of a batch are the same whatever was learned from before."""
    words = ("method.name=baseline", "optim.lr=1e-30")
    whole, alone = train_step(PLAIN, *words), train_step(PLAIN, *words)
    whole(batch(0), 0.0)
    for step in (whole, alone):
        step(batch(1), 0.0)
    for a, b in zip(whole.parameters, alone.parameters, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)


def test_a_loaded_step_goes_on_as_the_one_that_was_saved() -> None:
    settings = replace(choose(recipe().recipe.engine, 8), compile="off")
    whole, first, then = (train_step(settings) for _ in range(3))
    expected = trained(whole, 4)
    for i in range(2):
        first(batch(i), i / 4)
    then.load(first.state())
    assert [sum(v.item() for v in then(batch(i), i / 4).losses.values()) for i in (2, 3)] == expected[2:]
    assert digest(then.state()) == digest(whole.state())


def test_depthwise_convolutions_leave_bfloat16_on_a_cpu_and_nowhere_else() -> None:
    words = ("method.name=baseline", 'cohort.students=["mobilenetv2"]')
    for settings, expected in ((PLAIN, 0), (replace(PLAIN, dtype="bfloat16", memory_format="channels_last"), 17)):
        step = train_step(settings, *words)
        assert sum(isinstance(module, Depthwise) for module in step.method.modules()) == expected
        assert all(loss.isfinite() for loss in step(batch(), 0.0).losses.values())


def test_processes_share_buffers_before_a_step_only_where_a_step_reads_them() -> None:
    """Running statistics of a normalisation are read in evaluation alone; constants do not change."""
    assert not has_shared_buffers(train_step(PLAIN).method)
    assert not has_shared_buffers(train_step(PLAIN, "method.name=relay", "cohort.share=none").method)
    method = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True))
    method.register_buffer("constant", torch.ones(1), persistent=False)
    assert not has_shared_buffers(method)
    method.register_buffer("steps", torch.zeros((), dtype=torch.int64))
    assert not has_shared_buffers(method), "each process counts alike"
    method.register_buffer("queue", torch.ones(1))
    assert has_shared_buffers(method)
