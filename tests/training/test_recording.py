"""A step that is replayed as a CUDA graph: when it is, what it costs, and that nothing of the training changes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import fakegpu
import pytest
import torch
from asking import case
from harness import Quiet, built, no_waiting, outcome, recipe, rows
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from okdc import backbones
from okdc.assembly.job import Job
from okdc.data.augmentation import Augmentation
from okdc.data.batches import Normalise, TrainBatches
from okdc.data.placement import place
from okdc.distributed import ALONE, Ranks
from okdc.errors import DeviceError
from okdc.methods.base import Batch, Step
from okdc.recipe.schema import Augment, Engine
from okdc.runs.artefacts import Provenance
from okdc.training import device, recording
from okdc.training import start as starts
from okdc.training.device import Settings
from okdc.training.metrics import Totals
from okdc.training.recording import WARM, CountedStep
from okdc.training.step import TrainStep

GPU = Settings("cuda", "bfloat16", "channels_last", 1, cuda_graph="auto", reasons=("device cuda",))
ADAMW = (
    *("optim.optimizer=adamw", "optim.lr=0.01", "optim.schedule=onecycle", "optim.decay_norm_and_bias=false"),
    *("optim.ema=0.9", "optim.class_weights=balanced", "optim.label_smoothing=0.1"),
)
MORE = ("data.train_images=400", "method.name=fefr")  # 25 steps an epoch
RANDOM = ("method.reading=released", "method.attention=random")
TURNS = ("method.name=dualnet", "method.turns=2")
AFTER = [("method.name=switokd",), ("method.name=pcl",), ("method.name=okdph", "method.interval=0.1")]
AFTER += [("method.name=relay", "cohort.share=none")]


# ---------------------------------------------------------------------------------------------------------------------
# Whether


@pytest.mark.parametrize("asked", ["auto", "on", "off"])
def test_one_gpu_records_unless_it_is_told_not_to(asked: str) -> None:
    settings = recording.decide(replace(GPU, cuda_graph=asked), built(recipe()), ALONE)
    assert settings.cuda_graph == ("off" if asked == "off" else "on")
    assert len(settings.reasons) == 2
    assert settings.reasons[0] == "device cuda"


def test_a_cpu_has_no_graph_and_says_nothing_of_it() -> None:
    cpu = Settings("cpu", "float32", "contiguous", 1, cuda_graph="auto", reasons=("device cpu",))
    settings = recording.decide(cpu, built(recipe()), ALONE)
    assert (settings.cuda_graph, settings.reasons) == ("off", ("device cpu",))
    with pytest.raises(DeviceError, match=r"engine\.cuda_graph=on"):
        recording.decide(replace(cpu, cuda_graph="on"), built(recipe()), ALONE)


def test_several_processes_record_nothing() -> None:
    job, two = built(recipe()), Ranks(0, 2, 0, 2)
    assert recording.decide(GPU, job, two).cuda_graph == "off"
    with pytest.raises(DeviceError, match=r"engine\.cuda_graph=on"):
        recording.decide(replace(GPU, cuda_graph="on"), job, two)


def test_code_that_is_not_okdcs_is_recorded_only_when_asked() -> None:
    job = built(recipe())
    own = replace(job, recipe=job.recipe.model_copy(update={"method": {"name": "mine:Method"}}))
    assert recording.decide(GPU, own, ALONE).cuda_graph == "off"
    assert recording.decide(replace(GPU, cuda_graph="on"), own, ALONE).cuda_graph == "on"

    network = job.method.cohort.backbone(0)
    network.__class__ = type("Mine", (type(network),), {"__module__": "mine"})
    assert recording.decide(GPU, job, ALONE).cuda_graph == "off"


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v2", "timm:resnet18", "networks.trunk:plain"])
def test_a_traced_network_without_python_of_its_own_is_recorded(name: str) -> None:
    words = (f'cohort.students=["{name}", "resnet8"]', "cohort.share=none", "method.name=dml")
    assert recording.decide(GPU, built(recipe(*words)), ALONE).cuda_graph == "on"


@pytest.mark.parametrize(
    "kept", ["layer", "function", "forward", "forward_pre", "backward", "backward_pre", "parameter"]
)
def test_python_that_a_traced_network_keeps_is_recorded_only_when_asked(kept: str) -> None:
    job = built(recipe())
    layer = next(m for m in job.method.cohort.backbone(0).modules() if isinstance(m, nn.Conv2d))
    if kept == "layer":
        layer.__class__ = type("Mine", (nn.Conv2d,), {"__module__": "mine"})
    elif kept == "function":
        network = job.method.cohort.backbone(0)
        network.traced = fx.symbolic_trace(nn.Sequential(nn.ReLU()))
        graph = network.traced.graph
        with graph.inserting_before(list(graph.nodes)[-1]):
            graph.call_function(lambda: None)
    elif kept == "parameter":
        layer.weight.register_hook(lambda gradient: gradient)
    else:
        name = f"register_{kept}_hook" if "forward" in kept else f"register_full_{kept}_hook"
        getattr(layer, name)(lambda *_: None)
    assert recording.decide(GPU, job, ALONE).cuda_graph == "off"
    assert recording.decide(replace(GPU, cuda_graph="on"), job, ALONE).cuda_graph == "on"


# ---------------------------------------------------------------------------------------------------------------------
# The step


VARIED = Augment(padding=1, rotation=20.0, hue=0.2, blur=0.3, erasing=0.5, policy="trivial", mixup=0.4, cutmix=1.0)


def made(
    cuda_graph: str, *words: str, dtype: str = "float32", compile: str = "off", keys: Augment | None = None
) -> tuple[CountedStep, Job]:
    """A step of a small training, its method in training mode."""
    job = built(recipe(*MORE, *words))
    engine = Engine(device="cuda", dtype=dtype, compile=compile, cuda_graph=cuda_graph)  # type: ignore[arg-type]
    settings = device.choose(engine, 8)
    device.apply(settings, deterministic=False)
    dataset, _ = place(job.dataset, settings.torch_device)
    normalise = Normalise((0.5,) * 3, (0.5,) * 3, settings.torch_device, settings.torch_memory_format)
    step = TrainStep(job.method, job.recipe.optim, settings, finetuned=job.finetuned)
    step.begin(0)
    said: list[str] = []
    augmentation, views = Augmentation(keys or Augment(padding=1)), job.method.views
    batches = TrainBatches(dataset, 16, augmentation, normalise, 0, views=views)
    counted = CountedStep(step, batches, 0, said.append)
    counted.said = said  # type: ignore[attr-defined]
    return counted, job


def taken(step: CountedStep, epochs: int = 1, steps: int = 25) -> Iterator[Totals]:
    """The sums of each epoch."""
    for epoch in range(epochs):
        totals = Totals(step.step.settings.torch_device)
        inputs = step.inputs(epoch, 0)
        for number in range(steps):
            step(next(inputs), (epoch * steps + number) / (epochs * steps), totals, epoch * steps + number)
        yield totals


@pytest.mark.gpu
@pytest.mark.fakegpu
@pytest.mark.unmirrored
@pytest.mark.parametrize(
    ("compile", "more"),
    [*itertools.product(("off", "on"), ((), ("optim.clip=1.0",), ADAMW)), ("off", RANDOM), ("off", TURNS)],
)
def test_a_recorded_step_is_one_launch_and_a_copy_of_what_was_drawn(compile: str, more: tuple[str, ...]) -> None:
    torch._dynamo.reset()
    step, _ = made("on", *more, dtype="bfloat16", compile=compile)
    totals, inputs = Totals(torch.device("cuda")), step.inputs(0, 0)
    for number in range(WARM + 1):
        step(next(inputs), 0.0, totals, number)
    drawn = next(inputs)
    fakegpu.reset()
    with no_waiting():
        step(drawn, 0.5, totals, WARM + 1)
    counts = fakegpu.counts()
    assert counts.graphs["launches"] == 1
    assert counts.graphs["nodes"] > 100
    assert counts.launches.total() == 3  # ramp, learning rate, number of the step
    assert counts.copies.total() == 1
    assert sum(counts.bytes.values()) == 16 * 4 * 8
    assert totals.steps == WARM + 2
    assert totals.images == 16 * (WARM + 2)


@pytest.mark.gpu
@pytest.mark.fakegpu
@pytest.mark.unmirrored
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("more", [(), ADAMW])
def test_a_step_is_recorded_anew_where_backbones_begin_to_learn(dtype: str, more: tuple[str, ...]) -> None:
    """The recording of the first epochs has no gradients of theirs."""
    save_file(backbones.build("resnet8", 7, torch.Size((3, 8, 8))).weights(), "w.safetensors")
    step, job = made("on", *more, "cohort.weights=w.safetensors", "optim.freeze_epochs=1", dtype=dtype)
    (parameter, *_), nodes = job.method.cohort.backbone(0).parameters(), []
    for epoch in range(2):
        assert bool(step.begin(epoch)) is (epoch == 1), "the first epoch was begun by what made the step"
        totals, inputs = Totals(torch.device("cuda")), step.inputs(epoch, 0)
        for number in range(WARM + 2):
            fakegpu.reset()
            step(next(inputs), 0.0, totals, number)
            assert fakegpu.counts().graphs["launches"] == (number >= WARM)
        nodes.append(fakegpu.counts().graphs["nodes"])
        assert (parameter.grad is not None) is (epoch == 1)
    assert nodes[1] > 1.1 * nodes[0]
    assert not step.said  # type: ignore[attr-defined]


@pytest.mark.gpu
@pytest.mark.fakegpu
@pytest.mark.unmirrored
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fewer_launches_than_one_for_each_layer(dtype: str) -> None:
    """Casts and counts are a few launches, whatever the number of layers."""
    step, job = made("off", dtype=dtype)
    totals, inputs = Totals(torch.device("cuda")), step.inputs(0, 0)
    for number in range(WARM):
        step(next(inputs), 0.0, totals, number)
    drawn = next(inputs)
    fakegpu.reset()
    step(drawn, 0.0, totals, WARM)
    launches = fakegpu.counts().launches
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in job.method.modules())
    convolutions = sum(isinstance(module, nn.Conv2d) for module in job.method.modules())
    increments = sum(number for kernel, number in launches.items() if "CUDAFunctorOnSelf_add<long>" in kernel)
    casts = sum(number for kernel, number in launches.items() if "bfloat16_copy_kernel" in kernel)
    assert norms > 15
    assert increments < 3
    assert casts < convolutions // 2


@pytest.mark.gpu
@pytest.mark.fakegpu
@pytest.mark.unmirrored
@pytest.mark.parametrize("words", [*AFTER, ("method.name=okdph", "method.hybrid=dirichlet")], ids=" ".join)
def test_the_work_of_a_method_after_a_step_is_recorded_too(words: tuple[str, ...]) -> None:
    step, _ = made("on", *words, dtype="bfloat16")
    totals, inputs = Totals(torch.device("cuda")), step.inputs(0, 0)
    for number in range(WARM + 2):
        fakegpu.reset()
        with no_waiting() if number > WARM else nullcontext():
            step(next(inputs), 0.5, totals, number)
        assert fakegpu.counts().graphs["launches"] == (number >= WARM)
    assert fakegpu.counts().launches.total() <= 6  # of several views the draws are put together, and seeds are set
    assert not step.said  # type: ignore[attr-defined]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "more"),
    [
        case(dtype, more, long=dtype == "bfloat16" and more != ())
        for dtype in ("float32", "bfloat16")
        for more in ((), ("optim.clip=1.0", "optim.schedule=cosine"), ADAMW, *AFTER)
    ],
)
def test_recorded_steps_are_the_eager_ones(dtype: str, more: tuple[str, ...]) -> None:
    assert_same_steps(4 * WARM, dtype, *more)


@pytest.mark.parametrize("keys", [Augment(padding=1), VARIED], ids=["usual", "mixed"])
def test_a_method_is_given_all_that_is_known_of_a_batch(keys: Augment) -> None:
    job = built(recipe(*MORE))
    step = TrainStep(job.method.train(), job.recipe.optim, Settings("cpu", "float32", "contiguous", 1))
    batches = TrainBatches(job.dataset, 16, Augmentation(keys), Normalise((0.5,) * 3, (0.5,) * 3), 0)
    seen: list[Batch] = []
    job.method.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    next(taken(CountedStep(step, batches, 0, print), steps=1))
    expected = next(batches.epoch(0))
    assert (expected.mix is None) == (keys is not VARIED)
    assert seen[0].views == expected.views == ()
    for name in ("images", "labels", "other_labels", "mix"):
        given, value = getattr(seen[0], name), getattr(expected, name)
        assert given is value is None or torch.equal(given, value), name


@pytest.mark.gpu
def test_recorded_steps_on_varied_and_mixed_images_are_the_eager_ones() -> None:
    assert_same_steps(WARM + 3, "float32", keys=VARIED)


def assert_same_steps(steps: int, dtype: str, *more: str, keys: Augment | None = None) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        recorded, eager = (made(graph, *more, dtype=dtype, keys=keys)[0] for graph in ("on", "off"))
        for a, b in zip(taken(recorded, 2, steps), taken(eager, 2, steps), strict=True):
            assert a.read() == b.read()
    finally:
        torch.use_deterministic_algorithms(False)
    assert recorded._recording is not None
    ended, expected = (_numbers(side) for side in (recorded, eager))
    assert ended.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor.cpu(), ended[name].cpu()), name


def _numbers(side: CountedStep) -> dict[str, torch.Tensor]:
    """The weights and their average."""
    average = side.step.average.state()["values"] if side.step.average else {}
    return side.step.method.state_dict() | {f"average of {name}": tensor for name, tensor in average.items()}


@pytest.mark.gpu
@pytest.mark.unmirrored
def test_an_epoch_that_begins_with_the_recorded_step_is_counted_from_nothing() -> None:
    step, _ = made("on")
    first, second = taken(step, epochs=2, steps=WARM)
    assert (first.steps, second.steps) == (WARM, WARM)
    assert second.terms == first.terms
    assert len(second.sums) == len(second.terms) + len(second.heads)
    assert second.sums is not first.sums
    third = Totals.restore(second.state(), torch.device("cuda"))  # as a resumed epoch brings it
    before = third.sums.clone()
    replayed = step._recording
    assert replayed is not None
    third.move(replayed.totals)
    assert torch.equal(third.sums.cpu(), before.cpu())
    assert third.sums is replayed.totals.sums


@pytest.mark.gpu
@pytest.mark.unmirrored
def test_the_memory_of_a_recording_is_given_back() -> None:
    step, _ = made("on")
    next(taken(step, steps=WARM + 2))
    held = torch.cuda.memory_allocated()
    step.close()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() < held
    next(taken(step, steps=1))


class Reading(nn.Module):
    """Reads a number on the host, which no recording allows, once there are as many steps as are taken before it."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method, self.calls = method, 0

    def forward(self, *args: Tensor) -> Step:
        self.calls += 1
        step: Step = self.method(*args)
        if self.calls == WARM + 1:
            float(next(iter(step.losses.values())))
        return step


