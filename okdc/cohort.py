"""Backbone and Cohort: the two contracts that methods, training and deployment meet at.

Shapes: N images, C channels, H×W pixels, K classes; maps[k][i] is the output of stage i of student k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from okdc.products import products

SHARING = ("low", "stem1", "none")


class Backbone(nn.Module):
    """A classifier cut into stages: what may be kept, profiled, exported and shipped.

    `stages` run in order on NCHW tensors, stem first; `head` turns the last map into NK logits. `channels` and
    `strides` (input pixels per output pixel) describe the map after each stage; `raw[i]` says that map i is a
    residual sum that its consumer has to normalise first (pre-activation networks).
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        head: nn.Module,
        channels: Sequence[int],
        strides: Sequence[int],
        raw: Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        self.architecture = ""  # its name, by which it can be built again
        self.description = ""  # where its stages end, if somebody had to look for them
        # The network that it continues, if any: in a tuple, so that its modules are not registered twice.
        self.inner: tuple[Backbone, ...] = ()
        assert len(stages) == len(channels) == len(strides)
        self.stages = nn.ModuleList(stages)
        self.head = head
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.raw = tuple(raw) if raw is not None else (False,) * len(channels)

    def forward(self, images: Tensor) -> Tensor:
        """NCHW images -> NK logits."""
        x = images
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(x)
        return logits

    def weights(self) -> dict[str, Tensor]:
        """The tensors that student.safetensors holds, by name: for an adapted network those of the bare one."""
        return self.state_dict()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take what `weights` gave, all of it and nothing else. Raises RuntimeError where names or sizes differ."""
        self.load_state_dict(dict(weights), strict=True)


class Cohort(nn.Module):
    """n students that are trained together. With sharing, leading stages are the same module objects, run once.

    share="low" shares all stages but the last (FFL's code; MFEF section 4.1), "stem1" the stem and the
    first stage, "none" nothing. Batch statistics of a shared trunk are one set, which every student carries.
    """

    def __init__(self, students: Sequence[Backbone], share: str = "none") -> None:
        """Raises ValueError for an unknown `share`, or where students that share do not have the same stages."""
        super().__init__()
        if share not in SHARING:
            raise ValueError(f"share is one of {', '.join(SHARING)}, not {share!r}")
        first = students[0]
        count = {"low": len(first.stages) - 1, "stem1": min(2, len(first.stages) - 1), "none": 0}[share]
        for student in students[1:]:
            if count and _layout(student, count) != _layout(first, count):
                raise ValueError(
                    f"share={share!r} needs students of one architecture and width; these have channels "
                    f"{first.channels} and {student.channels}, or stages of other layers; use share='none'"
                )
            for i in range(count):
                student.stages[i] = first.stages[i]
        self.students = nn.ModuleList(students)
        self.shared = count if len(students) > 1 else 0
        self.share = share if self.shared else "none"

    def forward(self, *views: Tensor) -> list[list[Tensor]]:
        """NCHW images -> maps[k][i], shallow to deep: one view of the images for all students, or one for each.

        A shared stage runs once a view, whatever the number of students. Of several views it normalises each by that
        view's own batch statistics, and its running statistics move once a view, in the order of the students.
        """
        if len(views) not in (1, len(self.students)):
            raise ValueError(f"expected one view, or one for each of {len(self.students)} students, found {len(views)}")
        trunks = [self._trunk(images) for images in views]
        maps = []
        for k in range(len(self.students)):
            y, own = views[k % len(views)], list(trunks[k % len(views)])
            if own:
                y = own[-1]
            for stage in self.backbone(k).stages[self.shared :]:
                y = stage(y)
                own.append(y)
            maps.append(own)
        return maps

    def _trunk(self, images: Tensor) -> list[Tensor]:
        """The maps of the shared stages."""
        x, maps = images, []
        for stage in self.backbone(0).stages[: self.shared]:
            x = stage(x)
            maps.append(x)
        return maps

    def logits(self, maps: list[list[Tensor]]) -> list[Tensor]:
        """One NK tensor a student, float32 whatever the autocast: losses are computed on them."""
        return [self.backbone(k).head(own[-1]).float() for k, own in enumerate(maps)]

    def backbones(self) -> list[Backbone]:
        """The students, typed."""
        return [self.backbone(k) for k in range(len(self.students))]

    def backbone(self, k: int) -> Backbone:
        """Student k, typed."""
        student = self.students[k]
        assert isinstance(student, Backbone)
        return student

    @torch.no_grad()
    def probe(self, images: torch.Size) -> list[list[torch.Size]]:
        """The CHW size of every map for images of CHW size `images`, measured: strides lie at odd sizes."""
        parameter = next(self.parameters())
        training = self.training
        self.eval()  # a training pass would move the batch statistics
        maps = self(torch.zeros(1, *images, dtype=parameter.dtype, device=parameter.device))
        self.train(training)
        return [[m.shape[1:] for m in own] for own in maps]


def _layout(student: Backbone, count: int) -> tuple[object, ...]:
    """What students that share `count` stages have in common: ResNet-8 and -20 differ in their layers alone."""
    tensors = student.stages[:count].state_dict().items()
    return student.channels, student.strides, [(name, tensor.shape) for name, tensor in tensors]


def count_params(module: nn.Module) -> int:
    """Numbers in the module's parameters, each shared one once."""
    return sum(p.numel() for p in module.parameters())


def count_macs(module: nn.Module, *inputs: object) -> int:
    """Multiply-adds of convolutions and linear layers, by torch's own counter: cheap enough for the end of every run.

    `okdc.deploy.count` is the thorough form, which checks this number against fvcore's. `module` is in eval mode:
    training would move its statistics.
    """
    return products(module, *inputs).macs
