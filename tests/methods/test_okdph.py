"""OKDPH against its losses by loops; the hybrid model as a function of the students, its draws, and the fusions."""

from __future__ import annotations

import math
from typing import Any

import harness
import numpy as np
import pytest
import torch
from byhand import SMALL, Array, agrees, array, batch, cross_entropy, divergence, hold, make, names, reached, refused
from byhand import spread as logits
from exchanging import PLAIN, drawn, views_of
from processes import together
from torch import Tensor

from okdc import backbones
from okdc.assembly import job as assembly
from okdc.errors import RecipeError
from okdc.methods.base import Batch
from okdc.methods.okdph import OKDPH, OKDPHConfig
from okdc.seeds import seeded
from okdc.training.device import Settings
from okdc.training.step import TrainStep

NS = pytest.mark.parametrize("n", [2, 3])
NAME = "method.name=okdph"


def okdph(n: int = 2, **keys: Any) -> OKDPH:
    method = make("okdph", n, **keys)
    assert isinstance(method, OKDPH)
    return method


def apart(method: OKDPH) -> OKDPH:
    """Its students differ, batch statistics included."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in (*method.cohort.parameters(), *method.cohort.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    return method


def transcription(z: Tensor, z_h: Array, labels: Tensor, omega: float, beta: float, T: float) -> dict[str, float]:
    n = len(z)
    z_a = z_h.copy()
    for z_i in z:
        z_a += array(z_i)
    z_a /= n + 1
    terms = {"ce_hybrid": (1 - omega) * cross_entropy(z_h, labels)}
    for i in range(n):
        terms[f"ce_student{i}"] = omega * cross_entropy(z[i], labels)
        terms[f"kl_ensemble_student{i}"] = beta * divergence(z_a, z[i], T)
    return terms


@NS
@pytest.mark.parametrize("t", [0.0, 0.9])
@pytest.mark.parametrize(("omega", "beta", "T"), [(0.8, 0.8, 4.0), (1.0, 0.5, 4.0), (0.3, 0.0, 1.0)])
def test_every_term_equals_a_slow_transcription(
    omega: float, beta: float, T: float, t: float, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = okdph(n, omega=omega, beta=beta, temperature=T)
    z, z_h = logits(n), logits(1, seed=4)[0]
    hold(monkeypatch, method, z)
    monkeypatch.setattr(method, "answer", lambda *_: z_h)
    images, labels, *_ = batch(n=5)
    step = method(Batch(images, labels), torch.tensor(t))
    agrees(step, transcription(z, array(z_h), labels, omega, beta, T))
    assert list(step.logits) == [*(f"student{k}" for k in range(n)), "hybrid", "ensemble"]
    mean = (sum(array(z_i) for z_i in z) + array(z_h)) / (n + 1)
    assert array(step.logits["ensemble"]) == pytest.approx(mean, rel=1e-5, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# The hybrid model


def by_hand(method: OKDPH, r: list[float]) -> dict[str, Tensor]:
    """Σ_i r_i·θ_i of parameters and statistics, in float64, under a student's names."""
    states = [network.state_dict() for network in method.cohort.backbones()]
    mixed = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            mixed[name] = first
            continue
        total = np.zeros(tuple(first.shape))
        for r_i, state in zip(r, states, strict=True):
            total = total + r_i * array(state[name])
        mixed[name] = torch.tensor(total).float()
    return mixed


@NS
@pytest.mark.parametrize("kind", ["mean", "dirichlet"])
@pytest.mark.parametrize("training", [True, False])
def test_it_is_a_network_of_the_mean_weights_and_statistics(kind: str, n: int, training: bool) -> None:
    method = apart(okdph(n, hybrid=kind)).train(training)
    several = views_of(n)
    network = backbones.build("resnet8", 10, SMALL)
    states = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    answer = method(several, torch.tensor(0.0)).logits["hybrid"]
    r = method.r.tolist()
    if kind == "dirichlet" and training:
        assert r != [1 / n] * n
        assert sum(r) == pytest.approx(1)
    else:
        assert r == pytest.approx([1 / n] * n)
    method.load_state_dict(states)
    network.load_state_dict(by_hand(method, r))
    torch.testing.assert_close(answer, network.train(training)(several.view(n)), rtol=1e-4, atol=1e-4)


