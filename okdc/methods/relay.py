"""Relay, okdc's own: students learn apart; then the first goes on alone, taught by all, each with averaged weights.

A step of peers that teach each other costs what all of them cost, and for as many multiply-adds one network alone
learns longer. With few images further epochs help that network less and less. The mean answer of several networks is
more accurate than one of them, since their errors differ, and they differ most where no network taught another. So the
students learn apart first, and what is left of the work goes into the one student that is kept. To distil such a mean
into one network is Hinton et al.'s (2015).

    t < τ    L = Σ_k CE(z_k)                                        each from the labels; θ̄_k ← d·θ̄_k + (1 - d)·θ_k
    t ≥ τ    L = 1/N · Σ_i T²·KL(z̄_{k(i)}(x̃_i) ‖ z_0(x̃_i))          θ_0 starts from θ̄_0, all else is fixed

t is the fraction of the training that is over; θ̄_k the average of student k's weights and batch statistics over the
steps, d = min(decay, (1 + s)/(10 + s)) after s of them; z̄_k the logits of θ̄_k; x̃_i image i with a rectangle of another.
KL compares the softmax of z/T. With judges="all" the mean of all z̄_k takes the place of z̄_{k(i)}. Relay is made of:
- While the learning rate is high an average of weights over steps is better than the weights (Izmailov et al., UAI
  2018). So there are good teachers at τ, without a learning rate that falls to zero and rises again.
- A teacher that is fixed and sees what its student sees, over many epochs of images that are mixed (CutMix, Yun et al.,
  ICCV 2019) and have no label of their own (Beyer et al., CVPR 2022).
- One teacher for each image. Fukuda et al. (Interspeech 2017) switch teachers between batches; here k(i) = ⌊i·n/N⌋
  judges the image in place i of its batch, i from 0, and the random order of each epoch gives an image another judge.
  So n teachers cost one forward pass an image. Of more teachers than images in a batch some are never asked.

Of n equal students a step costs n baseline steps before τ, and 1⅓ after it (1 + n/3 with judges="all"), where a
baseline's backward pass is two forward passes. At τ the optimiser keeps its momenta. After τ no label is read:
`optim.class_weights` and `optim.label_smoothing` act before it alone, and `augment.mixup` and `augment.cutmix` mix the
images besides `mix`.

Ablation: mix="none", judges="all" and decay=0 undo one part each, `cohort.students` sets n.

Shapes: N images, K classes; n students; C channels, H×W pixels.
"""

from __future__ import annotations

import copy
import itertools
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from okdc import launches
from okdc.methods.base import (
    Batch,
    Config,
    Method,
    Step,
    Temperature,
    full_precision,
    kl,
    student_features,
    students,
)


class RelayConfig(Config):
    apart: Annotated[float, Field(gt=0, lt=1)] = Field(
        1 / 3,
        description="τ: the fraction of the training in which all students learn, from labels alone; from the first "
        "epoch that begins at or after it the first learns alone. With a third, which was not tuned, it has twice as "
        "many epochs alone as beside the others.",
    )
    decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.998,
        description="The largest decay d of the means of the students' weights, θ̄ ← d·θ̄ + (1 - d)·θ after each step; "
        "it rises as (1 + s)/(10 + s) after s steps. 0.998, which was not tuned, looks back on about 500 steps, "
        "however long the training is; 0 is the weights of the last step.",
    )
    temperature: Temperature = Field(
        3.0,
        description="T: logits are divided by it before the softmax of a KL term, which is multiplied by T²; 3, with "
        "which Relay was measured.",
    )
    mix: Literal["cutmix", "none"] = Field(
        "cutmix",
        description="What the first student learns alone on: cutmix, each image with a rectangle of another, of a "
        "share of its area that is drawn uniformly; or none, the images as they are.",
    )
    judges: Literal["one", "all"] = Field(
        "one",
        description="Which students with averaged weights judge an image of the first student alone: one, so that each "
        "judges its part of the batch; or all, by the mean of their logits.",
    )


