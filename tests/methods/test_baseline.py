from __future__ import annotations

import math

import pytest
import torch
from byhand import resolved

from okdc.assembly import job as assembly
from okdc.backbones.resnet import cifar_resnet
from okdc.cohort import Cohort
from okdc.methods.base import Batch
from okdc.methods.baseline import Baseline, BaselineConfig


def baseline() -> Baseline:
    torch.manual_seed(0)
    return Baseline(
        Cohort([cifar_resnet(8, 10)]), BaselineConfig.model_validate({"name": "baseline"}), torch.Size((3, 8, 8)), 10
    )


def test_the_loss_is_the_cross_entropy_of_the_one_student() -> None:
    method = baseline().eval()
    images, labels = torch.randn(6, 3, 8, 8), torch.randint(10, (6,))
    step = method(Batch(images, labels), torch.tensor(0.5))
    assert list(step.losses) == ["ce_student0"]
    assert list(step.logits) == ["student0"]
    z = step.logits["student0"].detach().double().numpy()
    total = 0.0
    for n in range(6):
        total -= z[n, int(labels[n])] - math.log(sum(math.exp(v) for v in z[n]))
    assert step.losses["ce_student0"].item() == pytest.approx(total / 6, rel=1e-5)
    assert torch.equal(step.logits["student0"], method.cohort.backbone(0)(images))


def test_progress_has_no_say_in_it() -> None:
    method = baseline().eval()
    images, labels = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    first, last = (method(Batch(images, labels), torch.tensor(t)).losses["ce_student0"] for t in (0.0, 1.0))
    assert torch.equal(first, last)


def test_it_has_no_scaffolding_and_every_parameter_gets_a_gradient() -> None:
    method = baseline()
    step = method(Batch(torch.randn(4, 3, 8, 8), torch.randint(10, (4,))), torch.tensor(0.0))
    step.losses["ce_student0"].backward()
    assert {id(p) for p in method.parameters()} == {id(p) for p in method.cohort.parameters()}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


def test_the_loss_is_float32_under_autocast() -> None:
    images, labels = torch.randn(4, 3, 8, 8), torch.randint(10, (4,))
    with torch.autocast("cpu", torch.bfloat16):
        step = baseline()(Batch(images, labels), torch.tensor(0.0))
    assert step.losses["ce_student0"].dtype == step.logits["student0"].dtype == torch.float32
    expected = torch.nn.functional.cross_entropy(step.logits["student0"], labels)
    assert torch.equal(step.losses["ce_student0"], expected)


def test_it_trains_the_first_student_of_a_recipe_alone() -> None:
    recipe = resolved(
        {
            "data": {"name": "digits", "image_size": 8},
            "cohort": {"students": ["resnet14", "resnet8"], "share": "low"},
            "method": {"name": "baseline"},
        }
    )
    method, words = assembly.method(recipe, torch.Size((3, 8, 8)), 10)
    assert len(method.cohort.students) == 1
    assert sum(p.numel() for p in method.parameters()) == 175_258
    assert "resnet14" in words
