"""Plain trainings of one network on a few photographs: what a recipe of okdc has to be worth more than.

`train` is what an engineer writes in forty lines of PyTorch: torchvision's transforms in a DataLoader, AdamW under
OneCycleLR, label smoothing, the last epoch. `fine_tune` is the same from pretrained weights, with timm's own parts:
transforms, parameter groups, schedule, loss. Both are float32 and are measured beside okdc on the same pixels, splits
and numbers of steps; neither reads a validation image.

Shapes: N images, HWC pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils import data as loading

from okdc.data.datasets import Dataset

SMOOTHING = 0.1
DEGREES, SHIFT, SCALE, JITTER = 10, (0.1, 0.1), (0.9, 1.1), (0.2, 0.2, 0.2)

Transform = Callable[[Image.Image], Tensor]


def train(
    network: nn.Module, dataset: Dataset, epochs: int, batch: int, seed: int, flip: bool, lr: float = 3e-3
) -> None:
    """Train `network` on the training images, in place. `flip`: whether a mirrored image keeps its class."""
    from torchvision.transforms import v2  # seconds to import

    torch.manual_seed(seed)
    mean, std = dataset.moments()
    transform = v2.Compose(
        [
            *([v2.RandomHorizontalFlip()] if flip else []),
            v2.RandomAffine(DEGREES, SHIFT, SCALE, interpolation=v2.InterpolationMode.BILINEAR),
            v2.ColorJitter(*JITTER),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(mean), list(std)),
        ]
    )
    loader = _loader(dataset, transform, batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * len(loader), pct_start=0.2)
    network.train()
    for _ in range(epochs):
        for images, labels in loader:
            loss = F.cross_entropy(network(images), labels, label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def fine_tune(network: nn.Module, dataset: Dataset, epochs: int, batch: int, seed: int, lr: float = 5e-4) -> None:
    """Fine-tune a timm model on the training images, in place. Its mean and deviation are those of its weights."""
    data, loss, optim, scheduler = (import_module(f"timm.{part}") for part in ("data", "loss", "optim", "scheduler"))

    torch.manual_seed(seed)
    config: dict[str, Any] = data.resolve_model_data_config(network)
    transform = data.create_transform(
        dataset.size, is_training=True, mean=config["mean"], std=config["std"], scale=(0.5, 1.0), re_prob=0.1
    )
    loader = _loader(dataset, transform, batch)
    optimizer = optim.create_optimizer_v2(network, "adamw", lr=lr, weight_decay=0.05)
    schedule = scheduler.CosineLRScheduler(
        optimizer, epochs * len(loader), warmup_t=len(loader), warmup_lr_init=lr / 100, t_in_epochs=False
    )
    measure, step = loss.LabelSmoothingCrossEntropy(SMOOTHING), 0
    network.train()
    for _ in range(epochs):
        for images, labels in loader:
            schedule.step_update(step)
            optimizer.zero_grad()
            measure(network(images), labels).backward()
            optimizer.step()
            step += 1


class _Photographs(loading.Dataset[tuple[Tensor, int]]):
    """The training images one by one, as a transform changes them."""

    def __init__(self, dataset: Dataset, transform: Transform) -> None:
        self.pixels: npt.NDArray[Any] = dataset.pixels(dataset.train).numpy()
        self.labels, self.transform = dataset.labels[dataset.train].tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[row])), self.labels[row]


def _loader(dataset: Dataset, transform: Transform, batch: int) -> loading.DataLoader[Any]:
    return loading.DataLoader(_Photographs(dataset, transform), batch, shuffle=True, drop_last=True)
