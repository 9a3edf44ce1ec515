"""KD against its formula: CE(z, y) + α·T²·KL(z_t ‖ z), and a teacher that nothing moves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from byhand import agrees, batch, cross_entropy, divergence, hold, make, names, reached, spread, table, teacher
from torch import nn

from okdc.assembly import job as assembly
from okdc.methods.base import Batch, Method
from okdc.methods.kd import KD, KDConfig
from okdc.training.optim import build_optimizer


def kd(**keys: Any) -> KD:
    method = make("kd", 1, **keys)
    assert isinstance(method, KD)
    return method


class Answers(nn.Module):
    """A teacher that gives fixed logits."""

    def __init__(self, z: torch.Tensor) -> None:
        super().__init__()
        self.z = nn.Buffer(z)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return self.z


@pytest.mark.parametrize(
    ("T", "alpha", "gamma"),
    [(1.0, 0.0, 1.0), (3.0, 1.0, 1.0), (3.0, 0.5, 1.0), (4.0, 0.9, 0.1), (2.0, 1.0, 0.0)],  # the fourth: RepDistiller's
)
def test_every_term_equals_a_slow_transcription(
    T: float, alpha: float, gamma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, z_t = spread(2)
    recipe = table("kd", ["resnet8"], temperature=T, alpha=alpha, ce_weight=gamma)
    method, _ = assembly.method(recipe, torch.Size((3, 8, 8)), 10, Answers(z_t))
    hold(monkeypatch, method, z[None])
    images, labels, *_ = batch(n=5)
    step = method(Batch(images, labels), torch.tensor(0.0))
    agrees(
        step,
        {"ce_student0": gamma * cross_entropy(z, labels), "kl_teacher_student0": alpha * divergence(z_t, z, T)},
    )
    assert list(step.logits) == ["student0", "teacher"]
    assert torch.equal(step.logits["teacher"], z_t)
    assert torch.equal(step.logits["student0"], z)


def test_there_is_no_ramp_up() -> None:
    method = kd().eval()
    first, last = (method(batch(), torch.tensor(t)).losses for t in (0.0, 1.0))
    assert all(torch.equal(first[name], last[name]) for name in first)


def test_the_defaults_are_those_of_the_online_losses() -> None:
    config = KDConfig.model_validate({"name": "kd", "teacher": "runs/a-1"})
    assert (config.temperature, config.alpha, config.ce_weight) == (3.0, 1.0, 1.0)


def test_both_terms_reach_the_whole_student_and_never_the_teacher() -> None:
    method = kd()
    for term in ("ce_student0", "kl_teacher_student0"):
        assert reached(method, term) == names(method, "cohort.")
    assert all(p.grad is None for p in method.get_submodule("teacher").parameters())


def teacher_of(method: Method) -> nn.Module:
    assert method.teacher is not None
    return method.teacher


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_a_teacher_stays_what_it_was_through_training_steps() -> None:
    """A container's train() would set its batch statistics moving, and weight decay would shrink its weights."""
    method = kd()
    before = state(method.get_submodule("teacher"))
    assert any(not torch.equal(v, torch.zeros_like(v)) for k, v in before.items() if k.endswith("running_mean"))
    optimizer = build_optimizer(method, table("kd", ["resnet8"]).recipe.optim)
    for _ in range(2):
        assert method.train() is method
        assert method.training
        assert method.cohort.training
        assert not any(m.training for m in method.get_submodule("teacher").modules())
        losses = method(batch(), torch.tensor(0.5)).losses
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    after = method.get_submodule("teacher").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad for p in method.get_submodule("teacher").parameters())
    frozen = {id(p) for p in method.get_submodule("teacher").parameters()}
    assert not frozen & {id(p) for group in optimizer.param_groups for p in group["params"]}


def test_the_teacher_answers_as_it_does_alone() -> None:
    method = kd().train()
    images, labels, *_ = batch()
    alone = teacher().eval()
    with torch.no_grad():
        assert torch.equal(method(Batch(images, labels), torch.tensor(0.0)).logits["teacher"], alone(images))


def test_it_trains_the_first_student_of_a_recipe_alone() -> None:
    recipe = table("kd", ["resnet14", "resnet8"], "low")
    method, words = assembly.method(recipe, torch.Size((3, 8, 8)), 10, teacher())
    assert len(method.cohort.students) == 1
    assert sum(p.numel() for p in method.cohort.parameters()) == 175_258
    assert "resnet14" in words


def test_losses_and_logits_are_float32_under_autocast() -> None:
    method: Method = kd()
    images, labels, *_ = batch()
    with torch.autocast("cpu", torch.bfloat16):
        step = method(Batch(images, labels), torch.tensor(0.5))
    assert {v.dtype for v in (*step.losses.values(), *step.logits.values())} == {torch.float32}
    z, z_t = step.logits["student0"], step.logits["teacher"]
    agrees(step, {"ce_student0": cross_entropy(z, labels), "kl_teacher_student0": divergence(z_t, z, 3.0)})


@pytest.mark.parametrize(
    "keys",
    [
        {"temperature": 0.0},
        {"alpha": -1.0},
        {"alpha": math.inf},
        {"ce_weight": -0.1},
        {"ce_weight": 0, "alpha": 0},
        {"teacher": ""},
        {"share": "low"},
    ],
)
def test_a_table_that_means_nothing_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        KDConfig.model_validate({"name": "kd", "teacher": "runs/a-1", **keys})


def test_a_teacher_has_to_be_named() -> None:
    with pytest.raises(ValueError, match="teacher"):
        KDConfig.model_validate({"name": "kd"})
