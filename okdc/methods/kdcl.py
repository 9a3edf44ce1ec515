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
from okdc.methods.base import Config, Method, Step, Temperature, at_least_two, full_precision, kl, students

# Of `linear`. With these numbers the cross-entropy is within 4e-6 of the least, for three and four students and random
# logits up to 50 (sequential quadratic programming in float64 as the reference).
STEPS, HALVINGS, SHRINK = 24, 6, 0.5
BISECTIONS = 22  # of weights between 0 and 1


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
        weights = _between_two(z, labels) if len(z) == 2 else _convex_weights(z, labels)
        return (weights[:, :, None] * z).sum(0)
    of_label = labels[None, :, None].expand(len(z), -1, 1)
    return (z - z.gather(2, of_label)).min(0).values


def _between_two(z: Tensor, labels: Tensor) -> Tensor:
    """The weights of two students: one number an image, by bisection of the derivative, twenty times cheaper."""
    direction = z[0] - z[1]
    of_label = direction.gather(1, labels[:, None])[:, 0]
    low, high = torch.zeros_like(of_label), torch.ones_like(of_label)
    for _ in range(BISECTIONS):
        alpha = (low + high) / 2
        p = (z[1] + alpha[:, None] * direction).softmax(1)
        rising = (p * direction).sum(1) > of_label
        low, high = torch.where(rising, low, alpha), torch.where(rising, alpha, high)
    alpha = (low + high) / 2
    return torch.stack([alpha, 1 - alpha])


def _convex_weights(z: Tensor, labels: Tensor) -> Tensor:
    """n×N weights, each image's positive and summing to 1, that minimise the cross-entropy of Σ_i α_i z_i.

    A convex problem on a simplex, solved by an interior-point method: Newton steps on the cross-entropy and a barrier
    -μ Σ_i log α_i that is halved each time, as far along each step as bisection of the derivative says. The numbers of
    steps are fixed and the solver reports to nobody, so that a GPU is never waited for.
    """
    n = len(z)
    of_label = labels[None, :, None].expand(n, -1, 1)
    d = (z.double() - z.double().gather(2, of_label)).transpose(0, 1)  # N, n, K; the loss is logsumexp_K(Σ_i α_i d_i)
    alpha = torch.full(d.shape[:2], 1 / n, dtype=d.dtype, device=d.device)
    identity = torch.eye(n, dtype=d.dtype, device=d.device)
    mu = 1.0
    for _ in range(STEPS):
        mixed = _mix(alpha, d)
        p = mixed.softmax(1)
        gradient = (d * p[:, None]).sum(2)
        centred = d - gradient[:, :, None]
        hessian = (centred * p[:, None]) @ centred.transpose(1, 2)  # N, n, n: a covariance under p
        # In units of α the barrier's Hessian is μ·1. The step u keeps Σ_i α_i u_i = 0.
        scaled = alpha[:, :, None] * hessian * alpha[:, None] + mu * identity
        free, normal = torch.linalg.solve_ex(scaled, torch.stack([mu - alpha * gradient, alpha], 2))[0].unbind(2)
        u = free - ((alpha * free).sum(1) / (alpha * normal).sum(1))[:, None] * normal
        direction = _mix(alpha * u, d)
        low, high = torch.zeros_like(mixed[:, 0]), (0.99 / (-u).amax(1).clamp(min=1e-9)).clamp(max=2)
        for _ in range(HALVINGS):
            t = (low + high) / 2
            slope = ((mixed + t[:, None] * direction).softmax(1) * direction).sum(1)
            slope = slope - mu * (u / (1 + t[:, None] * u)).sum(1)
            low, high = torch.where(slope > 0, low, t), torch.where(slope > 0, t, high)
        alpha = alpha * (1 + (low + high)[:, None] / 2 * u)
        alpha = alpha / alpha.sum(1, keepdim=True)
        mu *= SHRINK
    return alpha.T.to(z.dtype)


def _mix(weights: Tensor, d: Tensor) -> Tensor:
    """N×n weights and N×n×K -> N×K."""
    return (weights[:, :, None] * d).sum(1)


class KDCL(Method):
    """L = Σ_i CE(z_i, y) + λ·T²·KL(z_t ‖ z_i), z_t as `teacher` says, detached."""

    Config = KDCLConfig
    title = "KDCL"
    summary = "Trained with peers, taught by a target that is made of all their logits (KDCL; Guo et al., CVPR 2020)."

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
