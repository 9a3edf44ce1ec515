"""OKDPH: online knowledge distillation with parameter hybridisation (Zhang et al., CVPR 2023), as its text means it.

n networks of one architecture start as one network and stay near each other. In each step a hybrid model, whose
parameters θ_h = Σ_i r_i·θ_i are a mean of the students', answers too: its cross-entropy asks for weights between which
the loss is flat, and all n + 1 answers teach together. At every interval a fusion draws the students towards the hybrid
model, θ_i ← γ·θ_h + (1 - γ)·θ_i, parameters and batch statistics; momenta stay.

Each network and the hybrid model see an augmentation of the image of their own; on one view the students would stay one
network for ever.

Where this departs from the authors' code (tianlizhang/OKDPH):

- There θ_h is a copy whose gradient no optimiser uses, so that (1 - ω)·CE(z_h) changes nothing and ω only scales
  CE(z_i). Here θ_h is a differentiable function of the students, and CE(z_h) reaches student i with the factor r_i.
- Each student i follows its own loss L_i, as there. Since the others' losses and the ensemble pass no gradient to it,
  the sum of all L_i in which (1 - ω)·CE(z_h) counts once has just these gradients; counted n times it would have n of
  that term.
- The views differ in their random draws alone. There they differ in kind, too: flip, Cutout, RandAugment.
- Fusion mixes the students after the step, batch statistics included; there it takes the hybrid model of the step
  before, with statistics that its own batch has moved. With "dirichlet" both use the weights that the step has drawn.

Shapes: N images, K classes; n students.
"""

from __future__ import annotations

import copy
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from okdc import launches
from okdc.cohort import Cohort
from okdc.distributed import gathered
from okdc.kernels import global_average
from okdc.methods.base import Batch, Config, Method, Step, Temperature, full_precision, kl, students

Share = Annotated[float, Field(ge=0, le=1)]


class OKDPHConfig(Config):
    omega: Share = Field(
        0.8,
        description="ω, the weight of a student's cross-entropy; 1 - ω is that of the hybrid model's. 0.8 is the "
        "authors' command for ResNet-32 on CIFAR-10.",
    )
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.8, description="β, the weight of the KL terms; 0.8 is the authors' command for ResNet-32 on CIFAR-10."
    )
    gamma: Share = Field(
        0.5,
        description="γ, how far a fusion draws each student towards the hybrid model: 0 for no fusion, 1 makes them "
        "equal. 0.5 is the authors' command for ResNet-32 on CIFAR-10.",
    )
    interval: Annotated[float, Field(gt=0, le=1)] = Field(
        1 / 300,
        description="The fraction of the training between two fusions; 1/300 is an epoch of 300, as in the authors' "
        "command for ResNet-32 on CIFAR-10.",
    )
    temperature: Temperature = Field(
        4.0,
        description="T: logits are divided by it before the softmax of a KL term, which is multiplied by T²; 4 as in "
        "the authors' code.",
    )
    hybrid: Literal["mean", "dirichlet"] = Field(
        "mean",
        description="The weights r of the students in the hybrid model: mean, 1/n each, or dirichlet, drawn anew in "
        "each step from Dirichlet(1, ..., 1); mean is the default of the authors' code.",
    )


