"""KDCL: knowledge distillation via collaborative learning (Guo et al., CVPR 2020).

Separate networks learn from one target that is made of their logits and the labels, in one of three ways of the paper:
naive, linear, minlogit (section 3.2). Never their plain mean, which the public ports put in their place; the fourth
way, General, weighs by errors on a held-out set and is not here. In the paper each network sees a distortion of the
image of its own: `views="own"`. By default all see the same view, as in every other method of a comparison: the views
alone are a gain, and the baseline does not have it.

Shapes: N images, K classes; n students. q is what the labels say, NK: one-hot, or mixed or smoothed (`Method.targets`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from okdc.methods.base import Batch, Config, Method, Step, Temperature, Views, full_precision, kl, students


class KDCLConfig(Config):
    target: Literal["naive", "linear", "minlogit"] = Field(
        "naive",
        description="How the logits that teach all students are made for each image: naive, those of the student with "
        "the least cross-entropy, or linear, the convex combination with the least, or minlogit, each class's least "
        "logit counted from the true class's; naive is the simplest of the paper's.",
    )
    temperature: Temperature = Field(
        3.0,
        description="T: logits are divided by it before the softmax of the KL term, which is multiplied by T²; 3 as in "
        "the other methods, so that a comparison has one.",
    )
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        1.0, description="λ, the weight of the KL terms beside the cross-entropies; 1 as in the other methods."
    )
    views: Views = "one"


@torch.no_grad()
def target_logits(kind: str, z: Tensor, q: Tensor) -> Tensor:
    """The logits that teach every student, NK, from the students' z, nNK, and the labels' distribution q, NK.

    naive     for each image the student with the least cross-entropy to q
    linear    for each image the convex combination of the students' logits with the least cross-entropy to q
    minlogit  with each student's logits counted from its own logit of the true class, the least of each class. Of a
              mixed image the true class is the one that q gives most, of two equal ones the first
    """
    if kind == "naive":
        errors = torch.stack([F.cross_entropy(z_i, q, reduction="none") for z_i in z])  # nN
        return z[errors.argmin(0), torch.arange(z.shape[1], device=z.device)]
    if kind == "linear":
        alpha = _two_weights(z, q) if len(z) == 2 else _convex_weights(z, q)
        return (alpha[:, :, None] * z).sum(0)
    true_class = q.argmax(1)[None, :, None].expand(len(z), -1, 1)
    return (z - z.gather(2, true_class)).min(0).values


# The cross-entropy of Σ_i α_i z_i to q is log Σ_c exp(Σ_i α_i d_i)_c with d_i = z_i - q·z_i: convex in α. Both solvers
# take a fixed number of steps and report to nobody, so that a GPU is never waited for.

BISECTIONS = 22  # 2⁻²² of the way between two students: float32 has no more
STEPS, FIRST, LAST = 100, 3.0, 0.003  # of log α, the largest in an image


def _two_weights(z: Tensor, q: Tensor) -> Tensor:
    """The weights of two students, 2N: one number an image, by bisection of the derivative.

    `_convex_weights` would do, with at most 1e-4 of the logits' deviation in excess. This is exact, and takes a tenth
    of the time.
    """
    direction = z[0] - z[1]
    wanted = (q * direction).sum(1)  # N
    low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
    for _ in range(BISECTIONS):
        alpha = (low + high) / 2
        p = (z[1] + alpha[:, None] * direction).softmax(1)
        rising = (p * direction).sum(1) > wanted
        low, high = torch.where(rising, low, alpha), torch.where(rising, alpha, high)
    alpha = (low + high) / 2
    return torch.stack([alpha, 1 - alpha])


def _convex_weights(z: Tensor, q: Tensor) -> Tensor:
    """n×N weights, each image's positive and summing to 1, that minimise the cross-entropy of Σ_i α_i z_i to q.

    Exponentiated gradient: α_i ← α_i exp(-step · g_i), normalised. Each image's gradient is scaled to a largest entry
    of 1, so that steps mean the same for logits of any size, and steps shrink geometrically. The cross-entropy ends up
    within 3 % of the logits' standard deviation of the least, and within 0.03 % on average: 400 images, 3 and 4
    students, random logits of deviation 1, 5 and 20, against sequential quadratic programming in float64. An
    interior-point method that got within 1e-6 took three times as long and thirty lines, for a target that the students
    follow by one step of the optimiser.

    torch.compile unrolls the steps: a hundred of them take it minutes, so compile=auto leaves the method eager.
    """
    d = z - (z * q).sum(2, keepdim=True)  # nNK
    log_alpha = torch.zeros_like(d[..., 0])  # nN
    for i in range(STEPS):
        alpha = log_alpha.softmax(0)
        p = (alpha[:, :, None] * d).sum(0).softmax(1)  # NK
        g = (p * d).sum(2)  # nN, the gradient
        g = g - (alpha * g).sum(0)  # what is the same for all changes nothing
        step = FIRST * (LAST / FIRST) ** (i / STEPS)
        log_alpha = log_alpha - step * g / g.abs().amax(0).clamp(min=1e-9)
    return log_alpha.softmax(0)


class KDCL(Method[KDCLConfig]):
    """L = Σ_i CE(z_i, y) + λ·T²·KL(z_t ‖ z_i), z_t as `target` says, detached."""

    title = "KDCL"
    summary = "Trained with peers, taught by a target that is made of all their logits (KDCL; Guo et al., CVPR 2020)."
    least_students = 2

    def setup(self) -> None:
        self.views = len(self.cohort.students) - 1 if self.config.views == "own" else 0
        self.unrolled = self.config.target == "linear" and len(self.cohort.students) > 2

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        z = self.cohort.logits(self.cohort(batch.images, *batch.views))  # n of NK
        with full_precision(batch):
            z_t = target_logits(self.config.target, torch.stack(z), self.targets(batch))  # NK
            losses = {f"ce_student{i}": self.cross_entropy(z_i, batch) for i, z_i in enumerate(z)}
            for i, z_i in enumerate(z):
                losses[f"kl_teacher_student{i}"] = self.config.weight * kl(z_t, z_i, self.config.temperature)
            z_a = torch.stack(z).mean(0)  # NK; measured, since z_t knows the labels: its accuracy would say nothing
        return Step(losses, students(z) | {"ensemble": z_a})
