"""FFL: feature fusion learning (Kim et al., ICPR 2020; arXiv 1904.09058), by its authors' public code.

The students' last maps are fused into one classifier; the students' ensemble teaches it, and it teaches the students.
Only the teachers' logits are detached: the fused classifier's losses train the students through the maps, unless
`detach_features`. Students that differ meet in a regressor to the smallest map, as the paper says and its code, written
for one architecture, does not show.

The code draws every convolution from N(0, 2/(k²·outputs)), the fusion module's too: `init="he"`. BatchNorm follows each
of them, so that this only sets how fast they learn. By default they are drawn as PyTorch does.

Shapes: N images, K classes; n students.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from okdc.blocks import OverallFusion
from okdc.methods.base import (
    INIT,
    Batch,
    DetachFeatures,
    Init,
    Method,
    RampedConfig,
    Step,
    full_precision,
    initialise,
    mutual,
    ramp,
    student_features,
)


class FFLConfig(RampedConfig):
    detach_features: DetachFeatures = False
    init: Init = Field("pytorch", description=f"{INIT}.")


class FFL(Method[FFLConfig]):
    """L = Σ_k CE(z_k) + CE(z_f) + w(t)·T²·[KL(z_a ‖ z_f) + Σ_k KL(z_f ‖ z_k)], z_f from the students' last maps."""

    title = "FFL"
    summary = (
        "Distilled online from a classifier that is fused from the last maps of all students (FFL; arXiv 1904.09058)."
    )
    branches = True
    needs_trunk = True
    alternatives = "cohort.share=none fuses separate networks; so do method.name=fefr and mfef"
    least_students = 2

    def setup(self) -> None:
        self.fusion = OverallFusion([sizes[-1] for sizes in self.cohort.probe(self.images)], self.classes)
        initialise(self.config.init, self.fusion)
        self.notes = (self.fusion.description,)

    def features(self, batch: Batch) -> dict[str, Tensor]:
        maps = self.cohort(batch.images)
        return student_features(maps) | {"fused": self.fusion.features(self._last(maps))}

    def _last(self, maps: list[list[Tensor]]) -> list[Tensor]:
        """n of NCHW, after the last ReLU and before pooling."""
        last = [student_maps[-1] for student_maps in maps]
        return [f.detach() for f in last] if self.config.detach_features else last

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        maps = self.cohort(batch.images)
        z = self.cohort.logits(maps)  # n of NK
        z_f = self.fusion(self._last(maps))  # NK
        with full_precision(batch):
            return mutual(self, batch, z, z_f, ramp(progress, self.config.rampup), self.config.temperature)
