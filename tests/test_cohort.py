from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from okdc.backbones.parts import PoolLinear
from okdc.backbones.resnet import cifar_resnet
from okdc.cohort import Backbone, Cohort
from okdc.seeds import seeded

SHARED = {"low": 3, "stem1": 2, "none": 0}


class Counting(nn.Module):
    """A stage that counts how often it runs."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        y: Tensor = self.conv(x)
        return y


def counting(channels: Sequence[int] = (4, 4, 8, 8), strides: Sequence[int] = (1, 1, 2, 4)) -> Backbone:
    inputs, steps = (3, *channels), (1, *strides)
    stages = [Counting(inputs[i], c, steps[i + 1] // steps[i]) for i, c in enumerate(channels)]
    return Backbone(stages, PoolLinear(channels[-1], 10), channels, strides)


def students(n: int) -> list[Backbone]:
    found = []
    for k in range(n):
        with seeded(0, "student", k):
            found.append(cifar_resnet(8, 10))
    return found


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("share", SHARED)
def test_a_shared_stage_runs_once_and_an_own_one_once_a_student(share: str, n: int) -> None:
    cohort = Cohort([counting() for _ in range(n)], share)
    cohort.logits(cohort(torch.randn(2, 3, 8, 8)))
    different = {id(m): m for m in cohort.modules() if isinstance(m, Counting)}
    assert len(different) == (4 - SHARED[share]) * n + SHARED[share]
    assert [m.runs for m in different.values()] == [1] * len(different)


@pytest.mark.parametrize("share", SHARED)
def test_each_student_sees_its_own_view_of_several_and_a_shared_stage_normalises_each_by_itself(share: str) -> None:
    """In training mode: the trunk's running statistics then have moved once a view."""
    cohort = Cohort(students(3), share)
    views = [torch.randn(4, 3, 8, 8) + k for k in range(3)]
    by_hand = copy.deepcopy(cohort)
    maps = cohort(*views)
    for k, student in enumerate(by_hand.backbones()):
        x = views[k]
        for i, stage in enumerate(student.stages):
            x = stage(x)
            assert torch.equal(maps[k][i], x)
    expected = by_hand.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in cohort.state_dict().items())


def test_another_number_of_views_than_one_or_one_a_student_is_refused() -> None:
    images = torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="found 2"):
        Cohort(students(3))(images, images)


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("share", SHARED)
def test_parameters_are_one_trunk_and_a_branch_for_each_student(share: str, n: int) -> None:
    """One block object put under several names would give all students one set of weights."""
    cohort = Cohort(students(n), share)
    alone = cifar_resnet(8, 10)
    trunk = sum(p.numel() for stage in alone.stages[: SHARED[share]] for p in stage.parameters())
    whole = sum(p.numel() for p in alone.parameters())
    assert sum(p.numel() for p in cohort.parameters()) == trunk + n * (whole - trunk)
    for a in range(n):
        for b in range(a):
            same = {id(p) for p in cohort.backbone(a).parameters()} & {id(p) for p in cohort.backbone(b).parameters()}
            assert same == {id(p) for stage in cohort.backbone(0).stages[: SHARED[share]] for p in stage.parameters()}
            assert cohort.backbone(a).head is not cohort.backbone(b).head


@pytest.mark.parametrize("share", SHARED)
def test_a_students_own_forward_gives_its_logits_in_the_cohort(share: str) -> None:
    """What is kept and shipped is the student alone, with the batch statistics of the trunk in it."""
    cohort = Cohort(students(3), share)
    for _ in range(3):
        cohort(torch.randn(8, 3, 8, 8))  # in training mode: the statistics leave their start
    cohort.eval()
    images = torch.randn(5, 3, 8, 8)
    for k, z in enumerate(cohort.logits(cohort(images))):
        torch.testing.assert_close(cohort.backbone(k)(images), z, rtol=0, atol=1e-5)


@pytest.mark.parametrize("share", SHARED)
def test_a_students_keys_are_those_of_the_plain_network(share: str) -> None:
    cohort = Cohort(students(2), share)
    for k in range(2):
        kept = cohort.backbone(k).state_dict()
        assert list(kept) == list(cifar_resnet(8, 10).state_dict())
        cifar_resnet(8, 10).load_state_dict(kept, strict=True)


def test_maps_stay_what_they_were_while_later_stages_run() -> None:
    """The same stages one at a time, each map copied at once, in training mode."""
    cohort = Cohort(students(2), "low")
    images = torch.randn(4, 3, 8, 8)
    maps = cohort(images)
    cohort.logits(maps)
    for k in range(2):
        x = images
        for i, stage in enumerate(cohort.backbone(k).stages):
            x = stage(x)
            copied = x.detach().clone()
            torch.testing.assert_close(maps[k][i].detach(), copied, rtol=0, atol=0)


def test_maps_go_from_shallow_to_deep_and_a_shared_map_is_one_tensor() -> None:
    cohort = Cohort(students(2), "stem1")
    maps = cohort(torch.randn(2, 3, 8, 8))
    assert [tuple(m.shape[1:]) for m in maps[0]] == [(16, 8, 8), (16, 8, 8), (32, 4, 4), (64, 2, 2)]
    assert [a is b for a, b in zip(*maps, strict=True)] == [True, True, False, False]