class Relay(Method[RelayConfig]):
    """t < τ: L = Σ_k CE(z_k). t ≥ τ: L = 1/N·Σ_i T²·KL(z̄_{k(i)}(x̃_i) ‖ z_0(x̃_i)), students 1, ..., n-1 fixed.

    With mix="cutmix" the training accuracy after τ is that of mixed images to the label of one of their two.
    """

    title = "Relay"
    summary = "Trained beside peers, then alone, taught by all of them with averaged weights (okdc's Relay)."
    least_students = 2
    fused_head = "means"
    leader = 0

    steps: Tensor  # 0-d int64, of the first part
    handed: Tensor  # 0-d int64, 1 from where the first student has started from its mean

    def setup(self) -> None:
        self.parts = (0.0, self.config.apart)
        self.means = copy.deepcopy(self.cohort).requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("handed", torch.zeros((), dtype=torch.int64))
        names = ((name, p) for name, p in self.cohort.named_parameters() if p.requires_grad)
        self._peers = [name for name, _ in names if not name.startswith("students.0.")]  # of their parameters
        self._alone = False

    def before_first_step(self) -> None:
        self.means.load_state_dict(self.cohort.state_dict())

    @torch.no_grad()
    def begin(self, done: float) -> str:
        before, self._alone = self._alone, self.part(done) == 1
        if before or self._alone:
            for name in self._peers:
                self.cohort.get_parameter(name).requires_grad_(not self._alone)
        if self._alone == before:
            return ""
        if not self._alone:
            return "all students learn, from labels alone"
        first = self.cohort.backbone(0)
        # In a resumed run that has done this already, `1 - handed` is 0. No tensor is read on the host.
        launches.blend(_floating(first), _floating(self.means.backbone(0)), 1.0 - self.handed)
        self.handed.fill_(1)
        return f"{first.architecture}, the first student, learns alone now, taught by all with averaged weights"

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        if self.training and self._alone:
            return self._from_the_means(batch)
        z = self.cohort.logits(self.cohort(batch.images))  # n of NK
        heads = students(z)
        if not self.training:  # no loss needs these heads
            z_mean = self.means.logits(self.means(batch.images))  # n of NK
            heads |= {"means": torch.stack(z_mean).mean(0), "ensemble": torch.stack(z).mean(0)}
        with full_precision(batch):
            losses = {f"ce_student{k}": self.cross_entropy(z_k, batch) for k, z_k in enumerate(z)}
        return Step(losses, heads)

    def _from_the_means(self, batch: Batch) -> Step:
        images = _mixed(batch.images) if self.config.mix == "cutmix" else batch.images
        teachers = self.means.backbones()
        with torch.no_grad():
            if self.config.judges == "one":
                parts = zip(teachers, _parted(images, len(teachers)), strict=True)
                z_mean = torch.cat([teacher(part).float() for teacher, part in parts if len(part)])  # NK
            else:
                z_mean = torch.stack([teacher(images).float() for teacher in teachers]).mean(0)
        z_0 = self.cohort.backbone(0)(images).float()  # NK
        with full_precision(batch):
            losses = {"kl_means_student0": kl(z_mean, z_0, self.config.temperature)}
        return Step(losses, {"student0": z_0})

    def features(self, batch: Batch) -> dict[str, Tensor]:
        means = student_features(self.means(batch.images))["ensemble"]
        return super().features(batch) | {"means": means}

    def train(self, mode: bool = True) -> Self:
        """The means keep their statistics, which move as their weights do."""
        super().train(mode)
        self.means.eval()
        return self

    def after_step(self) -> None:
        if self._alone:
            return
        weight = torch.clamp(9 / (10 + self.steps), min=1 - self.config.decay)  # 1 - d
        launches.blend(_floating(self.means), _floating(self.cohort), weight)
        self.steps += 1


def _floating(module: nn.Module) -> list[Tensor]:
    """Its weights and batch statistics, in the order of its names."""
    return [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]


def _parted(images: Tensor, n: int) -> list[Tensor]:
    """The images of each of n teachers, in order: those in place i with ⌊i·n/N⌋ = k for teacher k."""
    ends = [-(-k * len(images) // n) for k in range(n + 1)]
    return [images[start:end] for start, end in itertools.pairwise(ends)]


def _mixed(images: Tensor) -> Tensor:
    """NCHW, each image with a rectangle of the one before it in the batch, whose order is random.

    The rectangle has the image's proportions and a share of its area between 0 and 1, cut off at the edges.
    """
    n, _, *sides = images.shape
    length, inside = torch.rand(n, device=images.device).sqrt(), []
    for side in sides:
        middle = side * torch.rand(n, device=images.device)
        pixels = torch.arange(side, device=images.device) + 0.5
        inside.append((pixels - middle[:, None]).abs() < length[:, None] * side / 2)  # N×side
    rows, columns = inside
    other = torch.empty_like(images).copy_(images.roll(1, 0))  # in the same memory format
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], other, images)
