"""The one divergence and the one ramp-up, against numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from byhand import K, array, batch, make, softened, spread
from torch import Tensor

from okdc import methods
from okdc.errors import RecipeError
from okdc.methods.base import Batch, Config, cross_entropy, kl, ramp, targets

ALPHA = 80 / 300


def test_kl_is_the_teachers_expectation_by_hand() -> None:
    """KL((3/4, 1/4) ‖ (1/2, 1/2)) = 3/4 ln 3/2 + 1/4 ln 1/2; the other order would be 0.1438."""
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    assert kl(teacher, student, 1.0).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert kl(student, teacher, 1.0).item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))


def test_kl_with_a_temperature_is_scaled_by_its_square() -> None:
    teacher, student = torch.tensor([[3 * math.log(3.0), 0.0]]), torch.zeros(1, 2)
    assert kl(teacher, student, 3.0).item() == pytest.approx(9 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)))


def test_kl_is_summed_over_classes_and_averaged_over_the_batch() -> None:
    """reduction='mean' would divide by the number of classes too."""
    rows = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]), torch.zeros(2, 2)
    assert kl(*rows, 1.0).item() == pytest.approx((0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2)
    torch.manual_seed(0)
    z, y = torch.randn(5, 7), torch.randn(5, 7)
    assert kl(z.repeat(3, 1), y.repeat(3, 1), 2.0).item() == pytest.approx(kl(z, y, 2.0).item(), rel=1e-5)


def test_kl_equals_a_loop_over_images_and_classes() -> None:
    torch.manual_seed(0)
    z, y, T = 4 * torch.randn(6, 9), 4 * torch.randn(6, 9), 3.0
    total = 0.0
    for n in range(6):
        p = np.exp(z[n].double().numpy() / T)
        q = np.exp(y[n].double().numpy() / T)
        p, q = p / p.sum(), q / q.sum()
        for m in range(9):
            total += p[m] * math.log(p[m] / q[m])
    assert kl(z, y, T).item() == pytest.approx(T**2 * total / 6, rel=1e-5)


def test_kl_sends_its_teacher_no_gradient() -> None:
    """kl_div is a composite operation: a target that is not detached would receive one."""
    teacher, student = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    kl(teacher, student, 2.0).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_kl_of_bfloat16_logits_is_computed_in_float32() -> None:
    z, y = torch.randn(4, 10).bfloat16(), torch.randn(4, 10).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = kl(z, y, 3.0)
    assert found.dtype == torch.float32
    assert torch.equal(found, kl(z.float(), y.float(), 3.0))


def test_kl_stays_finite_where_a_class_has_no_chance() -> None:
    z = torch.tensor([[0.0, -1e4]])
    assert math.isfinite(kl(z, -z, 1.0).item())
    assert kl(z, z, 1.0).item() == 0


def test_the_ramp_starts_at_e_to_the_minus_5_and_is_1_from_its_length_on() -> None:
    assert ramp(torch.tensor(0.0), ALPHA).item() == pytest.approx(math.exp(-5))
    for t in (ALPHA, ALPHA + 1e-3, 0.6, 1.0):
        assert ramp(torch.tensor(t), ALPHA).item() == pytest.approx(1, abs=1e-6)
    assert ramp(torch.tensor(ALPHA / 2), ALPHA).item() == pytest.approx(math.exp(-1.25))


def test_the_ramp_has_the_values_of_80_epochs_in_300() -> None:
    for epoch, weight in ((10, 0.022), (20, 0.060), (40, 0.287), (60, 0.732)):
        assert ramp(torch.tensor(epoch / 300), ALPHA).item() == pytest.approx(weight, abs=6e-4)


@pytest.mark.parametrize("length", [ALPHA, 0.01, 1.0])
def test_the_ramp_never_falls(length: float) -> None:
    weights = ramp(torch.linspace(0, 1, 1001), length)
    assert (weights.diff() >= 0).all()
    assert (weights[: int(1000 * length)].diff() > 0).all()


def test_a_ramp_of_length_0_is_none() -> None:
    assert [ramp(torch.tensor(t), 0.0).item() for t in (0.0, 0.5, 1.0)] == [1, 1, 1]


@pytest.mark.parametrize("epochs", [20, 30, 60, 300])
def test_the_mean_weight_of_a_run_does_not_depend_on_its_epochs(epochs: int) -> None:
    """With 80 epochs whatever the run, thirty of them would have a mean of 0.05: no distillation."""
    steps = 5 * epochs
    weights = ramp(torch.arange(steps) / steps, ALPHA)
    assert weights.mean().item() == pytest.approx(0.837, abs=0.005)


def test_the_ramp_is_a_tensor_so_that_no_step_waits_for_the_device() -> None:
    found = ramp(torch.tensor(0.1), ALPHA)
    assert isinstance(found, torch.Tensor)
    assert found.shape == ()


@pytest.mark.parametrize("name", methods.METHODS.own)
def test_a_methods_table_is_the_one_in_its_brackets_and_explains_every_key(name: str) -> None:
    config = methods.find(name).Config
    assert issubclass(config, Config)
    assert config.__name__ == f"{methods.find(name).__name__}Config"
    table = {"name": name} | ({"teacher": "runs/x"} if name == "kd" else {})
    assert config.model_validate(table).model_dump()["name"] == name
    for key, field in config.model_fields.items():
        assert field.description, key
        assert field.description.endswith("."), key


def test_an_unknown_method_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'fefr'\?") as refused:
        methods.find("feffr")
    assert "baseline" in refused.value.hint


# ---------------------------------------------------------------------------------------------------------------------
# The cross-entropy of a batch


def a_batch(mixed: bool, n: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(0)
    labels, others = torch.randint(K, (2, n), generator=generator)
    mix = torch.rand(n, generator=generator, dtype=torch.float64) if mixed else None
    return Batch(torch.zeros(n, 3, 8, 8), labels, others if mixed else None, mix)


def by_loops(z: Tensor, batch: Batch, s: float, w: Tensor | None) -> float:
    """Σ_n Σ_c w_c q_nc (-log p_nc) / N, class by class in float64."""
    total = 0.0
    for n, row in enumerate(array(z)):
        parts = {int(batch.labels[n]): 1.0}
        if batch.mix is not None and batch.other_labels is not None:
            first, other, mix = int(batch.labels[n]), int(batch.other_labels[n]), float(batch.mix[n])
            parts = {first: mix} | {other: 1 - mix + (mix if other == first else 0)}
        for c, p in enumerate(softened(row)):
            w_c = 1.0 if w is None else float(w[c])
            total -= w_c * ((1 - s) * parts.get(c, 0.0) + s / len(row)) * math.log(p)
    return total / len(z)


FORMS = pytest.mark.parametrize(
    ("mixed", "s", "weighted"), list(itertools.product([False, True], [0.0, 0.1], [False, True]))
)


@FORMS
def test_cross_entropy_equals_loops_and_its_gradient_the_difference_quotient(
    mixed: bool, s: float, weighted: bool
) -> None:
    batch, z = a_batch(mixed), spread(1, 6)[0].double().requires_grad_()
    w = torch.linspace(0.2, 3, K, dtype=torch.float64) if weighted else None
    assert cross_entropy(z, batch, s, w).item() == pytest.approx(by_loops(z, batch, s, w), rel=1e-12)
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, batch, s, w), z)


@FORMS
def test_targets_are_distributions_that_give_the_same_cross_entropy(mixed: bool, s: float, weighted: bool) -> None:
    batch, z = a_batch(mixed), spread(1, 6)[0].double()
    w = torch.linspace(0.2, 3, K, dtype=torch.float64) if weighted else torch.ones(K, dtype=torch.float64)
    q = targets(batch, K, s).double()
    torch.testing.assert_close(q.sum(1), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-6)
    expected = -(w * q * z.log_softmax(1)).sum() / 6
    assert cross_entropy(z, batch, s, w if weighted else None).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("s", [0.0, 0.1])
@pytest.mark.parametrize("w", [None, torch.linspace(0.2, 3, K)])
def test_without_mixing_it_is_torchs_own_to_the_bit(w: Tensor | None, s: float) -> None:
    batch, z = a_batch(mixed=False), spread(1, 6)[0]
    reduction = "mean" if w is None else "none"  # of weighted errors torch's mean divides by the weights
    expected = F.cross_entropy(z, batch.labels, w, label_smoothing=s, reduction=reduction).mean()
    assert torch.equal(cross_entropy(z, batch, s, w), expected)
    one = batch._replace(other_labels=batch.labels.flip(0), mix=torch.ones(6))
    torch.testing.assert_close(cross_entropy(z, one, s, w), cross_entropy(z, batch, s, w))


@pytest.mark.parametrize("mixed", [False, True])
def test_the_weighted_loss_of_a_batch_is_the_mean_of_its_halves(mixed: bool) -> None:
    """As several processes take it: each its own part, and the mean of the gradients."""
    batch, z = a_batch(mixed), spread(1, 6)[0].double()
    w = torch.linspace(0.2, 3, K, dtype=torch.float64)
    halves = []
    for part in (slice(0, 3), slice(3, 6)):
        others, mix = (None if t is None else t[part] for t in (batch.other_labels, batch.mix))
        halves.append(cross_entropy(z[part], Batch(batch.images[part], batch.labels[part], others, mix), 0.1, w))
    torch.testing.assert_close(torch.stack(halves).mean(), cross_entropy(z, batch, 0.1, w))


def test_targets_by_hand() -> None:
    batch = Batch(torch.zeros(2, 1), torch.tensor([1, 0]), torch.tensor([3, 0]), torch.tensor([0.75, 0.5]))
    assert targets(batch._replace(mix=None), 4).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
    assert targets(batch, 4).tolist() == [[0, 0.75, 0, 0.25], [1, 0, 0, 0]]
    smooth = targets(batch, 4, 0.2)
    torch.testing.assert_close(smooth, torch.tensor([[0.05, 0.65, 0.05, 0.25], [0.85, 0.05, 0.05, 0.05]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_class_weights_take_logits_of_half_precision(dtype: torch.dtype) -> None:
    z, weights = torch.randn(4, K).to(dtype), torch.linspace(0.2, 3, K)
    torch.testing.assert_close(cross_entropy(z, batch(), 0.1, weights), cross_entropy(z.float(), batch(), 0.1, weights))


@pytest.mark.parametrize("name", methods.METHODS.own)
def test_every_methods_cross_entropies_are_the_batchs_as_smoothing_and_weights_say(name: str) -> None:
    """A method that called F.cross_entropy would take the labels of mixed images for whole ones."""
    keys: dict[str, Any] = {"byot": {"alpha": 0.0}}.get(name, {})  # which weighs its cross-entropies by 1 - α
    share = {"ce_student0": 0.8, "ce_student1": 0.8, "ce_hybrid": 0.2} if name == "okdph" else {}  # ω and 1 - ω
    method = make(name, 1 if methods.find(name).single else 2, "low", **keys).eval()
    plain = batch()
    mixed = plain._replace(other_labels=plain.labels.flip(0), mix=torch.tensor([0.9, 0.4, 0.7, 0.0]))
    learned = list(method.state_dict())
    for smoothing, weights in ((0.0, None), (0.2, torch.linspace(0.2, 3, K))):
        method.label_smoothing, method.class_weights = smoothing, weights
        step = method(mixed, torch.tensor(0.5))
        for term in [term for term in step.losses if term.startswith("ce_")]:
            expected = cross_entropy(step.logits[term.removeprefix("ce_")], mixed, smoothing, weights)
            torch.testing.assert_close(step.losses[term], share.get(term, 1.0) * expected)
    assert list(method.state_dict()) == learned, "what a recipe says is not learned"
