"""ONE against its formula: Σ CE(z_i) + CE(z_e) + w·T²·Σ KL(z_e ‖ z_i), and its gate by loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from byhand import (
    ALPHA,
    CIFAR,
    POSITIONS,
    Array,
    agrees,
    array,
    batch,
    cross_entropy,
    divergence,
    hold,
    linear,
    make,
    names,
    normalised,
    reached,
    refused,
    softened,
    spread,
    weight,
)
from torch import Tensor

from okdc.methods.base import Batch
from okdc.methods.one import ONE, ONEConfig

NS = pytest.mark.parametrize("n", [2, 3, 4])
SHARES = pytest.mark.parametrize("share", ["low", "stem1"])


def one(n: int = 3, share: str = "low", **keys: Any) -> ONE:
    method = make("one", n, share, **keys)
    assert isinstance(method, ONE)
    return method


def gated(method: ONE, trunk: Array) -> Array:
    """The weights of the branches, N×n, from the trunk's last map: average, linear, BN, ReLU, softmax."""
    pooled = np.zeros(trunk.shape[:2])
    for b in range(trunk.shape[0]):
        for c in range(trunk.shape[1]):
            pooled[b, c] = trunk[b, c].sum() / trunk[b, c].size
    scores = np.maximum(normalised(linear(pooled, method.gate.linear), method.gate.bn), 0)
    return np.array([softened(row) for row in scores])


def transcription(z: Tensor, g: Array, labels: Tensor, t: float, T: float, alpha: float) -> dict[str, float]:
    n, images, classes = z.shape
    z_e = np.zeros((images, classes))
    for b in range(images):
        for m in range(classes):
            z_e[b, m] = sum(g[b, i] * float(z[i, b, m]) for i in range(n))
    terms = {"ce_gated": cross_entropy(z_e, labels)}
    for i in range(n):
        terms[f"ce_student{i}"] = cross_entropy(z[i], labels)
        terms[f"kl_gated_student{i}"] = weight(t, alpha) * divergence(z_e, z[i], T)
    return terms


@NS
@SHARES
@pytest.mark.parametrize("t", POSITIONS)
@pytest.mark.parametrize("training", [True, False])
def test_every_term_equals_a_slow_transcription(
    training: bool, t: float, share: str, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, z = one(n, share), spread(n)
    images, labels, *_ = batch(n=5)
    for _ in range(2):
        method(Batch(images + 0.3, labels), torch.tensor(0.0))  # the gate's batch statistics leave 0 and 1
    torch.nn.init.uniform_(method.gate.bn.weight, 0.5, 1.5)
    torch.nn.init.uniform_(method.gate.bn.bias, -0.5, 0.5)
    method.train(training)
    trunk = method.cohort(images)[0][{"low": 2, "stem1": 1}[share]]
    g = gated(method, array(trunk))
    assert g.std(0).max() > 1e-3, "a gate that gives every image the same would hide a wrong one"
    hold(monkeypatch, method, z)
    step = method(Batch(images, labels), torch.tensor(t))
    agrees(step, transcription(z, g, labels, t, 3.0, ALPHA))
    assert list(step.logits) == [*(f"student{k}" for k in range(n)), "gated"]
    assert step.logits["gated"].shape == (5, 10)


@pytest.mark.parametrize(("T", "alpha"), [(1.0, 0.0), (4.0, 1.0)])
def test_temperature_and_ramp_up_are_the_recipes(T: float, alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    method, z = one(temperature=T, rampup=alpha).eval(), spread(3)
    assert isinstance(method, ONE)
    images, labels, *_ = batch(n=5)
    g = gated(method, array(method.cohort(images)[0][2]))
    hold(monkeypatch, method, z)
    agrees(method(Batch(images, labels), torch.tensor(0.1)), transcription(z, g, labels, 0.1, T, alpha))


def test_the_gates_weights_are_positive_and_sum_to_one() -> None:
    method = one(4)
    images = batch(n=8).images
    g = method.gate(method.cohort(images)[0][2])
    assert g.shape == (8, 4)
    assert (g > 0).all()
    torch.testing.assert_close(g.sum(1), torch.ones(8))


@pytest.mark.parametrize(("share", "channels"), [("low", 32), ("stem1", 16)])
def test_the_gate_reads_the_last_map_that_the_branches_share(share: str, channels: int) -> None:
    assert one(3, share).gate.linear.in_features == channels
    assert make("one", ["resnet18"] * 2, "low", CIFAR).get_submodule("gate.linear").in_features == 256


@NS
def test_the_gate_learns_by_the_ensembles_cross_entropy_alone(n: int) -> None:
    """As a teacher the ensemble is detached: its divergence moves neither the gate nor another branch."""
    method = one(n)
    trunk = names(method, *(f"cohort.students.0.stages.{i}." for i in range(3)))
    gate = names(method, "gate.")
    # whatever a bias adds to a batch, BatchNorm takes away: its gradient is 0 but for rounding
    branches = [names(method, f"cohort.students.{k}.stages.3.", f"cohort.students.{k}.head.") for k in range(n)]
    for k in range(n):
        assert reached(method, f"ce_student{k}") == trunk | branches[k]
        assert reached(method, f"kl_gated_student{k}") == trunk | branches[k]
    moved = reached(method, "ce_gated") | {"gate.linear.bias"}
    assert moved == trunk | gate | set().union(*branches)


@NS
def test_the_trunk_learns_through_the_gate_too(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With answers that do not depend on the trunk, what is left of CE(z_e) reaches it by the gate alone."""
    method = one(n)
    hold(monkeypatch, method, spread(n, images=4))
    trunk = names(method, *(f"cohort.students.0.stages.{i}." for i in range(3)))
    assert reached(method, "ce_gated") | {"gate.linear.bias"} == trunk | names(method, "gate.")


@NS
def test_scaffolding_is_one_linear_layer_and_one_batch_norm(n: int) -> None:
    method = one(n)
    inside = {id(p) for p in method.cohort.parameters()}
    assert sum(p.numel() for p in method.parameters() if id(p) not in inside) == 32 * n + n + 2 * n


def test_without_a_trunk_there_is_nothing_for_the_gate_to_read() -> None:
    with refused(r"share='none'.*cohort\.share=low.*dml, kdcl, ffl, mfef, fefr"):
        one(2, "none")


def test_losses_and_logits_are_float32_under_autocast() -> None:
    method = one()
    images, labels, *_ = batch()
    with torch.autocast("cpu", torch.bfloat16):
        step = method(Batch(images, labels), torch.tensor(0.5))
    assert {v.dtype for v in (*step.losses.values(), *step.logits.values())} == {torch.float32}
    z_e = step.logits["gated"]
    assert step.losses["ce_gated"].item() == pytest.approx(cross_entropy(z_e, labels), rel=1e-5)
    for k in range(3):
        expected = divergence(z_e, step.logits[f"student{k}"], 3.0)
        assert step.losses[f"kl_gated_student{k}"].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("keys", [{"temperature": 0.0}, {"rampup": 1.5}, {"detach_features": True}])
def test_a_table_that_means_nothing_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        ONEConfig.model_validate({"name": "one", **keys})
