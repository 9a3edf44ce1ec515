from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from harness import no_waiting, recipe
from torch import nn

from okdc.assembly import job as assembly
from okdc.methods.base import Batch, Method
from okdc.recipe.schema import Optim
from okdc.training.optim import Rates, assert_same_strides, build_optimizer, rate


def method(*words: str) -> Method:
    return assembly.method(recipe(*words), torch.Size((3, 8, 8)), 10)[0]


def test_students_and_scaffolding_have_a_group_each_with_their_own_decay() -> None:
    made = method()
    students, auxiliary = build_optimizer(made, Optim()).param_groups
    assert {id(p) for p in students["params"]} == {id(p) for p in made.cohort.parameters()}
    outside = [p for name, p in made.named_parameters() if name.startswith(("paths.", "fusion."))]
    assert {id(p) for p in auxiliary["params"]} == {id(p) for p in outside}
    assert (students["weight_decay"], auxiliary["weight_decay"]) == (1e-4, 1e-5)


@pytest.mark.parametrize("optim", [Optim(), Optim(optimizer="adamw", decay_norm_and_bias=False)])
@pytest.mark.parametrize("words", [(), ("cohort.share=none",), ("method.name=baseline",)])
def test_every_trainable_parameter_is_in_exactly_one_group(words: tuple[str, ...], optim: Optim) -> None:
    made = method(*words)
    taken = [id(p) for group in build_optimizer(made, optim).param_groups for p in group["params"]]
    assert len(taken) == len(set(taken))
    assert set(taken) == {id(p) for p in made.parameters()}


def test_frozen_parameters_are_in_no_group() -> None:
    """A teacher's weights would otherwise decay."""
    made = method()
    made.teacher = nn.Linear(3, 4).requires_grad_(False)
    frozen = {id(p) for p in made.teacher.parameters()} | {id(p) for p in made.cohort.backbone(1).head.parameters()}
    made.cohort.backbone(1).head.requires_grad_(False)
    taken = {id(p) for group in build_optimizer(made, Optim()).param_groups for p in group["params"]}
    assert not taken & frozen
    assert taken == {id(p) for p in made.parameters() if p.requires_grad}


def test_a_method_without_scaffolding_has_one_group() -> None:
    assert [
        group["weight_decay"] for group in build_optimizer(method("method.name=baseline"), Optim()).param_groups
    ] == [1e-4]


def test_a_step_is_nesterovs_with_decay_by_hand() -> None:
    """v ← 0.9 v + g + λw; w ← w - lr (g + λw + 0.9 v), for both groups, the decay being each group's own."""
    made = method()
    optim = Optim(lr=0.5, weight_decay=0.1, aux_weight_decay=0.01)
    optimizer = build_optimizer(made, optim)
    weights = dict(made.named_parameters())
    for name, decay in (("cohort.students.0.head.fc.weight", 0.1), ("fusion.fc.weight", 0.01)):
        p = weights[name]
        w, v = p.detach().clone(), torch.zeros_like(p)
        for _ in range(3):
            p.grad = torch.full_like(p, 0.25)
            optimizer.step()
            g = 0.25 + decay * w
            v = 0.9 * v + g
            w = w - 0.5 * (g + 0.9 * v)
            torch.testing.assert_close(p.detach(), w)
        p.grad = None


