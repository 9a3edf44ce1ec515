"""MFEF: multi-scale feature extraction and fusion (arXiv 2206.08224).

Each student's last map is cut into groups that are convolved one after the other and passed on in part (eq. 4), refined
by dual attention (eq. 5-8) and fused with the others' into one classifier (section 3.4); the losses are eq. 9-11.

Whether extraction and attention sit beside the student or in it the paper leaves open. Its figures and the student's
"last fully connected layer" say beside (the default: the kept student is the plain backbone); case B of its table 5,
where extraction alone takes ResNet-110 from 26.30 to 24.35 % error, is only possible in it: `in_path`.

Shapes: N images, C channels, H×W pixels of a student's last map, K classes; n students.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from okdc.backbones.naming import MSFE
from okdc.blocks import DualAttention, HierarchicalSplit, OverallFusion
from okdc.methods.base import (
    INIT,
    Batch,
    DetachFeatures,
    Init,
    Method,
    RampedConfig,
    Reduction,
    SpatialKernel,
    Step,
    full_precision,
    initialise,
    kl,
    mutual,
    ramp,
    student_features,
    students,
)


class MFEFConfig(RampedConfig):
    """The cases of table 5: A no switch; B msfe, in_path; C distill; D msfe, distill; E msfe, attention, distill."""

    detach_features: DetachFeatures = False
    msfe: bool = Field(
        True,
        description="Whether multi-scale feature extraction (eq. 4) works on each last map; on in cases B, D and E.",
    )
    attention: bool = Field(
        True,
        description="Whether dual attention (eq. 5-8) follows the extraction; on in case E, the whole method.",
    )
    distill: bool = Field(
        True, description="Whether the students are taught; false leaves each to the labels alone, as in cases A and B."
    )
    in_path: bool = Field(
        False,
        description="Whether extraction and attention are part of the student, the network NAME+msfe, and are kept "
        "with it; false puts them beside it, as the paper's figures do, and keeps the plain network.",
    )
    groups: Annotated[int, Field(ge=2)] = Field(
        4,
        description="The number of groups that the channels are cut into, p; FEFR states 4, MFEF no number.",
    )
    reduction: Reduction = 16
    spatial_kernel: SpatialKernel = 7
    init: Init = Field("pytorch", description=f"{INIT}.")

    @model_validator(mode="after")
    def _consistent(self) -> MFEFConfig:
        problems = []
        if self.spatial_kernel % 2 == 0:
            problems.append("spatial_kernel is odd, so that the map keeps its size")
        if self.in_path and not self.msfe:
            problems.append("in_path puts the extraction into the student: it needs msfe=true")
        if self.in_path and (self.groups, self.reduction, self.spatial_kernel) != (4, 16, 7):
            problems.append("in_path takes groups=4, reduction=16, spatial_kernel=7: the student's name says no others")
        if not self.distill and not self.in_path and (self.msfe or self.attention):
            problems.append(
                "distill=false leaves no fused classifier for msfe or attention to feed: in_path=true puts them into "
                "the student, msfe=false and attention=false leave them out"
            )
        if self.detach_features and not self.fuses:
            problems.append("detach_features keeps the fused classifier's gradient from the students: here is none")
        if self.init != "pytorch" and not self.fuses:
            problems.append(f"init={self.init!r} draws what fuses the students' maps: here is nothing of it")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def fuses(self) -> bool:
        """Case C of table 5 has no fused result: without extraction and attention the students' ensemble teaches."""
        return self.distill and (self.msfe or self.attention)


class MFEF(Method[MFEFConfig]):
    """L = Σ_k CE(z_k) + CE(z_f) + w(t)·T²·[KL(z_a ‖ z_f) + Σ_k KL(z_f ‖ z_k)], z_f from refined last maps.

    Without extraction and attention (case C): L = Σ_k CE(z_k) + w(t)·T²·Σ_k KL(z_a ‖ z_k). w is the ramp-up of the
    paper's settings (section 4.1), which its eq. 11 leaves out.
    """

    title = "MFEF"
    summary = (
        "Distilled online from a classifier that is fused from multi-scale features of all students (MFEF; "
        "arXiv 2206.08224)."
    )
    branches = True

    def setup(self) -> None:
        config = self.config
        if config.distill:  # else each student learns by itself, and one will do
            self.require_students(2)
        if config.fuses:
            sizes = [student_sizes[-1] for student_sizes in self.cohort.probe(self.images)]
            self.paths = nn.ModuleList(nn.Sequential(*self._path(size[0])) for size in sizes)
            self.fusion = OverallFusion(sizes, self.classes)  # section 3.4
            splits = [module for module in self.paths.modules() if isinstance(module, HierarchicalSplit)]
            initialise(config.init, *splits, self.fusion)
            self.notes = (self.fusion.description,)

    def _path(self, channels: int) -> list[nn.Module]:
        """What refines one student's last map, NCHW -> NCHW of the same size."""
        config = self.config
        if config.in_path:  # the student's last stage ends with it
            return []
        if config.msfe and channels < config.groups:
            way = f"method.groups from 2 to {channels} would" if channels > 1 else "method.msfe=false needs none"
            raise ValueError(
                f"method.groups={config.groups}: {channels} channels do not divide into {config.groups} groups; {way}"
            )
        path: list[nn.Module] = [HierarchicalSplit(channels, config.groups)] if config.msfe else []  # eq. 4
        if config.attention:  # eq. 5-8
            path.append(DualAttention(channels, config.reduction, config.spatial_kernel))
        return path

    @classmethod
    def architectures(cls, names: Sequence[str], config: MFEFConfig) -> tuple[str, ...]:
        suffix = MSFE[config.attention] if config.in_path else ""
        return tuple(name if name.endswith(suffix) else name + suffix for name in names)

    def _refined(self, maps: list[list[Tensor]]) -> list[Tensor]:
        """Eq. 4-8: each student's last map, extracted from and attended to, n of NCHW."""
        last = [student_maps[-1] for student_maps in maps]  # F_k
        if self.config.detach_features:
            last = [f.detach() for f in last]
        return [path(f) for path, f in zip(self.paths, last, strict=True)]

    def features(self, batch: Batch) -> dict[str, Tensor]:
        maps = self.cohort(batch.images)
        fused = {"fused": self.fusion.features(self._refined(maps))} if self.config.fuses else {}
        return student_features(maps) | fused

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        config = self.config
        maps = self.cohort(batch.images)
        z = self.cohort.logits(maps)  # n of NK
        w, T = ramp(progress, config.rampup), config.temperature
        if config.fuses:
            z_f = self.fusion(self._refined(maps))  # section 3.4; NK
            with full_precision(batch):
                return mutual(self, batch, z, z_f, w, T)
        with full_precision(batch):
            z_a = torch.stack(z).mean(0)  # NK
            losses = {f"ce_student{k}": self.cross_entropy(z_k, batch) for k, z_k in enumerate(z)}
            if config.distill:
                losses |= {f"kl_ensemble_student{k}": w * kl(z_a, z_k, T) for k, z_k in enumerate(z)}
        return Step(losses, students(z) | ({"ensemble": z_a} if len(z) > 1 else {}))
