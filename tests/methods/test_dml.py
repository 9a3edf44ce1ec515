"""DML against its formula: L_k = CE(z_k, y) + 1/(n-1) Σ_{l≠k} KL(z_l ‖ z_k), every peer detached."""

from __future__ import annotations

import pytest
import torch
from byhand import POSITIONS, agrees, array, batch, cross_entropy, divergence, hold, make, names, reached, spread
from torch import Tensor

from okdc.methods.base import Batch
from okdc.methods.dml import DMLConfig

NS = pytest.mark.parametrize("n", [2, 3, 4])


def transcription(z: Tensor, labels: Tensor, peers_summed: bool = False) -> dict[str, float]:
    n, terms = len(z), {}
    for k in range(n):
        terms[f"ce_student{k}"] = cross_entropy(z[k], labels)
        peers = 0.0
        for l in range(n):  # noqa: E741
            if l != k:
                peers += divergence(z[l], z[k], 1.0)
        terms[f"kl_peers_student{k}"] = peers if peers_summed else peers / (n - 1)
    return terms


@NS
@pytest.mark.parametrize("peers", ["mean", "sum"])
@pytest.mark.parametrize("t", POSITIONS)
def test_every_term_equals_a_slow_transcription_with_no_ramp_up(
    t: float, peers: str, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, z = make("dml", n, peers=peers), spread(n)
    hold(monkeypatch, method, z)
    images, labels, *_ = batch(n=5)
    step = method(Batch(images, labels), torch.tensor(t))
    agrees(step, transcription(z, labels, peers == "sum"))
    assert list(step.logits) == [*(f"student{k}" for k in range(n)), "ensemble"]
    assert array(step.logits["ensemble"]) == pytest.approx(sum(array(z_k) for z_k in z) / n, rel=1e-5)


def test_two_students_in_numbers() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2): student 1 learns KL(p ‖ q) = 0.1308, student 0 KL(q ‖ p) = 0.1438."""
    z = torch.tensor([[[3.0, 1.0]], [[1.0, 1.0]]]).log()
    found = transcription(z, torch.tensor([0]))
    assert found["kl_peers_student1"] == pytest.approx(0.1308, abs=1e-4)
    assert found["kl_peers_student0"] == pytest.approx(0.1438, abs=1e-4)
    assert found["ce_student0"] == pytest.approx(0.2877, abs=1e-4)


@NS
def test_a_students_terms_reach_that_student_alone(n: int) -> None:
    """Its peers are teachers: what one learns from another moves the other not at all."""
    method = make("dml", n)
    for k in range(n):
        own = names(method, f"cohort.students.{k}.")
        assert reached(method, f"ce_student{k}") == own
        assert reached(method, f"kl_peers_student{k}") == own


@NS
def test_one_backward_gives_each_network_the_gradient_of_its_own_loss(n: int) -> None:
    """So that a joint update is the separate ones of the paper, made at once."""
    method = make("dml", n).eval()
    losses = method(batch(), torch.tensor(0.5)).losses
    together = torch.autograd.grad(
        torch.stack(list(losses.values())).sum(), list(method.parameters()), retain_graph=True
    )
    for k in range(n):
        own = list(method.cohort.backbone(k).parameters())
        alone = torch.autograd.grad(losses[f"ce_student{k}"] + losses[f"kl_peers_student{k}"], own, retain_graph=True)
        where = {id(p): g for p, g in zip(method.parameters(), together, strict=True)}
        for p, gradient in zip(own, alone, strict=True):
            torch.testing.assert_close(where[id(p)], gradient, rtol=1e-4, atol=1e-6)


def test_peers_are_averaged_unless_the_recipe_says_otherwise() -> None:
    assert DMLConfig.model_validate({"name": "dml"}).peers == "mean"
    with pytest.raises(ValueError, match="peers"):
        DMLConfig.model_validate({"name": "dml", "peers": "max"})


def test_it_has_no_scaffolding_no_temperature_and_no_trunk() -> None:
    method = make("dml", 3, "low")
    assert {id(p) for p in method.parameters()} == {id(p) for p in method.cohort.parameters()}
    assert sum(p.numel() for p in method.parameters()) == 3 * 78_042
    for key in ("temperature", "rampup"):
        with pytest.raises(ValueError, match=key):
            DMLConfig.model_validate({"name": "dml", key: 1.0})


def test_losses_and_logits_are_float32_under_autocast() -> None:
    method = make("dml", 2)
    images, labels, *_ = batch()
    with torch.autocast("cpu", torch.bfloat16):
        step = method(Batch(images, labels), torch.tensor(0.5))
    assert {v.dtype for v in (*step.losses.values(), *step.logits.values())} == {torch.float32}
    agrees(step, transcription(torch.stack([step.logits["student0"], step.logits["student1"]]), labels))
