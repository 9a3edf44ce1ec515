"""FEFR: feature early fusion and reconstruction for online knowledge distillation (DOI 10.3233/JIFS-232626).

The published text lost its equations. What they were is taken from the sections that survive, from MFEF
(arXiv 2206.08224), whose protocol the paper follows, and from the public code of FFL; where a section admits more than
one reading the choice is a key of the recipe, and the key's description gives the reason.

From the maps of student k to the losses:

    3.2.1  early fusion      f12 = f1 + f2,  f23 = f2 + f3,  f = cat(f12, f23)    three depths of one student, one size
    3.2.2  reconstruction    f_re = groups of f's channels, averaged in pairs
    3.2.3  dual attention    a_k = f_re weighed by channel, then by place
    3.2.4  overall fusion    z_f = classifier of cat_k a_k                         all students
           losses            those of MFEF eq. 9-11; FEFR's text keeps only that KL is multiplied by T²

The first three are one student's `FeaturePath`. All of it is scaffolding: what is kept is a plain student.

Shapes: N images, C channels, H×W pixels, K classes; f1, f2, f3 are one student's taps, shallow to deep; n students.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from okdc.blocks import DualAttention, OverallFusion, match, written
from okdc.cohort import Backbone
from okdc.methods.base import (
    Batch,
    DetachFeatures,
    Method,
    RampedConfig,
    Reduction,
    SpatialKernel,
    Step,
    full_precision,
    mutual,
    ramp,
)

MOST_NAMED = 8  # numbers of groups in a message


class FEFRConfig(RampedConfig):
    detach_features: DetachFeatures = False
    taps: Annotated[tuple[int, int, int], Field(strict=False)] = Field(
        (-3, -2, -1),
        description="f1, f2 and f3 as indices into a student's maps, shallow to deep, 0 for the stem, negative from "
        'the end; by default the last three, the text\'s "two intermediate layers and the last layer".',
    )
    match: Literal["patch", "conv3x3_s2", "pool1x1"] = Field(
        "patch",
        description="How f1 and f2 reach the size of f3 (Fig. 3 says only conv): patch, one convolution whose kernel "
        "and stride are the ratio of the sizes, or conv3x3_s2, a chain of 3×3 convolutions of stride 2, or pool1x1, "
        "average pooling and a 1×1 convolution; patch is the cheapest that sees every pixel.",
    )
    early_fusion: bool = Field(
        True,
        description="Whether three maps are fused (section 3.2.1); false takes the last map alone, the paper's "
        "ablation without FE.",
    )
    reconstruct: Literal["skip", "cyclic", "loo", "cross", "none"] = Field(
        "skip",
        description='How groups of channels are averaged (section 3.2.2); skip reads "jump around and add up" '
        "literally and equals (f12 + f23)/2; cyclic, loo and cross mix what skip does not, none leaves the map as is.",
    )
    groups: Annotated[int, Field(ge=2)] = Field(
        4, description="The number of groups that the channels are cut into, the paper's p; 4 as in section 3.2.2."
    )
    attention: bool = Field(
        True,
        description="Whether dual attention refines the map (section 3.2.3); false is the ablation without DA.",
    )
    reduction: Reduction = 16
    spatial_kernel: SpatialKernel = 7

    @model_validator(mode="after")
    def _consistent(self) -> FEFRConfig:
        problems = []
        if self.spatial_kernel % 2 == 0:
            problems.append("spatial_kernel is odd, so that the map keeps its size")
        if self.reconstruct in ("skip", "cross") and self.groups % 2:
            problems.append(f"reconstruct={self.reconstruct!r} pairs the groups: their number is even")
        if problems:
            raise ValueError("; ".join(problems))
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
        total = sum(g[1:], g[0])  # a stack of them, or a sum over groups, leaves channels_last
        return torch.cat([(total - g_i) / (groups - 1) for g_i in g], 1)
    pairs = [(i, (i + 1) % groups) for i in range(groups)]
    if mode == "cross":
        pairs = [(i, groups - 1 - i) for i in range(groups // 2)]
    return torch.cat([(g[i] + g[j]) / 2 for i, j in pairs], 1)


class FeaturePath(nn.Module):
    """One student's side path, from its maps to what it adds to the fused classifier (sections 3.2.1 to 3.2.3).

    `size` is the CHW size of what it gives. Each student has a path of its own, also over a shared trunk: there f1 and
    f2 are the same for all, and only the paths can tell the students apart before f3.
    """

    def __init__(self, student: Backbone, sizes: list[torch.Size], config: FEFRConfig) -> None:
        super().__init__()
        self.config = config
        self.taps = self._resolve(config.taps, len(sizes)) if config.early_fusion else (len(sizes) - 1,)
        *shallow, deepest = self.taps
        target = sizes[deepest]
        # f3 needs no matching. A raw map (WRN's residual sum) is normalised first, or its scale would drown the others.
        self.match = nn.ModuleList(match(config.match, sizes[i], target, student.raw[i]) for i in shallow)
        channels = target[0] * (2 if config.early_fusion else 1)
        if config.reconstruct != "none" and channels % config.groups:
            raise ValueError(_indivisible(channels, config, student.architecture))
        channels //= 2 if config.reconstruct in ("skip", "cross") else 1
        self.attention = (
            DualAttention(channels, config.reduction, config.spatial_kernel) if config.attention else nn.Identity()
        )
        self.size = torch.Size((channels, *target[1:]))
        matched = f", matched by {config.match} to {written(target)}" if shallow else ""
        self.description = f"taps {', '.join(f'{i}: {written(sizes[i])}' for i in self.taps)}{matched}"

    @staticmethod
    def _resolve(taps: tuple[int, int, int], count: int) -> tuple[int, ...]:
        """The taps as indices from 0 of `count` maps. Raises ValueError where they are not three, shallow to deep."""
        if count < 3:
            raise ValueError(f"early fusion joins three maps and this student has {count}; use early_fusion=false")
        if not all(-count <= t < count for t in taps):
            raise ValueError(f"taps {list(taps)} are outside the {count} maps of this student (0 is the stem)")
        first, second, third = (t % count for t in taps)
        if not first < second < third:
            raise ValueError(f"taps {list(taps)} are not three maps from shallow to deep")
        return first, second, third

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The maps of one student, shallow to deep -> its refined map, NCHW of size `size`."""
        taps = [maps[i].detach() if self.config.detach_features else maps[i] for i in self.taps]
        if self.config.early_fusion:
            # Section 3.2.1. F2 is "a bridge": matched once, the same map goes into both sums. The text adds ("matrix
            # addition") at one size; sums at the maps' native sizes would be another reading.
            f1, f2 = (m(tap) for m, tap in zip(self.match, taps[:2], strict=True))  # NCHW, each of f3's size
            f3 = taps[2]
            f12 = f1 + f2
            f23 = f2 + f3
            f = torch.cat([f12, f23], 1)  # N, 2C, H, W; in this order, which `reconstruct` relies on
        else:
            f = taps[0]
        # Section 3.2.2.
        f_re = reconstruct(self.config.reconstruct, f, self.config.groups)  # N, C or 2C, H, W
        # Section 3.2.3, whose equations are lost: those of MFEF (eq. 5-8), from whom the section takes its figure.
        refined: Tensor = self.attention(f_re)  # the size of f_re
        return refined


