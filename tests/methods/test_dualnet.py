"""DualNet against its formula: Σ CE(z_k) + CE(z_f), z_f from the sum of the students' pooled maps; no distillation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from byhand import POSITIONS, agrees, array, batch, cross_entropy, hold, linear, make, names, reached, refused, spread

from okdc.methods.base import Batch
from okdc.methods.dualnet import DualNet, DualNetConfig

NS = pytest.mark.parametrize("n", [2, 3, 4])


def dualnet(n: int = 2) -> DualNet:
    method = make("dualnet", n)
    assert isinstance(method, DualNet)
    return method


@NS
@pytest.mark.parametrize("t", POSITIONS)
def test_every_term_equals_a_slow_transcription_and_none_is_a_divergence(
    t: float, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, z = dualnet(n).eval(), spread(n)
    assert isinstance(method, DualNet)
    images, labels, *_ = batch(n=5)
    total = np.zeros((5, 64, 2, 2))
    for own in method.cohort(images):
        total += array(own[-1])  # features are summed, then pooled and classified
    z_f = linear(total.mean((2, 3)), method.fc)
    hold(monkeypatch, method, z)
    step = method(Batch(images, labels), torch.tensor(t))
    agrees(
        step,
        {"ce_fused": cross_entropy(z_f, labels)} | {f"ce_student{k}": cross_entropy(z[k], labels) for k in range(n)},
    )
    assert list(step.logits) == [*(f"student{k}" for k in range(n)), "fused", "ensemble"]
    assert array(step.logits["fused"]) == pytest.approx(z_f, rel=1e-4, abs=1e-5)
    assert array(step.logits["ensemble"]) == pytest.approx(sum(array(z_k) for z_k in z) / n, rel=1e-5)


@NS
def test_what_students_have_of_each_other_is_the_fused_classifiers_gradient(n: int) -> None:
    method = dualnet(n)
    for k in range(n):
        assert reached(method, f"ce_student{k}") == names(method, f"cohort.students.{k}.")
    features = names(method, *(f"cohort.students.{k}.stages." for k in range(n)))
    assert reached(method, "ce_fused") == features | names(method, "fc.")


@NS
def test_scaffolding_is_one_linear_layer_and_nothing_is_shared(n: int) -> None:
    method = make("dualnet", n, "low")
    assert sum(p.numel() for p in method.parameters()) == n * 78_042 + 64 * 10 + 10


def test_features_of_other_widths_cannot_be_summed() -> None:
    with refused(r"have 64, 128 channels; method\.name=ffl with cohort\.share=none, mfef"):
        make("dualnet", ["resnet8", "wrn16_2"])


def test_one_student_is_refused() -> None:
    with refused("at least 2 students"):
        dualnet(1)


def test_losses_and_logits_are_float32_under_autocast() -> None:
    method = dualnet()
    images, labels, *_ = batch()
    with torch.autocast("cpu", torch.bfloat16):
        step = method(Batch(images, labels), torch.tensor(0.5))
    assert {v.dtype for v in (*step.losses.values(), *step.logits.values())} == {torch.float32}
    for name in ("student0", "student1", "fused"):
        expected = cross_entropy(step.logits[name], labels)
        assert step.losses[f"ce_{name}"].item() == pytest.approx(expected, rel=1e-5)


def test_it_has_no_switches() -> None:
    with pytest.raises(ValueError, match="temperature"):
        DualNetConfig.model_validate({"name": "dualnet", "temperature": 3.0})
