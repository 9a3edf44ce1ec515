"""OKDDip against its public code's formula; attention, mixtures and losses by loops over images, peers and classes."""

from __future__ import annotations

from typing import Any

import harness
import numpy as np
import pytest
import torch
from byhand import (
    ALPHA,
    POSITIONS,
    Array,
    agrees,
    array,
    batch,
    cross_entropy,
    divergence,
    hold,
    make,
    names,
    reached,
    refused,
    softened,
    spread,
    weight,
)
from torch import Tensor

from okdc.methods.base import Batch
from okdc.methods.okddip import OKDDip, OKDDipConfig
from okdc.runs.files import read_json
from okdc.training import selection as keep

NS = pytest.mark.parametrize("n", [2, 3, 4])


def okddip(n: int = 4, share: str = "low", **keys: Any) -> OKDDip:
    method = make("okddip", n, share, **keys)
    assert isinstance(method, OKDDip)
    return method


def sharpened(method: OKDDip) -> OKDDip:
    """Projections large enough that attention is far from uniform: a transposed one would show."""
    torch.manual_seed(3)
    torch.nn.init.normal_(method.query.weight, std=1.0)
    torch.nn.init.normal_(method.key.weight, std=1.0)
    return method


def attention(method: OKDDip, maps: list[list[Tensor]]) -> Array:
    """A_ab = softmax over b of (W_q h_a)·(W_k h_b), for each image: N×peers×peers."""
    peers = len(maps) - 1
    h = [array(own[-1]).mean((2, 3)) for own in maps[:peers]]
    W_q, W_k = array(method.query.weight), array(method.key.weight)
    found = np.zeros((len(h[0]), peers, peers))
    for b in range(len(h[0])):
        for p in range(peers):
            row = [float((W_q @ h[p][b]) @ (W_k @ h[other][b])) for other in range(peers)]
            found[b, p] = softened(row)
    return found


def transcription(z: Tensor, A: Array, labels: Tensor, t: float, T: float, alpha: float) -> dict[str, float]:
    """The leader is the last student; the code mixes logits."""
    peers, w = len(z) - 1, weight(t, alpha)
    terms = {f"ce_student{k}": cross_entropy(z[k], labels) for k in range(len(z))}
    for a in range(peers):
        t_a = np.zeros(z[0].shape)
        for image in range(len(t_a)):
            for b in range(peers):
                t_a[image] += A[image, a, b] * array(z[b, image])
        terms[f"kl_peers_student{a}"] = w * divergence(t_a, z[a], T)
    mean = sum((array(z[a]) for a in range(peers)), np.zeros(z[0].shape)) / peers
    terms[f"kl_mean_student{peers}"] = w * divergence(mean, z[peers], T)
    return terms


