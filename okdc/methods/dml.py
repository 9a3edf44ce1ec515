"""DML: deep mutual learning (Zhang et al., CVPR 2018). Separate networks, each taught by each.

The authors' code updates one network after the other, each on a batch of its own. Here all are updated at once on the
same batch: one forward each, and since every peer is detached, one backward of the sum gives each network exactly its
own gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel
from torch import Tensor, nn

from okdc.cohort import Cohort
from okdc.methods.base import Config, Method, Step, at_least_two, full_precision, kl, students


class DMLConfig(Config):
    name: Literal["dml"]


class DML(Method):
    """L_k = CE(z_k, y) + 1/(n-1) Σ_{l≠k} KL(z_l ‖ z_k): temperature 1, no ramp-up."""

    Config = DMLConfig
    title = "DML"
    summary = "Trained with peers that teach each other (DML, deep mutual learning; Zhang et al., CVPR 2018)."

    def __init__(
        self, cohort: Cohort, config: BaseModel, images: torch.Size, classes: int, teacher: nn.Module | None = None
    ) -> None:
        super().__init__(cohort, config, images, classes, teacher)
        at_least_two(cohort, "dml")

    def forward(self, images: Tensor, labels: Tensor, progress: Tensor) -> Step:
        z = self.cohort.logits(self.cohort(images))
        with full_precision(images):
            losses = {f"ce_student{k}": F.cross_entropy(z_k, labels) for k, z_k in enumerate(z)}
            for k, z_k in enumerate(z):
                peers = [kl(z_peer, z_k, 1.0) for peer, z_peer in enumerate(z) if peer != k]
                losses[f"kl_peers_student{k}"] = torch.stack(peers).mean()
            z_a = torch.stack(z).mean(0)  # measured, taught by nothing and teaching nothing
        return Step(losses, students(z) | {"ensemble": z_a})
