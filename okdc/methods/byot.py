"""BYOT: be your own teacher (Zhang et al., ICCV 2019; arXiv 1905.08094), by two pieces of public code.

One network teaches its own shallow exits: small classifiers behind its earlier stages, which learn from the labels and
from the whole network. They are thrown away after training; what is kept is the plain network.

The paper leaves its settings and the exits' layers open, says its public port. `loss = "conference"` is the paper's
loss as this port has it (luanyunteng/pytorch-be-your-own-teacher), `loss = "journal"` that of the authors' code for the
later journal version (ArchipLab-LinfengZhang/pytorch-self-distillation-final). Where these differ:

                       conference (port)                          journal (authors)
    whole network      (1 - α)·CE: the labels count less          CE
    exit               (1 - α)·CE + α·T²·cross-entropy to z_m     (1 - α)·CE + α·cross-entropy to z_m, without T²
    features           β·Σ (g_i - g_m)² over batch and channels,  β·‖W_i g_i - g_m‖, the norm of the whole batch,
                       where either is above 0                    W_i a linear layer
    of which exits     all                                        all but the deepest, `hint_skips`
    α, β, T            0.1, 1e-6, 3                               0.3, 0.03, 3
    exit block         1×1, one patch, 1×1 at a quarter of the    attention, then a separable block for each stage that
                       last map's channels                        is left

- The journal's code skips the deepest exit's feature term, and its comment says the shallowest one's. The code trained
  what it reports; the comment is `hint_skips = "shallowest"`.
- Both teach by the cross-entropy of softened outputs, okdc by KL: the difference is the teacher's entropy, which is
  detached, so that the gradients are the same.
- The port's mask changes nothing after a ReLU, where both features are at least 0. It matters where the last map may be
  negative (MobileNetV2): an exit, which ends in a ReLU, cannot follow it there.
- Both feature terms grow with the batch: the sum by its size, the norm by the root of it. β is for 128 images. Several
  processes sum the squares over all of their images, so that they learn what one process would.
- Sizes that are no exact ratio meet in a PatchConv, which pads, and a step between stages that a separable block of
  stride 1 or 2 cannot take is a PatchConv too; the public code is for 32×32 pixels and stages that halve.

Not taken over: biases of convolutions in front of BatchNorm, which takes them away; He initialisation of the exits.

Shapes: N images, K classes; m stages; map i is C_i×H_i×W_i; g_i, N C_m, is what exit i pools, g_m the pooled last map.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from okdc.blocks import PatchConv, written
from okdc.distributed import gathered
from okdc.kernels import global_average
from okdc.methods.base import Batch, Config, Method, Step, Temperature, full_precision, kl, student_features, students

PUBLISHED = {  # by loss: α, β, the exits' block, whose feature term is left out
    "conference": (0.1, 1e-6, "bottleneck", "none"),
    "journal": (0.3, 0.03, "separable", "deepest"),
}
SMALLEST = 1e-24  # of a sum of squares: the gradient of its root at 0 is infinite


class BYOTConfig(Config):
    loss: Literal["conference", "journal"] = Field(
        "conference",
        description="Which public code's loss it is: conference, that of the paper as its port has it, or journal, "
        "that of the authors' later code, with the features' distance as a norm behind a linear layer; conference is "
        "the paper that others cite.",
    )
    block: Literal["bottleneck", "separable", "patch"] | None = Field(
        None,
        description="What an exit is: bottleneck, three convolutions at a quarter of the channels, or separable, "
        "attention and a separable block for each stage that is left, or patch, one convolution; left out: bottleneck "
        "with loss=conference, separable with journal, as their code has them.",
    )
    taps: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] | None = Field(
        None,
        description="The stages that have an exit, as indices into the network's maps, 0 for the stem, negative from "
        "the end; left out: all but the stem and the last, as in both public codes.",
    )
    alpha: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="α, the weight of the KL term beside that of the labels, 1 - α; left out: 0.1 with "
        "loss=conference, 0.3 with journal, as in their code.",
    )
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None,
        description="β, the weight of the features' distance, for batches of 128; left out: 1e-6 with loss=conference, "
        "0.03 with journal, as in their code.",
    )
    temperature: Temperature = Field(
        3.0, description="T: logits are divided by it before the softmax of a KL term; 3 as in both public codes."
    )
    hint_skips: Literal["none", "deepest", "shallowest"] | None = Field(
        None,
        description="Which exit's features are left alone; left out: none with loss=conference, deepest with journal, "
        "as in their code, whose comment says shallowest.",
    )

    @model_validator(mode="after")
    def _reads_labels(self) -> BYOTConfig:
        if self.alpha == 1 and self.loss == "conference":
            raise ValueError("alpha=1 with loss='conference' leaves no label to any classifier: expected below 1")
        return self


class Separable(nn.Sequential):
    """Twice depthwise 3×3, pointwise, BN, ReLU; the first with `stride`, the second to `outputs` channels."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int]) -> None:
        layers: list[nn.Module] = []
        for step, width in ((stride, inputs), ((1, 1), outputs)):
            layers += [
                nn.Conv2d(inputs, inputs, 3, step, 1, groups=inputs, bias=False),
                nn.Conv2d(inputs, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        super().__init__(*layers)


class Attention(nn.Module):
    """x · σ(upsample(separable(x))), NCHW -> NCHW: the block halves the map, and bilinear interpolation undoes it.

    As two matrix products: PyTorch's own interpolation has no deterministic gradient on CUDA.
    """

    def __init__(self, size: torch.Size) -> None:
        super().__init__()
        channels, height, width = size
        self.separable = Separable(channels, channels, (2, 2))
        self.rows = nn.Buffer(_interpolation(-(-height // 2), height), persistent=False)
        self.columns = nn.Buffer(_interpolation(-(-width // 2), width).T.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.rows @ (self.separable(x) @ self.columns))


def _interpolation(size: int, target: int) -> Tensor:
    """target×size: row i interpolates between the two pixels next to i's middle, as F.interpolate does by default."""
    rows = torch.zeros(target, size)
    for i in range(target):
        place = max((i + 0.5) * size / target - 0.5, 0.0)
        below = int(place)
        rows[i, below] += 1 - (place - below)
        rows[i, min(below + 1, size - 1)] += place - below
    return rows


def _step(source: torch.Size, target: torch.Size) -> nn.Module:
    """From the size of a stage's map to that of the next: a separable block, or a patch where no stride leads there."""
    strides = tuple(-(-a // b) for a, b in zip(source[1:], target[1:], strict=True))
    reached = tuple(-(-a // s) for a, s in zip(source[1:], strides, strict=True))
    if max(strides) > 2 or reached != tuple(target[1:]):
        return PatchConv(source, target)
    return Separable(source[0], target[0], (strides[0], strides[1]))


def _block(kind: str, sizes: Sequence[torch.Size]) -> list[nn.Module]:
    """What brings the first of the maps of these CHW sizes to the size of the last; it ends in ReLU."""
    source, target = sizes[0], sizes[-1]
    if kind == "patch":
        return [PatchConv(source, target)]
    if kind == "separable":
        return [Attention(source), *(_step(a, b) for a, b in pairwise(sizes))]
    middle = max(target[0] // 4, 1)
    narrow = [torch.Size((middle, *size[1:])) for size in (source, target)]
    return [PatchConv(a, b) for a, b in pairwise([source, *narrow, target])]  # of one size: a 1×1 convolution


class Exit(nn.Module):
    """Map i, NCHW -> the pooled feature g_i, N C_m, and the logits z_i, NK. `sizes` are those of maps i to m."""

    def __init__(self, kind: str, sizes: Sequence[torch.Size], raw: bool, classes: int) -> None:
        super().__init__()
        first: list[nn.Module] = [nn.BatchNorm2d(sizes[0][0]), nn.ReLU()] if raw else []
        self.block = nn.Sequential(*first, *_block(kind, sizes))
        self.fc = nn.Linear(sizes[-1][0], classes)

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor]:
        g = global_average(self.block(f))
        return g, self.fc(g).float()


class BYOT(Method[BYOTConfig]):
    """Conference: L = (1-α)·[CE(z_m) + Σ_i CE(z_i)] + α·T²·Σ_i KL(z_m ‖ z_i) + β·Σ_i Σ_{n,c} (g_i - g_m)².

    Journal: L = CE(z_m) + Σ_i [(1-α)·CE(z_i) + α·KL(z_m ‖ z_i)] + β·Σ_i ‖W_i g_i - g_m‖.

    i runs over the exits. z_m and g_m are detached where they teach: the last stage and the head learn from the labels
    alone, by CE(z_m).
    """

    title = "BYOT"
    summary = "Trained as the teacher of its own shallow exits (BYOT; Zhang et al., ICCV 2019)."
    tags = ("knowledge-distillation", "self-distillation")
    fused_head = "ensemble"
    single = True
    exchanges = True  # sums of squares, which a norm over the batch needs

    def setup(self) -> None:
        student, config = self.cohort.backbone(0), self.config
        self.alpha, self.beta, kind, skips = PUBLISHED[config.loss]
        if config.alpha is not None:
            self.alpha = config.alpha
        if config.beta is not None:
            self.beta = config.beta
        kind, skips = config.block or kind, config.hint_skips or skips
        (sizes,) = self.cohort.probe(self.images)
        self.taps = self._taps(len(sizes), student.architecture)
        self.exits = nn.ModuleList(Exit(kind, sizes[i:], student.raw[i], self.classes) for i in self.taps)
        self.hinted = {"none": self.taps, "deepest": self.taps[:-1], "shallowest": self.taps[1:]}[skips]
        width = sizes[-1][0]
        # W_i; one that no term reads would never have a gradient.
        adapters = (nn.Linear(width, width) if config.loss == "journal" else nn.Identity() for _ in self.hinted)
        self.adapters = nn.ModuleList(adapters)
        notes = [f"exit{i} reads the {written(sizes[i])} map of stage {i}" for i in self.taps]
        if not self.hinted:
            notes.append(
                f"no term compares features: hint_skips={skips} leaves the one exit out, and beta does nothing"
            )
        self.notes = tuple(notes)

    def _taps(self, stages: int, architecture: str) -> tuple[int, ...]:
        """The indices of the stages that have an exit, shallow to deep. Raises ValueError where there are none."""
        if self.config.taps is None:
            if stages < 3:
                raise ValueError(
                    f"no stage lies between the first and the last of {architecture}, which has {stages}: "
                    + ("method.taps=[0] puts an exit behind the first" if stages == 2 else "there is none to teach")
                )
            return tuple(range(1, stages - 1))
        taps = [i + stages if i < 0 else i for i in self.config.taps]
        if not all(0 <= i < stages - 1 for i in taps) or taps != sorted(set(taps)):
            raise ValueError(
                f"method.taps={list(self.config.taps)}: expected indices from 0 to {stages - 2}, shallow to deep and "
                f"each once, since {architecture} has {stages} stages and the last is the teacher"
            )
        return tuple(taps)

    def features(self, batch: Batch) -> dict[str, Tensor]:
        maps = self.cohort(batch.images)
        exits = zip(self.taps, self.exits, strict=True)
        own = student_features(maps) | {f"exit{i}": leave(maps[0][i])[0] for i, leave in exits}
        return own | {"ensemble": torch.cat(list(own.values()), 1)}

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        T, journal = self.config.temperature, self.config.loss == "journal"
        maps = self.cohort(batch.images)
        (z_m,) = self.cohort.logits(maps)  # NK
        g_m = global_average(maps[0][-1]).float().detach()  # N C_m
        exits = {i: leave(maps[0][i]) for i, leave in zip(self.taps, self.exits, strict=True)}  # g_i and z_i
        g = {i: adapt(exits[i][0]).float() for i, adapt in zip(self.hinted, self.adapters, strict=True)}  # W_i g_i
        with full_precision(batch):
            losses = {"ce_student0": (1 if journal else 1 - self.alpha) * self.cross_entropy(z_m, batch)}
            for i, (_, z_i) in exits.items():
                losses[f"ce_exit{i}"] = (1 - self.alpha) * self.cross_entropy(z_i, batch)
                losses[f"kl_student0_exit{i}"] = self.alpha * kl(z_m, z_i, T) / (T**2 if journal else 1)
            losses |= self._hints(g, g_m)
            logits = students([z_m]) | {f"exit{i}": z_i for i, (_, z_i) in exits.items()}
            ensemble = torch.stack(list(logits.values())).mean(0)
        return Step(losses, logits | {"ensemble": ensemble})

    def _hints(self, g: dict[int, Tensor], g_m: Tensor) -> dict[str, Tensor]:
        """β times how far the features of each exit, N C_m, are from those of the last map. 0-d each."""
        if not g:
            return {}
        squares = [(g_i - g_m).square() for g_i in g.values()]
        if self.config.loss == "conference":
            squares = [d * ((g_i > 0) | (g_m > 0)) for d, g_i in zip(squares, g.values(), strict=True)]
        distances = self._over_processes(torch.stack([d.sum() for d in squares]))
        if self.config.loss == "journal":
            distances = distances.clamp(min=SMALLEST).sqrt()
        return {f"hint_exit{i}": self.beta * distance for i, distance in zip(g, distances.unbind(), strict=True)}

    def _over_processes(self, own: Tensor) -> Tensor:
        """The sums over all processes of sums over the images of this one. The mean of the processes' gradients is then
        the gradient that one process with all the images would have.
        """
        if not self.training:
            return own
        parts = gathered(own)
        return parts.sum(0) + len(parts) * (own - own.detach())
