"""What every method is made of: its contract, the one KL divergence and the one ramp-up.

Shapes: N images, K classes; z_k are the logits of student k.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Annotated, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from okdc.cohort import Cohort
from okdc.runs.artefacts import MethodCard

Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Config(BaseModel):
    """Base of a method's recipe table: strict about keys and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RampedConfig(Config):
    """Of a method whose students teach each other from the start, when they have little to teach."""

    name: str
    temperature: Temperature = 3.0  # MFEF section 4.1
    rampup: Annotated[float, Field(ge=0, le=1)] = 80 / 300  # MFEF section 4.1, as a fraction of the run; 0: no ramp


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
    title: ClassVar[str]  # how papers write it: FEFR
    summary: ClassVar[str]  # a sentence of the model card: how a student of it was trained, and the source
    tags: ClassVar[tuple[str, ...]] = ("knowledge-distillation", "online-distillation")  # of the model card, for a hub
    fused_head: ClassVar[str] = "fused"  # the head that papers print as the fused or ensemble classifier
    reference: ClassVar[bool] = False  # the row that a comparison takes differences to
    branches: ClassVar[bool] = False  # made for a shared trunk; False: nothing is shared, whatever the recipe says
    trunk: ClassVar[str] = (
        ""  # it stands on a shared trunk, so that students that differ are refused: what to do instead
    )
    single: ClassVar[bool] = False  # gets a cohort of the first student alone
    notes: tuple[str, ...] = ()  # what was chosen when it was built, for the run to print
    leader: int | None = None  # the student that is made to be kept, where a method has one

    def __init__(
        self, cohort: Cohort, config: BaseModel, images: torch.Size, classes: int, teacher: nn.Module | None = None
    ) -> None:
        """`images` is the CHW size of the recipe's images. Subclasses raise ValueError where they cannot be built."""
        super().__init__()
        self.cohort = cohort

    @classmethod
    def card(cls) -> MethodCard:
        """The method in result.json, so that a model card or a comparison need not import its class."""
        return MethodCard(
            title=cls.title, summary=cls.summary, tags=cls.tags, fused_head=cls.fused_head, reference=cls.reference
        )

    @classmethod
    def architecture(cls, name: str, config: BaseModel) -> str:  # noqa: ARG003
        """The zoo name of the network that is trained where the recipe's student is `name`."""
        return name

    def forward(self, images: Tensor, labels: Tensor, progress: Tensor) -> Step:
        raise NotImplementedError


def at_least_two(cohort: Cohort, name: str) -> None:
    """Raises ValueError for a single student: it has nobody to learn from."""
    if len(cohort.students) < 2:
        raise ValueError(f"{name} needs at least two students; method.name=baseline trains one")


def students(z: Sequence[Tensor]) -> dict[str, Tensor]:
    """The students' logits under the names that every method gives them."""
    return {f"student{k}": z_k for k, z_k in enumerate(z)}


def full_precision(images: Tensor) -> AbstractContextManager[None]:
    """Losses are computed outside autocast: on a CPU it would leave a log_softmax of bfloat16 in bfloat16."""
    return torch.autocast(images.device.type, enabled=False)


def kl(teacher_logits: Tensor, student_logits: Tensor, temperature: float, detach: bool = True) -> Tensor:
    """T² · KL(softmax(teacher/T) ‖ softmax(student/T)), summed over classes, mean over the batch. 0-d, float32.

    The teacher is detached here, in one place: kl_div is a composite operation and would send it a gradient. T² keeps
    the size of the gradient independent of T (Hinton et al., 2015, section 2).
    """
    if detach:
        teacher_logits = teacher_logits.detach()
    student = F.log_softmax(student_logits.float() / temperature, 1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, 1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def ramp(progress: Tensor, length: float) -> Tensor:
    """exp(-5 (1 - min(t, α)/α)²): distillation's weight at t = `progress`, α = `length`, fractions of the run.

    e⁻⁵ at the start, 1 from α on (Laine & Aila, 2017; MFEF section 4.1 has α = 80 of 300 epochs). As a fraction it
    means the same in a short run, where 80 epochs would be a run without distillation. length 0: always 1.
    """
    if length == 0:
        return torch.ones_like(progress)
    return torch.exp(-5 * (1 - torch.clamp(progress / length, max=1)) ** 2)


def mutual(z: Sequence[Tensor], z_f: Tensor, labels: Tensor, w: Tensor, temperature: float) -> Step:
    """Σ_k CE(z_k) + CE(z_f) + w·T²·[KL(z_a ‖ z_f) + Σ_k KL(z_f ‖ z_k)], z_a = mean_k z_k: of FFL, MFEF and FEFR.

    The ensemble teaches the fused classifier, which teaches every student; each teacher is detached (MFEF eq. 9-11;
    FFL's public code). Sums over students are not divided by their number (FFL's code), so a trunk's gradient grows
    with it.
    """
    z_a = torch.stack(list(z)).mean(0)
    losses = {f"ce_student{k}": F.cross_entropy(z_k, labels) for k, z_k in enumerate(z)}
    losses["ce_fused"] = F.cross_entropy(z_f, labels)
    losses["kl_ensemble_fused"] = w * kl(z_a, z_f, temperature)
    losses |= {f"kl_fused_student{k}": w * kl(z_f, z_k, temperature) for k, z_k in enumerate(z)}
    return Step(losses, students(z) | {"fused": z_f, "ensemble": z_a})
