"""The multiply-adds of a training step, against torch's counter at the real step."""

from __future__ import annotations

import itertools

import pytest
import torch
from asking import case
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from okdc import backbones
from okdc.cohort import Cohort
from okdc.methods import METHODS
from okdc.methods.base import Batch, Config, Method, Step, students
from okdc.training.cost import step_macs

SIZE, IMAGES = torch.Size((3, 8, 8)), 4
TRUNK = ("one", "ahbf")


def built(name: str, images: torch.Size = SIZE) -> Method:
    kind: type[Method] = METHODS.load(name)
    keys = {"teacher": "resnet14"} if name == "kd" else {"turns": 2} if name == "dualnet" else {}
    networks = ["resnet14", "resnet8"] if name == "switokd" else ["resnet8"] * (1 if kind.single else 2)
    cohort = Cohort([backbones.build(n, 10, images) for n in networks], "low" if name in TRUNK else "none")
    teacher = backbones.build("resnet14", 10, images) if name == "kd" else None
    return kind(cohort, kind.Config(name=name, **keys), images, 10, teacher)


def real_macs(method: Method, progress: float) -> int:
    images = [torch.rand(IMAGES, *SIZE) for _ in range(1 + method.views)]
    batch = Batch(images[0], torch.arange(IMAGES), views=tuple(images[1:]))
    method.begin(progress)
    with FlopCounterMode(display=False) as counter:
        losses = method.train()(batch, torch.tensor(progress)).losses
        torch.stack(list(losses.values())).sum().backward()
    return int(counter.get_total_flops()) // 2


SHORT = ("baseline", "kd", "fefr", "dualnet", "pcl", "relay")  # among them a teacher, parts, views and means of weights


@pytest.mark.parametrize("name", [case(name, long=name not in SHORT) for name in METHODS.own])
def test_a_step_counts_what_the_real_one_computes_and_leaves_the_method_alone(name: str) -> None:
    method = built(name)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    random = torch.get_rng_state()
    found = step_macs(method, IMAGES)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in method.parameters())
    ends = itertools.pairwise((*method.parts, 1.0))
    assert found == round(sum(real_macs(method, (start + end) / 2) * (end - start) for start, end in ends))


def test_a_baseline_costs_three_forward_passes_less_the_gradient_of_its_images() -> None:
    method = built("baseline")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        method.cohort.backbone(0)(torch.rand(IMAGES, *SIZE))
    forward = int(counter.get_total_flops()) // 2
    first = IMAGES * 8 * 8 * 3 * 16 * 9
    assert step_macs(method, IMAGES) == 3 * forward - first
    assert step_macs(method, 2 * IMAGES) == 2 * (3 * forward - first)


class ReadsTheHost(Method[Config]):
    def forward(self, batch: Batch, progress: Tensor) -> Step:
        z = self.cohort.logits(self.cohort(batch.images))
        losses = {"ce": self.cross_entropy(z[0], batch) * (1 if float(progress) < 0.5 else 2)}
        return Step(losses, students(z))


class Distances(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, x)


class NoCount(Method[Config]):
    def setup(self) -> None:
        self.distances = Distances()

    def forward(self, batch: Batch, progress: Tensor) -> Step:
        del progress
        z = self.cohort.logits(self.cohort(batch.images))
        return Step({"ce": self.distances(z[0]).mean()}, students(z))


@pytest.mark.parametrize("kind", [ReadsTheHost, NoCount])
def test_what_cannot_be_counted_has_no_number(kind: type[Method]) -> None:
    method = kind(Cohort([backbones.build("resnet8", 10, SIZE)]), Config(name="mine"), SIZE, 10)
    assert step_macs(method, IMAGES) is None
