"""Agreement: students that are pulled towards their mean prediction."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from okdc import Batch, Config, Method, Step


class AgreementConfig(Config):
    """The keys of `[method]` where `name = "agreement"`."""

    weight: float = Field(0.5, ge=0, description="Weight of the agreement term; 0.5 keeps it below the cross-entropy.")


class Agreement(Method[AgreementConfig]):
    """L = Σ_k CE(z_k, y) + weight · Σ_k ‖softmax(z_k) - p‖², p the students' mean prediction, detached."""

    Config = AgreementConfig
    title = "Agreement"
    summary = "Trained with a peer, each pulled towards the mean prediction (Agreement; an example)."

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        """NCHW images and N labels -> the loss terms and each student's NK logits."""
        z = self.cohort.logits(self.cohort(batch.images))
        p = torch.stack([z_k.softmax(1) for z_k in z]).mean(0).detach()
        losses = {f"ce_student{k}": self.cross_entropy(z_k, batch) for k, z_k in enumerate(z)}
        for k, z_k in enumerate(z):
            losses[f"agreement_student{k}"] = self.config.weight * ((z_k.softmax(1) - p) ** 2).sum(1).mean()
        return Step(losses, {f"student{k}": z_k for k, z_k in enumerate(z)})
