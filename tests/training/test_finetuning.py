"""Backbones that start from trained weights: what stays fixed in the first epochs, and what learns more slowly."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import compilers
import pytest
import torch
from byhand import SMALL
from harness import CALLS, Quiet, built, outcome, recipe, resume, signalled, start, train
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

from okdc import backbones
from okdc.assembly.beginnings import Finetuned
from okdc.assembly.job import Job
from okdc.errors import Interrupted, RecipeError
from okdc.methods.base import Batch
from okdc.training import compiling, device, step
from okdc.training import start as starts
from okdc.training.finetuning import Backbones
from okdc.training.optim import build_optimizer

ADAMW = ("optim.optimizer=adamw", "optim.lr=0.001")


@pytest.fixture(autouse=True)
def weights() -> None:
    """A file of weights, whose head is for other classes."""
    torch.manual_seed(4)
    network = backbones.build("resnet8", 7, SMALL)
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer += torch.rand_like(buffer)
    save_file(network.weights(), "w.safetensors")


FROM = "cohort.weights=w.safetensors"
FIXED = (FROM, "optim.freeze_epochs=2")


def copied(job: Job) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in job.method.state_dict().items()}


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def backbone(names: Mapping[str, Tensor], *students: int) -> set[str]:
    inside = {name for name in names for k in students if name.startswith(f"cohort.students.{k}.")}
    return {name for name in inside if ".head.fc." not in name}


# ---------------------------------------------------------------------------------------------------------------------
# Fixed


@pytest.mark.parametrize("more", [(), ADAMW, ("cohort.share=none",)])
def test_a_fixed_backbone_stays_to_the_bit_and_all_else_learns(more: tuple[str, ...]) -> None:
    """Weights, which would decay, batch statistics and the counts of batches."""
    job = built(recipe(FROM, "optim.freeze_epochs=1", "optim.epochs=1", *more))
    before = copied(job)
    train(job)
    changed = moved(before, job.method.state_dict())
    assert changed == set(before) - backbone(before, 0, 1)
    assert {name for name in changed if name.startswith("cohort.students.0.head.fc.")}
    assert [name for name in changed if not name.startswith("cohort.")]


def test_after_the_first_epochs_the_backbone_learns_and_the_run_says_both() -> None:
    job = built(recipe(*FIXED))
    before, tell = copied(job), Quiet()
    train(job, tell)
    assert moved(before, job.method.state_dict()) >= {name for name in backbone(before, 0) if "weight" in name}
    fixed = "the backbones are fixed up to epoch 2: heads and all else learn"
    assert [note for note in tell.notes if "backbones" in note] == [fixed, "the backbones learn from epoch 3 on"]


def test_only_students_that_start_from_weights_are_fixed() -> None:
    words = ("cohort.share=none", "cohort.weights=['w.safetensors', 'none']", "optim.freeze_epochs=1", "optim.epochs=1")
    job = built(recipe(*words))
    before = copied(job)
    train(job)
    changed = moved(before, job.method.state_dict())
    assert not changed & backbone(before, 0)
    assert changed >= {name for name in backbone(before, 1) if name.endswith("weight")}


def test_an_extraction_of_which_no_weights_are_learns_at_once() -> None:
    job = built(recipe(FROM, "optim.freeze_epochs=1", "optim.epochs=1", "method.name=mfef"))
    before = copied(job)
    train(job)
    changed = moved(before, job.method.state_dict())
    student = job.method.cohort.backbone(0)
    extraction = {f"cohort.students.0.stages.3.{name}" for name, _ in student.stages[3].named_parameters()}
    own = {name for name in extraction if name.startswith("cohort.students.0.stages.3.0.")}
    assert changed & extraction == extraction - own
    assert own


NORMED = """
import torch
from torch import nn
from torch.nn.utils import parametrizations

def old_spectral_norm(layer):
    return torch.nn.utils.spectral_norm(layer)

class Iterated(nn.Conv2d):
    "A spectral norm by hand, whose buffer is another tensor after each step."
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, 3, padding=1)
        self.register_buffer("u", torch.ones(outputs))

    def forward(self, x):
        flat = self.weight.detach().flatten(1)
        if self.training:
            self.u = nn.functional.normalize(flat @ (flat.T @ self.u), dim=0)
        return self._conv_forward(x, self.weight / (flat.T @ self.u).norm(), self.bias)