def test_a_step_of_adamw_with_decay_by_hand() -> None:
    """w ← (1 - lr λ) w - lr m̂ / (√v̂ + ε), for both groups, the decay being each group's own."""
    made = method()
    optimizer = build_optimizer(
        made, Optim(optimizer="adamw", lr=0.5, betas=(0.8, 0.95), weight_decay=0.1, aux_weight_decay=0.01)
    )
    weights = dict(made.named_parameters())
    for name, decay in (("cohort.students.0.head.fc.weight", 0.1), ("fusion.fc.weight", 0.01)):
        p = weights[name]
        w, m, v = p.detach().clone(), 0.0, 0.0
        for t, g in enumerate((0.25, -1.0, 3.0), 1):
            p.grad = torch.full_like(p, g)
            optimizer.step()
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
            w = (1 - 0.5 * decay) * w - 0.5 * (m / (1 - 0.8**t)) / (math.sqrt(v / (1 - 0.95**t)) + 1e-8)
            torch.testing.assert_close(p.detach(), w)
        p.grad = None


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_norms_and_biases_are_spared_where_the_recipe_says_so(optimizer: Literal["sgd", "adamw"]) -> None:
    made = method()
    inside = {id(p) for p in made.cohort.parameters()}
    decays = {
        id(p): group["weight_decay"]
        for group in build_optimizer(made, Optim(optimizer=optimizer, decay_norm_and_bias=False)).param_groups
        for p in group["params"]
    }
    kinds = {
        (isinstance(layer, nn.Conv2d | nn.Linear) and name == "weight", id(p) in inside, decays[id(p)])
        for layer in made.modules()
        for name, p in layer.named_parameters(recurse=False)
    }
    assert kinds == {(True, True, 1e-4), (True, False, 1e-5), (False, True, 0.0), (False, False, 0.0)}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_each_group_has_the_rate_times_its_factor(optimizer: Literal["sgd", "adamw"]) -> None:
    made = build_optimizer(method(), Optim(optimizer=optimizer))
    made.param_groups[1]["factor"] = 0.25
    rates = Rates(made, torch.device("cpu"))
    rates.set(0.5)
    assert [group["lr"] for group in made.param_groups] == [0.5, 0.125]
    assert [group["lr"] for group in rates.state()["param_groups"]] == [0.5, 0.125]


@pytest.mark.gpu
def test_on_a_gpu_the_rates_are_tensors_there_and_numbers_in_a_checkpoint() -> None:
    made = build_optimizer(method().cuda(), Optim(optimizer="adamw"))
    made.param_groups[1]["factor"] = 0.25
    rates = Rates(made, torch.device("cuda"))
    with no_waiting():
        rates.set(0.5)
    first, second = (group["lr"] for group in made.param_groups)
    assert (first.item(), second.item()) == (0.5, 0.125)
    rates.set(0.25)
    assert (first.item(), second.item()) == (0.25, 0.0625)  # the same tensors, which a graph reads
    assert [group["lr"] for group in rates.state()["param_groups"]] == [0.25, 0.0625]


@pytest.mark.parametrize("steps", [1, 7, 390])
def test_the_step_schedule_drops_at_the_first_step_of_epochs_150_and_225(steps: int) -> None:
    """Counted from 0; one epoch too early or late is the usual mistake."""
    optim = Optim(epochs=300)
    whole = 300 * steps
    for epoch, before, after in ((150, 0.1, 0.01), (225, 0.01, 0.001)):
        first = epoch * steps
        assert rate(optim, (first - 1) / whole) == pytest.approx(before)
        assert rate(optim, first / whole) == pytest.approx(after)
    assert rate(optim, 0) == 0.1
    assert rate(optim, (whole - 1) / whole) == pytest.approx(0.001)


@pytest.mark.parametrize("milestone", [0.1, 0.3, 0.6, 0.7, 0.9])
def test_a_milestone_falls_on_its_step_in_spite_of_rounding(milestone: float) -> None:
    optim = Optim(milestones=(milestone,))
    for epochs in (10, 30, 200, 300):
        for steps in (1, 3, 7, 390):
            first = round(milestone * epochs) * steps
            assert rate(optim, first / (epochs * steps)) == pytest.approx(0.01)
            assert rate(optim, (first - 1) / (epochs * steps)) == 0.1


