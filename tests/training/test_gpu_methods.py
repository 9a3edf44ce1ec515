"""Every method, its readings and many networks on a GPU: no step waits for it, and each has deterministic kernels.

Then, on the device that is not there, whose numbers are the CPU's: float32 training there ends with the CPU's weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from harness import built, no_waiting, recipe
from torch import Tensor

from okdc.assembly import job as assembly
from okdc.assembly.student import square
from okdc.data.augmentation import Augmentation
from okdc.data.batches import Normalise, TrainBatches, eval_batches
from okdc.methods.base import Batch
from okdc.recipe.schema import Augment, Engine
from okdc.seeds import seeded
from okdc.training import device
from okdc.training.device import Settings
from okdc.training.metrics import Totals, count
from okdc.training.step import TrainStep

pytestmark = pytest.mark.gpu

WARM = 2  # steps in which kernels are chosen and memory is allocated


def students(*names: str) -> str:
    return "cohort.students=[" + ", ".join(f'"{name}"' for name in names) + "]"


TWO, THREE = students("resnet8", "resnet8"), students("resnet8", "resnet8", "resnet8")
BRANCHES = ("fefr", "mfef", "ffl", "okddip", "pcl")
CONFIGURATIONS = [
    *(
        (f"method.name={name}", f"cohort.share={share}", THREE)
        for name in BRANCHES
        for share in ("low", "stem1", "none")
    ),
    *((f"method.name={name}", "cohort.share=none", THREE) for name in ("dml", "dualnet", "switokd", "okdph", "relay")),
    *((f"method.name={name}", f"cohort.share={share}", TWO) for name in ("one", "ahbf") for share in ("low", "stem1")),
    ("method.name=okdph", "method.hybrid=dirichlet", "cohort.share=none"),
    ("method.name=switokd", "method.teacher_indices=[0, 1]", THREE),
    ("method.name=ahbf", THREE),
    *(("method.name=byot", f"method.loss={loss}") for loss in ("conference", "journal")),
    ("method.name=baseline", students("resnet8")),
    *(
        ("method.name=kdcl", f"method.target={target}", "cohort.share=none", cohort)
        for target in ("naive", "linear", "minlogit")
        for cohort in (TWO, THREE)
    ),
    *(("method.name=fefr", f"method.reconstruct={kind}") for kind in ("skip", "cyclic", "loo", "cross", "none")),
    *(("method.name=fefr", f"method.match={kind}") for kind in ("patch", "conv3x3_s2", "pool1x1")),
    *(("method.name=fefr", word) for word in ("method.early_fusion=false", "method.attention=false")),
    ("method.name=fefr", "method.detach_features=true"),
    *(("method.name=fefr", "method.reading=released", f"cohort.share={share}", THREE) for share in ("low", "none")),
    ("method.name=fefr", "method.reading=released", "method.attention=random"),
    ("method.name=dualnet", "method.turns=2", "cohort.share=none", TWO),
    ("method.name=mfef", "method.in_path=true"),
    ("method.name=mfef", "method.msfe=false", "method.attention=false"),
]
NETWORKS = (
    "resnet20", "resnet20+2", "resnet20+msfe", "wrn16_2", "densenet40_12", "mobilenetv2",
    "torchvision:mobilenet_v3_small", "torchvision:squeezenet1_1", "torchvision:shufflenet_v2_x0_5",
    "timm:mobilenetv3_small_100", "timm:efficientnet_b0", "timm:convnext_atto", "timm:ghostnet_100",
)  # fmt: skip


@pytest.fixture(params=[("bfloat16", False), ("float32", True)], ids=["bfloat16", "deterministic"])
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The process as a training sets it up, in bfloat16 or with deterministic kernels."""
    dtype, deterministic = request.param
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    chosen = device.choose(Engine(device="cuda", dtype=dtype, compile="off"), 8, deterministic)
    device.apply(chosen, deterministic)
    yield chosen
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, True


