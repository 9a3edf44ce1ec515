"""DualNet (Hou et al., 2017): parallel networks of one topology, their features summed into a fused classifier.

No distillation: what the networks have of each other is the gradient of the fused classifier's cross-entropy. The paper
updates the networks in turn and weighs the single classifiers less; here all are updated jointly with weight 1, as in
every other method of a comparison.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel
from torch import Tensor, nn

from okdc.blocks import pooled
from okdc.cohort import Cohort
from okdc.methods.base import Config, Method, Step, at_least_two, full_precision, students


class DualNetConfig(Config):
    name: Literal["dualnet"]


class DualNet(Method):
    """L = Σ_k CE(z_k) + CE(z_f), z_f = FC(Σ_k pool(f_k)), f_k the last map of student k."""

    Config = DualNetConfig
    title = "DualNet"
    summary = (
        "Trained with peers whose features are summed into one classifier, without distillation (DualNet; "
        "Hou et al., 2017)."
    )
    tags = ()

    def __init__(
        self, cohort: Cohort, config: BaseModel, images: torch.Size, classes: int, teacher: nn.Module | None = None
    ) -> None:
        super().__init__(cohort, config, images, classes, teacher)
        at_least_two(cohort, "dualnet")
        widths = [sizes[-1][0] for sizes in cohort.probe(images)]
        if len(set(widths)) > 1:
            raise ValueError(
                f"it sums the students' last features, and these have {', '.join(map(str, widths))} channels; "
                "method.name=ffl with cohort.share=none, mfef or fefr fuse students that differ"
            )
        self.fc = nn.Linear(widths[0], classes)

    def forward(self, images: Tensor, labels: Tensor, progress: Tensor) -> Step:
        maps = self.cohort(images)
        z = self.cohort.logits(maps)
        h = torch.stack([pooled(own[-1]) for own in maps])  # n, N, C
        z_f = self.fc(h.sum(0)).float()
        with full_precision(images):
            losses = {f"ce_student{k}": F.cross_entropy(z_k, labels) for k, z_k in enumerate(z)}
            losses["ce_fused"] = F.cross_entropy(z_f, labels)
            z_a = torch.stack(z).mean(0)
        return Step(losses, students(z) | {"fused": z_f, "ensemble": z_a})