def test_the_cosine_schedule_goes_from_the_rate_to_almost_0() -> None:
    optim = Optim(schedule="cosine", lr=0.2)
    assert rate(optim, 0) == 0.2
    assert rate(optim, 0.5) == pytest.approx(0.1)
    assert rate(optim, 1) == pytest.approx(0)
    rates = [rate(optim, i / 100) for i in range(101)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("warmup", [None, 0.0, 0.1, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 33, 600])
def test_onecycle_is_torchs_at_every_step(steps: int, warmup: float | None) -> None:
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    rise = 0.3 if warmup is None else warmup  # torch's default
    try:
        scheduler = torch.optim.lr_scheduler.OneCycleLR(sgd, 0.02, steps, pct_start=rise, cycle_momentum=False)
    except ZeroDivisionError:
        return  # the rise is one step long: torch's has no rate for it
    optim, expected = Optim(schedule="onecycle", lr=0.02, warmup=warmup), []
    for _ in range(steps):
        expected.append(scheduler.get_last_lr()[0])
        sgd.step()
        if len(expected) < steps:
            scheduler.step()
    assert [rate(optim, i / steps, steps) for i in range(steps)] == pytest.approx(expected, rel=1e-9)


def test_onecycle_rises_within_one_step_where_the_rise_is_no_longer() -> None:
    optim = Optim(schedule="onecycle", lr=0.02, warmup=0.1)
    assert rate(optim, 0, 10) == 0.02
    assert rate(optim, 0.9, 10) == pytest.approx(0.02 / 25e4)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
@pytest.mark.parametrize(("steps", "rising"), [(10, 1), (10, 4), (300, 60)])
def test_a_warm_up_is_linear_and_its_last_step_has_the_whole_rate(
    schedule: Literal["step", "cosine"], steps: int, rising: int
) -> None:
    optim = Optim(schedule=schedule, lr=0.2, warmup=rising / steps)
    rates = [rate(optim, i / steps, steps) for i in range(steps)]
    assert rates[:rising] == pytest.approx([0.2 * (i + 1) / rising for i in range(rising)])
    if schedule == "step":
        assert rates[rising:] == [rate(Optim(lr=0.2), i / steps) for i in range(rising, steps)]
    else:
        left = steps - rising
        assert rates[rising:] == pytest.approx([rate(Optim(schedule="cosine", lr=0.2), i / left) for i in range(left)])


def test_a_warm_up_shorter_than_a_step_is_none() -> None:
    assert rate(Optim(warmup=0.01), 0, 10) == 0.1


def test_no_milestones_keep_the_rate() -> None:
    assert {rate(Optim(milestones=()), i / 10) for i in range(10)} == {0.1}


def test_a_gradient_that_lies_otherwise_than_its_weight_is_noticed() -> None:
    """The fused kernel on a CPU walks raw memory and would add it to the wrong weights without an error."""
    conv = nn.Conv2d(3, 4, 3, bias=False)
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1, momentum=0.9, fused=True)
    conv.weight.grad = torch.randn(4, 3, 3, 3)
    assert_same_strides(optimizer)
    conv.weight.grad = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    with pytest.raises(AssertionError, match="strides"):
        assert_same_strides(optimizer)
    conv.weight.grad = torch.randn(4, 3, 3, 3)
    optimizer.step()
    momentum = optimizer.state[conv.weight]["momentum_buffer"]
    optimizer.state[conv.weight]["momentum_buffer"] = momentum.to(memory_format=torch.channels_last)
    with pytest.raises(AssertionError, match="strides"):
        assert_same_strides(optimizer)


def test_dimensions_of_size_1_have_no_say_in_strides() -> None:
    """A depthwise or 1×1 kernel has other strides in channels_last and the same memory."""
    conv = nn.Conv2d(4, 4, 3, groups=4, bias=False)
    conv.weight.grad = torch.randn(4, 1, 3, 3).as_strided((4, 1, 3, 3), (9, 1, 3, 1))
    assert_same_strides(torch.optim.SGD(conv.parameters(), lr=0.1))


@pytest.mark.parametrize("optim", [Optim(lr=0.01), Optim(lr=0.001, optimizer="adamw")])
def test_fused_steps_in_channels_last_are_the_plain_ones(optim: Optim) -> None:
    def trained(fused: bool) -> list[torch.Tensor]:
        made = method().to(memory_format=torch.channels_last)
        optimizer = build_optimizer(made, optim)
        for group in optimizer.param_groups:
            assert group["fused"] is True
            group["fused"] = fused
        torch.manual_seed(0)
        for _ in range(3):
            images = torch.randn(8, 3, 8, 8).contiguous(memory_format=torch.channels_last)
            step = made(Batch(images, torch.randint(10, (8,))), torch.tensor(0.5))
            optimizer.zero_grad()
            torch.stack(list(step.losses.values())).sum().backward()
            optimizer.step()
        return [p.detach() for p in made.parameters()]

    for fused, plain in zip(trained(True), trained(False), strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
