"""SwitOKD: switchable online knowledge distillation (Qian et al., ECCV 2022), by its authors' public code.

A large network, the teacher, and a small one that is kept learn from each other as in DML (T = 1, no ramp-up). Where
the teacher runs too far ahead it pauses, so that the student can follow. Each batch decides, by means over its images
of L1 distances between probabilities:

    G = mean ‖p_s - p_t‖₁    s = mean ‖p_s - y‖₁    t = mean ‖p_t - y‖₁
    δ = s - ε·t              ε = exp(-t / (t + s))

    expert mode      G > δ and t < s     the student alone learns
    learning mode    otherwise           both learn

The paper's text has the first condition, its code both. Several processes decide together, by the means over the whole
batch. A paused teacher keeps its parameters to the bit: momentum and weight decay, which go on moving parameters whose
gradient is zero, are undone after the step. Its momentum itself decays as in a step with a gradient of zero, where the
authors' code leaves it as it was: the optimiser is not the method's. Its running batch statistics go on, as in the
authors' code, whose teacher stays in training mode.

Three networks are one teacher with two students or two teachers with one student (Table 7); more follow the same rule.
A pair of teacher i and student j is in expert mode by itself. Teacher i learns nothing from a student to which it is
the expert, and pauses where it is the expert to every student. Two files of the authors' code use the first pair's ε
for the second, which the paper does not have: each pair has its own here.

Shapes: N images, K classes; n networks: T teachers, S students.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from okdc import launches
from okdc.cohort import count_params
from okdc.distributed import gathered
from okdc.methods.base import Batch, Config, Method, Step, full_precision, kl, students


class SwitOKDConfig(Config):
    teacher_indices: Annotated[tuple[int, ...], Field(strict=False)] = Field(
        (),
        description="The places in cohort.students, from 0, of the networks that teach and pause; [] for the one with "
        "the most parameters, the last of equal ones.",
    )


class SwitOKD(Method[SwitOKDConfig]):
    """L_s = CE(z_s) + KL(z_t ‖ z_s, 1) and L_t = m·[CE(z_t) + KL(z_s ‖ z_t, 1)], m = 0 in expert mode, else 1."""

    title = "SwitOKD"
    summary = "Trained with a larger network that pauses where it runs too far ahead (SwitOKD; Qian et al., ECCV 2022)."
    least_students = 2

    def setup(self) -> None:
        sizes = [count_params(network) for network in self.cohort.students]
        n = len(sizes)
        self.teachers = self.config.teacher_indices or (max(range(n), key=lambda k: (sizes[k], k)),)
        self.pupils = tuple(k for k in range(n) if k not in self.teachers)
        if len(set(self.teachers)) < len(self.teachers) or not set(self.teachers) <= set(range(n)) or not self.pupils:
            raise ValueError(
                f"teacher_indices: expected some of 0 to {n - 1}, each once, that leave a student, found "
                f"{list(self.teachers)}"
            )
        self.leader = min(self.pupils, key=lambda k: sizes[k])
        named = ", ".join(f"student{i}" for i in self.teachers)
        teach = "teaches and pauses" if len(self.teachers) == 1 else "teach and pause"
        self.notes = (f"{named} {teach}; student{self.leader} is the one to keep",)
        self.exchanges = True
        # The parameters of a teacher before a step, and whether it pauses in it: of one step, so no file has them.
        for i in self.teachers:
            for number, p in enumerate(self._parameters_of(i)):
                self.register_buffer(f"held{i}_{number}", p.detach().clone(), persistent=False)
            self.register_buffer(f"paused{i}", torch.zeros(()), persistent=False)

    def _parameters_of(self, i: int) -> list[Tensor]:
        return list(self.cohort.backbone(i).parameters())

    def _held(self, i: int) -> list[Tensor]:
        return [self.get_buffer(f"held{i}_{number}") for number in range(len(self._parameters_of(i)))]

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        z = self.cohort.logits(self.cohort(batch.images))  # n of NK
        with full_precision(batch):
            expert = self.expert(torch.stack(z), self.targets(batch))  # T×S
            m = (~expert).float()
            if self.training:
                self._hold(1 - m.amax(1))
            losses = {f"ce_student{k}": self._weight(m, k) * self.cross_entropy(z_k, batch) for k, z_k in enumerate(z)}
            for k, z_k in enumerate(z):
                for j, z_j in enumerate(z):
                    if j != k:
                        losses[f"kl_student{j}_student{k}"] = self._weight(m, k, j) * kl(z_j, z_k, 1.0)
            z_a = torch.stack(z).mean(0)  # NK; measured only
        return Step(losses, students(z) | {"ensemble": z_a})

    @torch.no_grad()
    def expert(self, z: Tensor, y: Tensor) -> Tensor:
        """Whether each pair is in expert mode, T×S, of logits nNK and the labels' distribution y, NK."""
        p = z.softmax(2)
        teachers, pupils = (torch.stack([p[k] for k in part]) for part in (self.teachers, self.pupils))
        G = (teachers[:, None] - pupils).abs().sum(3).mean(2)  # T×S
        t = (teachers - y).abs().sum(2).mean(1)  # T
        s = (pupils - y).abs().sum(2).mean(1)  # S
        if self.training:  # in an evaluation each process has images of its own, and nothing follows from the mode
            G, t, s = (gathered(distance).mean(0) for distance in (G, t, s))
        t = t[:, None]
        delta = s - torch.exp(-t / (t + s)) * t
        return (delta < G) & (t < s)

    def _weight(self, m: Tensor, k: int, source: int | None = None) -> Tensor:
        """Of network k's cross-entropy or of what it learns from network `source`, 0-d. `m`, T×S: 0 in expert mode."""
        if k in self.pupils:
            return torch.ones_like(m[0, 0])
        own = m[self.teachers.index(k)]
        return own[self.pupils.index(source)] if source in self.pupils else own.amax(0)

    @torch.no_grad()
    def _hold(self, paused: Tensor) -> None:
        """Remember the teachers' parameters, and which of them pause, T, in the step that begins."""
        for i, pauses in zip(self.teachers, paused, strict=True):
            torch._foreach_copy_(self._held(i), self._parameters_of(i))
            self.get_buffer(f"paused{i}").copy_(pauses)

    def after_step(self) -> None:
        for i in self.teachers:
            launches.blend(self._parameters_of(i), self._held(i), self.get_buffer(f"paused{i}"))
