"""KDCL: knowledge distillation via collaborative learning (Guo et al., CVPR 2020).

Separate networks learn from one teacher that is made of their logits, in one of three ways of the paper (never their
plain mean, which its public ports put in their place; the fourth, General, weighs by errors on a held-out set and is
not here). In the paper each network sees a distortion of the image of its own; here all see the same view, as in every
other method of a comparison: the views alone are a gain, and the baseline does not have it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from okdc.cohort import Cohort
from okdc.methods.method import Config, Method, Step, Temperature, at_least_two, full_precision, kl, students

HALVINGS = 20  # of an interval inside [-1, 1]: weights to 2e-6
SWEEPS = 6  # over all pairs of three or more students; of two, one is exact


class KDCLConfig(Config):
    name: Literal["kdcl"]
    teacher: Literal["naive", "linear", "minlogit"] = "naive"
    temperature: Temperature = 3.0  # as the other methods', so that a comparison has one
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0  # λ


@torch.no_grad()
def teacher_logits(kind: str, z: Tensor, labels: Tensor) -> Tensor:
    """The teacher's logits NK from the students' z, n×N×K.

    naive     for each image the student with the least cross-entropy
    linear    for each image the convex combination of the students' logits with the least cross-entropy
    minlogit  with each student's logits counted from its own logit of the true class, the least of each class
    """
    if kind == "naive":
        errors = torch.stack([F.cross_entropy(z_i, labels, reduction="none") for z_i in z])  # n, N
        return z[errors.argmin(0), torch.arange(z.shape[1], device=z.device)]
    if kind == "linear":
        return (_convex_weights(z, labels)[:, :, None] * z).sum(0)
    of_label = labels[None, :, None].expand(len(z), -1, 1)
    return (z - z.gather(2, of_label)).min(0).values


def _convex_weights(z: Tensor, labels: Tensor) -> Tensor:
    """n×N weights, each image's positive and summing to 1, that minimise the cross-entropy of Σ_i α_i z_i.

    The problem is convex. Weight moves between two students at a time, as far as bisection of the derivative says;
    the numbers of steps are fixed, so that a GPU is never asked for a value.
    """
    n = len(z)
    alpha = torch.full(z.shape[:2], 1 / n, device=z.device)
    mixed = z.mean(0)  # N, K
    pairs = [(i, j) for i in range(n) for j in range(i)]
    for i, j in pairs * (1 if n == 2 else SWEEPS):
        direction = z[i] - z[j]
        of_label = direction.gather(1, labels[:, None])[:, 0]
        low, high = -alpha[i], alpha[j]
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            p = (mixed + middle[:, None] * direction).softmax(1)
            rising = (p * direction).sum(1) > of_label  # the derivative of the cross-entropy along the direction
            low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
        step = (low + high) / 2
        mixed = mixed + step[:, None] * direction
        alpha[i] += step
        alpha[j] -= step
    return alpha


class KDCL(Method):
    """L = Σ_i CE(z_i, y) + λ·T²·KL(z_t ‖ z_i), z_t as `teacher` says, detached."""

    Config = KDCLConfig

    def __init__(
        self, cohort: Cohort, config: BaseModel, images: torch.Size, classes: int, teacher: nn.Module | None = None
    ) -> None:
        super().__init__(cohort, config, images, classes, teacher)
        assert isinstance(config, KDCLConfig)
        at_least_two(cohort, "kdcl")
        self.teacher_kind, self.temperature, self.weight = config.teacher, config.temperature, config.weight

    def forward(self, images: Tensor, labels: Tensor, progress: Tensor) -> Step:
        z = self.cohort.logits(self.cohort(images))
        with full_precision(images):
            z_t = teacher_logits(self.teacher_kind, torch.stack(z).detach(), labels)
            losses = {f"ce_student{i}": F.cross_entropy(z_i, labels) for i, z_i in enumerate(z)}
            for i, z_i in enumerate(z):
                losses[f"kl_teacher_student{i}"] = self.weight * kl(z_t, z_i, self.temperature)
            z_a = torch.stack(z).mean(0)  # the teacher knows the labels: its accuracy would say nothing
        return Step(losses, students(z) | {"ensemble": z_a})