def test_a_shared_trunk_sums_the_gradients_of_its_students() -> None:
    """Not their mean: with equal branches it is n times that of one student."""
    cohort = Cohort(students(3), "low")
    for k in (1, 2):
        cohort.backbone(k).load_state_dict(cohort.backbone(0).state_dict())
    cohort.eval()
    images, labels = torch.randn(4, 3, 8, 8), torch.randint(10, (4,))

    def trunk(n: int) -> list[Tensor]:
        cohort.zero_grad(set_to_none=True)
        losses = [nn.functional.cross_entropy(z, labels) for z in cohort.logits(cohort(images))[:n]]
        torch.stack(losses).sum().backward()
        grads = [p.grad for stage in cohort.backbone(0).stages[:3] for p in stage.parameters()]
        return [g.clone() for g in grads if g is not None]

    once, thrice = trunk(1), trunk(3)
    assert len(once) == len(thrice) > 0
    for a, b in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * a, b, rtol=1e-4, atol=1e-6)


def test_logits_are_float32_under_autocast() -> None:
    cohort = Cohort(students(2))
    with torch.autocast("cpu", torch.bfloat16):
        maps = cohort(torch.randn(2, 3, 8, 8))
        assert maps[0][-1].dtype == torch.bfloat16
        assert [z.dtype for z in cohort.logits(maps)] == [torch.float32] * 2


@pytest.mark.parametrize("size", [8, 32, 50, 33])
def test_probe_measures_every_map_and_leaves_no_trace(size: int) -> None:
    cohort = Cohort(students(2), "low")
    before = {name: value.clone() for name, value in cohort.state_dict().items()}
    sizes = cohort.probe(torch.Size((3, size, size)))
    assert cohort.training
    assert all(torch.equal(before[name], value) for name, value in cohort.state_dict().items())
    maps = cohort(torch.randn(2, 3, size, size))
    assert sizes == [[m.shape[1:] for m in own] for own in maps]


def test_an_unknown_share_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="low, stem1, none"):
        Cohort(students(2), "high")


@pytest.mark.parametrize("share", ["low", "stem1"])
def test_students_of_two_widths_cannot_share(share: str) -> None:
    with pytest.raises(ValueError, match="share='none'"):
        Cohort([cifar_resnet(8, 10), cifar_resnet(8, 10, width=8)], share)


@pytest.mark.parametrize("share", ["low", "stem1"])
def test_students_of_two_depths_cannot_share(share: str) -> None:
    """ResNet-8 and -20 have the same widths; a trunk of the one in the other would be neither network."""
    with pytest.raises(ValueError, match="share='none'"):
        Cohort([cifar_resnet(8, 10), cifar_resnet(20, 10)], share)


def three(channels: Sequence[int] = (4, 8, 8), strides: Sequence[int] = (1, 2, 2), kernel: int = 3) -> Backbone:
    """Three convolutions: the kernel is that of the second."""
    inputs, steps = (3, *channels), (1, *strides)
    stages = [
        nn.Conv2d(inputs[i], channels[i], size, steps[i + 1] // steps[i], size // 2)
        for i, size in enumerate((3, kernel, 3))
    ]
    return Backbone(stages, PoolLinear(channels[-1], 10), channels, strides)


@pytest.mark.parametrize(
    ("other", "share"),
    [
        ({"strides": (1, 1, 2)}, "low"),  # the same tensors, and maps of another size behind them
        ({"strides": (1, 1, 2)}, "stem1"),
        ({"channels": (4, 8, 16)}, "low"),  # what is shared is the same, and what is not differs
        ({"channels": (4, 8, 16)}, "stem1"),
        ({"kernel": 1}, "low"),  # the names of the tensors are the same, their sizes are not
    ],
)
def test_students_of_other_strides_widths_or_kernels_cannot_share(other: dict[str, Any], share: str) -> None:
    assert Cohort([three(), three()], share).shared == 2
    with pytest.raises(ValueError, match="share='none'"):
        Cohort([three(), three(**other)], share)


@pytest.mark.parametrize("share", ["low", "stem1"])
def test_one_student_shares_with_nobody(share: str) -> None:
    cohort = Cohort(students(1), share)
    assert (cohort.shared, cohort.share) == (0, "none")


def test_students_that_differ_stand_side_by_side_when_nothing_is_shared() -> None:
    cohort = Cohort([cifar_resnet(8, 10), counting((4, 8), (1, 2))])
    maps = cohort(torch.randn(2, 3, 8, 8))
    assert [len(own) for own in maps] == [4, 2]
    assert [z.shape for z in cohort.logits(maps)] == [(2, 10)] * 2


def test_two_stages_share_the_first_alone_whatever_is_asked_for() -> None:
    """With both shared the students would be one but for their heads."""

    def two() -> Backbone:
        stages = [nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 8, 3, 2, 1)]
        return Backbone(stages, PoolLinear(8, 5), (4, 8), (1, 2))

    for share in ("low", "stem1"):
        cohort = Cohort([two(), two()], share)
        assert cohort.shared == 1
        maps = cohort(torch.randn(2, 3, 8, 8))
        assert maps[0][-1] is not maps[1][-1]
