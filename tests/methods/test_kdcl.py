"""KDCL against its formula: CE(z_i, y) + λ·T²·KL(z_t ‖ z_i); its three teachers by loops and by a solver."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from asking import tried
from byhand import (
    POSITIONS,
    Array,
    K,
    agrees,
    array,
    batch,
    cross_entropy,
    divergence,
    hold,
    make,
    names,
    reached,
    spread,
)
from harness import no_waiting
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls
from torch import Tensor

from okdc.methods.base import Batch
from okdc.methods.kdcl import KDCLConfig, target_logits

NS = pytest.mark.parametrize("n", [2, 3, 4])
KINDS = ("naive", "linear", "minlogit")


def labels_of(images: int, seed: int = 0) -> Tensor:
    return torch.randint(10, (images,), generator=torch.Generator().manual_seed(seed))


def hot(labels: Tensor) -> Tensor:
    return F.one_hot(labels, K).float()


def one(z: Array, label: int) -> float:
    """Cross-entropy of one image's logits."""
    top = z.max()
    return float(top + math.log(sum(math.exp(v - top) for v in z)) - z[label])


# ---------------------------------------------------------------------------------------------------------------------
# The teachers


@NS
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_the_naive_teacher_is_for_each_image_the_student_with_the_least_cross_entropy(scale: float, n: int) -> None:
    z, labels = spread(n, 40, scale), labels_of(40)
    found = target_logits("naive", z, hot(labels))
    chosen = set()
    for b in range(40):
        errors = [one(array(z[i, b]), int(labels[b])) for i in range(n)]
        best = errors.index(min(errors))
        chosen.add(best)
        assert torch.equal(found[b], z[best, b])
    assert chosen == set(range(n)), "every student is the best of some image"


@NS
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_minlogit_is_the_least_of_each_class_counted_from_the_true_ones(scale: float, n: int) -> None:
    z, labels = spread(n, 40, scale), labels_of(40)
    found = array(target_logits("minlogit", z, hot(labels)))
    for b in range(40):
        y = int(labels[b])
        for m in range(10):
            least = min(float(z[i, b, m]) - float(z[i, b, y]) for i in range(n))
            assert found[b, m] == pytest.approx(least, rel=1e-5, abs=1e-5)
        assert found[b, y] == 0
        assert one(found[b], y) <= min(one(array(z[i, b]), y) for i in range(n)) + 1e-5, "no worse than any student"


def least(z: Array, label: int) -> float:
    """The least cross-entropy of a convex combination of z, n×K: a solver from several starts, every corner, a grid."""
    n = len(z)

    def error(alpha: Array) -> float:
        return one(alpha @ z, label)

    def gradient(alpha: Array) -> Array:
        mixed = alpha @ z
        p = np.exp(mixed - mixed.max())
        result: Array = z @ (p / p.sum()) - z[:, label]
        return result

    corners = list(np.eye(n))
    grid = [
        np.array([*cuts, 12 - sum(cuts)]) / 12 for cuts in itertools.product(range(13), repeat=n - 1) if sum(cuts) <= 12
    ]
    found = [error(alpha) for alpha in corners + grid]
    start = (corners + grid)[int(np.argmin(found))]
    for first in (start, np.full(n, 1 / n), 0.9 * start + 0.1 / n):
        solved = minimize(
            error,
            first,
            jac=gradient,
            method="SLSQP",
            bounds=[(0, 1)] * n,
            constraints={"type": "eq", "fun": lambda alpha: alpha.sum() - 1, "jac": lambda alpha: np.ones_like(alpha)},
            options={"ftol": 1e-12, "maxiter": 200},
        )
        alpha = np.clip(solved.x, 0, None)
        found.append(error(alpha / alpha.sum()))
    return min(found)


def bound(n: int) -> float:
    """By how much of the logits' standard deviation the cross-entropy may exceed the least one, for an image."""
    return 0.03 if n > 2 else 0.0


def is_convex_combination(t: Array, z: Array) -> bool:
    """Whether t is Σ α_i z_i with α_i ≥ 0 and Σ α_i = 1, up to rounding."""
    size = abs(z).max()
    _, residual = nnls(np.vstack([z.T, size * np.ones(len(z))]), np.append(t, size))
    return bool(residual < 1e-4 * size)


@pytest.mark.parametrize(
    ("n", "scale"), [(2, 1.0), (2, 20.0), (3, 1.0), (3, 5.0), (3, 20.0), (4, 1.0), (4, 5.0), (4, 20.0)]
)
def test_the_linear_teacher_is_the_convex_combination_with_the_least_cross_entropy(n: int, scale: float) -> None:
    z, labels = spread(n, 40, scale), labels_of(40)
    found = array(target_logits("linear", z, hot(labels)))
    inside, excess = 0, []
    for b in range(40):
        own, y = array(z[:, b]), int(labels[b])
        reached_, best = one(found[b], y), least(own, y)
        excess.append(reached_ - best)
        assert is_convex_combination(found[b], own)
        inside += best < min(one(z_i, y) for z_i in own) - 1e-3
    assert inside >= 5, "where the best is one student alone nothing was solved"
    assert max(excess) <= 1e-4 + bound(n) * scale
    assert sum(excess) / 40 <= 1e-4 + bound(n) * scale / 30


