"""DualNet against its formula: Σ CE(z_k) + CE(z_f), z_f from the sum of the students' pooled maps; no distillation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byhand import (
    POSITIONS,
    Array,
    agrees,
    array,
    batch,
    cross_entropy,
    hold,
    linear,
    make,
    names,
    reached,
    refused,
    spread,
    table,
)
from harness import start
from torch import Tensor

from okdc.errors import RecipeError
from okdc.methods.base import Batch
from okdc.methods.dualnet import DualNet, DualNetConfig
from okdc.training.optim import build_optimizer

NS = pytest.mark.parametrize("n", [2, 3, 4])


def dualnet(n: int = 2, **keys: Any) -> DualNet:
    method = make("dualnet", n, **keys)
    assert isinstance(method, DualNet)
    return method


def fused(method: DualNet, images: Tensor, share: float) -> Array:
    """Features are summed, each by its share, then pooled and classified. NK."""
    total = np.zeros((len(images), 64, 2, 2))
    for own in method.cohort(images):
        total += share * array(own[-1])
    return linear(total.mean((2, 3)), method.fc)


@NS
@pytest.mark.parametrize(("combine", "weight"), [("sum", 1.0), ("mean", 1.0), ("sum", 0.3), ("mean", 0.5)])
@pytest.mark.parametrize("t", POSITIONS)
def test_every_term_equals_a_slow_transcription_and_none_is_a_divergence(
    t: float, combine: str, weight: float, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, z = dualnet(n, combine=combine, weight=weight).eval(), spread(n)
    assert isinstance(method, DualNet)
    images, labels, *_ = batch(n=5)
    z_f = fused(method, images, 1 / n if combine == "mean" else 1.0)
    hold(monkeypatch, method, z)
    step = method(Batch(images, labels), torch.tensor(t))
    expected = {f"ce_student{k}": weight * cross_entropy(z[k], labels) for k in range(n)}
    agrees(step, {"ce_fused": cross_entropy(z_f, labels)} | expected)
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


# (turns, students) -> position in the training, whose turn it is, whether the fused classifier learns
TURNS = [
    (2, 2, 0.0, 0, False),
    (2, 2, 0.49, 0, False),
    (2, 2, 0.5, 1, True),
    (2, 2, 1.0, 1, True),
    (4, 2, 0.6, 0, True),
    (4, 2, 0.9, 1, True),
    (3, 3, 0.2, 0, False),
    (3, 3, 0.5, 1, True),
    (3, 3, 0.9, 2, True),
]


@pytest.mark.parametrize(("turns", "n", "t", "learner", "joined"), TURNS)
def test_in_turns_one_student_learns_and_with_the_second_turn_the_fused_classifier(
    turns: int, n: int, t: float, learner: int, joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, z = dualnet(n, turns=turns, weight=0.3, combine="mean").eval(), spread(n)
    assert isinstance(method, DualNet)
    images, labels, *_ = batch(n=5)
    z_f = fused(method, images, 1 / n)
    hold(monkeypatch, method, z)
    step = method(Batch(images, labels), torch.tensor(t))
    expected = {f"ce_student{k}": 0.0 for k in range(n)} | {"ce_fused": joined * cross_entropy(z_f, labels)}
    expected[f"ce_student{learner}"] = (0.3 if joined else 1.0) * cross_entropy(z[learner], labels)
    agrees(step, expected)


@pytest.mark.parametrize(("turns", "n", "t", "learner", "joined"), TURNS)
def test_in_turns_every_parameter_has_a_gradient_and_only_those_whose_turn_it_is_move(
    turns: int, n: int, t: float, learner: int, joined: bool
) -> None:
    """Momentum and weight decay would move the others: after a step of all, they are put back."""
    method = dualnet(n, turns=turns).train()
    optimizer = build_optimizer(method, table("dualnet").recipe.optim)

    def step(at: float) -> None:
        losses = method(batch(), torch.tensor(at)).losses
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        with torch.no_grad():
            method.after_step()

    for earlier in range(turns):  # everybody has momentum now
        step(earlier / turns)
    before = {name: p.detach().clone() for name, p in method.named_parameters() if p.requires_grad}
    step(t)
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    gradients = {name for name, p in trained.items() if p.grad is not None and p.grad.abs().sum() > 0}
    own = names(method, f"cohort.students.{learner}.")
    assert gradients == own | (names(method, "fc.") if joined else set())
    moved = {name for name, p in trained.items() if not torch.equal(p, before[name])}
    assert moved - names(method, "fc.") == own


def test_fixed_students_come_back_as_they_were_after_a_resume() -> None:
    method = dualnet(turns=2).train()
    method(batch(), torch.tensor(0.9))
    again = dualnet(turns=2)
    again.load_state_dict(method.state_dict())
    assert int(again.learner) == int(method.learner) == 1
    with torch.no_grad():
        for p in again.cohort.parameters():
            p.add_(1)
        again.after_step()
    for k, moved in ((0, 0.0), (1, 1.0)):
        for p, q in zip(again.cohort.backbone(k).parameters(), method.cohort.backbone(k).parameters(), strict=True):
            torch.testing.assert_close(p, q + moved)


def test_fewer_turns_than_students_are_refused() -> None:
    with refused("turns=2 of 3 students"):
        dualnet(3, turns=2)
    with refused("turns=1 of 2 students"):
        dualnet(2, turns=1)


@NS
def test_scaffolding_is_one_linear_layer_and_nothing_is_shared(n: int) -> None:
    method = make("dualnet", n, "low")
    assert sum(p.numel() for p in method.parameters()) == n * 78_042 + 64 * 10 + 10


def test_features_of_other_widths_cannot_be_summed() -> None:
    with refused(r"have 64, 128 channels; method\.name=ffl with cohort\.share=none, mfef"):
        make("dualnet", ["resnet8", "wrn16_2"])


def test_losses_and_logits_are_float32_under_autocast() -> None:
    method = dualnet()
    images, labels, *_ = batch()
    with torch.autocast("cpu", torch.bfloat16):
        step = method(Batch(images, labels), torch.tensor(0.5))
    assert {v.dtype for v in (*step.losses.values(), *step.logits.values())} == {torch.float32}
    for name in ("student0", "student1", "fused"):
        expected = cross_entropy(step.logits[name], labels)
        assert step.losses[f"ce_{name}"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "keys", [{"temperature": 3.0}, {"weight": -1.0}, {"weight": 0.0}, {"turns": -1}, {"combine": "max"}]
)
def test_a_table_that_means_nothing_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        DualNetConfig.model_validate({"name": "dualnet", **keys})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("method.turns=9", "optim.epochs=4"), r"9 parts: expected at least 9 steps, found 8"),
        (("method.turns=2", "optim.patience=2", "cohort.keep_epoch=best"), r"optim\.patience=2 could end"),
    ],
)
def test_a_training_that_would_leave_a_turn_out_is_refused_before_it_begins(words: tuple[str, ...], said: str) -> None:
    """64 images in batches of 32: two steps an epoch."""
    with pytest.raises(RecipeError) as caught:
        start("method.name=dualnet", "data.train_images=64", "optim.batch_size=32", *words)
    assert re.search(said, "\n".join(caught.value.details))
    assert not Path("runs").exists()


def test_as_many_turns_as_steps_are_taken() -> None:
    run = start(
        "method.name=dualnet", "data.train_images=64", "optim.batch_size=32", "method.turns=8", "optim.epochs=4"
    )
    assert all(row["losses"][f"ce_student{k}"] > 0 for row in run.rows() for k in (0, 1))


def test_by_default_all_learn_jointly_with_weight_1_from_a_sum() -> None:
    keys = DualNetConfig.model_validate({"name": "dualnet"})
    assert (keys.combine, keys.weight, keys.turns) == ("sum", 1.0, 0)
