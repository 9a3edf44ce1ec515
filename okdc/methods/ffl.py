"""FFL: feature fusion learning (Kim et al., ICPR 2020; arXiv 1904.09058), by its authors' public code.

The students' last maps are fused into one classifier; the ensemble teaches it and it teaches the students. Only the
teachers' logits are detached: the fused classifier's losses train the students through the maps, unless
`detach_features`. Students that differ meet in a regressor to the smallest map, as the paper says and its code, written
for one architecture, does not show.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from okdc.blocks import OverallFusion
from okdc.cohort import Cohort
from okdc.methods.base import Method, RampedConfig, Step, at_least_two, full_precision, mutual, ramp


class FFLConfig(RampedConfig):
    name: Literal["ffl"]
    detach_features: bool = False


class FFL(Method):
    """L = Σ_k CE(z_k) + CE(z_f) + w(t)·T²·[KL(z_a ‖ z_f) + Σ_k KL(z_f ‖ z_k)], z_f from the students' last maps."""

    Config = FFLConfig
    title = "FFL"
    summary = (
        "Distilled online from a classifier that is fused from the last maps of all students (FFL; arXiv 1904.09058)."
    )
    branches = True
    trunk = "cohort.share=none fuses separate networks; so do method.name=fefr and mfef"

    def __init__(
        self, cohort: Cohort, config: BaseModel, images: torch.Size, classes: int, teacher: nn.Module | None = None
    ) -> None:
        super().__init__(cohort, config, images, classes, teacher)
        assert isinstance(config, FFLConfig)
        at_least_two(cohort, "ffl")
        self.temperature, self.rampup, self.detach = config.temperature, config.rampup, config.detach_features
        self.fusion = OverallFusion([sizes[-1] for sizes in cohort.probe(images)], classes)
        self.notes = (self.fusion.description,)

    def forward(self, images: Tensor, labels: Tensor, progress: Tensor) -> Step:
        maps = self.cohort(images)
        z = self.cohort.logits(maps)
        z_f = self.fusion([own[-1].detach() if self.detach else own[-1] for own in maps])
        with full_precision(images):
            return mutual(z, z_f, labels, ramp(progress, self.rampup), self.temperature)
