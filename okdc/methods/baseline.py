"""The baseline: one student, cross-entropy, on the same loop, data order and budget as every method.

Every method is compared with this row, so it takes nothing that the methods do not take, and lacks nothing of theirs.
"""

from __future__ import annotations

from torch import Tensor

from okdc.methods.base import Batch, Config, Method, Step, full_precision


class BaselineConfig(Config):
    """It has no keys of its own."""


class Baseline(Method[BaselineConfig]):
    """L = CE(z, y)."""

    title = "Baseline"
    summary = "Trained alone, without distillation."
    tags = ()
    reference = True
    single = True

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        (z,) = self.cohort.logits(self.cohort(batch.images))  # NK
        with full_precision(batch):
            return Step({"ce_student0": self.cross_entropy(z, batch)}, {"student0": z})
