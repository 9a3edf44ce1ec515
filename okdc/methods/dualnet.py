"""DualNet (Hou et al., ICCV 2017): parallel networks of one topology, their features summed into a fused classifier.

No distillation: the networks affect each other only through the gradient of the fused classifier's cross-entropy.

By default all networks are updated jointly with weight 1, as in every other method of a comparison, and their features
are summed. The authors' code (github.com/ustc-vim/dualnet) is combine="mean", weight=0.3, turns=2: it takes half of
each feature map, weighs the classifier of the single network by 0.3, and trains in turns. In the first turn network 0
learns alone, by its own classifier. In the second it is fixed, and network 1 learns, together with the fused
classifier. What remains different: there each turn has a learning rate schedule of its own, the fused classifier starts
from that of network 0 and learns at a hundredth of the rate, and a fixed network is computed in evaluation mode, while
here its batch statistics move on.

Shapes: N images, K classes; C channels, H×W pixels of a student's last map; n students.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from okdc.kernels import global_average
from okdc.methods.base import Batch, Config, Method, Step, full_precision, student_features, students


class DualNetConfig(Config):
    """Nothing is softened or ramped."""

    combine: Literal["sum", "mean"] = Field(
        "sum",
        description="Whether the students' features are added or averaged, 0.5·f_0 + 0.5·f_1 as in the authors' code; "
        "the linear layer behind can learn this factor, so that it only sets how fast that learns.",
    )
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        1.0,
        description="The weight of the single classifiers' cross-entropy beside that of the fused one; 1 as the "
        "students' in every other method, the authors' code has 0.3.",
    )
    turns: Annotated[int, Field(ge=0)] = Field(
        0,
        description="The number of equal parts of the training in which one student at a time learns, in their order, "
        "and the others are fixed: the first alone, each later one together with the fused classifier; 0: all learn "
        "jointly. The authors' code has 2.",
    )


class DualNet(Method[DualNetConfig]):
    """L = Σ_k w·CE(z_k) + CE(z_f), z_f = FC(Σ_k pool(f_k)), f_k the last map of student k.

    In turns: L = CE(z_0) in the first, and w·CE(z_k) + CE(z_f) in that of student k, with every other f detached.
    """

    title = "DualNet"
    summary = (
        "Trained with peers whose features are joined in one classifier, without distillation (DualNet; "
        "Hou et al., 2017)."
    )
    tags = ()
    least_students = 2

    def setup(self) -> None:
        widths = [sizes[-1][0] for sizes in self.cohort.probe(self.images)]
        if len(set(widths)) > 1:
            raise ValueError(
                f"it sums the students' last features, and these have {', '.join(map(str, widths))} channels; "
                "method.name=ffl with cohort.share=none, mfef or fefr fuse students that differ"
            )
        self.fc = nn.Linear(widths[0], self.classes)
        turns, n = self.config.turns, len(widths)
        if 0 < turns < n:
            raise ValueError(f"turns={turns} of {n} students: expected 0 or at least {n}, or some would never learn")
        self.parts = tuple(turn / turns for turn in range(turns)) or (0.0,)
        if turns:
            self.learner = nn.Buffer(torch.zeros((), dtype=torch.int64))  # the student whose turn the last step was in
            self.fixed = nn.ParameterList(
                nn.Parameter(p.detach().clone(), requires_grad=False) for _, p in self._each_parameter()
            )

    def before_first_step(self) -> None:
        if self.config.turns:
            for (_, p), fixed in zip(self._each_parameter(), self.fixed, strict=True):
                fixed.copy_(p)

    def _each_parameter(self) -> list[tuple[int, Tensor]]:
        """Every parameter of the students, with the number of its student."""
        return [(k, p) for k, student in enumerate(self.cohort.backbones()) for p in student.parameters()]

    def features(self, batch: Batch) -> dict[str, Tensor]:
        maps = self.cohort(batch.images)
        return student_features(maps) | {"fused": self._joined([global_average(own[-1]) for own in maps])}

    def _joined(self, h: list[Tensor]) -> Tensor:
        """The pooled features of all students, n of NC, as one NC."""
        h_f = torch.stack(h).sum(0)
        return h_f / len(h) if self.config.combine == "mean" else h_f

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        config, n = self.config, len(self.cohort.students)
        maps = self.cohort(batch.images)
        z = self.cohort.logits(maps)  # n of NK
        # Pooling is linear: the sum of pooled maps is the pooled sum, and may be had where heights and widths differ.
        h = [global_average(student_maps[-1]) for student_maps in maps]  # n of NC
        weights: list[Tensor | float] = [config.weight] * n
        fused_weight: Tensor | float = 1.0
        if config.turns:
            turn = (progress * config.turns).floor().clamp(max=config.turns - 1)  # 0-d, as all of these
            learns = [turn % n == k for k in range(n)]
            if self.training:
                self.learner.copy_(turn % n)
            # A choice between tensors: what is not chosen gets a gradient of zeros, and no parameter is left without.
            h = [torch.where(own, h_k, h_k.detach()) for own, h_k in zip(learns, h, strict=True)]
            weights = [own * torch.where(turn == 0, 1.0, config.weight) for own in learns]
            fused_weight = (turn > 0).float()
        z_f = self.fc(self._joined(h)).float()  # NK
        with full_precision(batch):
            losses = {
                f"ce_student{k}": w * self.cross_entropy(z_k, batch)
                for k, (w, z_k) in enumerate(zip(weights, z, strict=True))
            }
            losses["ce_fused"] = fused_weight * self.cross_entropy(z_f, batch)
            z_a = torch.stack(z).mean(0)  # NK; measured only
        return Step(losses, students(z) | {"fused": z_f, "ensemble": z_a})

    def after_step(self) -> None:
        """A student whose turn it is not stays what it was: momentum and weight decay would go on moving it."""
        if not self.config.turns:
            return
        for (k, p), fixed in zip(self._each_parameter(), self.fixed, strict=True):
            p.copy_(torch.where(self.learner == k, p, fixed))
            fixed.copy_(p)
