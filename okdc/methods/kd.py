"""KD: distillation from a frozen teacher (Hinton et al., 2015), the offline reference that the papers compare with.

The papers name a trained ResNet-110 as the teacher and give no weights of the loss. The form is that of OKDDip's public
code: its temperature and scale are those of the online losses, so that a difference between KD and an online method is
not one of scale. Other public code weighs differently: RepDistiller's 0.1·CE + 0.9·T²·KL at T = 4 is ce_weight=0.1,
alpha=0.9, temperature=4.

Shapes: N images, K classes.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from okdc.methods.base import Batch, Method, Step, TaughtConfig, Temperature, full_precision, kl


class KDConfig(TaughtConfig):
    temperature: Temperature = Field(
        3.0,
        description="T: logits are divided by it before the softmax of the KL term, which is multiplied by T²; 3 as in "
        "OKDDip's public code and in the online methods.",
    )
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        1.0, description="α, the weight of the KL term beside the cross-entropy; 1 as in OKDDip's public code."
    )
    ce_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        1.0, description="γ, the weight of the cross-entropy; 1 as in OKDDip's public code, 0 for the teacher alone."
    )

    @model_validator(mode="after")
    def _learns(self) -> KDConfig:
        if not self.alpha and not self.ce_weight:
            raise ValueError("alpha=0 and ce_weight=0 leave nothing to learn from")
        return self


class KD(Method[KDConfig]):
    """L = γ·CE(z, y) + α·T²·KL(z_t ‖ z). The teacher learns nothing and stays in eval mode (`Method` sees to that)."""

    title = "KD"
    summary = "Distilled from a frozen teacher (KD; Hinton et al., 2015)."
    tags = ("knowledge-distillation",)
    single = True

    def setup(self) -> None:
        assert self.teacher is not None

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        assert self.teacher is not None
        with torch.no_grad():  # nothing in it is trained: its maps need not be kept for a backward pass
            z_t = self.teacher(batch.images).float()  # NK
        (z,) = self.cohort.logits(self.cohort(batch.images))  # NK
        with full_precision(batch):
            losses = {
                "ce_student0": self.config.ce_weight * self.cross_entropy(z, batch),
                "kl_teacher_student0": self.config.alpha * kl(z_t, z, self.config.temperature),
            }
        return Step(losses, {"student0": z, "teacher": z_t})
