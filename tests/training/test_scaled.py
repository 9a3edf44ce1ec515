"""Training in float16: the scale of the loss, the steps that it costs, and that all of it continues to the bit.

float16 is for a GPU. Its arithmetic is a CPU's here, in the layout in which a CPU is not a hundred times slower.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import EPOCHS, STEPS, Quiet, built, no_waiting, outcome, recipe, resume, rows, signalled, start
from torch import nn

from okdc.data.augmentation import Augmentation, Examples
from okdc.data.batches import Normalise, TrainBatches
from okdc.errors import Interrupted, TrainingError
from okdc.methods.base import Batch
from okdc.recipe.schema import Augment, Engine
from okdc.runs.run import RunDir
from okdc.training import checkpoint, device, scaling
from okdc.training import start as starts
from okdc.training.device import Settings
from okdc.training.metrics import Totals
from okdc.training.scaling import Scaler
from okdc.training.step import TrainStep

CPU = torch.device("cpu")
HALF = Settings("cpu", "float16", "channels_last", 1)


def begin_at(patch: pytest.MonkeyPatch, scale: float) -> None:
    """Let every scaler begin with a scale, 65,536 otherwise."""
    patch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=scale))


# ---------------------------------------------------------------------------------------------------------------------
# The scaler by itself


class Learner:
    """Two numbers that learn from a sum of weighted losses, with a scaler or without."""

    def __init__(self, scaled: bool) -> None:
        self.p = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.optimizer = torch.optim.SGD([self.p], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, fused=True)
        self.scaler = Scaler(self.optimizer, CPU) if scaled else None

    def step(self, weight: float = 1.0, clip: float = 0.0) -> None:
        self.optimizer.zero_grad()
        loss = (self.p * self.p).sum() * weight
        (self.scaler.scale(loss) if self.scaler else loss).backward()
        if clip:
            if self.scaler:
                self.scaler.unscale()
            nn.utils.clip_grad_norm_([self.p], clip)
        (self.scaler or self.optimizer).step()

    def result(self) -> list[float]:
        return [*self.p.tolist(), *self.optimizer.state[self.p]["momentum_buffer"].tolist()]


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_steps_without_an_overflow_are_those_without_a_scale_to_the_bit(clip: float) -> None:
    """The scale is a power of two."""
    one, other = Learner(False), Learner(True)
    for _ in range(4):
        one.step(clip=clip)
        other.step(clip=clip)
        assert other.result() == one.result()
    assert other.scaler is not None
    assert other.scaler.skipped == 0


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_step_that_overflows_changes_nothing_is_counted_and_halves_the_scale(clip: float) -> None:
    """The very first one too, in which the optimiser makes its momenta; and one in the middle."""
    one, other = Learner(False), Learner(True)
    assert other.scaler is not None
    for overflows in (True, False, False, True, False):
        before = other.result()
        other.step(float("inf") if overflows else 1.0, clip)
        if overflows:
            assert other.result() == before
        else:
            one.step(clip=clip)
            assert other.result() == one.result()
    assert other.scaler.skipped == 2
    assert other.scaler.state()["scale"] == 2.0**14


def test_adamw_skips_its_first_step_as_any_other() -> None:
    """It counts its steps itself, for the correction of its means."""
    learners = []
    for weights in ((float("inf"), 1.0, float("inf"), 1.0), (1.0, 1.0)):
        p = nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = torch.optim.AdamW([p], lr=0.1, fused=True)
        scaler = Scaler(optimizer, CPU)
        for weight in weights:
            optimizer.zero_grad()
            scaler.scale((p * p).sum() * weight).backward()
            scaler.step()
        assert scaler.skipped == len(weights) - 2
        learners.append([p, *optimizer.state[p].values()])
    assert all(torch.equal(a, b) for a, b in zip(*learners, strict=True))


def test_a_restored_scaler_goes_on_as_the_one_that_was_saved() -> None:
    one = Learner(True)
    assert one.scaler is not None
    for weight in (1.0, float("inf"), 1.0, 1.0):
        one.step(weight)
    state = one.scaler.state()
    assert all(isinstance(value, int | float) for value in state.values())
    other = Learner(True)
    assert other.scaler is not None
    other.scaler.load(state)
    assert other.scaler.state() == state
    for weight in (1.0, float("inf"), 1.0):
        one.step(weight)
        other.step(weight)
    assert other.scaler.state() == one.scaler.state() != state
    assert other.scaler.skipped == 2


def test_a_training_is_stuck_where_every_step_was_skipped_or_no_scale_is_small_enough() -> None:
    learner = Learner(True)
    assert learner.scaler is not None
    for done in range(40):
        left = 16 + 12 - done  # halvings
        assert bool(learner.scaler.stuck(1_000)) is (left < 0), done
        learner.step(float("inf"))
    assert "40 steps" in learner.scaler.stuck(40)


# ---------------------------------------------------------------------------------------------------------------------
# In a training


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training of the test is one in float16."""
    chosen = starts.settings_of

    def settings_of(resolved: Any, engine: Engine, *args: Any) -> Settings:
        settings = chosen(resolved, engine.model_copy(update={"dtype": "float32"}), *args)
        return replace(settings, dtype="float16", memory_format="channels_last")

    monkeypatch.setattr(starts, "settings_of", settings_of)