@NS
@pytest.mark.parametrize("t", POSITIONS)
@pytest.mark.parametrize(("T", "alpha"), [(3.0, ALPHA), (1.0, 0.0)])
def test_every_term_equals_a_slow_transcription(
    T: float, alpha: float, t: float, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = sharpened(okddip(n, temperature=T, rampup=alpha)).eval()
    assert isinstance(method, OKDDip)
    images, labels, *_ = batch(n=5)
    A, z = attention(method, method.cohort(images)), spread(n)
    if n > 2:
        assert abs(A - A.transpose(0, 2, 1)).max() > 0.05
        assert A.std(0).max() > 1e-3
    hold(monkeypatch, method, z)
    step = method(Batch(images, labels), torch.tensor(t))
    expected = transcription(z, A, labels, t, T, alpha)
    if n == 2:  # a single peer is its own teacher
        assert abs(step.losses["kl_peers_student0"].item()) < 1e-5
        assert expected.pop("kl_peers_student0") == 0
        step.losses.pop("kl_peers_student0")
    agrees(step, expected)


@NS
def test_every_student_and_what_teaches_the_leader_have_an_accuracy_column(n: int) -> None:
    step = okddip(n)(batch(), torch.tensor(0.0))
    assert list(step.logits) == [*(f"student{k}" for k in range(n)), "ensemble"]
    mean = sum((step.logits[f"student{k}"] for k in range(n - 1)), torch.zeros(())) / (n - 1)
    torch.testing.assert_close(step.logits["ensemble"], mean)


# ---------------------------------------------------------------------------------------------------------------------
# Who learns from what


@pytest.mark.parametrize("n", [3, 4])
def test_targets_are_not_detached_so_that_the_projections_and_the_other_peers_learn(n: int) -> None:
    """Detached, the two projections would have no gradient at all. The leader is no peer: nothing reaches it."""
    method = sharpened(okddip(n, "none"))
    peers = [names(method, f"cohort.students.{k}.") for k in range(n - 1)]
    for a in range(n - 1):
        found = reached(method, f"kl_peers_student{a}")
        assert names(method, "query.", "key.") <= found
        assert found == names(method, "query.", "key.") | set().union(*peers)


@NS
def test_the_peers_learn_from_teaching_the_leader_and_the_leader_teaches_nobody(n: int) -> None:
    method = okddip(n, "none")
    leader = names(method, f"cohort.students.{n - 1}.")
    peers = names(method, *(f"cohort.students.{k}." for k in range(n - 1)))
    assert reached(method, f"kl_mean_student{n - 1}") == leader | peers
    for k in range(n - 1):
        assert not reached(method, f"ce_student{k}", f"kl_peers_student{k}") & leader
    assert reached(method, f"ce_student{n - 1}") == leader


@pytest.mark.parametrize("n", [3, 4])
def test_gradients_are_those_of_the_formula_with_nothing_held_fixed(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With respect to the logits, by finite differences of the transcription: a detached target would give others."""
    method = sharpened(okddip(n)).eval()
    assert isinstance(method, OKDDip)
    images, labels, *_ = batch(n=2)
    A, z = attention(method, method.cohort(images)), spread(n, images=2).requires_grad_()
    hold(monkeypatch, method, z)
    (gradient,) = torch.autograd.grad(
        torch.stack(list(method(Batch(images, labels), torch.tensor(0.5)).losses.values())).sum(), z
    )
    generator = torch.Generator().manual_seed(2)
    for k in range(n):
        direction = torch.zeros(n, 2, 10, dtype=torch.float64)
        direction[k] = torch.randn(2, 10, generator=generator, dtype=torch.float64)
        ends = [
            sum(transcription(z.detach().double() + s * 1e-4 * direction, A, labels, 0.5, 3.0, ALPHA).values())
            for s in (-1, 1)
        ]
        assert (gradient.double() * direction).sum().item() == pytest.approx((ends[1] - ends[0]) / 2e-4, rel=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# What it is made of, and who is kept


@pytest.mark.parametrize(("factor", "inner"), [(8, 8), (1, 64), (3, 21), (1000, 1)])
def test_queries_and_keys_are_a_fraction_of_the_features_and_have_no_bias(factor: int, inner: int) -> None:
    method = okddip(3, factor=factor)
    inside = {id(p) for p in method.cohort.parameters()}
    assert [tuple(p.shape) for p in method.parameters() if id(p) not in inside] == [(inner, 64)] * 2


@NS
def test_the_leader_is_the_last_student_and_the_one_to_keep(n: int) -> None:
    students = "cohort.students=[" + ", ".join(["'resnet8'"] * n) + "]"
    job = harness.built(harness.recipe("method.name=okddip", students))
    assert job.method.leader == n - 1
    assert keep.candidates(job) == [n - 1]
    job = harness.built(harness.recipe("method.name=okddip", students, "cohort.keep=0"))
    assert keep.candidates(job) == [0], "who is named is kept"


@pytest.mark.parametrize(
    ("students", "kept"),
    [
        (["resnet8", "resnet8", "resnet8"], 2),  # all are the smallest: of these the leader
        (["resnet8", "resnet14", "resnet8"], 2),
        (["resnet8", "resnet8", "resnet14"], 0),  # the leader is no small student: the first of those that are
    ],
)
def test_the_smallest_is_the_leader_where_it_is_as_small_as_any(students: list[str], kept: int) -> None:
    words = f"cohort.students=[{', '.join(map(repr, students))}]"
    job = harness.built(harness.recipe("method.name=okddip", words, "cohort.share=none", "cohort.keep=smallest"))
    assert keep.candidates(job) == [kept]
    said = [note for note in job.notes if "keeps a peer" in note]
    assert bool(said) == (kept != 2), job.notes
    assert all("cohort.keep=smallest keeps a peer: cohort.keep=2 is the leader" in note for note in said)


def test_a_run_that_keeps_the_best_keeps_the_leader_of_its_best_epoch() -> None:
    run = harness.start("method.name=okddip", "optim.epochs=2")
    assert read_json(run.student)["student"] == 1
    accuracies = [row["val_top1_pct"]["student1"] for row in run.rows()]
    assert read_json(run.student)["val_top1_pct"] == max(accuracies)


def test_features_of_other_widths_are_refused_with_a_way_out() -> None:
    with refused(r"have 64, 128 channels; method\.name=fefr, mfef, dml or kdcl"):
        make("okddip", ["resnet8", "wrn16_2"])


def test_losses_and_logits_are_float32_under_autocast() -> None:
    method = okddip()
    images, labels, *_ = batch()
    with torch.autocast("cpu", torch.bfloat16):
        step = method(Batch(images, labels), torch.tensor(0.5))
    assert {v.dtype for v in (*step.losses.values(), *step.logits.values())} == {torch.float32}
    for k in range(4):
        expected = cross_entropy(step.logits[f"student{k}"], labels)
        assert step.losses[f"ce_student{k}"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("keys", [{"temperature": 0.0}, {"rampup": 1.5}, {"factor": 0}])
def test_a_table_that_means_nothing_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        OKDDipConfig.model_validate({"name": "okddip", **keys})
