"""FEFR: feature early fusion and reconstruction for online knowledge distillation (DOI 10.3233/JIFS-232626).

The published text lost its equations. What they were is taken from the sections that survive, from MFEF
(arXiv 2206.08224), whose protocol the paper follows, and from the public code of FFL; where a section admits more than
one reading the choice is a key of the recipe and the reason stands beside it.

Shapes: N images, C channels, H×W pixels, K classes; f1, f2, f3 are one student's taps, shallow to deep.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from okdc.blocks import DualAttention, OverallFusion, match, written
from okdc.cohort import Backbone, Cohort
from okdc.methods.base import Method, RampedConfig, Step, at_least_two, full_precision, mutual, ramp


class FEFRConfig(RampedConfig):
    name: Literal["fefr"]
    detach_features: bool = False  # FFL's code lets the fused classifier train the students' features too
    taps: Annotated[tuple[int, int, int], Field(strict=False)] = (-3, -2, -1)  # indices into a student's maps
    match: Literal["patch", "conv3x3_s2", "pool1x1"] = "patch"
    early_fusion: bool = True  # False: the last map alone (the paper's ablation without FE)
    reconstruct: Literal["skip", "cyclic", "loo", "cross", "none"] = "skip"
    groups: Annotated[int, Field(ge=2)] = 4  # the paper's p
    attention: bool = True
    reduction: Annotated[int, Field(ge=1)] = 16
    spatial_kernel: Annotated[int, Field(ge=1)] = 7

    @model_validator(mode="after")
    def _odd(self) -> FEFRConfig:
        wrong = []
        if self.spatial_kernel % 2 == 0:
            wrong.append("spatial_kernel is odd, so that the map keeps its size")
        if self.reconstruct in ("skip", "cross") and self.groups % 2:
            wrong.append(f"reconstruct={self.reconstruct!r} pairs the groups: their number is even")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def reconstruct(mode: str, f: Tensor, groups: int) -> Tensor:
    """Section 3.2.2: cut f (NCHW) into p groups of channels G1..Gp, add across groups, average, concatenate in order.

    skip    ½(Gi + Gi+p/2), i = 1..p/2: "jump around", read literally; C/2 channels. Of f = cat(f12, f23) it is
            ½(f12 + f23) exactly, for any even p: the groups then do nothing but average (tested).
    cyclic  ½(Gi + Gi+1), i = 1..p, the last with the first; C channels
    loo     the mean of all other groups, i = 1..p; C channels, invertible
    cross   ½(Gi + Gp+1-i), i = 1..p/2: mixes different halves of f12 and f23; C/2 channels
    none    f itself
    """
    if mode == "none":
        return f
    # chunk, not slices: the gradient of a slice leaves channels_last, and the layers before it would mix both formats.
    if mode == "skip":
        first, second = f.chunk(2, 1)  # all pairs at once: Gi and Gi+p/2 are in the same place of either half
        return (first + second) / 2
    g = f.chunk(groups, 1)  # p maps of N, C/p, H, W
    if mode == "loo":
        whole = sum(g[1:], g[0])  # a stack of them, or a sum over groups, leaves channels_last
        return torch.cat([(whole - own) / (groups - 1) for own in g], 1)
    pairs = [(i, (i + 1) % groups) for i in range(groups)]
    if mode == "cross":
        pairs = [(i, groups - 1 - i) for i in range(groups // 2)]
    return torch.cat([(g[i] + g[j]) / 2 for i, j in pairs], 1)


class FeaturePath(nn.Module):
    """One student's side path, from its maps to what it adds to the fused classifier (sections 3.2.1 to 3.2.3)."""

    def __init__(self, student: Backbone, sizes: list[torch.Size], config: FEFRConfig) -> None:
        super().__init__()
        self.config = config
        self.taps = self._resolve(config.taps, len(sizes)) if config.early_fusion else (len(sizes) - 1,)
        *shallow, deepest = self.taps
        target = sizes[deepest]
        self.match = nn.ModuleList(match(config.match, sizes[i], target, student.raw[i]) for i in shallow)
        channels = target[0] * (2 if config.early_fusion else 1)
        if config.reconstruct != "none" and channels % config.groups:
            raise ValueError(f"{channels} fused channels do not divide into {config.groups} groups")
        channels //= 2 if config.reconstruct in ("skip", "cross") else 1
        self.attention = (
            DualAttention(channels, config.reduction, config.spatial_kernel) if config.attention else nn.Identity()
        )
        self.size = torch.Size((channels, *target[1:]))
        matched = f", matched by {config.match} to {written(target)}" if shallow else ""
        self.description = f"taps {', '.join(f'{i}: {written(sizes[i])}' for i in self.taps)}{matched}"

    @staticmethod
    def _resolve(taps: tuple[int, int, int], count: int) -> tuple[int, ...]:
        if count < 3:
            raise ValueError(f"early fusion joins three maps and this student has {count}; use early_fusion=false")
        if not all(-count <= t < count for t in taps):
            raise ValueError(f"taps {list(taps)} are outside the {count} maps of this student (0 is the stem)")
        found = tuple(t % count for t in taps)
        if not found[0] < found[1] < found[2]:
            raise ValueError(f"taps {list(taps)} are not three maps from shallow to deep")
        return found

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The maps of one student -> its refined map, NCHW of size `size`."""
        taps = [maps[i].detach() if self.config.detach_features else maps[i] for i in self.taps]
        if self.config.early_fusion:
            # Section 3.2.1: F2 is the bridge; matched once, it goes into both sums. F3 has the size already.
            f1, f2 = (m(tap) for m, tap in zip(self.match, taps[:2], strict=True))
            f3 = taps[2]
            f12 = f1 + f2
            f23 = f2 + f3
            f = torch.cat([f12, f23], 1)  # N, 2C, H, W
        else:
            f = taps[0]
        f_re = reconstruct(self.config.reconstruct, f, self.config.groups)  # section 3.2.2
        refined: Tensor = self.attention(f_re)  # section 3.2.3
        return refined


class FEFR(Method):
    """L = Σ_k CE(z_k) + CE(z_f) + w(t)·T²·[KL(z_a ‖ z_f) + Σ_k KL(z_f ‖ z_k)], z_a = mean_k z_k.

    The ensemble teaches the fused classifier, which teaches every student; each teacher is detached. Sums over
    students are not divided by their number (FFL's code), so the trunk's gradient grows with it.
    """

    Config = FEFRConfig
    title = "FEFR"
    summary = (
        "Distilled online from a classifier that is fused from features of several depths of all students (FEFR; "
        "DOI 10.3233/JIFS-232626)."
    )
    branches = True

    def __init__(
        self, cohort: Cohort, config: BaseModel, images: torch.Size, classes: int, teacher: nn.Module | None = None
    ) -> None:
        super().__init__(cohort, config, images, classes, teacher)
        assert isinstance(config, FEFRConfig)
        at_least_two(cohort, "fefr")
        self.temperature, self.rampup = config.temperature, config.rampup
        sizes = cohort.probe(images)
        paths = [FeaturePath(cohort.backbone(k), own, config) for k, own in enumerate(sizes)]
        self.fusion = OverallFusion([path.size for path in paths], classes)
        self.paths = nn.ModuleList(paths)
        taps = [f"student{k}: {path.description}" for k, path in enumerate(paths)]
        self.notes = (*taps, self.fusion.description)

    def forward(self, images: Tensor, labels: Tensor, progress: Tensor) -> Step:
        maps = self.cohort(images)
        z = self.cohort.logits(maps)
        z_f = self.fusion([path(own) for path, own in zip(self.paths, maps, strict=True)])  # section 3.2.4
        with full_precision(images):
            return mutual(z, z_f, labels, ramp(progress, self.rampup), self.temperature)
