"""The training step and the loop on a GPU: what runs where, in which numbers, and that the host never waits for it.

`pytest -m gpu` runs these and the others that need one. Everything here is small: the first steps warm up and compile,
and are left out of what is watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import fakegpu
import pytest
import torch
from harness import Quiet, built, no_waiting, outcome, recipe, rows
from torch import Tensor, nn
from torch._dynamo.utils import counters

from okdc.assembly.job import Job
from okdc.data.augmentation import Augmentation
from okdc.data.batches import EVAL_BATCH, Normalise, TrainBatches, eval_batches
from okdc.methods.base import Batch
from okdc.recipe.schema import Augment, Engine
from okdc.runs.artefacts import Provenance
from okdc.training import device
from okdc.training import start as starts
from okdc.training.device import Settings
from okdc.training.metrics import Totals, count
from okdc.training.step import TrainStep

pytestmark = pytest.mark.gpu

GPU = "cuda"
MORE = ("data.train_images=400", "method.name=fefr")  # 25 steps an epoch
THREE = 'cohort.students=["resnet8", "resnet8", "resnet8"]'
CASES = {
    "fefr, clipped": ("optim.clip=1.0",),
    "baseline": ("method.name=baseline", 'cohort.students=["resnet8"]'),
    "kdcl, linear, three": ("method.name=kdcl", "method.target=linear", "cohort.share=none", THREE),
    **{name: (f"method.name={name}",) for name in ("dualnet", "ffl", "mfef", "okddip", "one", "byot", "ahbf", "pcl")},
    "byot, journal": ("method.name=byot", "method.loss=journal"),
    **{name: (f"method.name={name}", "cohort.share=none") for name in ("dml", "kdcl", "switokd", "okdph", "relay")},
    "okdph, dirichlet": ("method.name=okdph", "method.hybrid=dirichlet", "method.interval=0.1"),
}
# An okddip of two students has one peer, which is its own teacher.
ZERO = {"okddip": {"kl_peers_student0"}}
FEW = ("fefr, clipped", "kdcl", "okddip")  # that are compiled for the device that is not there
WARM = 4  # steps: kernels are chosen; the first one is compiled


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = True


def settings(dtype: str, compile: str = "off") -> Settings:
    found = device.choose(Engine(device="cuda", dtype=dtype, compile=compile), 8)  # type: ignore[arg-type]
    device.apply(found, deterministic=False)
    return found


def made(found: Settings, *words: str) -> tuple[TrainStep, TrainBatches, Job]:
    """A step in training mode, its batches, and the job they are of."""
    job = built(recipe(*MORE, *words))
    dataset = job.dataset.to(found.torch_device)
    normalise = Normalise((0.5,) * 3, (0.5,) * 3, found.torch_device, found.torch_memory_format)
    step = TrainStep(job.method, job.recipe.optim, found)
    step.method.train()
    augmentation, views = Augmentation(Augment(padding=1)), job.method.views
    return step, TrainBatches(dataset, 16, augmentation, normalise, 0, views=views), job


def test_images_live_on_the_gpu_as_bytes_and_labels_beside_them() -> None:
    _, batches, _ = made(settings("auto"))
    assert batches.dataset.images.device.type == batches.dataset.labels.device.type == GPU
    assert batches.dataset.images.dtype == torch.uint8
    images, labels, *_ = next(batches.epoch(0))
    assert images.device.type == labels.device.type == GPU
    assert images.is_contiguous(memory_format=batches.normalise.memory_format)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_maps_have_the_chosen_type_and_layout_and_weights_and_losses_stay_float32(dtype: str) -> None:
    if dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("the GPU has no bfloat16: cuDNN does not take it, and torch's own convolution keeps no layout")
    found = settings(dtype)
    step, batches, _ = made(found)
    seen: list[Tensor] = []
    convolutions = [m for m in step.method.modules() if isinstance(m, nn.Conv2d)]
    for conv in convolutions:
        conv.register_forward_hook(lambda _, __, y: seen.append(y))
    images, labels, *_ = next(batches.epoch(0))
    losses = step(Batch(images, labels), 0.0).losses
    assert {y.dtype for y in seen} == {getattr(torch, dtype)}
    assert all(y.is_contiguous(memory_format=found.torch_memory_format) for y in seen)
    assert {p.dtype for p in step.parameters} == {p.grad.dtype for p in step.parameters if p.grad is not None}
    assert {p.dtype for p in step.parameters} == {loss.dtype for loss in losses.values()} == {torch.float32}
    assert all(p.is_cuda for p in step.method.parameters())
    momenta = [state["momentum_buffer"] for state in step.optimizer.state.values()]
    assert all(m.stride() == p.stride() for m, p in zip(momenta, step.parameters, strict=True))
    assert not any("forward" in vars(conv) for conv in convolutions)  # that detour is a CPU's


def with_and_without_compiler(case: str) -> Iterator[object]:
    few = pytest.mark.unmirrored if case in FEW else pytest.mark.card(f"compiling takes long; {len(FEW)} methods are")
    yield pytest.param(case, "off", id=f"{case}-off")
    yield pytest.param(case, "on", id=f"{case}-on", marks=few)


@pytest.mark.parametrize(("case", "compile"), [one for case in CASES for one in with_and_without_compiler(case)])
def test_steps_their_batches_rates_and_counts_never_wait_for_the_gpu(compile: str, case: str) -> None:
    step, batches, _ = made(settings("auto", compile), "data.train_images=160", *CASES[case])
    totals = Totals(torch.device(GPU))
    drawn = batches.epoch(0)
    for number in range(WARM):
        examples = next(drawn)
        totals.add(step(Batch(*examples), 0.0), examples.labels, number)
    with no_waiting():
        for number, examples in enumerate(drawn, WARM):
            totals.add(step(Batch(*examples), number / batches.steps), examples.labels, number)
    assert totals.steps == batches.steps
    if has_numbers(compile):
        read = totals.read()
        assert read.bad is None
        assert {name for name, value in read.losses.items() if not value > 0} == ZERO.get(case, set())


def has_numbers(compile: str) -> bool:
    """Whether anything computes what was compiled: a device that is not there does not."""
    return compile == "off" or not fakegpu.present()


class Watched(Quiet):
    """Forbids the host to wait for the GPU in every epoch from the step `after` to the one before its last."""

    def __init__(self, steps: int, after: int) -> None:
        super().__init__()
        self.steps, self.after = steps, after
        self.watched = 0

    @contextmanager
    def training(self) -> Iterator[Callable[[int, int, str], None]]:
        def update(done: int, total: int, text: str) -> None:  # noqa: ARG001
            inside = self.after <= done % self.steps < self.steps - 1
            self.watched += inside
            torch.cuda.set_sync_debug_mode("error" if inside else "default")

        try:
            yield update
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compile", ["off", pytest.param("on", marks=pytest.mark.card("numbers of compiled graphs"))])
def test_the_whole_loop_never_waits_within_an_epoch_and_learns(compile: str) -> None:
    tell = Watched(25, WARM)
    whole = "engine.cuda_graph=off"  # test_recording.py has the other
    words = ("engine.device=cuda", f"engine.compile={compile}", whole, "optim.epochs=3", "optim.clip=1.0")
    run = starts.start(replace(recipe(*MORE, *words), stem="watched"), None, Provenance(), tell)
    assert run.state() == "complete"
    assert tell.watched == 3 * (24 - WARM)
    losses = [row["loss"] for row in rows(run)]
    assert losses[-1] < losses[0]
    assert not [name for name in outcome(run)["state"]["method"] if "_orig_mod" in name]


@pytest.mark.card("numbers of a compiled step")
def test_a_compiled_step_is_the_eager_one_within_rounding_for_several_steps() -> None:
    """In float32 without TF32."""
    one, other = made(settings("float32"), "optim.lr=0.01"), made(settings("float32", "on"), "optim.lr=0.01")
    sums = [Totals(torch.device(GPU)), Totals(torch.device(GPU))]
    by_hand = dict.fromkeys(("eager", "compiled"), 0.0)
    for number, (a, b) in enumerate(zip(one[1].epoch(0), other[1].epoch(0), strict=True)):
        for (step, _, _), (images, labels, *_), totals, name in zip((one, other), (a, b), sums, by_hand, strict=True):
            taken = step(Batch(images, labels), number / 25)
            totals.add(taken, labels, number)
            by_hand[name] += sum(loss.item() for loss in taken.losses.values())
    eager, compiled = (totals.read() for totals in sums)
    assert compiled.losses == pytest.approx(eager.losses, rel=1e-2, abs=1e-3)
    assert sum(compiled.losses.values()) * 25 == pytest.approx(by_hand["compiled"], rel=1e-5)
    assert sum(eager.losses.values()) * 25 == pytest.approx(by_hand["eager"], rel=1e-5)
    for p, q in zip(one[0].parameters, other[0].parameters, strict=True):
        torch.testing.assert_close(q, p, rtol=2e-2, atol=2e-3)


@pytest.mark.unmirrored
def test_evaluation_between_compiled_steps_compiles_nothing_and_spoils_nothing() -> None:
    """In one large batch, then in batches of several sizes."""
    found = settings("float32", "on")
    step, batches, job = made(found)
    drawn = batches.epoch(0)

    def steps(n: int) -> None:
        step.method.train()
        for _ in range(n):
            images, labels, *_ = next(drawn)
            losses = step(Batch(images, labels), 0.5).losses
            assert not has_numbers("on") or all(torch.isfinite(loss) for loss in losses.values())

    steps(WARM)
    graphs = counters["stats"]["unique_graphs"]
    totals = []
    for size in (EVAL_BATCH, 7, 16):
        reading = eval_batches(batches.dataset, job.dataset.val, batches.normalise, size)
        totals.append(count(step.method, reading, found.torch_device))
    if has_numbers("on"):
        large, small, middle = (of_size.read().top1_pct for of_size in totals)
        assert large == pytest.approx(small, abs=5)
        assert large == pytest.approx(middle, abs=5)
    steps(WARM)
    assert counters["stats"]["unique_graphs"] == graphs == 1
    assert not counters["graph_break"]
