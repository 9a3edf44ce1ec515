"""PCL: peer collaborative learning (Wu & Gong, AAAI 2021), by its paper's losses as two public ports have them.

Peers grow from one trunk and have two teachers. The peer ensemble teacher is one linear layer that reads the pooled
features of all peers. The peer mean teachers are copies of trunk and branches whose parameters are moving averages of
the peers': each teaches all peers but its own. The ports deploy a mean teacher; here a peer is kept, as in every other
method, and the mean teachers are judged as the heads `mean0`, `mean1`, ...

Batch statistics of the mean teachers are their own: in training they normalise by their own batches, as in the ports.

Neither port (shaoeric/Peer-Collaborative-Learning-for-Online-Knowledge-Distillation, tianlizhang/OKDPH) is followed
where it slips: both divide the epoch by 1 and not by 80 in the ramp-up, which is then nearly 0 for 80 epochs and jumps
to 1; and the second tells its moving average at each step that it is step 0, which makes the mean teacher the peer.

In the paper each peer sees an augmentation of the image of its own, `views="own"`. A shared trunk then runs once a
view, and normalises each view by itself, as in the ports.

Shapes: N images, K classes; C_k channels of peer k's last map; n peers.
"""

from __future__ import annotations

import copy
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from okdc import launches
from okdc.kernels import global_average
from okdc.methods.base import (
    Batch,
    Method,
    RampedConfig,
    Step,
    Views,
    full_precision,
    kl,
    ramp,
    student_features,
    students,
)


class PCLConfig(RampedConfig):
    decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999,
        description="The largest decay d of the mean teachers, θ' ← d·θ' + (1 - d)·θ after each step; it rises as "
        "1 - 1/(t + 1) after t steps, and 0.999 is the public ports'.",
    )
    views: Views = "one"


class PCL(Method[PCLConfig]):
    """L = CE(z_e) + Σ_k [CE(z_k) + w(t)·T²·(KL(z_e ‖ z_k) + 1/(n-1)·Σ_{j≠k} KL(z'_j ‖ z_k))], z' of the mean teachers.

    z_e = W·[g_1; ...; g_n] + b, g_k the pooled last map of peer k.
    """

    title = "PCL"
    summary = "Trained with peers, their ensemble and their moving averages (PCL; Wu & Gong, AAAI 2021)."
    branches = True
    least_students = 2

    steps: Tensor  # 0-d int64, t

    def setup(self) -> None:
        n = len(self.cohort.students)
        self.views = n - 1 if self.config.views == "own" else 0
        self.fc = nn.Linear(sum(sizes[-1][0] for sizes in self.cohort.probe(self.images)), self.classes)
        self.mean = copy.deepcopy(self.cohort).requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def before_first_step(self) -> None:
        self.mean.load_state_dict(self.cohort.state_dict())

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        views = (batch.images, *batch.views)
        maps = self.cohort(*views)
        z = self.cohort.logits(maps)  # n of NK
        g = student_features(maps)["ensemble"]  # N, ΣC_k
        z_e = self.fc(g).float()  # NK
        with torch.no_grad():
            z_mean = self.mean.logits(self.mean(*views))  # n of NK
        with full_precision(batch):
            w, T = ramp(progress, self.config.rampup), self.config.temperature
            losses = {f"ce_student{k}": self.cross_entropy(z_k, batch) for k, z_k in enumerate(z)}
            losses["ce_fused"] = self.cross_entropy(z_e, batch)
            for k, z_k in enumerate(z):
                losses[f"kl_fused_student{k}"] = w * kl(z_e, z_k, T)
                others = [kl(z_j, z_k, T) for j, z_j in enumerate(z_mean) if j != k]
                losses[f"kl_means_student{k}"] = w * torch.stack(others).mean()
        return Step(losses, students(z) | {f"mean{k}": z_k for k, z_k in enumerate(z_mean)} | {"fused": z_e})

    def features(self, batch: Batch) -> dict[str, Tensor]:
        own = super().features(batch)
        means = [global_average(maps_k[-1]) for maps_k in self.mean(batch.images)]
        return own | {f"mean{k}": g_k for k, g_k in enumerate(means)} | {"fused": own["ensemble"]}

    def after_step(self) -> None:
        weight = torch.clamp(1 / (self.steps + 1), min=1 - self.config.decay)  # 1 - d
        launches.blend(list(self.mean.parameters()), list(self.cohort.parameters()), weight)
        self.steps += 1
