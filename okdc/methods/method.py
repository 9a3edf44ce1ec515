"""What every method is made of: its contract, the one KL divergence and the one ramp-up.

Shapes: N images, K classes; z_k are the logits of student k.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from okdc.cohort import Backbone, Cohort


class Config(BaseModel):
    """Base of a method's recipe table: strict about keys and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Step(NamedTuple):
    """What one batch gives."""

    losses: dict[str, Tensor]  # weighted terms by name, 0-d; their sum is minimised, each is logged
    logits: dict[str, Tensor]  # NK, every head that deserves an accuracy column: student0, student1, fused, ...


class Method(nn.Module):
    """A way to train a cohort. Parameters under `cohort` may be kept; all others are scaffolding.

    `forward(images NCHW, labels N, progress)` returns a Step; `progress` is the fraction of training done, a 0-d
    tensor in 0..1, so that schedules never see epoch numbers.
    """

    Config: ClassVar[type[BaseModel]]
    branches: ClassVar[bool] = False  # made for a shared trunk; False: nothing is shared, whatever the recipe says
    single: ClassVar[bool] = False  # gets a cohort of the first student alone

    def __init__(
        self, cohort: Cohort, config: BaseModel, images: torch.Size, classes: int, teacher: Backbone | None = None
    ) -> None:
        """`images` is the CHW size of the recipe's images. Subclasses raise ValueError where they cannot be built."""
        super().__init__()
        self.cohort = cohort

    def forward(self, images: Tensor, labels: Tensor, progress: Tensor) -> Step:
        raise NotImplementedError


def full_precision(images: Tensor) -> AbstractContextManager[None]:
    """Losses are computed outside autocast: on a CPU it would leave a log_softmax of bfloat16 in bfloat16."""
    return torch.autocast(images.device.type, enabled=False)


def kl(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher/T) ‖ softmax(student/T)), summed over classes, mean over the batch. 0-d, float32.

    The teacher is detached here, in one place: kl_div is a composite operation and would send it a gradient. T² keeps
    the size of the gradient independent of T (Hinton et al., 2015, section 2).
    """
    student = F.log_softmax(student_logits.float() / temperature, 1)
    teacher = F.log_softmax(teacher_logits.detach().float() / temperature, 1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def ramp(progress: Tensor, length: float) -> Tensor:
    """exp(-5 (1 - min(t, α)/α)²): distillation's weight at t = `progress`, α = `length`, fractions of the run.

    e⁻⁵ at the start, 1 from α on (Laine & Aila, 2017; MFEF section 4.1 has α = 80 of 300 epochs). As a fraction it
    means the same in a short run, where 80 epochs would be a run without distillation. length 0: always 1.
    """
    if length == 0:
        return torch.ones_like(progress)
    return torch.exp(-5 * (1 - torch.clamp(progress / length, max=1)) ** 2)