class OKDPH(Method[OKDPHConfig]):
    """L = Σ_i [ω·CE(z_i) + β·T²·KL(z_a ‖ z_i)] + (1 - ω)·CE(z_h), z_a the mean of z_1, ..., z_n and z_h, detached."""

    title = "OKDPH"
    summary = "Trained with a twin and the mean of their weights (OKDPH; Zhang et al., CVPR 2023)."
    least_students = 2
    one_start = True

    fusions: Tensor  # 0-d int64: the intervals that are over and were followed by a fusion
    r: Tensor  # n, of the step that is taken
    position: Tensor  # 0-d, `progress` of that step

    def setup(self) -> None:
        networks = self.cohort.backbones()
        shapes = [[(name, tensor.shape) for name, tensor in network.state_dict().items()] for network in networks]
        if any(other != shapes[0] for other in shapes):
            names = ", ".join(network.architecture for network in networks)
            raise ValueError(
                f"its hybrid model is a mean of weights, and these students have different ones: {names}; "
                "method.name=dml, kdcl, mfef or fefr takes students that differ"
            )
        self.views = len(networks)  # student i sees view i, the hybrid model the last one
        self.exchanges = self.config.hybrid == "dirichlet"
        self.register_buffer("fusions", torch.zeros((), dtype=torch.int64))
        self.register_buffer("r", torch.full((len(networks),), 1 / len(networks)), persistent=False)
        self.register_buffer("position", torch.zeros(()), persistent=False)

    def before_first_step(self) -> None:
        first, *others = self.cohort.backbones()
        for other in others:
            other.load_state_dict(first.state_dict())

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        *views, view_h = (batch.images, *batch.views)
        z = self.cohort.logits(self.cohort(*(views or [view_h])))  # n of NK
        r = self.weights()
        z_h = self.answer(view_h, r)  # NK
        if self.training:
            self.r.copy_(r)
            self.position.copy_(progress)
        with full_precision(batch):
            omega, beta, T = self.config.omega, self.config.beta, self.config.temperature
            z_a = torch.stack([*z, z_h]).mean(0)  # NK
            losses = {f"ce_student{i}": omega * self.cross_entropy(z_i, batch) for i, z_i in enumerate(z)}
            losses["ce_hybrid"] = (1 - omega) * self.cross_entropy(z_h, batch)
            losses |= {f"kl_ensemble_student{i}": beta * kl(z_a, z_i, T) for i, z_i in enumerate(z)}
        return Step(losses, students(z) | {"hybrid": z_h, "ensemble": z_a})

    @torch.no_grad()
    def weights(self) -> Tensor:
        """r of this step, n, the same in all processes. An evaluation has the mean of the students."""
        r = torch.full_like(self.r, 1 / len(self.r))
        if self.training and self.config.hybrid == "dirichlet":
            e = -torch.log1p(-torch.rand_like(r))  # exponentials, whose shares of their sum are Dirichlet(1, ..., 1)
            r = gathered(e / e.sum())[0]  # each process draws; the first one's stand
        return r

    def answer(self, images: Tensor, r: Tensor) -> Tensor:
        """The hybrid model's logits, NK. The pass moves no buffer of a student: it has copies of those of student 0."""
        network = self.cohort.backbone(0)
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        logits: Tensor = functional_call(network, buffers | self.mixed(r), (images,))
        return logits.float()

    def features(self, batch: Batch) -> dict[str, Tensor]:
        hybrid = copy.deepcopy(self.cohort.backbone(0))
        hybrid.load_state_dict(self.mixed(self.weights()), strict=False)  # its other buffers are student 0's
        maps = [*self.cohort(batch.images), *Cohort([hybrid])(batch.images)]
        own = [global_average(maps_k[-1]) for maps_k in maps]
        return students(own[:-1]) | {"hybrid": own[-1], "ensemble": torch.cat(own, 1)}

    def mixed(self, r: Tensor) -> dict[str, Tensor]:
        """Parameters and batch statistics of the hybrid model: θ_0 + Σ_i r_i·(θ_i - θ_0), which is Σ_i r_i·θ_i.

        So the mean of equal tensors is the tensor itself, without a rounding.
        """
        first, *others = (_learned(network) for network in self.cohort.backbones())
        mixed = dict(first)
        for r_i, other in zip(r[1:], others, strict=True):
            for name, tensor in first.items():
                mixed[name] = mixed[name] + r_i * (other[name] - tensor)
        return mixed

    def after_step(self) -> None:
        reached = torch.floor(self.position / self.config.interval).long()
        weight = self.config.gamma * (reached > self.fusions).float()
        hybrid = list(self.mixed(self.r).values())
        for network in self.cohort.backbones():
            launches.blend(list(_learned(network).values()), hybrid, weight)
        self.fusions.copy_(torch.maximum(self.fusions, reached))


def _learned(network: nn.Module) -> dict[str, Tensor]:
    """The parameters of a network and the statistics of its normalisations, by name. Other buffers are constants."""
    learned: dict[str, Tensor] = dict(network.named_parameters())
    for path, module in network.named_modules():
        if isinstance(module, _NormBase):
            statistics = module.named_buffers(prefix=path, recurse=False)
            learned |= {name: buffer for name, buffer in statistics if buffer.is_floating_point()}
    return learned