def test_the_linear_teacher_of_students_that_agree_is_what_they_say() -> None:
    z = spread(1, 6).expand(3, -1, -1)
    torch.testing.assert_close(target_logits("linear", z, hot(labels_of(6))), z[0])


@tried
@given(st.integers(0, 10_000), st.integers(2, 4), st.sampled_from([0.1, 1.0, 5.0, 50.0]))
def test_the_linear_teacher_is_no_worse_than_any_student_nor_their_mean(seed: int, n: int, scale: float) -> None:
    z, labels = spread(n, 8, scale, seed), labels_of(8, seed)
    found = array(target_logits("linear", z, hot(labels)))
    for b in range(8):
        y, own = int(labels[b]), array(z[:, b])
        least_known = min(*(one(z_i, y) for z_i in own), one(own.mean(0), y))
        assert one(found[b], y) <= least_known + 1e-4 + bound(n) * scale
        assert is_convex_combination(found[b], own)


@NS
@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_is_finite_and_the_same_for_students_far_from_zero(kind: str, n: int) -> None:
    """Softmax does not see a constant, and a teacher is taken through softmax."""
    z, labels = (spread(n, 10) * 2**12).round() / 2**12, labels_of(10)  # so that z + 100 is exact
    plain, moved = (target_logits(kind, logits, hot(labels)).log_softmax(1) for logits in (z, z + 100))
    assert torch.isfinite(moved).all()
    torch.testing.assert_close(plain, moved, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# The losses


@NS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", POSITIONS)
@pytest.mark.parametrize(("T", "lam"), [(3.0, 1.0), (1.0, 0.5), (2.0, 0.0)])
def test_every_term_equals_a_slow_transcription_with_no_ramp_up(
    T: float, lam: float, t: float, kind: str, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, z = make("kdcl", n, target=kind, temperature=T, weight=lam), spread(n)
    hold(monkeypatch, method, z)
    images, labels, *_ = batch(n=5)
    z_t = target_logits(kind, z, hot(labels))
    step = method(Batch(images, labels), torch.tensor(t))
    expected = {f"ce_student{i}": cross_entropy(z[i], labels) for i in range(n)}
    expected |= {f"kl_teacher_student{i}": lam * divergence(z_t, z[i], T) for i in range(n)}
    agrees(step, expected)
    assert list(step.logits) == [*(f"student{k}" for k in range(n)), "ensemble"]
    assert array(step.logits["ensemble"]) == pytest.approx(sum(array(z_k) for z_k in z) / n, rel=1e-5)


@NS
@pytest.mark.parametrize("kind", KINDS)
def test_a_students_terms_reach_that_student_alone(kind: str, n: int) -> None:
    """The teacher is made of all students' logits and is detached."""
    method = make("kdcl", n, target=kind)
    for k in range(n):
        own = names(method, f"cohort.students.{k}.")
        assert reached(method, f"ce_student{k}") == own
        if kind != "naive":  # where it is the best itself it has nothing to learn
            assert reached(method, f"kl_teacher_student{k}") == own
        assert reached(method, f"kl_teacher_student{k}") <= own


@NS
def test_each_student_sees_a_view_of_its_own_if_asked_and_all_one_otherwise(n: int) -> None:
    method, alone = make("kdcl", n, views="own").eval(), make("kdcl", n).eval()
    assert (method.views, alone.views) == (n - 1, 0)
    images, labels, *_ = batch()
    several = Batch(images, labels, views=tuple(images + k for k in range(1, n)))
    logits = method(several, torch.tensor(0.0)).logits
    for k in range(n):
        torch.testing.assert_close(logits[f"student{k}"], method.cohort.backbone(k)(images + k))


def test_it_has_no_scaffolding_and_no_trunk() -> None:
    method = make("kdcl", 3, "low")
    assert {id(p) for p in method.parameters()} == {id(p) for p in method.cohort.parameters()}
    assert sum(p.numel() for p in method.parameters()) == 3 * 78_042


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_logits_are_float32_under_autocast(kind: str) -> None:
    method = make("kdcl", 3, target=kind)
    images, labels, *_ = batch()
    with torch.autocast("cpu", torch.bfloat16):
        step = method(Batch(images, labels), torch.tensor(0.5))
    assert {v.dtype for v in (*step.losses.values(), *step.logits.values())} == {torch.float32}
    z = torch.stack([step.logits[f"student{k}"] for k in range(3)])
    z_t = target_logits(kind, z, hot(labels))
    for k in range(3):
        expected = divergence(z_t, z[k], 3.0)
        assert step.losses[f"kl_teacher_student{k}"].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_is_made_on_a_gpu_without_waiting_for_it(kind: str) -> None:
    z, labels = spread(3, 16).cuda(), labels_of(16).cuda()
    target_logits(kind, z, hot(labels))
    with no_waiting():
        found = target_logits(kind, z, hot(labels))
    torch.testing.assert_close(found.cpu(), target_logits(kind, z.cpu(), hot(labels.cpu())), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "keys",
    [
        {"target": "general"},
        {"target": "mean"},
        {"temperature": 0.0},
        {"weight": -1.0},
        {"weight": math.inf},
        {"views": "two"},
    ],
)
def test_a_table_that_means_nothing_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        KDCLConfig.model_validate({"name": "kdcl", **keys})
