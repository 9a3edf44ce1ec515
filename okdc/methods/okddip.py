"""OKDDip: online distillation with diverse peers (Chen et al., AAAI 2020), by its authors' public code.

n students are n - 1 peers and a leader, the last one. Each peer learns from its own mixture of the peers, weighed by
attention over their pooled features, so that peers keep differing where one common teacher would make them alike; the
leader learns from the peers' mean and is the student to keep. The paper mixes predictions, the code mixes logits, and
so does this. With two students there is one peer and nothing to attend to.

Shapes: N images, K classes; P = n - 1 peers; C channels, H×W pixels of a student's last map.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from okdc.kernels import global_average
from okdc.methods.base import Batch, Method, RampedConfig, Step, full_precision, kl, ramp, students


class OKDDipConfig(RampedConfig):
    factor: Annotated[int, Field(ge=1)] = Field(
        8,
        description="How many times fewer components than the pooled feature has channels a query and a key have; 8 as "
        "in the authors' public code.",
    )


class OKDDip(Method[OKDDipConfig]):
    """L = Σ_a CE(z_a) + CE(z_L) + w(t)·T²·[Σ_a KL(t_a ‖ z_a) + KL(mean_a z_a ‖ z_L)], t_a = Σ_b A_ab z_b.

    A = softmax over b of (W_q h_a)·(W_k h_b), h the pooled last map; a and b run over the peers.
    """

    title = "OKDDip"
    summary = "Trained with diverse peers that attend to each other (OKDDip; Chen et al., AAAI 2020)."
    branches = True
    least_students = 2

    def setup(self) -> None:
        widths = [sizes[-1][0] for sizes in self.cohort.probe(self.images)]
        if len(set(widths)) > 1:
            raise ValueError(
                f"one projection reads every peer's features, and these have {', '.join(map(str, widths))} channels; "
                "method.name=fefr, mfef, dml or kdcl takes students that differ"
            )
        self.leader = len(self.cohort.students) - 1
        self.notes = (f"the leader is student{self.leader}",)
        if self.leader == 1:
            self.notes += ("its one peer has nobody to attend to but itself: three students make two peers",)
        inner = max(widths[0] // self.config.factor, 1)
        self.query = nn.Linear(widths[0], inner, bias=False)  # W_q
        self.key = nn.Linear(widths[0], inner, bias=False)  # W_k

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        maps = self.cohort(batch.images)
        *z, z_leader = self.cohort.logits(maps)  # P of NK, and NK
        h = torch.stack([global_average(student_maps[-1]) for student_maps in maps[:-1]], 1)  # N, P, C
        A = (self.query(h) @ self.key(h).transpose(1, 2)).float().softmax(2)  # N, P, P; each row sums to 1
        with full_precision(batch):
            t = A @ torch.stack(z, 1)  # N, P, K: the teacher of each peer
            z_mean = torch.stack(z).mean(0)  # NK: the leader's teacher
            w, T = ramp(progress, self.config.rampup), self.config.temperature
            losses = {f"ce_student{k}": self.cross_entropy(z_k, batch) for k, z_k in enumerate([*z, z_leader])}
            # Not detached: A occurs in no other term, so that W_q and W_k would have no gradient at all.
            losses |= {f"kl_peers_student{a}": w * kl(t[:, a], z_a, T, detach=False) for a, z_a in enumerate(z)}
            losses[f"kl_mean_student{self.leader}"] = w * kl(z_mean, z_leader, T, detach=False)
        return Step(losses, students([*z, z_leader]) | {"ensemble": z_mean})