def test_its_pass_moves_no_batch_statistics_of_a_student() -> None:
    """Each student has counted its own batch and no other."""
    method = apart(okdph())
    alone = backbones.build("resnet8", 10, SMALL)
    alone.load_state_dict(method.cohort.backbone(0).state_dict())
    several = views_of(2)
    method.train()(several, torch.tensor(0.0))
    alone.train()(several.images)
    expected = dict(alone.named_buffers())
    assert all(torch.equal(buffer, expected[name]) for name, buffer in method.cohort.backbone(0).named_buffers())
    assert {int(b) for name, b in method.cohort.named_buffers() if name.endswith("num_batches_tracked")} == {1}


@NS
def test_its_cross_entropy_reaches_every_student_with_its_share(n: int) -> None:
    """d/dθ_i CE(z_h) = r_i·d/dθ_h: the release's copy has no such gradient. It counts once, not once a student."""
    method = apart(okdph(n, hybrid="dirichlet", omega=0.25)).train()
    several = views_of(n)
    step = method(several, torch.tensor(0.0))
    r = method.r.tolist()
    step.losses["ce_hybrid"].backward()
    network = backbones.build("resnet8", 10, SMALL)
    network.load_state_dict(by_hand(method, r))
    (0.75 * torch.nn.functional.cross_entropy(network.train()(several.view(n)), several.labels)).backward()
    for i, student in enumerate(method.cohort.backbones()):
        for p, expected in zip(student.parameters(), network.parameters(), strict=True):
            assert p.grad is not None
            assert expected.grad is not None
            torch.testing.assert_close(p.grad, r[i] * expected.grad, rtol=1e-3, atol=1e-5)


@NS
def test_a_students_own_terms_reach_it_alone(n: int) -> None:
    method = apart(okdph(n))
    for i in range(n):
        own = names(method, f"cohort.students.{i}.")
        assert reached(method, f"ce_student{i}") == own
        assert reached(method, f"kl_ensemble_student{i}") == own
    assert reached(method, "ce_hybrid") == names(method, "cohort.")


def draws(count: int, n: int = 3) -> Array:
    method = okdph(n, hybrid="dirichlet").train()
    with seeded(0, "draws"):
        return np.stack([array(method.weights()) for _ in range(count)])


def test_dirichlets_weights_are_uniform_over_the_simplex() -> None:
    """Each weight of three has mean 1/3, variance 1/18 and falls below 0.1 in 19 % of the draws."""
    r = draws(4000)
    assert (r >= 0).all()
    assert r.sum(1) == pytest.approx(np.ones(4000), abs=1e-5)
    assert r.mean(0) == pytest.approx(np.full(3, 1 / 3), abs=0.02)
    assert r.var(0) == pytest.approx(np.full(3, 1 / 18), abs=0.005)
    assert (r < 0.1).mean(0) == pytest.approx(np.full(3, 0.19), abs=0.03)


def test_the_same_seed_and_step_draw_the_same_weights() -> None:
    assert (draws(5) == draws(5)).all()
    assert len(np.unique(draws(5)[:, 0])) == 5


