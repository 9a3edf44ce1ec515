"""What a network of somebody else's is tried for before it is trained, and that nothing of the trial is left behind."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from okdc.bundle.checks import FLOOR
from okdc.bundle.session import Floats, Session
from okdc.cohort import Backbone
from okdc.deploy import onnx, second_engine, trial
from okdc.errors import CheckFailed
from okdc.seeds import seeded

SIZE, CLASSES = 8, 5
Change = Callable[[Floats], Floats]


class Head(nn.Module):
    """Features NC -> what `answer` makes of the logits, before or after the linear layer."""

    def __init__(self, before: Callable[[Tensor], Tensor] | None, after: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.fc = nn.Linear(8, CLASSES)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        if self.before:
            x = self.before(x)
        x = self.fc(x)
        return self.after(x) if self.after else x


def network(
    before: Callable[[Tensor], Tensor] | None = None, after: Callable[[Tensor], Tensor] | None = None
) -> Backbone:
    with seeded(0, "student"):
        stages = [nn.Sequential(nn.Conv2d(i, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()) for i in (3, 8)]
        made = Backbone(stages, Head(before, after), (8, 8), (1, 1))
    made.architecture = "mine:net"
    return made


def attempt(network: Backbone) -> list[str]:
    return trial.attempt(network, SIZE, CLASSES)


def refused(network: Backbone) -> CheckFailed:
    with pytest.raises(CheckFailed) as caught:
        attempt(network)
    return caught.value


@pytest.fixture
def unexported(monkeypatch: pytest.MonkeyPatch) -> None:
    def export(*_: object) -> bytes:
        raise AssertionError("it was exported, though its forward forbids it")

    monkeypatch.setattr(onnx, "to_onnx", export)


def test_a_plain_network_passes_and_is_left_as_it_is() -> None:
    plain = network().train()
    before = {key: tensor.clone() for key, tensor in plain.state_dict().items()}
    momentum = plain.stages[0][1].momentum  # type: ignore[index]
    assert attempt(plain) == []
    assert plain.training
    assert plain.stages[0][1].momentum == momentum  # type: ignore[index]
    assert all(torch.equal(tensor, before[key]) for key, tensor in plain.state_dict().items())


# ---------------------------------------------------------------------------------------------------------------------
# Its forward


@pytest.mark.usefixtures("unexported")
def test_a_forward_that_is_random_in_evaluation_is_refused() -> None:
    error = refused(network(lambda x: F.dropout(x, 0.3)))
    assert error.kind == "parity"
    assert "second time" in error.message
    assert "training=self.training" in error.hint


@pytest.mark.usefixtures("unexported")
@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_a_forward_that_mixes_the_images_of_a_batch_is_refused(scale: float) -> None:
    """At any scale of the signal before the last BatchNorm: its statistics are those of the images."""
    coupled = network(lambda x: x - x.mean(0, keepdim=True))
    with torch.no_grad():
        coupled.stages[1][0].weight *= scale  # type: ignore[index]
        coupled.stages[1][1].eps = 1e-14  # type: ignore[index]
    error = refused(coupled)
    assert error.kind == "parity"
    assert f"{trial.IMAGES} at a time" in error.message


def test_what_has_no_plain_graph_is_refused_with_the_exports_own_reason() -> None:
    def counted(x: Tensor) -> Tensor:
        return x + 0 * torch.nonzero(x).sum()

    assert refused(network(counted)).kind == "structure"


@pytest.mark.parametrize("error", [ZeroDivisionError("by nought"), SystemExit(3)])
def test_whatever_it_raises_is_the_reason(error: BaseException) -> None:
    def raises(_: Tensor) -> Tensor:
        raise error

    caught = refused(network(raises))
    assert caught.kind == "structure"
    assert type(error).__name__ in caught.message


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory"), KeyboardInterrupt()])
def test_a_full_memory_and_ctrl_c_are_no_reasons(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(_: Tensor) -> Tensor:
        raise error

    with pytest.raises(type(error)) as caught:
        attempt(network(raises))
    assert caught.value is error

    def counts(*_: object) -> None:
        raise CheckFailed("counting", "it cannot be counted") from error

    monkeypatch.setattr(trial, "count", counts)
    with pytest.raises(CheckFailed if isinstance(error, KeyboardInterrupt) else type(error)):
        attempt(network())


def test_outputs_that_are_not_finite_are_warned_of_for_the_weights_change() -> None:
    (warning,) = attempt(network(after=lambda z: z + float("inf")))
    assert "not finite" in warning


# ---------------------------------------------------------------------------------------------------------------------
# Softmax


def test_a_network_that_ends_in_softmax_is_warned_of() -> None:
    (warning,) = attempt(network(after=lambda z: z.softmax(1)))
    assert "softmax" in warning
    assert trial.softmax(network(after=lambda z: z.softmax(1)), SIZE, CLASSES) == [warning]


@pytest.mark.parametrize(
    "after",
    [
        None,
        lambda z: z.log_softmax(1),
        torch.sigmoid,
        lambda z: F.softmax(z, 1) * 2,
        lambda z: 9 * z + (1 - 9 * z.sum(1, keepdim=True)) / CLASSES,  # sums to 1, and is below 0 somewhere
    ],
)
def test_other_outputs_are_not(after: Callable[[Tensor], Tensor] | None) -> None:
    assert trial.softmax(network(after=after), SIZE, CLASSES) == []


# ---------------------------------------------------------------------------------------------------------------------
# Its file


def answers(monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    """Let onnxruntime answer `change` of its logits."""

    class Changed(Session):
        def __call__(self, *arguments: Any) -> tuple[Floats, Floats]:
            logits, probabilities = super().__call__(*arguments)
            return change(logits) if arguments[1] == trial.IMAGES else logits, probabilities

    monkeypatch.setattr(trial, "Session", Changed)
    monkeypatch.setattr(trial, "_uncoupled", lambda *_: None)


def test_numbers_that_differ_are_warned_of_and_those_of_every_image_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_image(logits: Floats) -> Floats:
        return np.concatenate([logits[:1] + 1, logits[1:]])

    answers(monkeypatch, lambda logits: logits + 3 * np.float32(FLOOR))
    (warning,) = attempt(network())
    assert "3.0e-05" in warning
    answers(monkeypatch, one_image)
    (warning,) = attempt(network())
    assert "1.0e+00" in warning
    answers(monkeypatch, lambda logits: logits + 1)
    error = refused(network())
    assert (error.kind, "every image" in error.message) == ("parity", True)


def test_a_file_that_answers_otherwise_to_a_batch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    uncoupled = trial._uncoupled
    answers(monkeypatch, lambda logits: logits[::-1])
    monkeypatch.setattr(trial, "_uncoupled", uncoupled)
    error = refused(network())
    assert error.kind == "parity"
    assert error.message.startswith("its ONNX file ")
    assert f"{trial.IMAGES} at a time" in error.message


def test_a_file_that_the_second_engine_cannot_run_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, model: object) -> None:
            raise NotImplementedError("an operator")

    monkeypatch.setattr(second_engine, "ReferenceEvaluator", Broken)
    (warning,) = trial.attempt(network(), SIZE, CLASSES)
    assert "NotImplementedError" in warning


def test_a_file_that_the_second_engine_reads_differently_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def __init__(self, model: object) -> None:
            pass

        def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            assert outputs == ["logits"]
            return [np.full((len(inputs["image"]), CLASSES), 7.0, np.float32)]

    monkeypatch.setattr(second_engine, "ReferenceEvaluator", Other)
    error = refused(network())
    assert error.kind == "parity"
    assert "onnx.reference" in error.message


# ---------------------------------------------------------------------------------------------------------------------
# Nothing is left behind


def test_random_states_and_switches_are_given_back() -> None:
    def restless(x: Tensor) -> Tensor:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        torch.set_grad_enabled(True)
        torch.set_float32_matmul_precision("medium")
        torch.use_deterministic_algorithms(True, warn_only=True)
        return x

    def state() -> tuple[object, ...]:
        return (
            random.getstate(),
            str(np.random.get_state()),
            torch.random.get_rng_state().tolist(),
            *(read() for read, _ in trial.SWITCHES),
        )

    before = state()
    assert trial.softmax(network(restless), SIZE, CLASSES) == []
    assert state() == before
