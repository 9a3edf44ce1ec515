"""DML: deep mutual learning (Zhang et al., CVPR 2018). Separate networks, each taught by each.

Where this departs from the authors' code: it updates one network after the other, each on a batch of its own. Here all
are updated at once on the same batch (one forward each, and since every peer is detached, one backward of the sum gives
each network exactly its own gradient). The code sums over peers, `peers="sum"`; the paper's loss for more than two
networks averages, which is the default. With two networks the sum and the mean are the same.

Shapes: N images, K classes; n students.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from okdc.methods.base import Batch, Config, Method, Step, full_precision, kl, students


class DMLConfig(Config):
    """The paper softens nothing (T = 1), and weighs both terms alike from the first step."""

    peers: Literal["mean", "sum"] = Field(
        "mean",
        description="How the divergences from several peers become one term: mean as in the paper, or sum as in its "
        "authors' public code, which weighs the peers more the more there are; with two students both are the same.",
    )


class DML(Method[DMLConfig]):
    """L_k = CE(z_k, y) + 1/(n-1) Σ_{l≠k} KL(z_l ‖ z_k): temperature 1, no ramp-up. peers="sum": without 1/(n-1)."""

    title = "DML"
    summary = "Trained with peers that teach each other (DML, deep mutual learning; Zhang et al., CVPR 2018)."
    least_students = 2

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        z = self.cohort.logits(self.cohort(batch.images))  # n of NK
        with full_precision(batch):
            losses = {f"ce_student{k}": self.cross_entropy(z_k, batch) for k, z_k in enumerate(z)}
            for k, z_k in enumerate(z):
                # `kl` detaches the peer. Public ports that do not let student k pull its teachers towards itself.
                peers = [kl(z_peer, z_k, 1.0) for peer, z_peer in enumerate(z) if peer != k]
                terms = torch.stack(peers)
                losses[f"kl_peers_student{k}"] = terms.sum() if self.config.peers == "sum" else terms.mean()
            z_a = torch.stack(z).mean(0)  # NK; measured only: the ensemble neither teaches nor learns in DML
        return Step(losses, students(z) | {"ensemble": z_a})