class Seen(nn.Module):
    "Counts the images of its training, beside a dropout of its own."
    def __init__(self):
        super().__init__()
        self.register_buffer("images", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.images += len(x)
        return nn.functional.dropout(x, 0.5, self.training)

class Centred(nn.Module):
    "A part of a head that learns without a gradient."
    def __init__(self, classes):
        super().__init__()
        self.register_buffer("centre", torch.zeros(classes))

    def forward(self, x):
        if self.training:
            self.centre.lerp_(x.detach().mean(0), 0.1)
        return x - self.centre

def normed(classes):
    new, old = parametrizations.spectral_norm, old_spectral_norm
    layers = [new(nn.Conv2d(3, 8, 3, padding=1)), nn.ReLU(), old(nn.Conv2d(8, 8, 3, 2, 1)), nn.BatchNorm2d(8)]
    layers += [nn.ReLU()]
    layers += [Iterated(8, 8), Seen(), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), new(nn.Linear(8, classes)), Centred(classes)]
    return nn.Sequential(*layers)
"""
OF_THE_HEAD = (".12.", ".13.")


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.spectral_norm.*:FutureWarning")
def test_no_buffer_of_a_fixed_backbone_moves_and_those_of_its_head_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "normed_nets", raising=False)
    Path("normed_nets.py").write_text(NORMED, encoding="utf-8")
    torch.manual_seed(4)
    save_file(backbones.build("normed_nets:normed", 7, SMALL).weights(), "n.safetensors")
    words = ("cohort.weights=n.safetensors", "cohort.students=['normed_nets:normed']", "method.name=baseline")
    job = built(recipe(*words, "optim.freeze_epochs=2", "optim.epochs=2"))
    before = copied(job)
    train(job)
    state = job.method.state_dict()
    inside = {name for name in before if name.startswith("cohort.students.0.")}
    head = {name for name in inside if any(part in name for part in OF_THE_HEAD)}
    assert moved(before, state) == head
    assert {name.rpartition(".")[2] for name in head} >= {"_u", "_v", "centre", "original"}
    assert {name.rpartition(".")[2] for name in inside - head} >= {"_u", "weight_v", "u", "images", "running_mean"}


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, spectral_norm])
def test_spectral_norms_are_as_in_evaluation_while_they_are_fixed_and_go_on_afterwards(norm: Any) -> None:
    """The weight that a step computes with, to the bit. A dropout that goes by the same mode stays on."""
    network = backbones.build("resnet8", 10, SMALL)
    layer = norm(nn.Linear(6, 5))
    network.stages.append(layer)
    x = torch.randn(3, 6)
    expected = layer.eval()(x)
    fixed = Backbones([Finetuned(network, ())])
    network.train()
    fixed.set(fixed=True)
    for _ in range(2):
        assert torch.equal(layer(x), expected)
    assert layer.training
    network.train()
    fixed.set(fixed=False)
    assert not torch.equal(layer(x), expected)


@cache
def uninterrupted(words: tuple[str, ...]) -> dict[str, Any]:
    return outcome(start(*words, out=Path("whole")))


@pytest.mark.parametrize("call", [1, 5, 7, 8, 9, CALLS - 1])
@pytest.mark.parametrize("more", [(), ADAMW])
def test_a_run_that_is_stopped_before_after_or_where_it_thaws_continues_to_the_bit(
    call: int, more: tuple[str, ...]
) -> None:
    words = (*FIXED, *more)
    with pytest.raises(Interrupted):
        start(*words, tell=signalled(call, signal.SIGINT), out=Path("run"))
    assert outcome(resume(Path("run"))) == uninterrupted(words)


def test_the_first_steps_of_a_thawed_backbone_are_those_of_any_first_step() -> None:
    """torch's fused SGD begins with the gradient as its momentum, and so does one that was given zeros."""
    job = built(recipe(FROM, "optim.freeze_epochs=1", "optim.epochs=2", "method.name=baseline"))
    settings = starts.decided(device.choose(job.recipe.engine, 8), job)
    taken = step.TrainStep(job.method, job.recipe.optim, settings, finetuned=job.finetuned)
    parameter = next(iter(job.method.cohort.backbone(0).parameters()))
    batch = Batch(torch.randn(4, *SMALL), torch.arange(4))
    for epoch in (0, 1):
        assert taken.begin(epoch)
        before = parameter.detach().clone()
        taken(batch, 0.0)
        assert torch.equal(before, parameter) == (epoch == 0)
    assert parameter.grad is not None
    gradient = parameter.grad + job.recipe.optim.weight_decay * before
    expected = before - job.recipe.optim.lr * (1 + job.recipe.optim.momentum) * gradient
    torch.testing.assert_close(parameter.detach(), expected)