@pytest.mark.gpu
def test_a_step_that_cannot_be_recorded_goes_on_as_it_was_and_says_so() -> None:
    eager, _ = made("off", "optim.lr=0.01")
    fails, _ = made("on", "optim.lr=0.01")
    fails.step._run = Reading(fails.step.method)
    expected, actual = next(taken(eager)), next(taken(fails))
    said: list[str] = fails.said  # type: ignore[attr-defined]
    assert len(said) == 1
    assert "not replayed as a CUDA graph" in said[0]
    assert "capturing" in said[0]  # what failed, and not that the end of the recording failed after it
    assert fails._recording is None
    assert actual.steps == expected.steps == 25
    assert actual.read().losses == pytest.approx(expected.read().losses, rel=1e-3)
    for name, tensor in eager.step.method.state_dict().items():
        torch.testing.assert_close(fails.step.method.state_dict()[name].cpu(), tensor.cpu(), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "more"),
    [
        case("float32", (), long=True),
        case("float16", (), long=True),
        ("float16", ADAMW),
        ("float32", ('cohort.students=["networks.modes:dropout_by_flag", "resnet8"]',)),
    ],
    ids=["float32", "float16", "float16-adamw", "dropout"],
)
def test_a_whole_training_with_recorded_steps_is_the_eager_one(dtype: str, more: tuple[str, ...]) -> None:
    words = (*MORE, *more, "engine.device=cuda", f"engine.dtype={dtype}", "deterministic=true")
    words += ("data.train_images=240", "optim.epochs=2")
    runs = [
        starts.start(
            replace(recipe(*words, f"engine.cuda_graph={graph}"), stem=graph),
            None,
            Provenance(),
            Quiet(),
            export_check="skipped",  # fvcore counts what the CPU repeats, too
        )
        for graph in ("on", "off")
    ]
    recorded, eager = (outcome(run)["state"] for run in runs)
    assert recorded["method"] == eager["method"]
    assert recorded["optimizer"] == eager["optimizer"]
    assert recorded.get("average") == eager.get("average")
    assert [row["losses"] for row in rows(runs[0])] == [row["losses"] for row in rows(runs[1])]
