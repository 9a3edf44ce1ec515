"""What two processes of SwitOKD and of OKDPH do: a process imports its work by the name of this module."""

from __future__ import annotations

from typing import Any

import harness
import torch
import torch.nn.functional as F
from byhand import SMALL
from torch import Tensor

from okdc.distributed import Ranks
from okdc.methods.base import Batch
from okdc.methods.okdph import OKDPH
from okdc.methods.switokd import SwitOKD
from okdc.seeds import seeded
from okdc.training.device import Settings
from okdc.training.step import TrainStep

PLAIN = Settings("cpu", "float32", "contiguous", 1)


def views_of(n: int, seed: int = 0, images: int = 16) -> Batch:
    """A training batch of n students: n + 1 different views of each image."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(images, *SMALL, generator=generator)
    more = tuple(first + 0.5 * torch.randn(first.shape, generator=generator) for _ in range(n))
    return Batch(first, torch.randint(10, (images,), generator=generator), views=more)


def certain(labels: Tensor, scale: float) -> Tensor:
    """Logits that are 0 but for the label's."""
    return scale * F.one_hot(labels, 10).float()


def half(k: int) -> Tensor:
    """Logits of teacher and student for four images: a student that is sure of another class, and one that is near."""
    labels = torch.arange(4)
    return torch.stack([certain(labels, 2.0), certain(labels + 1, 200.0) if k == 0 else certain(labels, 1.9)])


def drawn() -> tuple[list[float], dict[str, Any]]:
    """In one of two processes, each with draws of its own: r of the last step, and the students after a fusion."""
    ranks = Ranks.of_environment()
    with ranks.joined("cpu"):
        words = ("method.name=okdph", "method.hybrid=dirichlet", "method.interval=0.2")
        job = harness.built(harness.recipe(*words))
        method = job.method.train()
        assert isinstance(method, OKDPH)
        step = TrainStep(method, job.recipe.optim, PLAIN, ranks)
        for number in range(3):
            with seeded(0, "step", number, ranks.rank):
                step(views_of(2, seed=10 * number + ranks.rank, images=8), number / 3)
        return method.r.tolist(), {name: p.detach().numpy() for name, p in method.cohort.named_parameters()}


def decided() -> tuple[bool, list[bool], float]:
    """In one of two processes: the mode of both, that of each half alone, and how far a paused teacher moved."""
    ranks = Ranks.of_environment()
    with ranks.joined("cpu"):
        job = harness.built(harness.recipe("method.name=switokd", "method.teacher_indices=[0]"))
        method = job.method.train()
        assert isinstance(method, SwitOKD)
        y = F.one_hot(torch.arange(4), 10).float()
        alone = [method.eval().expert(half(k), y).item() for k in (0, 1)]  # an evaluation exchanges nothing
        both = method.train().expert(half(ranks.rank), y).item()
        step = TrainStep(method, job.recipe.optim, PLAIN, ranks)
        moved = 0.0
        for number in range(6):
            before = [p.detach().clone() for p in method.cohort.backbone(0).parameters()]
            generator = torch.Generator().manual_seed(10 * number + ranks.rank)
            images = torch.randn(8, 3, 8, 8, generator=generator)
            step(Batch(images, torch.randint(10, (8,), generator=generator)), number / 10)
            if method.get_buffer("paused0"):
                pairs = zip(before, method.cohort.backbone(0).parameters(), strict=True)
                moved = max(moved, *(float((p - q).abs().max()) for p, q in pairs))
        return bool(both), [bool(mode) for mode in alone], moved
