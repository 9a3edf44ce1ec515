"""FFL against its formula and its public code: Σ CE + CE(z_f) + w·T²·[KL(z_a ‖ z_f) + Σ KL(z_f ‖ z_k)]."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from byhand import (
    ALPHA,
    CIFAR,
    POSITIONS,
    agrees,
    array,
    batch,
    fused,
    hold,
    make,
    mutual,
    names,
    reached,
    spread,
)

from okdc.methods.base import Batch
from okdc.methods.ffl import FFL, FFLConfig

NS = pytest.mark.parametrize("n", [2, 3, 4])


def ffl(n: int = 2, share: str = "low", **keys: Any) -> FFL:
    method = make("ffl", n, share, **keys)
    assert isinstance(method, FFL)
    return method


@NS
@pytest.mark.parametrize("t", POSITIONS)
@pytest.mark.parametrize("training", [True, False])
def test_every_term_equals_a_slow_transcription(
    training: bool, t: float, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fused classifier too: from the students' last maps, by loops over pixels."""
    method, z = ffl(n).train(training), spread(n)
    assert isinstance(method, FFL)
    images, labels, *_ = batch(n=5)
    z_f = torch.from_numpy(fused([array(own[-1]) for own in method.cohort(images)], method.fusion))
    hold(monkeypatch, method, z)
    step = method(Batch(images, labels), torch.tensor(t))
    torch.testing.assert_close(step.logits["fused"].double(), z_f, rtol=1e-4, atol=1e-5)
    agrees(step, mutual(z, z_f, labels, t, 3.0, ALPHA))
    assert list(step.logits) == [*(f"student{k}" for k in range(n)), "fused", "ensemble"]
    assert array(step.logits["ensemble"]) == pytest.approx(sum(array(z_k) for z_k in z) / n, rel=1e-5)


@pytest.mark.parametrize(("T", "alpha"), [(1.0, 0.0), (4.0, 1.0)])
@pytest.mark.parametrize("detach", [False, True])
def test_temperature_ramp_up_and_detaching_are_the_recipes(
    detach: bool, T: float, alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, z = ffl(temperature=T, rampup=alpha, detach_features=detach).eval(), spread(2)
    hold(monkeypatch, method, z)
    images, labels, *_ = batch(n=5)
    step = method(Batch(images, labels), torch.tensor(0.1))
    agrees(step, mutual(z, step.logits["fused"], labels, 0.1, T, alpha))


@NS
@pytest.mark.parametrize("detach", [False, True])
def test_the_fused_classifier_teaches_and_is_not_taught_by_its_students(detach: bool, n: int) -> None:
    method = ffl(n, "none", detach_features=detach)
    for k in range(n):
        own = names(method, f"cohort.students.{k}.")
        assert reached(method, f"ce_student{k}") == own
        assert reached(method, f"kl_fused_student{k}") == own


@NS
@pytest.mark.parametrize("share", ["low", "none"])
@pytest.mark.parametrize("term", ["ce_fused", "kl_ensemble_fused"])
def test_the_fused_terms_train_the_students_features_unless_these_are_detached(term: str, share: str, n: int) -> None:
    """The ensemble is detached: no head is moved."""
    method = ffl(n, share)
    features = names(method, *(f"cohort.students.{k}.stages." for k in range(n)))
    assert reached(method, term) == names(method, "fusion.") | features
    assert reached(ffl(n, share, detach_features=True), term) == names(method, "fusion.")


def test_resnet20_pairs_carry_10378_parameters_of_scaffolding() -> None:
    """Depthwise 128·9, its BN 256, pointwise 128·64, its BN 128, linear 65·10."""
    method = make("ffl", ["resnet20"] * 2, "low", CIFAR)
    inside = {id(p) for p in method.cohort.parameters()}
    assert sum(p.numel() for p in method.parameters() if id(p) not in inside) == 10_378
    assert sum(p.numel() for p in method.parameters() if id(p) not in inside) == 1152 + 256 + 8192 + 128 + 650


def test_students_of_other_widths_meet_at_the_smallest_map() -> None:
    """ResNet's 64 channels and WRN-16-2's 128 at 8×8 become 192, and 64 leave."""
    method = make("ffl", ["resnet8", "wrn16_2"], "none", CIFAR)
    assert isinstance(method, FFL)
    assert method.notes == ("fused classifier of 64×8×8 + 128×8×8, joined at 192×8×8, 64 channels",)
    step = method(batch(CIFAR), torch.tensor(0.5))
    assert step.logits["fused"].shape == (4, 10)


@pytest.mark.parametrize("keys", [{"temperature": 0.0}, {"rampup": -0.1}, {"attention": True}])
def test_a_table_that_means_nothing_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        FFLConfig.model_validate({"name": "ffl", **keys})
