"""DualNet (Hou et al., 2017): parallel networks of one topology, their features summed into a fused classifier.

No distillation: the networks affect each other only through the gradient of the fused classifier's cross-entropy. The
paper updates the networks in turn, sums 0.5·f_1 + 0.5·f_2 and weighs the single classifiers by 0.3; here all are
updated jointly with weight 1, as in every other method of a comparison. (The factor of the sum changes nothing that the
linear layer behind it could not learn.)

Shapes: N images, K classes; C channels, H×W pixels of a student's last map; n students.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from okdc.kernels import global_average
from okdc.methods.base import Batch, Config, Method, Step, full_precision, students


class DualNetConfig(Config):
    """No keys of its own: nothing is softened or ramped."""


class DualNet(Method[DualNetConfig]):
    """L = Σ_k CE(z_k) + CE(z_f), z_f = FC(Σ_k pool(f_k)), f_k the last map of student k."""

    title = "DualNet"
    summary = (
        "Trained with peers whose features are summed into one classifier, without distillation (DualNet; "
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

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        maps = self.cohort(batch.images)
        z = self.cohort.logits(maps)  # n of NK
        # Pooling is linear: the sum of pooled maps is the pooled sum, and may be had where heights and widths differ.
        h = torch.stack([global_average(student_maps[-1]) for student_maps in maps])  # n, N, C
        z_f = self.fc(h.sum(0)).float()  # NK
        with full_precision(batch):
            losses = {f"ce_student{k}": self.cross_entropy(z_k, batch) for k, z_k in enumerate(z)}
            losses["ce_fused"] = self.cross_entropy(z_f, batch)
            z_a = torch.stack(z).mean(0)  # NK; measured only
        return Step(losses, students(z) | {"fused": z_f, "ensemble": z_a})
