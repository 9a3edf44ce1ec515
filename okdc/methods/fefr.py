"""FEFR: feature early fusion and reconstruction for online knowledge distillation (DOI 10.3233/JIFS-232626).

From the maps of student k to the losses:

    3.2.1  early fusion      f = cat(f12, f23)                 three depths f1, f2, f3 of one student, joined in pairs
    3.2.2  reconstruction    f_re = groups of f's channels, averaged in pairs or reordered
    3.2.3  dual attention    a_k = f_re weighed by channel, then by place
    3.2.4  overall fusion    z_f = classifier of cat_k a_k     all students
           losses            those of MFEF eq. 9-11; FEFR's text keeps only that KL is multiplied by T²

All of it is scaffolding: what is kept is a plain student.

There are two readings, and no third source. `reading` sets the defaults of the keys in which they differ; each key can
be set by itself.

text      The published text lost its equations, its setup and its tables. This reading takes them from the sections
          that survive, from MFEF (arXiv 2206.08224), whose protocol the paper follows, and from the public code of FFL.
released  The code that is public under the paper's name (github.com/JSJ515-Group/FEFR, January 2024) is FFL's, edited,
          and does something else. It does not say that it is what the paper's tables were made with.

                              text                                released
    early fusion              f12 = a(f1) + b(f2)                 f12 = c(½(a(f1) + f2))
                              f23 = b(f2) + f3                    f23 = ½(b(f2) + f3)
    sizes                     all at f3's, C3 channels each       sums at f2's and f3's own, C2 and C3 channels
    matching a, b, c          convolution, BN, ReLU               convolution with a bias
                              a set a student                     one set for all students of a trunk
                              optim.aux_weight_decay              optim.weight_decay, as the students
    f, ResNet                 128 channels, f_re 64               96 channels, f_re 96
    reconstruction            skip                                split, a permutation
    attention                 C/16 hidden units, biases, BN       C/8, none; one for all students of a trunk
    overall fusion            depthwise, pointwise                1×1 to n·C3, depthwise, pointwise
    first weights             PyTorch's                           N(0, 2/(k²·outputs)), attention's PyTorch's

Nobody can rebuild the paper's tables from either. Two facts say how far the release is from its paper:

- A permutation of channels in front of a dual attention and a learned 1×1 convolution changes nothing that can be
  learned: the same functions are there with other weights (tested). The paper finds that reconstruction "has the
  greatest effect"; this code cannot have shown that.
- The release makes its attention inside `forward`, with other random weights at every call, so that it is never
  trained and the fused classifier is no function of its input. Both readings train it here. `attention="random"` is
  the release's, to measure what that costs. One draw's accuracy says little: its heads are fused_draw0 to fused_draw3,
  four draws where accuracy is measured, and there is no head `fused` that a table could print.

One exception is named rather than hidden. What lies under `cohort` has the students' weight decay and may be kept;
with `match_decay="weight_decay"` the matching convolutions have that decay, and are thrown away all the same. Not
built is the release's Linear(96, 64), 6,208 parameters that its `forward` never uses.

Shapes: N images, C channels, H×W pixels, K classes; f1, f2, f3 are one student's taps, shallow to deep, of C1, C2, C3
channels; n students.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from okdc.blocks import (
    DualAttention,
    OverallFusion,
    RandomAttention,
    bn_relu,
    match,
    reordered,
    split_order,
    written,
)
from okdc.cohort import Backbone
from okdc.methods.base import (
    INIT,
    Batch,
    DetachFeatures,
    Init,
    Method,
    RampedConfig,
    SpatialKernel,
    Step,
    full_precision,
    initialise,
    mutual,
    ramp,
    student_features,
)
from okdc.progress import WARNING

MOST_NAMED = 8  # numbers of groups in a message
DRAWS = 4  # of random attention, where accuracy is measured
PAIRED = ("skip", "cross")  # reconstructions of half as many channels, which pair an even number of groups

# The keys whose defaults are others with reading="released".
RELEASED: dict[str, Any] = {
    "scale": "native",
    "combine": "mean",
    "width": "native",
    "match_norm": False,
    "share_match": True,
    "match_decay": "weight_decay",
    "reconstruct": "split",
    "reduction": 8,
    "attention_bias": False,
    "attention_norm": False,
    "share_attention": True,
    "premix": True,
    "init": "he",
}


# What no part reads where another key has this value: such a key would make a row of its own of an equal training.
UNREAD: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    (
        "early_fusion",
        False,
        ("scale", "combine", "width", "match", "match_norm", "share_match", "match_decay"),
    ),
    (
        "attention",
        False,
        ("reduction", "spatial_kernel", "attention_bias", "attention_norm", "share_attention"),
    ),
    ("reconstruct", "none", ("groups",)),
)


class FEFRConfig(RampedConfig):
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None,
        description="What the KL terms are multiplied by, beside the ramp-up and T²; left out: they are as large as in "
        "the paper, which has no such factor.",
    )
    detach_features: DetachFeatures = False
    reading: Literal["text", "released"] = Field(
        "text",
        description="Whose defaults the other keys have: text, the paper's sections and its sources, or released, the "
        "code that is public under its name; the two differ, and neither is proven to have made the paper's tables.",
    )
    taps: Annotated[tuple[int, int, int], Field(strict=False)] = Field(
        (-3, -2, -1),
        description="f1, f2 and f3 as indices into a student's maps, shallow to deep, 0 for the stem, negative from "
        'the end; by default the last three, the text\'s "two intermediate layers and the last layer".',
    )
    early_fusion: bool = Field(
        True,
        description="Whether three maps are fused (section 3.2.1); false takes the last map alone, the paper's "
        "ablation without FE.",
    )
    scale: Literal["last", "native"] = Field(
        "last",
        description="The size at which maps are joined: last, that of f3, where the matched f2 is one bridge in both "
        "sums, or native, f1 with f2 at the size of f2, which is then matched again (released: native).",
    )
    combine: Literal["sum", "mean"] = Field(
        "sum",
        description='Whether two maps are added, the text\'s "matrix addition", or averaged (released: mean).',
    )
    width: Literal["last", "native"] = Field(
        "last",
        description="Channels of f12 where it meets f23: last, as many as f3, or native, as many as f2, which "
        "scale=native alone can give (released: native).",
    )
    match: Literal["patch", "conv3x3_s2", "pool1x1"] = Field(
        "patch",
        description="How a map reaches the size of a deeper one (Fig. 3 says only conv): patch, one convolution whose "
        "kernel and stride are the ratio of the sizes, or conv3x3_s2, a chain of 3×3 convolutions of stride 2, or "
        "pool1x1, average pooling and a 1×1 convolution; patch is the cheapest that sees every pixel.",
    )
    match_norm: bool = Field(
        True,
        description="Whether BN and ReLU follow each matching convolution; false gives it a bias instead (released: "
        "false).",
    )
    share_match: bool = Field(
        False,
        description="Whether students of one trunk have one set of matching convolutions; without a trunk each has its "
        "own (released: true).",
    )
    match_decay: Literal["aux_weight_decay", "weight_decay"] = Field(
        "aux_weight_decay",
        description="The key of [optim] that is the matching convolutions' weight decay: that of all scaffolding, or "
        "that of the students (released: weight_decay).",
    )
    reconstruct: Literal["skip", "cyclic", "loo", "cross", "split", "none"] = Field(
        "skip",
        description='How groups of channels are reconstructed (section 3.2.2); skip reads "jump around and add up" '
        "literally and equals (f12 + f23)/2; cyclic, loo and cross mix what skip does not, split is MFEF's split "
        "without convolutions, a permutation, none leaves the map as is (released: split).",
    )
    groups: Annotated[int, Field(ge=2)] = Field(
        4, description="The number of groups that the channels are cut into, the paper's p; 4 as in section 3.2.2."
    )
    attention: bool | Literal["random"] = Field(
        True,
        description="Whether dual attention refines the map (section 3.2.3); false is the ablation without DA. random "
        "is never trained and has other weights at every call: it exists only to measure the release.",
    )
    reduction: Annotated[int, Field(ge=1)] = Field(
        16,
        description="How many times fewer units than channels the hidden layer of channel attention has, four units "
        "at least; 16 is CBAM's, since the text gives no number (released: 8).",
    )
    spatial_kernel: SpatialKernel = 7
    attention_bias: bool = Field(
        True,
        description="Whether the two layers of channel attention have biases, as CBAM's (released: false).",
    )
    attention_norm: bool = Field(
        True,
        description="Whether BN follows the convolution of spatial attention, as in CBAM (released: false).",
    )
    share_attention: bool = Field(
        False,
        description="Whether students of one trunk have one dual attention; without a trunk each has its own "
        "(released: true).",
    )
    premix: bool = Field(
        False,
        description="Whether a 1×1 convolution with a bias first mixes the maps of all students into the channels of "
        "their f3 (section 3.2.4 has none); with it the fused map is equally wide whatever the reconstruction "
        "(released: true).",
    )
    init: Init = Field("pytorch", description=f"{INIT} (released: he).")

    @classmethod
    def defaults_of(cls, table: Mapping[str, Any]) -> dict[str, Any]:
        return super().defaults_of(table) | (RELEASED if table.get("reading") == "released" else {})

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_reading(cls, table: Any) -> Any:
        released = isinstance(table, Mapping) and table.get("reading") == "released"
        return RELEASED | dict(table) if released else table

    @model_validator(mode="after")
    def _consistent(self) -> FEFRConfig:
        problems = self._unread()
        if self.spatial_kernel % 2 == 0:
            problems.append("spatial_kernel is odd, so that the map keeps its size")
        if self.reconstruct in PAIRED and self.groups % 2:
            problems.append(f"reconstruct={self.reconstruct!r} pairs the groups: their number is even")
        if self.width == "native" and self.scale == "last":
            given = ", the default of reading='released'," if self.reading == "released" else ""
            problems.append(
                f"width='native'{given} needs scale='native': with scale='last' one bridge is in both sums, so that "
                "both have the channels of f3; width='last' goes with both"
            )
        if self.attention == "random" and (self.attention_bias or self.attention_norm):
            problems.append(
                "attention='random' is the release's, without biases and BN: it needs attention_bias=false and "
                "attention_norm=false"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _unread(self) -> list[str]:
        """A line for each key that differs from its default and that no part reads."""
        defaults = self.defaults_of({"reading": self.reading})
        return [
            f"{key}={getattr(self, key)!r} has no effect with {owner}={value!r}; leave it out"
            for owner, value, keys in UNREAD
            if getattr(self, owner) == value
            for key in keys
            if getattr(self, key) != defaults[key]
        ]


def reconstruct(mode: str, f: Tensor, groups: int) -> Tensor:
    """Section 3.2.2: cut f (NCHW) into p groups of channels G1..Gp, add across groups, average, concatenate in order.

    skip    ½(Gi + Gi+p/2), i = 1..p/2: "jump around", read literally; C/2 channels. Of f = cat(f12, f23), both of C3
            channels, it is ½(f12 + f23) exactly, for any even p: the groups then do nothing but average (tested).
    cyclic  ½(Gi + Gi+1), i = 1..p, the last with the first; C channels
    loo     the mean of all other groups, i = 1..p; C channels, invertible
    cross   ½(Gi + Gp+1-i), i = 1..p/2: mixes different halves of f12 and f23; C/2 channels
    split   the hierarchical split of MFEF without its convolutions: G1, half of G2, half of what is left of it and
            G3, ..., a permutation (`split_order`); C channels
    none    f itself
    """
    if mode == "none":
        return f
    if mode == "split":
        return reordered(f, split_order(f.shape[1], groups))
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


class EarlyFusion(nn.Module):
    """Section 3.2.1: three maps of one student, of different sizes -> f = cat(f12, f23), NCHW of f3's height and width.

    scale=last     f12 = a(f1) + b(f2)       f23 = b(f2) + f3    a and b match to f3's size
    scale=native   f12 = c(a(f1) + f2)       f23 = b(f2) + f3    a matches to f2's size, b to f3's, c to f3's H×W

    combine=mean halves each sum. f3 needs no matching. A raw map (WRN's residual sum) is normalised first, or its scale
    would drown the others. `size` is the CHW size of f.
    """

    def __init__(
        self, sizes: tuple[torch.Size, torch.Size, torch.Size], raw: tuple[bool, bool], config: FEFRConfig
    ) -> None:
        super().__init__()
        one, two, three = sizes
        self.native, self.halved = config.scale == "native", config.combine == "mean"
        kind, norm = config.match, config.match_norm
        self.a = match(kind, one, two if self.native else three, raw[0], norm)
        self.b = match(kind, two, three, raw[1] and not self.native, norm)
        self.c: nn.Module = nn.Identity()
        self.ready: nn.Module = nn.Identity()  # makes f2 what may be added
        f12 = three
        if self.native:
            self.ready = nn.Sequential(*bn_relu(two[0])) if raw[1] else nn.Identity()
            f12 = torch.Size((two[0] if config.width == "native" else three[0], *three[1:]))
            self.c = match(kind, two, f12, norm=norm)
        self.size = torch.Size((f12[0] + three[0], *three[1:]))

    def joined(self, x: Tensor, y: Tensor) -> Tensor:
        return (x + y) / 2 if self.halved else x + y

    def shallow(self, f1: Tensor, f2: Tensor) -> tuple[Tensor, Tensor]:
        """f12, and b(f2), "a bridge" to f3: what a trunk has once for all its students. NCHW of f3's H×W."""
        f2 = self.ready(f2)
        bridge = self.b(f2)
        f12 = self.c(self.joined(self.a(f1), f2 if self.native else bridge))
        return f12, bridge

    def forward(self, f12: Tensor, bridge: Tensor, f3: Tensor) -> Tensor:
        f23 = self.joined(bridge, f3)
        return torch.cat([f12, f23], 1)  # in this order, which `reconstruct` relies on


class FeaturePath(nn.Module):
    """One student's side path: its maps -> f_re (sections 3.2.1 and 3.2.2), and the attention that refines it (3.2.3).

    `size` is the CHW size of f_re, which attention keeps. Each student has a path of its own, also over a shared trunk:
    with reading=text f1 and f2 are the same for all there, and only the paths can tell the students apart before f3.
    `peer` is the path of another student of the same trunk, whose modules this one shares as the recipe says. `key` is
    that of random attention.
    """

    def __init__(
        self, student: Backbone, sizes: list[torch.Size], config: FEFRConfig, peer: FeaturePath | None, key: Tensor
    ) -> None:
        super().__init__()
        self.config = config
        self.taps = self._resolve(config.taps, len(sizes)) if config.early_fusion else (len(sizes) - 1,)
        self.early_fusion: EarlyFusion | None = None
        size = sizes[self.taps[-1]]
        self.width = size[0]  # C3
        if config.early_fusion:
            i, j, k = self.taps
            shared = peer.early_fusion if peer and config.share_match else None
            raw = student.raw[i], student.raw[j]
            self.early_fusion = shared or EarlyFusion((sizes[i], sizes[j], sizes[k]), raw, config)
            size = self.early_fusion.size
        channels = size[0]
        if problem := _indivisible(channels, config, student.architecture):
            raise ValueError(problem)
        channels //= 2 if config.reconstruct in PAIRED else 1
        self.attention: nn.Module = nn.Identity()
        if config.attention == "random":
            self.attention = RandomAttention(channels, key, config.reduction, config.spatial_kernel)
        elif config.attention and peer and config.share_attention:
            self.attention = peer.attention
        elif config.attention:
            self.attention = DualAttention(
                channels, config.reduction, config.spatial_kernel, config.attention_bias, config.attention_norm
            )
        self.size = torch.Size((channels, *size[1:]))
        matched = ""
        if config.early_fusion and config.scale == "last":
            matched = f", matched by {config.match} to {written(sizes[self.taps[-1]])}"
        elif config.early_fusion:
            matched = f", matched by {config.match}, each to the next, and joined at {written(size)}"
        self.description = f"taps {', '.join(f'{i}: {written(sizes[i])}' for i in self.taps)}{matched}"

    @staticmethod
    def _resolve(taps: tuple[int, int, int], count: int) -> tuple[int, ...]:
        """The taps as indices from 0 of `count` maps. Raises ValueError where they are not three, shallow to deep."""
        if count < 3:
            raise ValueError(f"early fusion joins three maps and this student has {count}; use early_fusion=false")
        if not all(-count <= t < count for t in taps):
            raise ValueError(
                f"method.taps={list(taps)}: some are outside the {count} maps of this student (0 is the stem)"
            )
        first, second, third = (t % count for t in taps)
        if not first < second < third:
            raise ValueError(f"method.taps={list(taps)} are not three maps from shallow to deep")
        return first, second, third

    def tapped(self, maps: list[Tensor]) -> list[Tensor]:
        return [maps[i].detach() if self.config.detach_features else maps[i] for i in self.taps]

    def shallow(self, maps: list[Tensor]) -> tuple[Tensor, Tensor] | None:
        """What early fusion makes of f1 and f2 alone; None without early fusion."""
        return self.early_fusion.shallow(*self.tapped(maps)[:2]) if self.early_fusion else None

    def forward(self, maps: list[Tensor], shallow: tuple[Tensor, Tensor] | None) -> Tensor:
        """The maps of one student, shallow to deep, and what `shallow` gives of them -> f_re, NCHW of size `size`."""
        f: Tensor = self.tapped(maps)[-1]
        if self.early_fusion and shallow:
            f = self.early_fusion(*shallow, f)  # section 3.2.1
        return reconstruct(self.config.reconstruct, f, self.config.groups)  # section 3.2.2


def _indivisible(channels: int, config: FEFRConfig, network: str) -> str:
    """Why so many channels do not divide into the recipe's groups, and the nearest numbers that would do; else ""."""
    uneven = config.reconstruct == "split"  # groups that differ by one channel are good enough for it
    if config.reconstruct == "none" or (channels >= config.groups if uneven else channels % config.groups == 0):
        return ""
    every = 2 if config.reconstruct in PAIRED else 1  # these pair the groups: their number is even
    possible = [count for count in range(2, channels + 1) if (uneven or channels % count == 0) and count % every == 0]
    nearest = sorted(sorted(possible, key=lambda count: abs(count - config.groups))[:MOST_NAMED])
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
        config, sizes = self.config, self.cohort.probe(self.images)  # measured: strides lie at odd sizes
        # Drawn for random attention alone: the first weights of all else do not depend on it.
        key = torch.randint(2**31, ()) if config.attention == "random" else torch.zeros((), dtype=torch.int64)
        paths: list[FeaturePath] = []
        for k, own in enumerate(sizes):
            peer = paths[0] if paths and self.cohort.shared else None
            paths.append(FeaturePath(self.cohort.backbone(k), own, config, peer, key))
        # Section 3.2.4: depthwise 3×3 and pointwise convolution over all students' maps, as wide as the narrowest.
        widths = [path.width for path in paths] if config.premix else None
        self.fusion = OverallFusion([path.size for path in paths], self.classes, widths)
        self.paths = nn.ModuleList(paths)
        matching: dict[nn.Module, str] = {}  # each set of matching convolutions, with its name
        for k, path in enumerate(paths):
            if path.early_fusion is not None:
                matching.setdefault(path.early_fusion, f"paths.{k}.early_fusion")
        if config.match_decay == "weight_decay":
            self.decayed_as_students = tuple(matching.values())
        initialise(config.init, *matching, self.fusion)
        # One set over maps that are the same for all: what it makes of these is computed once.
        self.once = config.early_fusion and config.share_match and paths[0].taps[1] < self.cohort.shared
        taps = [f"student{k}: {path.description}" for k, path in enumerate(paths)]
        self.notes = (*taps, self.fusion.description, *self._remarks(len(matching)))

    def _remarks(self, sets: int) -> list[str]:
        """What the keys come to for these students, of whom there are so many `sets` of matching convolutions."""
        config, remarks = self.config, []
        if config.early_fusion and config.share_match:
            remarks.append(
                "the students of the trunk have one set of matching convolutions"
                if self.cohort.shared
                else f"{sets} sets of matching convolutions: the students share no trunk"
            )
        if config.attention is True and config.share_attention and not self.cohort.shared:
            remarks.append("each student has a dual attention of its own: the students share no trunk")
        if config.attention == "random":
            remarks.append(
                f"{WARNING}method.attention=random is never trained and measures the release alone; accuracies of the "
                f"fused classifier are those of single draws, fused_draw0 to fused_draw{DRAWS - 1}"
            )
        return remarks

    def _each_path(self) -> list[FeaturePath]:
        return [path for path in self.paths if isinstance(path, FeaturePath)]

    def reconstructed(self, maps: list[list[Tensor]]) -> list[Tensor]:
        """Sections 3.2.1 and 3.2.2: maps[k][i], stage i of student k -> f_re of each student; n of NCHW."""
        f_re, shallow = [], None
        for path, own in zip(self._each_path(), maps, strict=True):
            shallow = shallow if self.once and shallow else path.shallow(own)
            f_re.append(path(own, shallow))
        return f_re

    def refined(self, f_re: list[Tensor]) -> list[Tensor]:
        """Section 3.2.3: f_re of each student, attended to; n of NCHW."""
        return [path.attention(f) for path, f in zip(self._each_path(), f_re, strict=True)]

    def fused(self, f_re: list[Tensor]) -> Tensor:
        """Sections 3.2.3 and 3.2.4: f_re of each student -> z_f, NK."""
        z_f: Tensor = self.fusion(self.refined(f_re))
        return z_f

    def features(self, batch: Batch) -> dict[str, Tensor]:
        maps = self.cohort(batch.images)
        own = student_features(maps)
        if self.config.attention == "random":  # another fused map at every call
            return own
        return own | {"fused": self.fusion.features(self.refined(self.reconstructed(maps)))}

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        maps = self.cohort(batch.images)  # maps[k][i]: stage i of student k
        z = self.cohort.logits(maps)  # n of NK; the students answer as they will alone: no path is in their way
        f_re = self.reconstructed(maps)  # sections 3.2.1 and 3.2.2; n of NCHW
        z_f = self.fused(f_re)  # sections 3.2.3 and 3.2.4; NK
        with full_precision(batch):
            w = ramp(progress, self.config.rampup)
            w = w if self.config.weight is None else self.config.weight * w
            step = mutual(self, batch, z, z_f, w, self.config.temperature)
        return self._with_draws(step, f_re) if self.config.attention == "random" else step

    def _with_draws(self, step: Step, f_re: list[Tensor]) -> Step:
        """The step with one head a draw of random attention in the place of `fused`: of one draw, in training."""
        more = [] if self.training else [self.fused(f_re) for _ in range(DRAWS - 1)]
        draws = {f"fused_draw{i}": z_f for i, z_f in enumerate([step.logits["fused"], *more])}
        return Step(step.losses, {name: z for name, z in step.logits.items() if name != "fused"} | draws)
