"""The baseline: one student, cross-entropy, on the same loop, data order and budget as every method."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from okdc.methods.base import Config, Method, Step, full_precision


class BaselineConfig(Config):
    name: Literal["baseline"]


class Baseline(Method):
    """L = CE(z, y)."""

    Config = BaselineConfig
    title = "Baseline"
    summary = "Trained alone, without distillation."
    tags = ()
    reference = True
    single = True

    def forward(self, images: Tensor, labels: Tensor, progress: Tensor) -> Step:
        (z,) = self.cohort.logits(self.cohort(images))
        with full_precision(images):
            return Step({"ce_student0": F.cross_entropy(z, labels)}, {"student0": z})
