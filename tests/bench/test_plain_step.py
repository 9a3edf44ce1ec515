"""The plain way is the same training, fed and stepped otherwise: only then does a ratio of times mean anything."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from harness import recipe
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from okdc.assembly import job as assembly
from okdc.bench import pairings
from okdc.bench.okdc_step import MEAN, STD, Work, random_images
from okdc.bench.pairings import Scale
from okdc.bench.plain_step import PlainBatches, PlainImages, PlainStep, parts, to_onnx, usual, varied
from okdc.data.augmentation import Augmentation
from okdc.data.batches import Normalise, in_order
from okdc.data.datasets import Dataset
from okdc.methods.base import Batch, Method
from okdc.recipe.schema import Augment
from okdc.training.device import Settings
from okdc.training.step import TrainStep

CPU = torch.device("cpu")
FLOAT32 = Settings("cpu", "float32", "contiguous", 1)
METHODS = [
    "fefr", "ffl", "mfef", "one", "okddip", "dml", "dualnet", "kdcl", "byot", "ahbf", "switokd", "pcl", "okdph",
    "relay", "baseline",
]  # fmt: skip


def ready(dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
    """All images in batches of 16."""
    return in_order(dataset, dataset.train, Normalise(MEAN, STD), 16)


def made(name: str, *words: str) -> Method:
    return assembly.method(recipe(f"method.name={name}", *words), torch.Size((3, 8, 8)), 10)[0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((name, ()) for name in METHODS),
        *((name, ("cohort.share=stem1", "optim.clip=0.5")) for name in ("fefr", "ffl", "okddip")),
    ],
)
def test_three_plain_steps_are_three_of_okdcs_in_float32(name: str, words: tuple[str, ...]) -> None:
    optim = recipe("optim.weight_decay=0.01", "optim.aux_weight_decay=0.05", *words).recipe.optim
    ours, theirs = made(name, *words), made(name, *words)
    fast, plain = TrainStep(ours, optim, FLOAT32), PlainStep(theirs, optim, CPU)
    before = {key: value.clone() for key, value in theirs.state_dict().items()}
    for images, labels in ready(random_images(3 * 16, 8, 10)):
        step = fast(Batch(images, labels), 0.0)
        read = plain(images, labels, 0.0)
        assert read["loss"] == pytest.approx(sum(float(term.detach()) for term in step.losses.values()), rel=1e-4)
        for head, z in step.logits.items():
            right = float((z.argmax(1) == labels).float().mean())
            assert read[f"{head}_top1"] == pytest.approx(right, abs=1 / 16)  # a tie may be rounded either way
    for (key, mine), theirs_ in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs_, rtol=1e-4, atol=1e-5, msg=key)
    moved = [key for key, value in theirs.state_dict().items() if not torch.equal(value, before[key])]
    assert {name for name, _ in theirs.named_parameters()} <= set(moved)


def test_a_plain_step_reads_the_loss_and_the_accuracy_of_every_head_and_each_read_is_a_number() -> None:
    method = made("ffl")
    images, labels = next(ready(random_images(16, 8, 10)))
    step = method(Batch(images, labels), torch.zeros(()))
    read = PlainStep(method, recipe().recipe.optim, CPU)(images, labels, 0.0)
    assert set(read) == {"loss"} | {f"{head}_top1" for head in step.logits}
    assert all(isinstance(value, float) for value in read.values())
    assert all(0 <= value <= 1 for name, value in read.items() if name.endswith("_top1"))


@pytest.mark.parametrize("name", METHODS)
def test_each_student_has_an_optimiser_and_so_has_what_is_discarded(name: str) -> None:
    method, optim = made(name), recipe().recipe.optim
    found = parts(method, optim)
    scaffolding = {p for p in method.parameters() if p.requires_grad} - set(method.cohort.parameters())
    assert len(found) == len(method.cohort.students) + bool(scaffolding)
    taken = [p for part, _ in found for p in part]
    assert len(taken) == len(set(taken))
    assert set(taken) == {p for p in method.parameters() if p.requires_grad}
    assert set(method.cohort.backbone(0).parameters()) == set(found[0][0])  # a trunk is with the first
    assert [decay for _, decay in found[len(method.cohort.students) :]] == [optim.aux_weight_decay] * bool(scaffolding)


def test_a_plain_step_is_torch_as_it_comes() -> None:
    """float32 in contiguous maps, forward and backward, and SGD with its own choice of kernels."""
    found: list[tuple[str, Tensor]] = []

    def seen(layer: nn.Module, _: object, out: Tensor) -> None:
        if not isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            return
        found.append((type(layer).__name__, out))
        out.register_hook(lambda gradient: found.append((f"gradient of {type(layer).__name__}", gradient)))

    okdcs = Settings("cpu", "bfloat16", "channels_last", 1)
    work = pairings.work(okdcs, Scale(batch_size=4), "cifar10_resnet20", "resnet8", 2)
    side = work.plain()
    with register_module_forward_hook(seen):
        side.run()
    assert {"Conv2d", "BatchNorm2d", "gradient of Conv2d"} <= {name for name, _ in found}
    for name, tensor in found:
        assert tensor.dtype == torch.float32, name
        assert tensor.is_contiguous(), f"{name}: {tensor.shape} {tensor.stride()}"
    for optimizer in PlainStep(made("fefr"), work.recipe.optim, CPU).optimizers:
        assert type(optimizer) is torch.optim.SGD
        assert not any(optimizer.defaults[key] for key in ("fused", "foreach"))


@pytest.fixture
def batches() -> Iterator[PlainBatches]:
    images = random_images(64, 8, 10)
    found = PlainBatches(
        PlainImages(images.images.numpy(), images.labels.tolist(), usual(images.size[1], MEAN, STD)), 4, 1, CPU
    )
    yield found
    found.close()


def test_plain_batches_are_crops_mirrored_and_normalised_and_a_stretch_ends_the_epoch(batches: PlainBatches) -> None:
    for _ in range(2):  # workers persist
        batches.begin()
        for _ in range(batches.batches):
            images, labels = batches.next()
            assert images.shape == (4, 3, 8, 8)
            assert images.dtype == torch.float32
            assert labels.shape == (4,)
            assert float(images.abs().max()) <= 2.0  # (0..1 - 0.5) / 0.25
        with pytest.raises(StopIteration):
            batches.next()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("workers", [1, 2, 64])
def test_what_was_begun_before_a_stretch_is_little_of_it(workers: int) -> None:
    images = random_images(8, 8, 10)
    plain = PlainImages(images.images.numpy(), images.labels.tolist(), usual(images.size[1], MEAN, STD))
    batches = PlainBatches(plain, 4, workers, CPU)  # starts none before its first stretch
    assert batches.batches >= max(32, 8 * workers)


def test_workers_end_with_the_batches(batches: PlainBatches) -> None:
    batches.begin()
    running = multiprocessing.active_children()
    assert len(running) == 1
    batches.close()
    assert multiprocessing.active_children() == []
    batches.close()  # twice is once


def test_a_plain_image_is_okdcs_up_to_crop_and_mirroring() -> None:
    """A constant image is known wherever it is cut and however it is mirrored: in all but the zeros around it."""
    pixels = np.broadcast_to(np.array([0, 100, 255], np.uint8), (1, 8, 8, 3)).copy()
    plain = PlainImages(pixels, [3], usual(pixels.shape[1], MEAN, STD))
    ours = Normalise(MEAN, STD)(torch.from_numpy(pixels))[0]
    for _ in range(20):
        image, label = plain[0]
        assert label == 3
        inside = image[1] != -2.0  # a padded pixel is black
        assert inside.any()
        torch.testing.assert_close(image[:, inside], ours[:, inside], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("keys", [pairings.VARIED, pairings.TRIVIAL], ids=["varied", "policy"])
def test_plain_images_are_varied_as_okdcs_are(keys: Augment) -> None:
    """Of one image varied many times, each pixel has the same mean and deviation both ways.

    Without the crop's padding: torchvision turns a cropped image, and okdc shows what lies beyond the crop.
    """
    keys = keys.model_copy(update={"padding": 0})
    n, size = 1500, 16
    ramp = np.linspace(20, 235, size).astype(np.uint8)
    image = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, ::-1], np.uint8(120)), 2)
    rows = torch.zeros(n, dtype=torch.int64)
    torch.manual_seed(0)
    plain = PlainImages(image[None], [0], varied(keys, image.shape[0], MEAN, STD))
    theirs = torch.stack([plain[0][0] for _ in range(n)])
    ours = Augmentation(keys)
    made = ours.of_batch(torch.from_numpy(image[None]), ours.draw(rows, 0, 0, (size, size)), Normalise(MEAN, STD))
    assert float((theirs.mean(0) - made.mean(0)).abs().mean()) < 0.06
    assert float((theirs.std(0) - made.std(0)).abs().mean()) < 0.06


def test_evaluation_leaves_a_method_that_trains_again() -> None:
    work = Work(recipe(), 10, FLOAT32)
    side, method = work.trained("training")
    work.evaluation(method).run()
    assert not method.training
    side.prepare()
    side.run()
    assert method.training


def test_both_sides_of_a_step_start_from_the_same_weights() -> None:
    work = Work(recipe(), 10, FLOAT32)
    for a, b in zip(work.method().state_dict().values(), work.method().state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_plain_export_is_a_model_that_writes_nothing() -> None:
    network = made("baseline").cohort.backbone(0)
    before = set(Path.cwd().iterdir())
    blob = to_onnx(network, 8)
    onnx.checker.check_model(onnx.load_model_from_string(blob))
    assert set(Path.cwd().iterdir()) == before
