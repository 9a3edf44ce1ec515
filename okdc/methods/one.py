"""ONE: on-the-fly native ensemble (Lan et al., NeurIPS 2018), with what its authors' public code adds.

Branches grow from one trunk. A gate reads the trunk's last map and weighs the branches' logits to an ensemble
("ONE-E", the head `gated`), which teaches every branch. The ramp-up and the BatchNorm in the gate are the code's, not
the paper's.

Shapes: N images, K classes; C channels, H×W pixels of the trunk's last map; n students, the branches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from okdc.backbones.naming import one_trunk
from okdc.kernels import global_average
from okdc.methods.base import Batch, Method, RampedConfig, Step, full_precision, kl, ramp, students


class ONEConfig(RampedConfig):
    """The keys of every ramped method, and no more."""


class Gate(nn.Module):
    """A map NCHW -> the weight of each branch, Nn, positive and summing to 1: pool, linear, BN, ReLU, softmax."""

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, branches)
        self.bn = nn.BatchNorm1d(branches)  # one image has no statistics: the loop drops a short last batch

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.linear(global_average(x)))).float().softmax(1)


class ONE(Method[ONEConfig]):
    """L = Σ_i CE(z_i) + CE(z_e) + w(t)·T²·Σ_i KL(z_e ‖ z_i), z_e = Σ_i g_i·z_i. The gate learns by CE(z_e) alone."""

    title = "ONE"
    summary = "Trained as one branch of a trunk, taught by the gated ensemble (ONE; Lan et al., NeurIPS 2018)."
    fused_head = "gated"
    branches = True
    needs_trunk = True
    alternatives = "method.name=fefr, mfef, dml or kdcl takes students that differ"
    least_students = 2

    def setup(self) -> None:
        if not self.cohort.shared:
            alike = one_trunk(student.architecture for student in self.cohort.backbones())
            raise ValueError(
                "its gate reads the trunk that the branches share, and cohort.share='none' leaves none; use "
                + ("cohort.share=low, or " if alike else "")
                + "a method for separate networks: dml, kdcl, ffl, mfef, fefr"
            )
        self.trunk = self.cohort.shared - 1  # the index of its last map, among the maps of any student
        channels = self.cohort.probe(self.images)[0][self.trunk][0]
        self.gate = Gate(channels, len(self.cohort.students))

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        maps = self.cohort(batch.images)
        z = self.cohort.logits(maps)  # n of NK
        g = self.gate(maps[0][self.trunk])  # Nn; every student has the trunk's maps, so the first one's will do
        with full_precision(batch):
            z_e = (g[:, :, None] * torch.stack(z, 1)).sum(1)  # NK: logits are mixed, not probabilities
            w, T = ramp(progress, self.config.rampup), self.config.temperature
            losses = {f"ce_student{i}": self.cross_entropy(z_i, batch) for i, z_i in enumerate(z)}
            losses["ce_gated"] = self.cross_entropy(z_e, batch)
            losses |= {f"kl_gated_student{i}": w * kl(z_e, z_i, T) for i, z_i in enumerate(z)}
        return Step(losses, students(z) | {"gated": z_e})
