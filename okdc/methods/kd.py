"""KD: distillation from a frozen teacher (Hinton et al., 2015), the offline reference that the papers compare with.

The papers name a trained ResNet-110 as the teacher and no weights; the form is that of the public code of OKDDip, whose
temperature and scale are those of the online losses.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from okdc.cohort import Cohort
from okdc.methods.base import Config, Method, Step, Temperature, full_precision, kl


class KDConfig(Config):
    name: Literal["kd"]
    teacher: Annotated[
        str, Field(min_length=1, description="a finished run such as runs/NAME, or a network with method.weights=FILE")
    ]
    weights: str | None = None  # of a network that is no run's
    teacher_sha256: str | None = None  # filled in: which teacher it was
    temperature: Temperature = 3.0
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0  # weight of the distillation term


class KD(Method):
    """L = CE(z, y) + α·T²·KL(z_t ‖ z). The teacher learns nothing and stays in eval mode."""

    Config = KDConfig
    title = "KD"
    summary = "Distilled from a frozen teacher (KD; Hinton et al., 2015)."
    tags = ("knowledge-distillation",)
    single = True

    def __init__(
        self, cohort: Cohort, config: BaseModel, images: torch.Size, classes: int, teacher: nn.Module | None = None
    ) -> None:
        super().__init__(cohort, config, images, classes, teacher)
        assert isinstance(config, KDConfig)
        assert teacher is not None
        self.temperature, self.alpha = config.temperature, config.alpha
        self.teacher = teacher.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> KD:
        """A container's train() would set the teacher's batch statistics moving."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, images: Tensor, labels: Tensor, progress: Tensor) -> Step:
        with torch.no_grad():
            z_t = self.teacher(images).float()
        (z,) = self.cohort.logits(self.cohort(images))
        with full_precision(images):
            losses = {
                "ce_student0": F.cross_entropy(z, labels),
                "kl_teacher_student0": self.alpha * kl(z_t, z, self.temperature),
            }
        return Step(losses, {"student0": z, "teacher": z_t})
