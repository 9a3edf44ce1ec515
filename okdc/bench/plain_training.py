"""Plain trainings of one network on a few photographs: what a recipe of okdc has to be worth more than.

`train` is what an engineer writes in forty lines of PyTorch: torchvision's transforms in a DataLoader, AdamW under
OneCycleLR, label smoothing, the last epoch. `fine_tune` is the same from pretrained weights, with timm's own parts:
transforms, parameter groups, schedule, loss. Both are float32 and are measured beside okdc on the same pixels, splits
and numbers of steps; neither reads a validation image.

Shapes: N images, HWC pixels, K classes.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import data as loading

from okdc.bench.plain_step import PlainImages, varied
from okdc.data.datasets import Dataset
from okdc.recipe.schema import Augment

SMOOTHING = 0.1
VARIED = Augment(padding=0, rotation=10.0, translate=0.1, zoom=(0.9, 1.1), brightness=0.2, contrast=0.2, saturation=0.2)


def train(
    network: nn.Module, dataset: Dataset, epochs: int, batch: int, seed: int, flip: bool, lr: float = 3e-3
) -> None:
    """Train `network` on the training images, in place. `flip`: whether a mirrored image keeps its class."""
    torch.manual_seed(seed)
    keys = VARIED.model_copy(update={"flip": flip})
    loader = _loader(dataset, varied(keys, dataset.size[1], *dataset.moments()), batch)
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


def _loader(dataset: Dataset, transform: Any, batch: int) -> loading.DataLoader[Any]:
    """The training images, as a transform changes each."""
    labels: list[int] = dataset.labels[dataset.train].tolist()
    images = PlainImages(dataset.pixels(dataset.train).numpy(), labels, transform)
    return loading.DataLoader(images, batch, shuffle=True, drop_last=True)
