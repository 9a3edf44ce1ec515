"""ONE: on-the-fly native ensemble (Lan et al., NeurIPS 2018), with what its authors' public code adds.

Branches grow from one trunk; a gate over the trunk's last map weighs their logits to an ensemble ("ONE-E", the head
`gated`), which teaches every branch. The ramp-up and the BatchNorm in the gate are the code's, not the paper's.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel
from torch import Tensor, nn

from okdc.blocks import pooled
from okdc.cohort import Cohort
from okdc.methods.base import Method, RampedConfig, Step, at_least_two, full_precision, kl, ramp, students


class ONEConfig(RampedConfig):
    name: Literal["one"]


class Gate(nn.Module):
    """A map NCHW -> the weight of each branch, N×n, positive and summing to 1: pool, linear, BN, ReLU, softmax."""

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, branches)
        self.bn = nn.BatchNorm1d(branches)  # a training batch of one image would have no statistics

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.linear(pooled(x)))).float().softmax(1)


class ONE(Method):
    """L = Σ_i CE(z_i) + CE(z_e) + w(t)·T²·Σ_i KL(z_e ‖ z_i), z_e = Σ_i g_i·z_i. The gate learns by CE(z_e) alone."""

    Config = ONEConfig
    title = "ONE"
    summary = "Trained as one branch of a trunk, taught by the gated ensemble (ONE; Lan et al., NeurIPS 2018)."
    fused_head = "gated"
    branches = True
    trunk = "method.name=fefr, mfef, dml or kdcl takes students that differ"

    def __init__(
        self, cohort: Cohort, config: BaseModel, images: torch.Size, classes: int, teacher: nn.Module | None = None
    ) -> None:
        super().__init__(cohort, config, images, classes, teacher)
        assert isinstance(config, ONEConfig)
        at_least_two(cohort, "one")
        if not cohort.shared:
            alike = len({student.architecture for student in cohort.backbones()}) == 1
            raise ValueError(
                "its gate reads the trunk that the branches share, and cohort.share='none' leaves none; use "
                + ("cohort.share=low, or " if alike else "")
                + "a method for separate networks: dml, kdcl, ffl, mfef, fefr"
            )
        self.temperature, self.rampup = config.temperature, config.rampup
        trunk_channels = cohort.probe(images)[0][cohort.shared - 1][0]
        self.gate = Gate(trunk_channels, len(cohort.students))

    def forward(self, images: Tensor, labels: Tensor, progress: Tensor) -> Step:
        maps = self.cohort(images)
        z = self.cohort.logits(maps)
        g = self.gate(maps[0][self.cohort.shared - 1])  # N, n
        with full_precision(images):
            z_e = (g[:, :, None] * torch.stack(z, 1)).sum(1)
            w, T = ramp(progress, self.rampup), self.temperature
            losses = {f"ce_student{i}": F.cross_entropy(z_i, labels) for i, z_i in enumerate(z)}
            losses["ce_gated"] = F.cross_entropy(z_e, labels)
            losses |= {f"kl_gated_student{i}": w * kl(z_e, z_i, T) for i, z_i in enumerate(z)}
        return Step(losses, students(z) | {"gated": z_e})
