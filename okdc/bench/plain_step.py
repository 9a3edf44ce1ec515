"""The plain way: how the field's public code feeds and steps small images. It is the same mathematics (tested).

mdistiller, RepDistiller, FFL's own code and most others: PIL images through torchvision's transforms, one by one, in
the workers of a DataLoader; float32, NCHW, nothing compiled; torch's default SGD for each part; the loss and the
accuracy of every head are read at every step, and each read waits for the device.

It is not made worse than that. The networks and losses are okdc's own; the process is okdc's too, with its threads and
the memory that it keeps from the system (okdc.training.device.keep_memory, a gain that the field's programs do not
have). Nothing trains while the DataLoader is measured: its workers persist and have every core, while okdc's crops are
one thread's. Where any of this matters the ratios are too low.

Shapes: N images of a batch, HWC pixels.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils import data as loading

from okdc import signals
from okdc.cohort import Backbone
from okdc.data.workers import end, forking, of_loader
from okdc.methods.base import Batch, Method
from okdc.precision.tools import quiet
from okdc.recipe.schema import Augment, Optim

PREFETCH = 2  # batches of each worker, as torch has it


class PlainStep:
    """A method in float32 and contiguous memory, with an optimiser for each part of it."""

    def __init__(self, method: Method, recipe: Optim, device: torch.device) -> None:
        self.method, self.recipe, self.device = method.to(device).train(), recipe, device
        self.optimizers = [
            torch.optim.SGD(part, recipe.lr, recipe.momentum, weight_decay=decay, nesterov=True)
            for part, decay in parts(method, recipe)
        ]

    def __call__(self, images: Tensor, labels: Tensor, done: float) -> dict[str, float]:
        """Learn from NCHW images and their N labels; the loss and each head's accuracy, read on the spot.

        FFL's own code reads the loss and three accuracies; most others one to four numbers, mmrazor every term.
        """
        step = self.method(Batch(images, labels), torch.full((), done, device=self.device))
        loss = torch.stack(list(step.losses.values())).sum()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        if self.recipe.clip:
            nn.utils.clip_grad_norm_([p for p in self.method.parameters() if p.requires_grad], self.recipe.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            self.method.after_step()
        right = {f"{name}_top1": (z.argmax(1) == labels).float().mean().item() for name, z in step.logits.items()}
        return {"loss": loss.item()} | right


def parts(method: Method, recipe: Optim) -> list[tuple[list[nn.Parameter], float]]:
    """Weights with their decay: each student's own (a trunk's with the first student), then the scaffolding."""
    taken: set[int] = set()
    groups = []
    for module in (*method.cohort.students, *method.student_parts(), method):
        weights = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
        taken |= {id(p) for p in weights}
        if weights:
            groups.append((weights, recipe.aux_weight_decay if module is method else recipe.weight_decay))
    return groups


class PlainImages(loading.Dataset[tuple[Tensor, int]]):
    """Images one by one, as torchvision.datasets.CIFAR10 has them."""

    def __init__(
        self,
        pixels: npt.NDArray[np.uint8],
        labels: Sequence[int],
        transform: Callable[[Image.Image], Tensor],
    ) -> None:
        self.pixels, self.labels, self.transform = pixels, labels, transform  # NHWC

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[row])), self.labels[row]


def usual(size: int, mean: Sequence[float], std: Sequence[float]) -> Any:
    """torchvision's first transforms: crop and mirror."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomCrop(size, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


def varied(keys: Augment, size: int, mean: Sequence[float], std: Sequence[float]) -> Any:
    """torchvision's second transforms of the same operations, for PIL images: small tensors take them longer.

    Without blur, grey and mixing, which no bench asks for.
    """
    from torchvision.transforms import v2

    bilinear = v2.InterpolationMode.BILINEAR
    transforms: list[Any] = [v2.RandomCrop(size, padding=keys.padding)]
    transforms += [v2.RandomHorizontalFlip()] if keys.flip else []
    if keys.rotation or keys.translate or keys.shear or keys.zoom != (1, 1):
        shift, shear = (keys.translate, keys.translate), keys.shear or None
        transforms.append(v2.RandomAffine(keys.rotation, shift, keys.zoom, shear, bilinear))
    colours = keys.brightness, keys.contrast, keys.saturation, keys.hue
    transforms += [v2.ColorJitter(*colours)] if any(colours) else []
    transforms += [v2.TrivialAugmentWide(interpolation=bilinear)] if keys.policy == "trivial" else []
    transforms += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    transforms += [v2.RandomErasing(keys.erasing)] if keys.erasing else []
    return v2.Compose(transforms)


class PlainBatches:
    """Stretches of batches from a DataLoader with persistent workers, on the device.

    Workers prefetch. So the first batches of a stretch, which were begun before it, are not timed, and a stretch ends
    with the epoch, when no worker is left at work: it neither gets batches for nothing nor slows what is measured next.
    """

    def __init__(self, images: PlainImages, batch_size: int, workers: int, device: torch.device) -> None:
        self.device = device
        self.lead = PREFETCH * workers
        # Number of timed batches: about 0.25 s with two workers. A worker may have one batch half done when the timing
        # begins and another when it ends: an error of one batch at most, an eighth of its part.
        self.batches = max(32, 8 * workers)
        count = batch_size * (self.lead + self.batches)
        self._loader: loading.DataLoader[Any] | None = loading.DataLoader(
            images,
            batch_size,
            sampler=loading.RandomSampler(images, num_samples=count),
            num_workers=workers,
            prefetch_factor=PREFETCH,
            persistent_workers=True,
            worker_init_fn=partial(of_loader, os.getpid()),
        )
        self._epoch: Iterator[tuple[Tensor, Tensor]] = iter(())

    def begin(self) -> None:
        """Start a stretch: take what is prefetched out of the way."""
        assert self._loader is not None
        # Signals wait until all workers have started: torch complains of a loader that is half built, and a worker that
        # has not come to `of_loader` would die of the signal.
        with forking(), signals.held():
            self._epoch = iter(self._loader)
        for _ in range(self.lead):
            next(self._epoch)

    def next(self) -> tuple[Tensor, Tensor]:
        images, labels = next(self._epoch)
        return images.to(self.device), labels.to(self.device)

    def close(self) -> None:
        """End the workers and wait for them."""
        loader, self._loader = self._loader, None
        end(loader)


def to_onnx(network: Backbone, size: int) -> bytes:
    """torch's own export with its defaults, to bytes."""
    with warnings.catch_warnings(), quiet(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(network.eval(), (torch.zeros(1, 3, size, size),), dynamo=True, verbose=False)
    assert program is not None
    blob: bytes = program.model_proto.SerializeToString()
    return blob