@pytest.mark.unmirrored
@pytest.mark.parametrize("words", CONFIGURATIONS, ids=" ".join)
def test_no_step_of_any_method_waits_for_the_gpu(words: tuple[str, ...], settings: Settings) -> None:
    step, batches, _ = made(settings, *words)
    totals, drawn = Totals(settings.torch_device), batches.epoch(0)
    for number in range(WARM):
        examples = next(drawn)
        totals.add(step(Batch(*examples), 0.3), examples.labels, number)
    with no_waiting():
        for number in (WARM, WARM + 1):
            examples = next(drawn)
            totals.add(step(Batch(*examples), 0.3), examples.labels, number)
    assert totals.steps == WARM + 2


@pytest.mark.unmirrored
@pytest.mark.parametrize("name", NETWORKS)
def test_no_step_of_any_network_waits_for_the_gpu(name: str, settings: Settings) -> None:
    size = 64 if ":" in name else 32
    resolved = recipe("cohort.share=none", students("resnet8", name))
    method, _ = assembly.method(resolved, square(size), 10)
    step = TrainStep(method, resolved.recipe.optim, settings)
    step.method.train()
    images = torch.zeros(8, 3, size, size, device="cuda").contiguous(memory_format=settings.torch_memory_format)
    labels = torch.zeros(8, dtype=torch.int64, device="cuda")
    for _ in range(WARM):
        step(Batch(images, labels), 0.3)
    with no_waiting():
        taken = step(Batch(images, labels), 0.3)
    assert {loss.device.type for loss in taken.losses.values()} == {"cuda"}


@pytest.mark.fakegpu
@pytest.mark.parametrize(
    "words",
    [
        ("method.name=baseline", students("resnet8")),
        ("method.name=fefr", THREE),
        ("method.name=fefr", "method.match=pool1x1", "cohort.share=none"),
        ("method.name=mfef",),
        ("method.name=ffl",),
        ("method.name=one",),
        ("method.name=okddip", THREE),
        ("method.name=dualnet", "cohort.share=none"),
        ("method.name=dml", "cohort.share=none"),
        ("method.name=kdcl", "cohort.share=none"),
        ("method.name=byot", "method.loss=journal"),
        ("method.name=ahbf", THREE),
        ("method.name=kdcl", "method.target=linear", "cohort.share=none", THREE),
        ("method.name=switokd", "cohort.share=none"),
        ("method.name=pcl", THREE),
        ("method.name=okdph", "method.interval=0.2"),
        ("method.name=relay", "cohort.share=none"),
    ],
    ids=" ".join,
)
def test_float32_training_ends_with_the_weights_and_counts_of_the_cpu(words: tuple[str, ...]) -> None:
    """To the bit, after 12 steps: what differs on a real card are its kernels' sums, and nothing of okdc's."""
    here, there = trained("cpu", words), trained("cuda", words)
    assert there[:2] == here[:2]
    assert [name for name, value in here[2].items() if not torch.equal(value, there[2][name])] == []


def trained(where: str, words: tuple[str, ...]) -> tuple[Any, Any, dict[str, Tensor]]:
    """The counts of twelve steps and of a validation, and the weights."""
    settings = Settings(where, "float32", "contiguous", 1)
    step, batches, val = made(settings, *words)
    totals = Totals(settings.torch_device)
    for number, examples in zip(range(12), batches.epoch(0), strict=False):
        with seeded(0, "step", number, device=settings.torch_device):
            totals.add(step(Batch(*examples), number / 25), examples.labels, number)
    judged = count(step.method, val, settings.torch_device).read()
    return totals.read(), judged, {name: value.cpu() for name, value in step.method.state_dict().items()}


def made(settings: Settings, *words: str) -> tuple[TrainStep, TrainBatches, Iterator[tuple[Tensor, Tensor]]]:
    """A step in training mode, its batches, and those of a validation."""
    job = built(recipe("data.train_images=400", *words))
    dataset = job.dataset.to(settings.torch_device)
    normalise = Normalise((0.5,) * 3, (0.5,) * 3, settings.torch_device, settings.torch_memory_format)
    step = TrainStep(job.method, job.recipe.optim, settings)
    step.method.train()
    augmentation, views = Augmentation(Augment(padding=1)), job.method.views
    batches = TrainBatches(dataset, 16, augmentation, normalise, 0, views=views)
    return step, batches, eval_batches(dataset, job.dataset.val, normalise, 500)
