"""MFEF: multi-scale feature extraction and fusion (arXiv 2206.08224).

Each student's last map is cut into groups that are convolved one after the other and passed on in part (eq. 4), refined
by dual attention (eq. 5-8) and fused with the others' into one classifier (section 3.4); the losses are eq. 9-11.

Whether extraction and attention sit beside the student or in it the paper leaves open. Its figures and the student's
"last fully connected layer" say beside (the default: the kept student is the plain backbone); case B of its table 5,
where extraction alone takes ResNet-110 from 26.30 to 24.35 % error, is only possible in it: `in_path`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from okdc.backbones import MSFE
from okdc.blocks import DualAttention, HierarchicalSplit, OverallFusion
from okdc.cohort import Cohort
from okdc.methods.base import Method, RampedConfig, Step, at_least_two, full_precision, kl, mutual, ramp, students


class MFEFConfig(RampedConfig):
    """The cases of table 5: A no switch; B msfe, in_path; C distill; D msfe, distill; E msfe, attention, distill."""

    name: Literal["mfef"]
    detach_features: bool = False  # FFL's code lets the fused classifier train the students' features too
    msfe: bool = True
    attention: bool = True
    distill: bool = True  # False: every student learns from the labels alone
    in_path: bool = False  # the student itself is the zoo variant NAME+msfe
    groups: Annotated[int, Field(ge=2)] = 4  # p; FEFR states 4, MFEF none
    reduction: Annotated[int, Field(ge=1)] = 16
    spatial_kernel: Annotated[int, Field(ge=1)] = 7

    @model_validator(mode="after")
    def _consistent(self) -> MFEFConfig:
        wrong = []
        if self.spatial_kernel % 2 == 0:
            wrong.append("spatial_kernel is odd, so that the map keeps its size")
        if self.in_path and not self.msfe:
            wrong.append("in_path puts the extraction into the student: it needs msfe=true")
        if self.in_path and (self.groups, self.reduction, self.spatial_kernel) != (4, 16, 7):
            wrong.append("in_path takes groups=4, reduction=16, spatial_kernel=7: the student's name says no others")
        if not self.distill and not self.in_path and (self.msfe or self.attention):
            wrong.append(
                "distill=false leaves no fused classifier for msfe or attention to feed: in_path=true puts them into "
                "the student, msfe=false and attention=false leave them out"
            )
        if self.detach_features and not self.fuses:
            wrong.append("detach_features keeps the fused classifier's gradient from the students: here is none")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def fuses(self) -> bool:
        """Case C of table 5 has no fused result: without extraction and attention the students' ensemble teaches."""
        return self.distill and (self.msfe or self.attention)


class MFEF(Method):
    """L = Σ_k CE(z_k) + CE(z_f) + w(t)·T²·[KL(z_a ‖ z_f) + Σ_k KL(z_f ‖ z_k)], z_f from refined last maps.

    Without extraction and attention (case C): L = Σ_k CE(z_k) + w(t)·T²·Σ_k KL(z_a ‖ z_k).
    """

    Config = MFEFConfig
    title = "MFEF"
    summary = (
        "Distilled online from a classifier that is fused from multi-scale features of all students (MFEF; "
        "arXiv 2206.08224)."
    )
    branches = True

    def __init__(
        self, cohort: Cohort, config: BaseModel, images: torch.Size, classes: int, teacher: nn.Module | None = None
    ) -> None:
        super().__init__(cohort, config, images, classes, teacher)
        assert isinstance(config, MFEFConfig)
        if config.distill:
            at_least_two(cohort, "mfef")
        self.config = config
        if config.fuses:
            sizes = [own[-1] for own in cohort.probe(images)]
            self.paths = nn.ModuleList(nn.Sequential(*self._path(size[0], config)) for size in sizes)
            self.fusion = OverallFusion(sizes, classes)
            self.notes = (self.fusion.description,)

    @staticmethod
    def _path(channels: int, config: MFEFConfig) -> list[nn.Module]:
        if config.in_path:  # the last stage ends with it
            return []
        path: list[nn.Module] = [HierarchicalSplit(channels, config.groups)] if config.msfe else []
        if config.attention:
            path.append(DualAttention(channels, config.reduction, config.spatial_kernel))
        return path

    @classmethod
    def architecture(cls, name: str, config: BaseModel) -> str:
        assert isinstance(config, MFEFConfig)
        suffix = MSFE[config.attention]
        return name + suffix if config.in_path and not name.endswith(suffix) else name

    def forward(self, images: Tensor, labels: Tensor, progress: Tensor) -> Step:
        config = self.config
        maps = self.cohort(images)
        z = self.cohort.logits(maps)
        w = ramp(progress, config.rampup)
        if config.fuses:
            last = [own[-1].detach() if config.detach_features else own[-1] for own in maps]
            z_f = self.fusion([path(f) for path, f in zip(self.paths, last, strict=True)])
            with full_precision(images):
                return mutual(z, z_f, labels, w, config.temperature)
        with full_precision(images):
            z_a = torch.stack(z).mean(0)
            losses = {f"ce_student{k}": F.cross_entropy(z_k, labels) for k, z_k in enumerate(z)}
            if config.distill:
                losses |= {f"kl_ensemble_student{k}": w * kl(z_a, z_k, config.temperature) for k, z_k in enumerate(z)}
        return Step(losses, students(z) | ({"ensemble": z_a} if len(z) > 1 else {}))