def test_compiled_or_not_the_same_parameters_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = start(*FIXED, "optim.epochs=3", out=Path("eager"))
    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "without_compiler", lambda _: "")
    monkeypatch.setattr(step, "compiled", compilers.traced)
    traced = start(*FIXED, "optim.epochs=3", "engine.compile=on", out=Path("traced"))
    assert "w.safetensors" in eager.recipe.read_text(encoding="utf-8")
    one, other, begun = (load_file(path) for path in (eager.weights, traced.weights, "w.safetensors"))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(one["stages.0.0.weight"], begun["stages.0.0.weight"], rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Slower


def test_backbones_learn_by_their_factor_and_all_else_by_the_rate() -> None:
    job = built(recipe("cohort.share=none", "cohort.weights=['w.safetensors', 'none']", "optim.backbone_lr=0.1"))
    (student,) = job.finetuned
    optimizer = build_optimizer(job.method, job.recipe.optim, Backbones(job.finetuned).parameters)
    names = {id(p): name for name, p in job.method.named_parameters()}
    slow = {names[id(p)] for group in optimizer.param_groups if group["factor"] == 0.1 for p in group["params"]}
    rest = {names[id(p)] for group in optimizer.param_groups if group["factor"] == 1.0 for p in group["params"]}
    parameters = {name for name, _ in job.method.named_parameters()}
    assert slow == backbone(dict.fromkeys(parameters, torch.empty(0)), 0)
    assert rest == parameters - slow
    assert {names[id(p)].rpartition(".")[0] for p in student.head} == {"cohort.students.0.head.fc"}
    decays = {(group["factor"], group["weight_decay"]) for group in optimizer.param_groups}
    assert decays == {(0.1, 1e-4), (1.0, 1e-4), (1.0, 1e-5)}


def test_a_factor_moves_a_backbone_by_that_much_less() -> None:
    batch, far = Batch(torch.randn(4, *SMALL, generator=torch.Generator().manual_seed(1)), torch.arange(4)), {}
    for factor in (1.0, 0.25):
        words = (f"optim.backbone_lr={factor}", "method.name=baseline")
        job = built(recipe(FROM, *words))
        settings = starts.decided(device.choose(job.recipe.engine, 8), job)
        taken = step.TrainStep(job.method, job.recipe.optim, settings, finetuned=job.finetuned)
        assert not taken.begin(0)
        before = {name: p.detach().clone() for name, p in job.method.named_parameters()}
        taken(batch, 0.0)
        far[factor] = {name: p.detach() - before[name] for name, p in job.method.named_parameters()}
    for name, way in far[1.0].items():
        share = 1.0 if ".head.fc." in name else 0.25
        torch.testing.assert_close(far[0.25][name], share * way, rtol=1e-3, atol=1e-7)


# ---------------------------------------------------------------------------------------------------------------------
# Recipes


@pytest.mark.parametrize("word", ["optim.freeze_epochs=1", "optim.backbone_lr=0.1"])
def test_without_trained_weights_nothing_is_fixed_or_slow(word: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(word, "cohort.weights=none")
    assert caught.value.details[0].startswith(f"{word.partition('=')[0]}: it is for students that start from trained")


def test_no_more_epochs_are_fixed_than_there_are() -> None:
    assert recipe(FROM, "optim.freeze_epochs=3").recipe.optim.epochs == 3
    with pytest.raises(RecipeError) as caught:
        recipe(FROM, "optim.freeze_epochs=4")
    assert caught.value.details == ("optim.freeze_epochs: expected optim.epochs (3) at most, found 4",)


def test_a_training_does_not_end_before_its_backbones_learn() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(FROM, "optim.freeze_epochs=2", "optim.patience=2")
    assert [problem.partition(":")[0] for problem in caught.value.details] == ["optim.patience"]
    recipe(FROM, "optim.freeze_epochs=2", "optim.patience=3")


class Masked(nn.Module):
    """A block with a constant of its own, as timm's Swin has, around layers that a fixed backbone leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.zeros(3))
        self.norm, self.drop = nn.BatchNorm2d(3), nn.Dropout(0.5)


def test_of_a_fixed_backbone_only_running_statistics_stay() -> None:
    network = backbones.build("resnet8", 10, torch.Size((3, 8, 8)))
    masked = Masked()
    network.stages.append(masked)
    fixed = Backbones([Finetuned(network, ())])
    network.train()
    fixed.set(fixed=True)
    assert masked.training
    assert masked.drop.training
    assert not masked.norm.training
    network.train()
    fixed.set(fixed=False)
    assert masked.norm.training