def test_an_evaluation_draws_nothing() -> None:
    method = okdph(3, hybrid="dirichlet").eval()
    before = torch.get_rng_state()
    assert method.weights().tolist() == pytest.approx([1 / 3] * 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert not okdph().exchanges
    assert method.exchanges


def test_two_processes_draw_and_fuse_alike() -> None:
    (r, weights), (other, theirs) = together(2, drawn)
    assert r == other
    assert r != [0.5, 0.5]
    assert all((weights[name] == theirs[name]).all() for name in weights)


# ---------------------------------------------------------------------------------------------------------------------
# One start


def test_all_students_start_as_the_first_one() -> None:
    first, *others = [network.state_dict() for network in okdph(3).cohort.backbones()]
    plain = make("dml", 3).cohort.backbone(0).state_dict()
    for state in others:
        assert all(torch.equal(tensor, first[name]) for name, tensor in state.items())
    assert all(torch.equal(tensor, first[name]) for name, tensor in plain.items())


@pytest.mark.parametrize("labels", ["0123456789", "abcdefghij"])
def test_students_that_start_from_trained_weights_are_one_network_with_a_fresh_head_too(
    labels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head of other classes is given back after the method was built: each student would have one of its own."""
    job = harness.begun_elsewhere(monkeypatch, labels, ("ab", "ab"), NAME)
    first, second = (network.state_dict() for network in job.method.cohort.backbones())
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert {start.head for start in job.starts if start} == {"new" if labels[0] == "a" else "kept"}
    assert not [note for note in job.notes if "same network" in note], "that is what the method is about"


def test_different_weights_for_its_students_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError) as caught:
        harness.begun_elsewhere(monkeypatch, "0123456789", ("ab", "cd"), NAME)
    assert "start as one network" in "\n".join(caught.value.details)


def test_students_of_two_architectures_are_refused_with_a_way_out() -> None:
    with refused(r"resnet8, resnet14; method\.name=dml"):
        make("okdph", ["resnet8", "resnet14"])


# ---------------------------------------------------------------------------------------------------------------------
# Fusion


def trained(*words: str, steps: int = 6, fuse: bool = True, settings: Settings = PLAIN) -> list[dict[str, Tensor]]:
    """The method's state after each step of a run of so many."""
    job = harness.built(harness.recipe(NAME, *words))
    method = job.method.train()
    assert isinstance(method, OKDPH)
    if not fuse:
        method.after_step = lambda: None  # type: ignore[method-assign]
    step = TrainStep(method, job.recipe.optim, settings)
    states = []
    for number in range(steps):
        step(views_of(2, seed=number), number / steps)
        states.append({name: tensor.clone() for name, tensor in method.state_dict().items()})
    return states


def difference(state: dict[str, Tensor], kind: str = "") -> float:
    """The largest between the two students, in the tensors whose name holds `kind`."""
    pairs = (
        (t, state[name.replace("students.0.", "students.1.")])
        for name, t in state.items()
        if "students.0." in name and kind in name
    )
    return max(float((a - b).abs().max()) for a, b in pairs if a.is_floating_point())


def test_it_happens_once_an_interval_and_draws_students_towards_the_hybrid_model() -> None:
    """Six steps, an interval of a third: after the steps that begin at 2/6 and 4/6, to the bit nothing else."""
    with_fusion = trained("method.interval=0.33")
    without = trained("method.interval=0.33", fuse=False)
    for number in (0, 1):
        names_ = [name for name in without[number] if name.startswith("cohort.")]
        assert all(torch.equal(with_fusion[number][name], without[number][name]) for name in names_)
    for name, a in without[2].items():
        if "students.0." not in name:
            continue
        b = without[2][name.replace("students.0.", "students.1.")]
        if not a.is_floating_point():
            assert torch.equal(with_fusion[2][name], a)
            continue
        mean = (a.double() + b.double()) / 2
        for own, fused in ((a, with_fusion[2][name]), (b, with_fusion[2][name.replace("students.0.", "students.1.")])):
            torch.testing.assert_close(fused.double(), 0.5 * mean + 0.5 * own.double(), rtol=1e-5, atol=1e-7, msg=name)
    assert [int(state["fusions"]) for state in with_fusion] == [0, 0, 1, 1, 2, 2]
    assert difference(with_fusion[2], "running") > 0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("hybrid", ["mean", "dirichlet"])
def test_with_gamma_1_all_students_are_the_hybrid_model_and_their_views_part_them_again(
    hybrid: str, optimizer: str
) -> None:
    words = ("method.gamma=1", "method.interval=0.5", f"method.hybrid={hybrid}", f"optim.optimizer={optimizer}")
    states = trained(*words)
    assert [difference(state) > 0 for state in states] == [True, True, True, False, True, True]


def test_a_fusion_has_the_weights_that_the_step_has_drawn() -> None:
    method = apart(okdph(3, hybrid="dirichlet", gamma=1.0, interval=0.5)).train()
    states = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    method(views_of(3), torch.tensor(0.7))
    method.load_state_dict(states)  # the pass has moved batch statistics
    expected = by_hand(method, method.r.tolist())
    with torch.no_grad():
        method.after_step()
    for network in method.cohort.backbones():
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


def test_with_gamma_0_nothing_is_fused() -> None:
    assert_same(trained("method.gamma=0", "method.interval=0.1"), trained("method.gamma=0", fuse=False))


def assert_same(some: list[dict[str, Tensor]], others: list[dict[str, Tensor]]) -> None:
    for state, other in zip(some, others, strict=True):
        assert all(torch.equal(t, other[name]) for name, t in state.items() if name.startswith("cohort."))


def test_an_interval_below_a_step_fuses_after_every_step() -> None:
    states = trained("method.gamma=1", "method.interval=0.01")
    assert [difference(state) > 0 for state in states] == [True, False, False, False, False, False]


def test_momenta_stay_where_they_were() -> None:
    job = harness.built(harness.recipe(NAME, "method.gamma=1", "method.interval=0.5"))
    step = TrainStep(job.method.train(), job.recipe.optim, PLAIN)
    for number in range(4):
        step(views_of(2, seed=number), number / 4)
    assert difference({name: t for name, t in job.method.state_dict().items() if name != "fusions"}) > 0
    first, second = (
        [step.optimizer.state[p]["momentum_buffer"] for p in network.parameters()]
        for network in job.method.cohort.backbones()
    )
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Views


@NS
def test_student_k_sees_view_k_and_the_hybrid_model_the_last(n: int) -> None:
    method = apart(okdph(n)).eval()
    assert method.views == n
    several = views_of(n)
    heads = method(several, torch.tensor(0.0)).logits
    for k in range(n):
        torch.testing.assert_close(heads[f"student{k}"], method.cohort.backbone(k)(several.view(k)))
    alone = method.answer(several.view(n), method.weights())
    assert torch.equal(heads["hybrid"], alone)
    assert not torch.allclose(heads["hybrid"], method.answer(several.images, method.weights()))


def test_views_part_students_that_start_as_one_network() -> None:
    assert difference(trained("method.gamma=0", steps=1)[0]) > 1e-4


def test_augmentation_that_varies_nothing_is_refused() -> None:
    with refused("views"):
        assembly.assemble(harness.recipe(NAME, "augment.padding=0", "augment.flip=false"), 10)


# ---------------------------------------------------------------------------------------------------------------------
# Others


FOREIGN = (
    "weights:weight_norm_by_hook", "weights:spectral_norm", "weights:tied", "weights:pruned", "weights:lazy",
    "norms:batchnorm_cumulative", "norms:instancenorm_running", "dtypes:double_buffer", "attention:gru",
)  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_the_hybrid_model_of_equal_foreign_networks_answers_as_they_do_and_moves_none_of_them(name: str) -> None:
    method = make("okdph", [f"networks.{name}"] * 2, images=torch.Size((3, 32, 32))).eval()
    assert isinstance(method, OKDPH)
    images = batch(torch.Size((3, 32, 32))).images
    expected = method.cohort.backbone(0)(images)
    torch.testing.assert_close(method.answer(images, method.weights()), expected, rtol=1e-5, atol=1e-5)
    method.train()
    before = {key: buffer.clone() for key, buffer in method.cohort.named_buffers()}
    method.answer(images, method.weights()).square().sum().backward()
    assert all(torch.equal(buffer, before[key]) for key, buffer in method.cohort.named_buffers())
    assert not [key for key, p in method.cohort.named_parameters() if p.grad is None]


@pytest.mark.parametrize(
    "keys",
    [{"omega": 1.1}, {"beta": -1.0}, {"beta": math.inf}, {"gamma": 1.5}, {"interval": 0.0}, {"hybrid": "sum"}],
)  # fmt: skip
def test_a_table_that_means_nothing_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        OKDPHConfig.model_validate({"name": "okdph", **keys})
