"""OKDDip: online distillation with diverse peers (Chen et al., AAAI 2020), by its authors' public code.

n students are n - 1 peers and a leader, the last one. Each peer learns from its own mixture of the peers, weighed by
attention over their pooled features; the leader learns from their mean and is the student to keep. The paper mixes
predictions, the code mixes logits, and so does this. Its targets are not detached: detached, the attention's two
projections would have no gradient at all. With two students there is one peer and nothing to attend to.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from okdc.blocks import pooled
from okdc.cohort import Cohort
from okdc.methods.base import Method, RampedConfig, Step, at_least_two, full_precision, kl, ramp, students


class OKDDipConfig(RampedConfig):
    name: Literal["okddip"]
    factor: Annotated[int, Field(ge=1)] = 8  # queries and keys have 1/factor of the feature's channels


class OKDDip(Method):
    """L = Σ_a CE(z_a) + CE(z_L) + w(t)·T²·[Σ_a KL(t_a ‖ z_a) + KL(mean_a z_a ‖ z_L)], t_a = Σ_b A_ab z_b.

    A = softmax over b of (W_q h_a)·(W_k h_b), h the pooled last map; a and b run over the peers.
    """

    Config = OKDDipConfig
    title = "OKDDip"
    summary = "Trained with diverse peers that attend to each other (OKDDip; Chen et al., AAAI 2020)."
    branches = True

    def __init__(
        self, cohort: Cohort, config: BaseModel, images: torch.Size, classes: int, teacher: nn.Module | None = None
    ) -> None:
        super().__init__(cohort, config, images, classes, teacher)
        assert isinstance(config, OKDDipConfig)
        at_least_two(cohort, "okddip")
        widths = [sizes[-1][0] for sizes in cohort.probe(images)]
        if len(set(widths)) > 1:
            raise ValueError(
                f"one projection reads every peer's features, and these have {', '.join(map(str, widths))} channels; "
                "method.name=fefr, mfef, dml or kdcl takes students that differ"
            )
        self.temperature, self.rampup = config.temperature, config.rampup
        self.leader = len(cohort.students) - 1
        self.notes = (f"the leader is student{self.leader}: keep='best' keeps its best epoch",)
        if self.leader == 1:
            self.notes += ("its one peer has nobody to attend to but itself: three students make two peers",)
        inner = max(widths[0] // config.factor, 1)
        self.query = nn.Linear(widths[0], inner, bias=False)
        self.key = nn.Linear(widths[0], inner, bias=False)

    def forward(self, images: Tensor, labels: Tensor, progress: Tensor) -> Step:
        maps = self.cohort(images)
        *z, z_leader = self.cohort.logits(maps)
        h = torch.stack([pooled(own[-1]) for own in maps[:-1]], 1)  # N, peers, C
        attention = (self.query(h) @ self.key(h).transpose(1, 2)).float().softmax(2)  # N, peers, peers
        with full_precision(images):
            t = attention @ torch.stack(z, 1)  # N, peers, K
            z_mean = torch.stack(z).mean(0)
            w, T = ramp(progress, self.rampup), self.temperature
            losses = {f"ce_student{k}": F.cross_entropy(z_k, labels) for k, z_k in enumerate([*z, z_leader])}
            losses |= {f"kl_peers_student{a}": w * kl(t[:, a], z_a, T, detach=False) for a, z_a in enumerate(z)}
            losses[f"kl_mean_student{self.leader}"] = w * kl(z_mean, z_leader, T, detach=False)
        return Step(losses, students([*z, z_leader]) | {"ensemble": z_mean})
