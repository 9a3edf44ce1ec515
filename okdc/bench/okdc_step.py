"""okdc's side of each pair: the same objects that a training uses, on random images.

How long a step takes does not depend on what is in the images, so no data set is needed.

Shapes: N images of a batch, HWC pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from okdc.assembly import job as assembly
from okdc.assembly import teacher as teachers
from okdc.assembly.resolve import ResolvedRecipe
from okdc.assembly.student import square
from okdc.bench.pairs import Side
from okdc.bench.plain_step import PlainStep
from okdc.cohort import Backbone
from okdc.data.augmentation import Augmentation, Examples
from okdc.data.batches import EVAL_BATCH, Normalise, Source, TrainBatches, eval_batch, eval_batches, in_order
from okdc.data.datasets import Dataset
from okdc.deploy import onnx
from okdc.methods.base import Method
from okdc.progress import Silent
from okdc.recipe.schema import Augment, Recipe
from okdc.training.compiling import forward_macs
from okdc.training.device import Settings
from okdc.training.metrics import Totals, count
from okdc.training.recording import CountedStep
from okdc.training.step import TrainStep

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
BATCHES = 4  # that the steps take in turn, fewer of large images
PIXELS = 2**25  # of all of them together
EVALUATED = 5000  # images in one pass on a GPU, which is through with one batch before it is asked for the next


def random_images(count: int, size: int, classes: int) -> Dataset:
    """So many random images and labels, all of them for training and for validation."""
    random = np.random.default_rng(0)
    rows = torch.arange(count)
    return Dataset(
        name="random",
        classes=tuple(str(c) for c in range(classes)),
        images=torch.from_numpy(random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)),
        labels=torch.from_numpy(random.integers(0, classes, count)),
        train=rows,
        val=rows,
        test=rows[:0],
        fingerprint="",
    )


def data_path(dataset: Dataset, batch_size: int, settings: Settings, keys: Augment | None = None) -> Side:
    """Batches as the loop takes them: order, crop, mirroring and what else `keys` ask for, normalisation."""
    normalise = _normalise(settings)
    batches = TrainBatches(
        dataset.to(settings.torch_device), batch_size, Augmentation(keys or Augment()), normalise, seed=0
    )
    endless = itertools.chain.from_iterable(batches.epoch(epoch) for epoch in itertools.count())
    return Side("varied" if keys else "data path", partial(next, endless), batch_size)


def export(network: Backbone, architecture: str, size: int, classes: int) -> bytes:
    """A student as `okdc export` writes it."""
    return onnx.to_onnx(network, onnx.untrained(architecture, size, classes))


@dataclass(frozen=True)
class Ready(Source):
    """Batches that are on the device already: images NCHW and labels N."""

    batches: Iterator[tuple[Tensor, Tensor]]

    def drawn(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:  # noqa: ARG002
        return self.batches

    def made(self, *drawn: Tensor) -> Examples:
        images, labels = drawn
        return Examples(images, labels)


@dataclass(frozen=True)
class Work:
    """A recipe's training step on random images. Each side has weights of its own, equal at the start."""

    resolved: ResolvedRecipe
    classes: int
    settings: Settings

    @property
    def recipe(self) -> Recipe:
        return self.resolved.recipe

    @property
    def batch_size(self) -> int:
        return self.recipe.optim.batch_size

    @property
    def size(self) -> int:
        return self.recipe.data.image_size

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of one image through the whole method, what is discarded included."""
        return forward_macs(self.method(), square(self.size))

    def method(self) -> Method:
        """On the CPU, with the weights that the recipe's seed gives."""
        built = assembly.assemble(self.resolved, self.classes)
        if built.teacher:
            mean, std = self.recipe.data.mean or MEAN, self.recipe.data.std or STD
            teachers.renormalise(built.method, built.teacher, mean, std)
        return built.method

    def trained(self, name: str) -> tuple[Side, Method]:
        """okdc's step with what the loop counts of it, and the method that it trains."""
        method = self.method()
        batches, totals = Ready(self._batches(self.settings)), Totals(self.settings.torch_device)
        step = CountedStep(
            TrainStep(method, self.recipe.optim, self.settings), batches, self.recipe.seed, Silent().note
        )
        inputs = step.inputs(0, 0)

        def run() -> None:
            step(next(inputs), 0.0, totals, 0)

        return Side(name, run, self.batch_size, prepare=lambda: step.begin(0)), method

    def training(self, name: str) -> Side:
        return self.trained(name)[0]

    def plain(self) -> Side:
        """The same step the plain way."""
        device = self.settings.torch_device
        step = PlainStep(self.method(), self.recipe.optim, device)
        batches = self._batches(Settings(self.settings.device, "float32", "contiguous", self.settings.threads))
        return Side("plain", lambda: step(*next(batches), 0.0), self.batch_size)

    def evaluation(self, method: Method) -> Side:
        """Accuracy and losses of every head in one pass, as a validation counts them."""
        settings = self.settings
        images = EVALUATED if settings.cuda else eval_batch(self.size, self.size)
        dataset = random_images(images, self.size, self.classes).to(settings.torch_device)
        normalise = _normalise(settings)

        def run() -> None:
            with settings.autocast():
                batches = eval_batches(dataset, dataset.val, normalise, EVAL_BATCH)
                count(method, batches, settings.torch_device).read()

        return Side("evaluation", run, images)

    def _batches(self, settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
        """The same batches again and again, ready on the device: a step is measured, not what feeds it."""
        batches = max(1, min(BATCHES, PIXELS // (self.batch_size * self.size**2)))
        dataset = random_images(batches * self.batch_size, self.size, self.classes).to(settings.torch_device)
        return itertools.cycle(list(in_order(dataset, dataset.train, _normalise(settings), self.batch_size)))


def _normalise(settings: Settings) -> Normalise:
    return Normalise(MEAN, STD, settings.torch_device, settings.torch_memory_format)


def waiting(settings: Settings) -> Callable[[], object]:
    """What waits until the device has done all that it was given."""
    return torch.cuda.synchronize if settings.cuda else lambda: None
