"""What every method is made of: its contract, the cross-entropy of a batch, the KL divergence and the ramp-up.

Shapes: N images, K classes; C channels, H×W pixels of an image; z_k are the logits of student k, NK.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, Self, get_args

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from typing_extensions import TypeVar

from okdc.backbones.parts import he_fan_out
from okdc.cohort import Cohort
from okdc.kernels import global_average
from okdc.runs.artefacts import MethodCard

# ---------------------------------------------------------------------------------------------------------------------
# A method's recipe table. Each key is described where it is declared: `okdc recipes` and the reference print that.

Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]
DetachFeatures = Annotated[
    bool,
    Field(
        description="Whether the maps are detached before they enter the fused classifier, whose losses then train no "
        "student's features; false as in FFL's public code."
    ),
]
Reduction = Annotated[
    int,
    Field(
        ge=1,
        description="How many times fewer units than channels the hidden layer of channel attention has, four units at "
        "least; 16 is CBAM's, since neither paper gives a number.",
    ),
]
Init = Literal["pytorch", "he"]
INIT = (
    "How the convolutions that match, split and fuse maps beside the students are drawn: pytorch, its default, or he, "
    "from N(0, 2/(k²·outputs)), depthwise and 1×1 ones too, as in FFL's public code; attention keeps PyTorch's, and "
    "behind BN this only sets how fast they learn"
)
Views = Annotated[
    Literal["one", "own"],
    Field(
        description="Whether all students see one view of each image, or each its own augmentation of it as the paper "
        "has it; one, so that a comparison with other methods compares methods alone."
    ),
]
SpatialKernel = Annotated[
    int,
    Field(
        ge=1,
        description="Height and width in pixels of spatial attention's convolution, odd, so that the map keeps its "
        "size; 7 is CBAM's and that of FEFR's public code, since neither paper gives a number.",
    ),
]


class Config(BaseModel):
    """Base of a method's recipe table: strict about keys and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

    name: str = Field(
        description="The method: a name of okdc's or of an installed package, or package.module:Class of your own."
    )

    @classmethod
    def defaults_of(cls, table: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG003
        """The default of every key of a recipe's `table`. A Config in which one key sets those of others says so here.

        A key without a default has pydantic's mark of that.
        """
        return {key: field.default for key, field in cls.model_fields.items()}


class RampedConfig(Config):
    """The table of a method whose students teach each other from the start, when they have little to teach."""

    temperature: Temperature = Field(
        3.0,
        description="T: logits are divided by it before the softmax of a KL term, which is multiplied by T²; 3 is of "
        "MFEF section 4.1.",
    )
    rampup: Annotated[float, Field(ge=0, le=1)] = Field(
        80 / 300,
        description="The fraction of the training over which the weight of the KL terms rises from e⁻⁵ to 1, 0 for "
        "none; MFEF section 4.1 has 80 of 300 epochs.",
    )


class TaughtConfig(Config):
    """The table of a method with a frozen teacher, which is loaded before the method is built."""

    teacher: Annotated[str, Field(min_length=1)] = Field(
        description="A complete run such as runs/NAME, whose kept student teaches, or a network's name together with "
        "weights."
    )
    weights: str | None = Field(
        None,
        description="The file of the teacher's weights, .safetensors or .pt, where the teacher is a network's name.",
    )
    teacher_sha256: str | None = Field(
        None,
        description="The SHA-256 of the teacher's weights: filled in when a training starts, so that another teacher "
        "is refused when the recipe runs again.",
    )


# ---------------------------------------------------------------------------------------------------------------------
# What goes in and what comes out


class Batch(NamedTuple):
    """The images of one step and what is known of them.

    Where images were mixed in pairs, `mix` is the weight of `labels` and 1 - `mix` that of `other_labels`: both are
    set, or neither is.
    """

    images: Tensor  # NCHW
    labels: Tensor  # N, int64
    other_labels: Tensor | None = None  # N, int64
    mix: Tensor | None = None  # N, 0..1
    views: tuple[Tensor, ...] = ()  # NCHW each: further augmentations of the same images, `Method.views` of them

    def view(self, k: int) -> Tensor:
        """The images as the network k sees them, NCHW: augmentation k of each, or the only one that there is.

        A batch of an evaluation has one, whatever the method's `views`.
        """
        return self.views[k - 1] if k and self.views else self.images


class Step(NamedTuple):
    """What one batch gives."""

    losses: dict[str, Tensor]  # weighted terms by name, 0-d; their sum is minimised, each is logged
    logits: dict[str, Tensor]  # NK, every head that deserves an accuracy column: student0, student1, fused, ...


ROUNDING = 1e-9  # of a fraction of the training, such as a third of six epochs
T = TypeVar("T")
C = TypeVar("C", bound=Config, default=Any)


class Method(nn.Module, Generic[C]):
    """A way to train a cohort. Parameters under `cohort` may be kept; all others are scaffolding.

    A subclass names its table, `class FEFR(Method[FEFRConfig])`, adds its modules in `setup` and computes its losses
    in `forward`. Everything that learns runs inside `forward`, once a step: that is what is compiled and distributed.
    """

    Config: ClassVar[type[Config]]  # C, taken from the base class's brackets
    title: ClassVar[str] = ""  # how papers write it: FEFR; the class's name where it is empty
    summary: ClassVar[str] = ""  # a sentence of the model card: how a student of it was trained, and the source
    tags: ClassVar[tuple[str, ...]] = ("knowledge-distillation", "online-distillation")  # of the model card, for a hub
    fused_head: ClassVar[str] = "fused"  # the head that papers print as the fused or ensemble classifier
    reference: ClassVar[bool] = False  # the row that a comparison takes differences to

    branches: ClassVar[bool] = False  # made for a shared trunk; False: nothing is shared, whatever the recipe says
    needs_trunk: ClassVar[bool] = False  # where cohort.share asks for a trunk and the students differ: refused, so that
    alternatives: ClassVar[str] = ""  # nobody trains separate networks unawares; what to do instead, for that refusal
    single: ClassVar[bool] = False  # gets a cohort of the first student alone
    least_students: ClassVar[int] = 1
    one_start: ClassVar[bool] = False  # whether all students start with the weights of the first one

    notes: tuple[str, ...] = ()  # what was chosen when it was built, for the run to print
    unrolled: bool = False  # whether `forward` repeats small operations so often that compiling it takes many minutes
    exchanges: bool = False  # whether `forward` exchanges numbers with the other processes of a training
    leader: int | None = None  # the student that is made to be kept, where a method has one
    views: int = 0  # further augmentations of each image that a training batch brings: `Batch.view` reads them
    decayed_as_students: tuple[str, ...] = ()  # modules outside the cohort that have the students' weight decay
    label_smoothing: float = 0.0  # of `cross_entropy` and `targets`, 0..1
    class_weights: Tensor | None  # K, of `cross_entropy`; a buffer, so that it is where the logits are
    parts: tuple[float, ...] = (0.0,)  # where of the training a method begins to do something else, as fractions of
    # it: each part has to take place
    teacher: nn.Module | None  # frozen and in eval mode, of a method whose table is a TaughtConfig

    def __init__(
        self, cohort: Cohort, config: C, images: torch.Size, classes: int, teacher: nn.Module | None = None
    ) -> None:
        """`images` is the CHW size of the recipe's images.

        Raises ValueError, with the reason, where the method cannot be built for these students.
        """
        super().__init__()
        self.cohort, self.config, self.images, self.classes = cohort, config, images, classes
        self.teacher = teacher if teacher is None else teacher.eval().requires_grad_(False)
        self.register_buffer("class_weights", None, persistent=False)  # the recipe's: no part of what was learned
        self.require_students(self.least_students)
        self.setup()
        with torch.no_grad():
            self.before_first_step()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for base in cls.__dict__.get("__orig_bases__", ()):
            for argument in get_args(base):
                if isinstance(argument, type) and issubclass(argument, Config):
                    cls.Config = argument

    def setup(self) -> None:
        """Add the modules that are trained beside the cohort. Raises ValueError where they do not fit the students."""

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        """`progress` is the fraction of the training that is done, 0-d, 0..1: no schedule sees epoch numbers.

        It is a tensor because a number that changes at each step would be compiled anew at each step.
        """
        raise NotImplementedError

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """The vectors that classifiers read, NC, by head: those of `okdc features`.

        The logits of a head are one linear function of its features, up to a constant. Of each student these are its
        pooled last map, and of the ensemble all of them side by side. A method adds what its other heads read, and
        leaves out a head whose logits are no such function: `okdc features` names it. A head that no run is judged by
        may be among them.
        """
        return student_features(self.cohort(batch.images))

    def before_first_step(self) -> None:
        """Set tensors that follow from the students' first weights, without gradients: a copy of them, for example.

        Called when the method is built, and again where a student that starts from trained weights gets a fresh head
        after that. A run that is resumed has the tensors of its checkpoint.
        """

    def begin(self, done: float) -> str:
        """Called before each epoch, when the fraction `done` of the training is over: here a method may decide on the
        host, by `done` alone, what its steps compute and which parameters learn.

        Returns a sentence for the run to print where that is not as in the epoch before, else "": only with a sentence
        is the step compiled or recorded anew. A resumed run calls it with the tensors of its checkpoint. A method that
        decides here has its `parts` begin with epochs.
        """
        return ""

    @property
    def by_epoch(self) -> bool:
        """Whether it decides in `begin`, so that its parts begin with epochs."""
        return type(self).begin is not Method.begin

    def first_epochs(self, epochs: int) -> list[int]:
        """Of a training of so many epochs the first one of each part, where its parts begin with epochs."""
        return firsts(self.parts, epochs) if self.by_epoch else [0]

    def part(self, done: float) -> int:
        """The part that an epoch is in which begins when the fraction `done` of the training is over, from 0 on."""
        return sum(done >= part - ROUNDING for part in self.parts) - 1

    def after_step(self) -> None:
        """Change tensors after the optimiser has taken a step, without gradients: a mean of weights, for example.

        A CUDA graph may hold it, so it reads no tensor on the host.
        """

    def check_built(self) -> None:
        """Raises ValueError without `Method.__init__`, and where an attribute names what is not there."""
        if not hasattr(self, "cohort"):
            raise ValueError("__init__ does not call Method.__init__; setup is the place to add modules")
        if self.leader is not None and self.leader not in range(len(self.cohort.students)):
            raise ValueError(
                f"leader: expected the index of one of {len(self.cohort.students)} students, found {self.leader!r}"
            )
        if not isinstance(self.views, int) or self.views < 0:
            raise ValueError(f"views: expected a number of further views, 0 or more, found {self.views!r}")
        if not _are_fractions(self.parts):
            raise ValueError(f"parts: expected fractions that rise from 0.0 and stay below 1, found {self.parts!r}")
        modules = dict(self.named_modules())
        if missing := [name for name in self.decayed_as_students if name not in modules]:
            raise ValueError(f"decayed_as_students: expected names of modules, found {', '.join(missing)}")

    def check_step(self, step: object) -> None:
        """Raises TypeError or ValueError where `step` is not what `forward` is to return."""
        if not isinstance(step, Step):
            raise TypeError(f"expected a Step, found {type(step).__name__}")
        learn = {
            name: any(p.requires_grad for p in student.parameters())
            for name, student in students(self.cohort.backbones()).items()
        }
        if missing := [name for name, learns in learn.items() if learns and name not in step.logits]:
            raise ValueError(f"expected logits of every student that learns, found none of {', '.join(missing)}")
        if not step.losses:
            raise ValueError("expected at least one loss term, found none")
        for name, loss in step.losses.items():
            if not isinstance(loss, Tensor) or loss.ndim:
                kind = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                raise TypeError(f"loss {name!r}: expected a 0-d tensor, found {kind}")

    def train(self, mode: bool = True) -> Self:
        """A teacher stays in eval mode: a container's train() would set its batch statistics moving."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def cross_entropy(self, z: Tensor, batch: Batch) -> Tensor:
        """The cross-entropy of NK logits to the batch's labels, as `label_smoothing` and `class_weights` say. 0-d."""
        return cross_entropy(z, batch, self.label_smoothing, self.class_weights)

    def targets(self, batch: Batch) -> Tensor:
        """The distribution that each image's logits are to have, NK, float32: for losses that read labels otherwise."""
        return targets(batch, self.classes, self.label_smoothing)

    def student_parts(self) -> list[nn.Module]:
        """The modules that have the students' weight decay: the cohort, and what `decayed_as_students` names."""
        return [self.cohort, *(self.get_submodule(name) for name in self.decayed_as_students)]

    def require_students(self, count: int) -> None:
        """Raises ValueError for fewer students than `count`: some would have nobody to learn from."""
        if len(self.cohort.students) < count:
            names = [student.architecture for student in self.cohort.backbones()]
            several = ",".join([*names, *names[-1:] * (count - len(names))])
            raise ValueError(
                f"{self.config.name} needs at least {count} students, as in cohort.students=[{several}]; "
                "method.name=baseline trains one"
            )

    @classmethod
    def card(cls) -> MethodCard:
        """The method in result.json, so that a model card or a comparison need not import its class."""
        title = cls.title or cls.__name__
        return MethodCard(
            title=title,
            summary=cls.summary or f"Trained with {title}.",
            tags=cls.tags,
            fused_head=cls.fused_head,
            reference=cls.reference,
        )

    @classmethod
    def architectures(cls, names: Sequence[str], config: C) -> tuple[str, ...]:  # noqa: ARG003
        """The names of the networks that are trained where `names` are the recipe's students.

        Raises RecipeError where there are none.
        """
        return tuple(names)


def firsts(parts: Sequence[float], whole: int) -> list[int]:
    """The first one of each part, where a training has `whole` epochs, or steps, from 0 on."""
    return [math.ceil((part - ROUNDING) * whole) for part in parts]  # where `Method.part` begins it


def _are_fractions(parts: object) -> bool:
    """Whether these are the beginnings of the parts of a training."""
    if not isinstance(parts, tuple) or not all(isinstance(part, float | int) for part in parts):
        return False
    return parts[:1] == (0,) and all(first < following for first, following in itertools.pairwise((*parts, 1)))


# ---------------------------------------------------------------------------------------------------------------------
# Pieces of losses


def students(z: Iterable[T]) -> dict[str, T]:
    """What belongs to each student, such as its logits, under the names that every method gives them."""
    return {f"student{k}": z_k for k, z_k in enumerate(z)}


def initialise(init: str, *scaffolding: nn.Module) -> None:
    """Draw the convolutions in `scaffolding` as the key `init` says. "pytorch": they stay as they were made."""
    if init == "he":
        for module in scaffolding:
            he_fan_out(module)


def student_features(maps: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """Of maps[k][i], stage i of student k: each student's pooled last map and, of several, all of them joined, NC."""
    pooled = [global_average(own[-1]) for own in maps]
    return students(pooled) | ({"ensemble": torch.cat(pooled, 1)} if len(pooled) > 1 else {})


def full_precision(batch: Batch) -> AbstractContextManager[None]:
    """Losses are computed outside autocast: on a CPU it would leave a log_softmax of bfloat16 in bfloat16."""
    if batch.images.is_meta:  # a step that is only counted: autocast knows no such device
        return nullcontext()
    return torch.autocast(batch.images.device.type, enabled=False)


def cross_entropy(z: Tensor, batch: Batch, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> Tensor:
    """The mean over the images of -Σ_c w_c q_c log softmax(z)_c, q = `targets(batch)`. 0-d.

    The sum is divided by the number of images, not by that of their weights, as torch's mean is: such a divisor differs
    between the processes of one training, and the mean of their losses would not be that of the whole batch. Weights
    whose mean over the training images is 1 leave the loss as large as it was. Without weights and mixing this is
    F.cross_entropy to the bit.
    """
    if batch.mix is None and class_weights is None:
        return F.cross_entropy(z, batch.labels, label_smoothing=label_smoothing)

    if class_weights is not None:
        z = z.to(class_weights.dtype)  # torch takes weights of the logits' own type alone

    def errors(labels: Tensor) -> Tensor:  # N
        return F.cross_entropy(z, labels, class_weights, label_smoothing=label_smoothing, reduction="none")

    if batch.mix is None:
        return errors(batch.labels).mean()
    assert batch.other_labels is not None
    return (batch.mix * errors(batch.labels) + (1 - batch.mix) * errors(batch.other_labels)).mean()


def targets(batch: Batch, classes: int, label_smoothing: float = 0.0) -> Tensor:
    """NK, float32, each row sums to 1: 1 at the label, or mix and 1 - mix at the two of a mixed image.

    Smoothing s takes (1 - s) of that and spreads s evenly over all classes. Weights of classes are no part of it: they
    say how much an error counts, not what is right.
    """
    each = torch.arange(classes, device=batch.labels.device)  # compared, since F.one_hot writes with a scatter
    q = (batch.labels[:, None] == each).float()
    if batch.mix is not None:
        assert batch.other_labels is not None
        mix = batch.mix[:, None]
        q = mix * q + (1 - mix) * (batch.other_labels[:, None] == each).float()
    return q * (1 - label_smoothing) + label_smoothing / classes if label_smoothing else q


def kl(teacher_logits: Tensor, student_logits: Tensor, temperature: float, detach: bool = True) -> Tensor:
    """T² · KL(softmax(teacher/T) ‖ softmax(student/T)), summed over classes, mean over the batch. 0-d, float32.

    The teacher is detached here, in one place: kl_div is a composite operation and would send it a gradient. T² keeps
    the size of the gradient independent of T (Hinton et al., 2015, section 2).
    """
    if detach:
        teacher_logits = teacher_logits.detach()
    student = F.log_softmax(student_logits.float() / temperature, 1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, 1)
    # "batchmean", not "mean", which would divide by the number of classes too; the arguments are (student, teacher).
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def ramp(progress: Tensor, length: float) -> Tensor:
    """exp(-5 (1 - min(t, α)/α)²): distillation's weight at t = `progress`, α = `length`, fractions of the run.

    e⁻⁵ at the start, 1 from α on (Laine & Aila, 2017; MFEF section 4.1 has α = 80 of 300 epochs). As a fraction it
    means the same in a short run, where 80 epochs would be a run without distillation. length 0: always 1.
    """
    if length == 0:
        return torch.ones_like(progress)
    return torch.exp(-5 * (1 - torch.clamp(progress / length, max=1)) ** 2)


def mutual(method: Method, batch: Batch, z: Sequence[Tensor], z_f: Tensor, w: Tensor, temperature: float) -> Step:
    """Σ_k CE(z_k) + CE(z_f) + w·T²·[KL(z_a ‖ z_f) + Σ_k KL(z_f ‖ z_k)], z_a = mean_k z_k: of FFL, MFEF and FEFR.

    The ensemble teaches the fused classifier, which teaches every student; each teacher is detached (MFEF eq. 9-11;
    FFL's public code). Sums over students are not divided by their number (FFL's code), so a trunk's gradient grows
    with it. That code, and FEFR's, add 1e-7 to each probability of a teacher, which changes a term by some 1e-6; here
    the probabilities sum to 1.
    """
    z_a = torch.stack(list(z)).mean(0)
    losses = {f"ce_student{k}": method.cross_entropy(z_k, batch) for k, z_k in enumerate(z)}
    losses["ce_fused"] = method.cross_entropy(z_f, batch)
    losses["kl_ensemble_fused"] = w * kl(z_a, z_f, temperature)
    losses |= {f"kl_fused_student{k}": w * kl(z_f, z_k, temperature) for k, z_k in enumerate(z)}
    return Step(losses, students(z) | {"fused": z_f, "ensemble": z_a})