WORDS = ("method.name=baseline", 'cohort.students=["resnet8"]')


@pytest.mark.usefixtures("half")
def test_skipped_steps_are_in_the_log_and_said_once_and_a_stopped_training_continues_to_the_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin_at(monkeypatch, 2.0**22)
    tell = Quiet()
    whole = start(*WORDS, tell=tell)
    skipped = [row["skipped_steps"] for row in rows(whole)]
    assert 0 < sum(skipped) < STEPS * EPOCHS
    assert skipped == sorted(skipped, reverse=True), "the first steps"
    said = [note for note in tell.notes if "were skipped" in note]
    assert len(said) == 1
    assert f"{sum(skipped)} of {STEPS * EPOCHS} steps" in said[0]
    state, _ = checkpoint.load(whole)
    assert state is not None
    assert state["scaler"]["scale"] == 2.0 ** (22 - sum(skipped))
    assert state["scaler"]["skipped"] == sum(skipped)

    for call in (2, STEPS + 3):
        path = Path(f"stopped{call}")
        with pytest.raises(Interrupted):
            start(*WORDS, tell=signalled(call, signal.SIGINT), out=path)
        assert outcome(resume(path)) == outcome(whole)


@pytest.mark.usefixtures("half")
def test_a_training_whose_every_step_is_skipped_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    begin_at(monkeypatch, 2.0**100)
    with pytest.raises(TrainingError, match="float16") as caught:
        start(*WORDS, out=Path("run"))
    assert "float32" in caught.value.hint
    assert RunDir(Path("run")).state() == "failed"


@pytest.mark.usefixtures("half")
def test_a_training_without_an_overflow_says_nothing_of_skipped_steps() -> None:
    tell = Quiet()
    run = start(*WORDS, "optim.epochs=1", tell=tell)
    assert [row["skipped_steps"] for row in rows(run)] == [0]
    assert not any("skipped" in note for note in tell.notes)
    assert not scaling.Scaler(torch.optim.SGD([nn.Parameter(torch.ones(1))]), CPU).stuck(1)


def test_a_training_in_float32_has_no_scaler_and_no_such_key() -> None:
    run = start(*WORDS, "optim.epochs=1")
    assert "skipped_steps" not in rows(run)[0]
    state, _ = checkpoint.load(run)
    assert state is not None
    assert "scaler" not in state


@pytest.mark.parametrize(
    "name",
    [
        "fefr",
        "ffl",
        "okddip",
        "one",
        "dualnet",
        "kdcl",
        "dml",
        "mfef",
        "byot",
        "ahbf",
        "switokd",
        "pcl",
        "okdph",
        "relay",
    ],
)
def test_losses_and_what_they_are_made_of_are_float32_and_near_those_of_float32(name: str) -> None:
    losses = []
    for settings in (HALF, replace(HALF, dtype="float32")):
        job = built(recipe(f"method.name={name}"))
        step = TrainStep(job.method.train(), job.recipe.optim, settings)
        generator = torch.Generator().manual_seed(0)
        batch = Batch(torch.randn(16, 3, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator))
        taken = step(batch, 0.5)
        assert {loss.dtype for loss in taken.losses.values()} == {torch.float32}
        assert {z.dtype for z in taken.logits.values()} == {torch.float32}
        assert {p.dtype for p in step.parameters} == {torch.float32}
        losses.append({name: loss.item() for name, loss in taken.losses.items()})
    assert losses[0] == pytest.approx(losses[1], rel=2e-2, abs=2e-3)


# ---------------------------------------------------------------------------------------------------------------------
# On a GPU


@pytest.fixture
def gpu() -> Iterator[Settings]:
    settings = device.choose(Engine(device="cuda", dtype="float16", compile="off"), 8)
    device.apply(settings, deterministic=False)
    yield settings
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.gpu
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_scaled_steps_and_their_counts_never_wait_for_the_gpu(gpu: Settings, clip: float) -> None:
    """Skipped ones included: nobody is told."""
    job = built(recipe("data.train_images=200", f"optim.clip={clip}"))
    step = TrainStep(job.method.train(), job.recipe.optim, gpu)
    normalise = Normalise((0.5,) * 3, (0.5,) * 3, gpu.torch_device, gpu.torch_memory_format)
    batches = TrainBatches(job.dataset.to(gpu.torch_device), 16, Augmentation(Augment(padding=1)), normalise, 0)
    totals, maps = Totals(gpu.torch_device), set[torch.dtype]()
    for module in step.method.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, y: maps.add(y.dtype))
    drawn = batches.epoch(0)

    def take(examples: Examples, number: int) -> None:
        totals.add(step(Batch(*examples), number / batches.steps), examples.labels, number)

    for number in range(3):
        take(next(drawn), number)
    with no_waiting():
        for number, examples in enumerate(drawn, 3):
            take(examples, number)
    assert step.scaler is not None
    assert step.scaler.skipped < batches.steps
    assert totals.read().bad is None
    assert maps == {torch.float16}
    assert step.state()["scaler"]["scale"] == 2.0 ** (16 - step.scaler.skipped)