def _indivisible(channels: int, config: FEFRConfig, network: str) -> str:
    """That so many channels do not divide into the recipe's groups, and the nearest numbers that would do."""
    every = 2 if config.reconstruct in ("skip", "cross") else 1  # these pair the groups: their number is even
    divisors = [count for count in range(2, channels + 1) if channels % count == 0 and count % every == 0]
    nearest = sorted(sorted(divisors, key=lambda count: abs(count - config.groups))[:MOST_NAMED])
    way = f"method.groups={', '.join(map(str, nearest))} would" if nearest else "method.reconstruct=none needs none"
    whose = f"{channels} fused channels" + (f" of {network}" if network else "")
    return f"method.groups={config.groups}: {whose} do not divide into {config.groups} groups; {way}"


class FEFR(Method[FEFRConfig]):
    """L = Σ_k CE(z_k) + CE(z_f) + w(t)·T²·[KL(z_a ‖ z_f) + Σ_k KL(z_f ‖ z_k)], z_a = mean_k z_k.

    The ensemble z_a teaches the fused classifier, which teaches every student; each teacher is detached. Sums over
    students are not divided by their number (FFL's code), so the trunk's gradient grows with it. w is the ramp-up of
    MFEF's settings, which its own eq. 11 leaves out.
    """

    title = "FEFR"
    summary = (
        "Distilled online from a classifier that is fused from features of several depths of all students (FEFR; "
        "DOI 10.3233/JIFS-232626)."
    )
    branches = True
    least_students = 2

    def setup(self) -> None:
        sizes = self.cohort.probe(self.images)  # measured: strides lie at odd sizes
        paths = [FeaturePath(self.cohort.backbone(k), sizes[k], self.config) for k in range(len(sizes))]
        # Section 3.2.4: depthwise 3×3 and pointwise convolution over all students' maps, as wide as the narrowest.
        self.fusion = OverallFusion([path.size for path in paths], self.classes)
        self.paths = nn.ModuleList(paths)
        taps = [f"student{k}: {path.description}" for k, path in enumerate(paths)]
        self.notes = (*taps, self.fusion.description)

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        maps = self.cohort(batch.images)  # maps[k][i]: stage i of student k
        z = self.cohort.logits(maps)  # n of NK; the students answer as they will alone: no path is in their way
        a = [path(student_maps) for path, student_maps in zip(self.paths, maps, strict=True)]  # 3.2.1-3.2.3; n of NCHW
        z_f = self.fusion(a)  # section 3.2.4; NK
        with full_precision(batch):
            return mutual(self, batch, z, z_f, ramp(progress, self.config.rampup), self.config.temperature)
